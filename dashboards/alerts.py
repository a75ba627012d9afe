"""The alerts, each with series under which it fires and under which it does not, for promtool.

Thresholds are starting points for an installation that has none of its own; docs/runbooks.md has a heading for each
alert, which `runbook_url` leads to: prefix it with where your copy of the documentation is.
"""
import json
import re
from dataclasses import dataclass

RUNBOOKS = "docs/runbooks.md"
BAD = 'code!~"OK|CANCELLED|INVALID_ARGUMENT"'


@dataclass(frozen=True)
class Alert:
    name: str
    expression: str
    wait: str  # how long it has to hold
    severity: str  # critical: requests fail or will; warning: look today
    summary: str
    description: str
    # Series in promtool's notation, a sample a minute; looked at after `at`.
    fires: dict[str, str]
    quiet: dict[str, str]
    at: str
    # Labels of the alert that fires, beside severity, and the value that its description tells.
    labels: dict[str, str]
    value: str


ALERTS = (
    Alert("BallastNoControllerCommands", "absent(ballast_leader) or sum(ballast_leader) < 1", "2m", "critical",
          "No Ballast controller commands.",
          "Workers serve on in their last view and placement. When one of them dies now, requests get UNAVAILABLE.",
          {"ballast_leader": "1x3 0x20"}, {"ballast_leader": "1x3 0 1x20"}, "10m", {}, ""),
    Alert("BallastControllerGone", "absent(ballast_store_up)", "5m", "critical",
          "No Ballast controller shows metrics.",
          "The controller is down, or Prometheus does not reach its metrics port.",
          {"ballast_store_up": "1x2 stale"}, {"ballast_store_up": "1x20"}, "10m", {}, ""),
    Alert("BallastStoreDown", "min by (instance) (ballast_store_up) == 0", "1m", "critical",
          "The controller cannot write its store.",
          "{{ $labels.instance }} makes no plan and commits no wave until it can: nothing is decided that is not kept.",
          {'ballast_store_up{instance="c"}': "1x3 0x20"}, {'ballast_store_up{instance="c"}': "1x3 0 1x20"}, "10m",
          {"instance": "c"}, ""),
    Alert("BallastExpertsMissing", "max by (group) (ballast_missing_experts) > 0", "1m", "critical",
          "Group {{ $labels.group }} lacks experts.",
          "{{ $value }} experts have no live replica; requests that need them get UNAVAILABLE.",
          {'ballast_missing_experts{group="g",model="m"}': "0x3 16x20"},
          {'ballast_missing_experts{group="g",model="m"}': "0x20"}, "10m", {"group": "g"}, "16"),
    Alert("BallastWorkersLost", 'sum by (group) (ballast_group_workers{state=~"DEAD|DISCONNECTED"}) > 0', "5m",
          "warning", "Group {{ $labels.group }} has lost workers.",
          "{{ $value }} workers are dead or disconnected. The others serve on where every expert has a live replica.",
          {'ballast_group_workers{group="g",state="DEAD"}': "0x2 1x20",
           'ballast_group_workers{group="g",state="SERVING"}': "4x2 3x20"},
          {'ballast_group_workers{group="g",state="DEAD"}': "0 0 1 0x20",
           'ballast_group_workers{group="g",state="SERVING"}': "4x20"}, "12m", {"group": "g"}, "1"),
    Alert("BallastViewsChange", "changes(ballast_view[15m]) > 6", "0m", "warning",
          "The membership of group {{ $labels.group }} does not settle.",
          "{{ $value }} views in 15 minutes: workers come and go.",
          {'ballast_view{group="g"}': "1+1x20"}, {'ballast_view{group="g"}': "1x10 2x10"}, "16m", {"group": "g"},
          "15"),
    Alert("BallastRequestsFail",
          f"sum by (group) (rate(ballast_requests_total{{{BAD}}}[5m])) / "
          "sum by (group) (rate(ballast_requests_total[5m])) > 0.01", "5m",
          "critical", "Requests of group {{ $labels.group }} fail.",
          "{{ $value | humanizePercentage }} of them ended with an error that is not the caller's.",
          {'ballast_requests_total{group="g",code="OK",task="t"}': "0+95x20",
           'ballast_requests_total{group="g",code="UNAVAILABLE",task="t"}': "0+5x20",
           'ballast_requests_total{group="busy",code="OK",task="t"}': "0+9500x20"},
          {'ballast_requests_total{group="g",code="OK",task="t"}': "0+95x20",
           'ballast_requests_total{group="g",code="INVALID_ARGUMENT",task="t"}': "0+50x20",
           'ballast_requests_total{group="g",code="UNAVAILABLE",task="t"}': "0x20"}, "15m", {"group": "g"}, "5%"),
    Alert("BallastRequestsWait", "max_over_time(ballast_requests_waiting[1m]) > ballast_requests_running and "
          "min_over_time(ballast_requests_waiting[5m]) > 0", "10m", "warning",
          "Worker {{ $labels.worker }} has a queue that does not go down.",
          "{{ $value }} requests wait there, more than run.",
          {'ballast_requests_waiting{worker="w"}': "20x30", 'ballast_requests_running{worker="w"}': "8x30"},
          {'ballast_requests_waiting{worker="w"}': "20 0 20 0 20 0 20 0 20 0 20 0 20 0 20 0 20 0 20 0",
           'ballast_requests_running{worker="w"}': "8x30"}, "18m", {"worker": "w"}, "20"),
    Alert("BallastCacheFull", "min_over_time(ballast_kv_cache_used_ratio[5m]) > 0.95", "10m", "warning",
          "The KV cache of worker {{ $labels.worker }} is full.",
          "{{ $value | humanizePercentage }} of its blocks are set aside all the time; requests wait for room.",
          {'ballast_kv_cache_used_ratio{worker="w"}': "0.99x30"},
          {'ballast_kv_cache_used_ratio{worker="w"}': "0.99x10 0.5 0.99x20"}, "20m", {"worker": "w"}, "99%"),
    Alert("BallastNotLevel",
          'avg by (group, phase) (ballast_layer_balancedness_ratio{task="*"}) < 0.7 and on (group) '
          "(max by (group) (max_over_time(ballast_rebalancing[30m])) == 0)", "1h", "warning",
          "Group {{ $labels.group }} is not level in phase {{ $labels.phase }}.",
          "Mean over max of the workers' tokens is {{ $value | printf \"%.2f\" }} and no rollout has begun in 30 minutes.",
          {'ballast_layer_balancedness_ratio{group="g",phase="decode",task="*",layer="0"}': "0.5x120",
           'ballast_layer_balancedness_ratio{group="g",phase="decode",task="*",layer="1"}': "0.7x120",
           'ballast_rebalancing{group="g",model="m"}': "0x120"},
          {'ballast_layer_balancedness_ratio{group="g",phase="decode",task="*",layer="0"}': "0.5x120",
           'ballast_rebalancing{group="g",model="m"}': "0x50 1 0x120"}, "100m",
          {"group": "g", "phase": "decode"}, "0.60"),
    Alert("BallastRolloutsAbort", 'sum by (group) (increase(ballast_rollouts_total{result="aborted"}[1h])) > 2', "0m",
          "warning", "Rollouts of group {{ $labels.group }} abort.",
          "{{ $value | humanize }} within an hour. The placement in force stays as it is.",
          {'ballast_rollouts_total{group="g",result="aborted"}': "0+1x5 5x60"},
          {'ballast_rollouts_total{group="g",result="aborted"}': "0 1x60",
           'ballast_rollouts_total{group="g",result="done"}': "0+1x60"}, "30m", {"group": "g"}, "5"),
    Alert("BallastRolloutStuck", "min_over_time(ballast_rebalancing[1h]) == 1", "5m", "warning",
          "A rollout of group {{ $labels.group }} does not end.",
          "It has been under way for more than an hour.",
          {'ballast_rebalancing{group="g"}': "1x120"}, {'ballast_rebalancing{group="g"}': "1x50 0 1x120"}, "90m",
          {"group": "g"}, ""),
    Alert("BallastTelemetryLate",
          "max by (group) (ballast_telemetry_lag_seconds) > 60 and on (group) "
          "sum by (group) (rate(ballast_worker_tokens_total[5m])) > 0",
          "5m", "warning", "The load of group {{ $labels.group }} is not counted.",
          "The newest load report that was counted is {{ $value | humanizeDuration }} old, while tokens are served: "
          "plans are made from an old load.",
          {'ballast_telemetry_lag_seconds{group="g"}': "0+60x20",
           'ballast_worker_tokens_total{group="g",worker="w",phase="decode"}': "0+100x20"},
          {'ballast_telemetry_lag_seconds{group="g"}': "0+60x20",
           'ballast_telemetry_lag_seconds{group="busy"}': "1x20",
           'ballast_worker_tokens_total{group="g",worker="w",phase="decode"}': "100x20",
           'ballast_worker_tokens_total{group="busy",worker="v",phase="decode"}': "0+100x20"}, "15m", {"group": "g"},
          "15m 0s"),
    Alert("BallastReportsRefused",
          'sum(rate(ballast_telemetry_reports_total{result=~"invalid|after_gap"}[10m])) > 0', "10m", "warning",
          "Load reports are refused or missing.",
          "{{ $value | humanize }} a second: some of the load is not known to the controller.",
          {'ballast_telemetry_reports_total{result="invalid"}': "0+60x40"},
          {'ballast_telemetry_reports_total{result="counted"}': "0+60x40",
           'ballast_telemetry_reports_total{result="invalid"}': "3x40"}, "25m", {}, "1"),
    Alert("BallastTasksAwayFromHome",
          'sum by (task) (rate(ballast_requests_routed_total{route=~"spilled|spilled_here"}[15m])) / '
          "sum by (task) (rate(ballast_requests_routed_total[15m])) > 0.3", "30m", "warning",
          "Task {{ $labels.task }} has more traffic than its homes.",
          "{{ $value | humanizePercentage }} of its requests run elsewhere, where fewer of their experts are near.",
          {'ballast_requests_routed_total{task="t",route="home",result="OK"}': "0+50x70",
           'ballast_requests_routed_total{task="t",route="spilled",result="OK"}': "0+50x70"},
          {'ballast_requests_routed_total{task="t",route="home",result="OK"}': "0+90x70",
           'ballast_requests_routed_total{task="t",route="spilled",result="OK"}': "0+10x70"}, "60m", {"task": "t"},
          "50%"),
)

