"""The dashboards, and the panels that take more than one metric or more than a form (see metric_table.py)."""
from dataclasses import dataclass, field

# "model" and "node" are left out: a group has one model.
GROUP = 'group=~"$group"'
PHASE = 'phase=~"$phase"'
RATE = "$__rate_interval"


@dataclass(frozen=True)
class Dashboard:
    name: str  # in the metric table, and the file's name in small letters
    title: str
    description: str
    rows: tuple[str, ...]  # those named here come first, in this order
    variables: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    dashboard: str
    row: str
    title: str
    description: str
    kind: str  # lines, stat, matrix (a cell for each pair of labels)
    queries: tuple[tuple[str, str], ...]  # PromQL and legend
    unit: str = "1"
    width: int = 8  # of 24
    height: int = 8
    # Of ratios where 1 is level: the scale's colours, low is bad; of loads: 1 is fair, high is bad.
    scale: str = ""
    # matrix: labels of the rows and of the columns.
    axes: tuple[str, str] = field(default=("", ""))


DASHBOARDS = (
    Dashboard("Overview", "Ballast / Overview", "Is the load level, now and before, and are requests answered?",
              ("Level", "Group", "Requests", "Steps"), ("group", "phase", "before")),
    Dashboard("Rollouts", "Ballast / Rollouts", "Plans, and the moves that carried them out.",
              ("Rollouts", "Plans", "Moves", "Placement"), ("group",)),
    Dashboard("Experts", "Ballast / Experts", "Which experts and which workers have how much to do.",
              ("Load", "Replicas"), ("group", "phase")),
    Dashboard("Tasks", "Ballast / Tasks", "What is asked, how level it is by task, and where its requests run.",
              ("Traffic", "Mix", "Homes"), ("group", "phase", "task")),
    Dashboard("Controller", "Ballast / Controller", "The controller's own health.",
              ("Health", "Telemetry", "Planning"), ("group",)),
)

_LEVEL = f'avg by (group) (ballast_layer_balancedness_ratio{{{GROUP},{PHASE},task="*"}}'
_EXPERTS = f"sum by (layer, expert) (rate(ballast_expert_tokens_total{{{GROUP},{PHASE}}}[{RATE}]))"

PANELS = (
    Panel("Overview", "Level", "Level now",
          "Mean over layers of mean over max of the workers' tokens, over the planning window: 1 is level.",
          "stat", ((f"{_LEVEL})", "{{group}}"),), "ratio", 4, 5, "level"),
    Panel("Overview", "Level", "Level before", "The same, $before ago.",
          "stat", ((f"{_LEVEL} offset $before)", "{{group}}"),), "ratio", 4, 5, "level"),
    Panel("Overview", "Level", "Level by the newest plan",
          "What the newest plan predicts; where it was rolled out, what \"Level now\" should come to.",
          "stat", ((f"max by (group) (ballast_plan_predicted_balancedness_ratio{{{GROUP}}})", "{{group}}"),), "ratio",
          4, 5, "level"),
    Panel("Overview", "Level", "Worst layer", "The least level layer and phase of each group.",
          "stat", ((f'min by (group) (ballast_layer_balancedness_ratio{{{GROUP},{PHASE},task="*"}})', "{{group}}"),),
          "ratio", 4, 5, "level"),
    Panel("Overview", "Level", "Experts missing",
          "Experts without a live replica; requests that need them get UNAVAILABLE.",
          "stat", ((f"max by (group) (ballast_missing_experts{{{GROUP}}})", "{{group}}"),), "1", 4, 5, "none"),
    Panel("Overview", "Level", "Requests that fail",
          "Part of the requests that ended with something else than OK, CANCELLED or the caller's mistake.",
          "stat", ((f'sum(rate(ballast_requests_total{{{GROUP},code!~"OK|CANCELLED|INVALID_ARGUMENT"}}[{RATE}]) or '
                    f"0 * rate(ballast_requests_total{{{GROUP}}}[{RATE}])) / "
                    f"sum(rate(ballast_requests_total{{{GROUP}}}[{RATE}]))", "failed"),),
          "percent", 4, 5, "none"),
    Panel("Overview", "Level", "Level over time",
          "Mean over layers, by phase, over the planning window; dashed: what the newest plan predicts.",
          "lines", ((f'avg by (group, phase) (ballast_layer_balancedness_ratio{{{GROUP},{PHASE},task="*"}})',
                     "{{group}} {{phase}}"),
                    (f"max by (group) (ballast_plan_predicted_balancedness_ratio{{{GROUP}}})", "{{group}} predicted")),
          "ratio", 12),
    Panel("Experts", "Load", "Experts: tokens beside their layer's mean",
          "Layer by expert. 1: as many tokens as the layer's mean expert; popular experts are what replicas are for.",
          "matrix", ((f"{_EXPERTS} / on (layer) group_left avg by (layer) ({_EXPERTS})", ""),), "ratio", 24, 12,
          "load", ("layer", "expert")),
    Panel("Experts", "Load", "GPUs: tokens beside their fair part",
          "Worker by layer, over the planning window and under the placement in force, the phase with more: 1 is level, "
          "and the layer takes as long as its highest.",
          "matrix", ((f"max by (worker, layer) (ballast_worker_layer_load_ratio{{{GROUP},{PHASE}}})", ""),), "ratio",
          12, 12, "load", ("worker", "layer")),
    Panel("Experts", "Load", "Level by layer", "Mean over max of the workers' tokens by layer.",
          "lines", ((f'min by (group, layer) (ballast_layer_balancedness_ratio{{{GROUP},{PHASE},task="*"}})',
                     "{{group}} layer {{layer}}"),), "ratio", 12, 12),
    Panel("Experts", "Load", "Hottest experts", "The ten experts with the most tokens a second.",
          "lines", ((f"topk(10, {_EXPERTS})", "layer {{layer}} expert {{expert}}"),), "tokens a second", 12),
    Panel("Experts", "Load", "Highest load of a GPU",
          "The highest of the workers' loads beside their fair part, by layer and phase.",
          "lines", ((f"max by (group, layer, phase) (ballast_worker_layer_load_ratio{{{GROUP},{PHASE}}})",
                     "{{group}} layer {{layer}} {{phase}}"),), "ratio", 12),
    Panel("Tasks", "Traffic", "Level by task",
          "How level the workers would be under each task's tokens alone: mean over layers of mean over max.",
          "lines", ((f'avg by (group, task) (ballast_layer_balancedness_ratio{{{GROUP},{PHASE},task!="*",task=~"$task"}})',
                     "{{group}} {{task}}"),), "ratio", 12),
    Panel("Tasks", "Mix", "Drift of the mix of tasks",
          "How far the recent mix is from the one that the placement is grouped for, and what chance shows of it. The "
          "controller plans anew when the distance is above the noise by --mix-drift.",
          "lines", ((f"max by (group) (ballast_task_mix_distance_ratio{{{GROUP}}})", "{{group}} distance"),
                    (f"max by (group) (ballast_task_mix_noise_ratio{{{GROUP}}})", "{{group}} noise")), "ratio", 12),
    Panel("Tasks", "Traffic", "Requests that fail, by task",
          "A second, ended with something else than OK, CANCELLED or the caller's mistake; 0 where there are none.",
          "lines", ((f'sum by (task) (rate(ballast_requests_total{{{GROUP},task=~"$task",'
                     f'code!~"OK|CANCELLED|INVALID_ARGUMENT"}}[{RATE}]) or '
                     f'0 * rate(ballast_requests_total{{{GROUP},task=~"$task"}}[{RATE}]))', "{{task}}"),), "1 a second", 12),
)
