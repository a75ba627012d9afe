#!/usr/bin/python3
"""Every query of every dashboard, on a real Prometheus that scrapes a live cluster, gives data."""
import json
import pathlib
import re
import sys
import unittest

sys.path[:0] = ["tests/live", "dashboards"]
import live  # noqa: E402
import metric_table  # noqa: E402

GENERATED = pathlib.Path("dashboards/generated")
# What Grafana puts in the place of its variables. Rates over all the time of a test: what happens once in it, like a rollback,
# stays in them however long a look at everything takes.
VARIABLES = {"$__rate_interval": "1h", "$__range": "1h", "$before": "1s", "$group": ".*", "$phase": ".*",
             "$task": "[^*]*"}


def substituted(expression):
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def dashboards():
    return {path.stem: json.loads(path.read_text()) for path in sorted((GENERATED / "grafana").glob("*.json"))}


class Dashboards(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = live.LiveCluster("--classify=0.5")
        cls.enterClassContext(cls.cluster)
        cls.prometheus = live.Prometheus(cls.cluster.metrics_addresses(), GENERATED / "rules.yaml")
        cls.enterClassContext(cls.prometheus)
        cls.table = metric_table.read()

    def test_every_panel_has_data(self):
        quiet = {name for name, metric in self.table.items() if metric.quiet}
        queries, seen = {}, set()
        for name, dashboard in dashboards().items():
            for panel in dashboard["panels"]:
                for target in panel.get("targets", []):
                    used = metric_table.used(target["expr"])
                    seen |= used
                    if not used & quiet:
                        queries.setdefault(substituted(target["expr"]), f"{name}: {panel['title']}")
        self.assertGreater(len(queries), 40)
        # How often something happened Prometheus knows only from what it has seen before and after. A rollback, which
        # is no plan of routes, is for the end.
        seldom = {query for query in queries
                  if metric_table.used(query) & {"ballast_rollouts_total", "ballast_rollout_duration_seconds"}}
        self.prometheus.await_data(["ballast_rollout_duration_seconds_count", "ballast_plan_duration_seconds_count"])
        self.cluster.command("dry-run")
        missing = self.prometheus.await_data(set(queries) - seldom)
        self.cluster.command("rollback")
        missing |= self.prometheus.await_data(seldom)
        self.assertEqual({queries[query]: query for query in missing}, {})
        # What is called quiet is so: else the table says too little of the cluster.
        shown = set(self.prometheus.get("label/__name__/values"))
        self.assertEqual({name for name in quiet if {name, name + "_count"} & shown}, set())
        self.assertLessEqual({name for name, metric in self.table.items() if metric.dashboard}, seen)

    def test_every_metric_that_is_scraped_is_in_the_table(self):
        self.prometheus.await_data(["ballast_view", "ballast_requests_running"])
        names = {name for name in self.prometheus.get("label/__name__/values") if name.startswith("ballast_")}
        for name in names:
            self.assertLessEqual(metric_table.used(name), set(self.table), name)

    def test_every_variable_has_values(self):
        for name, dashboard in dashboards().items():
            for variable in dashboard["templating"]["list"]:
                if variable["type"] != "query":
                    continue
                series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
                with self.subTest(dashboard=name, variable=variable["name"]):
                    query = f"count by ({label}) ({substituted(series)})"
                    self.assertEqual(self.prometheus.await_data([query]), set())

    def test_every_annotation_is_a_query(self):
        for dashboard in dashboards().values():
            for annotation in dashboard.get("annotations", {}).get("list", []):
                self.prometheus.get("query", query=substituted(annotation["expr"]))

    def test_every_alert_is_evaluated(self):
        rules = []
        while not rules or any(rule["health"] == "unknown" for rule in rules):
            rules = [rule for group in self.prometheus.get("rules")["groups"] for rule in group["rules"]]
            self.prometheus.wait(1)
        self.assertEqual({rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"}, {})
        self.assertGreater(len(rules), 10)


if __name__ == "__main__":
    unittest.main(verbosity=2)