_HEAD = "# Written by dashboards/generate.py from dashboards/alerts.py.\n"


def runbook_url(alert):
    return f"{RUNBOOKS}#{alert.name.lower()}"


def _quote(text):
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a YAML one


def rules():
    """Prometheus' rule file."""
    out = [_HEAD + "groups:\n  - name: ballast\n    rules:\n"]
    for alert in ALERTS:
        out.append(f"      - alert: {alert.name}\n"
                   f"        expr: {_quote(alert.expression)}\n"
                   f"        for: {alert.wait}\n"
                   f"        labels:\n          severity: {alert.severity}\n"
                   f"        annotations:\n"
                   f"          summary: {_quote(alert.summary)}\n"
                   f"          description: {_quote(alert.description)}\n"
                   f"          runbook_url: {_quote(runbook_url(alert))}\n")
    return "".join(out)


def _told(text, alert):
    """An annotation as it reads when the alert fires."""
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda m: alert.labels[m.group(1)], text)
    return re.sub(r"\{\{ \$value[^}]*\}\}", alert.value, text)


def rules_test():
    """promtool's test: each alert alone fires on its own series, and keeps quiet on those that look alike."""
    out = [_HEAD + "rule_files:\n  - rules.yaml\nevaluation_interval: 1m\ntests:\n"]
    for alert in ALERTS:
        for series, fires in ((alert.fires, True), (alert.quiet, False)):
            out.append(f"  - name: {_quote(alert.name + (' fires' if fires else ' keeps quiet'))}\n"
                       "    interval: 1m\n    input_series:\n")
            out += [f"      - series: {_quote(name)}\n        values: {_quote(values)}\n"
                    for name, values in series.items()]
            out.append(f"    alert_rule_test:\n      - eval_time: {alert.at}\n        alertname: {alert.name}\n")
            if fires:
                labels = "".join(f", {name}: {_quote(value)}" for name, value in alert.labels.items())
                out.append("        exp_alerts:\n"
                           f"          - exp_labels: {{severity: {alert.severity}{labels}}}\n"
                           "            exp_annotations:\n"
                           f"              summary: {_quote(_told(alert.summary, alert))}\n"
                           f"              description: {_quote(_told(alert.description, alert))}\n"
                           f"              runbook_url: {_quote(runbook_url(alert))}\n")
            else:
                out.append("        exp_alerts: []\n")
    return "".join(out)
