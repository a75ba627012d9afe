#!/usr/bin/python3
"""Unit tests of the chart: what it renders for given values, and what it refuses."""
import copy
import unittest

from charts import OPERATORS, render

MODEL = {"workers": {"model": {"claim": "olmoe"}}}
OPEN = {"tls": {"mode": "none", "acceptInsecure": True}}


def values(*parts, **more):
    """One map of several, deeply."""
    merged = {}

    def merge(into, part):
        for key, value in part.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = copy.deepcopy(value)

    for part in (*parts, more):
        merge(merged, part)
    return merged


def pod(workload):
    spec = workload["spec"]
    template = spec["leaderWorkerTemplate"]["workerTemplate"] if "leaderWorkerTemplate" in spec else spec["template"]
    return template["spec"]


def container(workload):
    return pod(workload)["containers"][0]


class Rendered(unittest.TestCase):
    def rendered(self, *parts, **more):
        objects, error = render(values=values(*parts, **more))
        self.assertIsNotNone(objects, error)
        return objects

    def test_defaults(self):
        objects = self.rendered(MODEL)
        controller, workers = objects["StatefulSet", "moe-ballast-controller"], objects["StatefulSet", "moe-ballast-main"]
        self.assertEqual(controller["spec"]["replicas"], 1)
        self.assertEqual(workers["spec"]["replicas"], 2)
        self.assertEqual(workers["spec"]["podManagementPolicy"], "Parallel")
        self.assertIn("--group=name=main,size=2,role=mixed,mode=auto,policy=cost-aware,combine=fast", container(controller)["args"])
        args = container(workers)["args"]
        self.assertIn("--controller=moe-ballast-controller.serving.svc:7070", args)
        self.assertIn("--advertise-host=$(POD_NAME).moe-ballast-main.serving.svc", args)
        self.assertNotIn("--allow-insecure", args)
        self.assertNotIn("--device=cuda", args)
        # Nothing that was not asked for.
        for kind in ("ServiceMonitor", "PrometheusRule", "LeaderWorkerSet"):
            self.assertFalse([name for k, name in objects if k == kind])

    def test_every_pod_is_confined(self):
        objects = self.rendered(MODEL)
        pods = [pod(o) for (kind, _), o in objects.items() if kind == "StatefulSet"]
        pods += [o["spec"] for (kind, _), o in objects.items() if kind == "Pod"]
        self.assertEqual(len(pods), 3)
        for spec in pods:
            self.assertTrue(spec["securityContext"]["runAsNonRoot"])
            self.assertEqual(spec["securityContext"]["runAsUser"], 65532)
            self.assertFalse(spec["automountServiceAccountToken"])
            security = spec["containers"][0]["securityContext"]
            self.assertTrue(security["readOnlyRootFilesystem"])
            self.assertFalse(security["allowPrivilegeEscalation"])
            self.assertEqual(security["capabilities"], {"drop": ["ALL"]})

    def test_certificates_name_roles_and_addresses(self):
        objects = self.rendered(MODEL)
        worker = objects["Certificate", "moe-ballast-worker"]["spec"]
        self.assertEqual(worker["subject"], {"organizations": ["ballast:worker"]})
        self.assertIn("*.moe-ballast-main.serving.svc", worker["dnsNames"])
        self.assertEqual(objects["Certificate", "moe-ballast-operator"]["spec"]["subject"], {"organizations": ["ballast:operator"]})
        self.assertEqual(objects["Certificate", "moe-ballast-viewer"]["spec"]["subject"], {"organizations": ["ballast:viewer"]})
        controller = objects["Certificate", "moe-ballast-controller"]["spec"]
        self.assertNotIn("subject", controller)
        self.assertIn("moe-ballast-controller.serving.svc", controller["dnsNames"])
        # Through a forwarded port.
        self.assertIn("localhost", controller["dnsNames"])
        self.assertEqual(controller["issuerRef"]["name"], "moe-ballast")

    def test_issuer_of_ones_own(self):
        objects = self.rendered(MODEL, tls={"certManager": {"issuer": {"name": "mine", "kind": "ClusterIssuer"}}})
        self.assertFalse([name for kind, name in objects if kind == "Issuer"])
        self.assertEqual(objects["Certificate", "moe-ballast-worker"]["spec"]["issuerRef"]["kind"], "ClusterIssuer")

    def test_probes_with_tls_ask_with_a_certificate(self):
        objects = self.rendered(MODEL)
        probe = container(objects["StatefulSet", "moe-ballast-main"])["readinessProbe"]
        command = probe["exec"]["command"]
        self.assertEqual(command[-3:], ["health", "127.0.0.1:7080", "--service=ballast.v1.Inference"])
        # A probe's command knows no $(POD_NAME): the name is one that every worker's certificate bears.
        self.assertIn("--tls-server-name=moe-ballast-main-api.serving.svc", command)
        self.assertIn("moe-ballast-main-api.serving.svc", objects["Certificate", "moe-ballast-worker"]["spec"]["dnsNames"])
        self.assertNotIn("$(", " ".join(command))

    def test_probes_without_tls_are_the_kubelets(self):
        objects = self.rendered(MODEL, OPEN)
        worker = container(objects["StatefulSet", "moe-ballast-main"])
        self.assertEqual(worker["readinessProbe"]["grpc"], {"port": 7080, "service": "ballast.v1.Inference"})
        self.assertEqual(worker["startupProbe"]["grpc"], {"port": 7080})
        self.assertIn("--allow-insecure", worker["args"])
        self.assertFalse([name for kind, name in objects if kind in ("Certificate", "Issuer")])

    def test_certificates_end_no_pod(self):
        """Liveness asks nothing that takes one; a pod that is not ready for it is replaced by an upgrade."""
        objects = self.rendered(MODEL)
        for name in ("controller", "main"):
            stateful_set = objects["StatefulSet", f"moe-ballast-{name}"]
            liveness = container(stateful_set)["livenessProbe"]
            self.assertEqual(liveness["httpGet"], {"path": "/metrics", "port": "metrics"})
            self.assertNotIn("exec", liveness)
            self.assertEqual(stateful_set["spec"]["podManagementPolicy"], "Parallel")

    def test_node_drains_end(self):
        groups = [{"name": "cpu", "size": 2}, {"name": "gpu", "size": 1, "device": "cuda"}, {"name": "gpus", "size": 2, "device": "cuda"}]
        objects = self.rendered(MODEL, groups=groups)
        budgets = {name: o["spec"] for (kind, name), o in objects.items() if kind == "PodDisruptionBudget"}
        # The pods of the last are on one node, and no budget keeps some of them there.
        self.assertEqual(sorted(budgets), ["moe-ballast-cpu", "moe-ballast-gpu"])
        for budget in budgets.values():
            self.assertEqual(budget["unhealthyPodEvictionPolicy"], "AlwaysAllow")

    def test_grace_is_longer_than_the_drain(self):
        for seconds in (0, 90, 3600):
            workers = self.rendered(MODEL, workers={"drainTimeoutSeconds": seconds})["StatefulSet", "moe-ballast-main"]
            self.assertEqual(pod(workers)["terminationGracePeriodSeconds"], seconds + 30)
            self.assertIn(f"--drain-timeout={seconds}", container(workers)["args"])

    def test_groups_have_values_of_their_own(self):
        objects = self.rendered(MODEL, groups=[
            {"name": "chat", "size": 3, "model": {"claim": "", "hostPath": "/models/chat"}},
            {"name": "code", "size": 1, "policy": "task-aware", "config": {"capacity": 64}},
        ])
        chat, code = objects["StatefulSet", "moe-ballast-chat"], objects["StatefulSet", "moe-ballast-code"]
        volumes = {v["name"]: v for v in pod(chat)["volumes"]}
        self.assertEqual(volumes["model"]["hostPath"]["path"], "/models/chat")
        self.assertEqual({v["name"]: v for v in pod(code)["volumes"]}["model"]["persistentVolumeClaim"],
                         {"claimName": "olmoe", "readOnly": True})
        self.assertEqual(objects["ConfigMap", "moe-ballast-code"]["data"]["config.yaml"].strip(), "capacity: 64")
        groups = [a for a in container(objects["StatefulSet", "moe-ballast-controller"])["args"] if a.startswith("--group=")]
        self.assertEqual(len(groups), 2)
        self.assertIn("policy=task-aware", groups[1])
        self.assertIn("*.moe-ballast-code.serving.svc", objects["Certificate", "moe-ballast-worker"]["spec"]["dnsNames"])

    def test_cuda(self):
        workers = self.rendered(MODEL, workers={"device": "cuda"})["StatefulSet", "moe-ballast-main"]
        self.assertEqual(container(workers)["resources"]["limits"]["nvidia.com/gpu"], 1)
        self.assertEqual(container(workers)["image"], "ballast-worker-cuda:0.1.0")
        self.assertIn("--device=cuda", container(workers)["args"])
        term = pod(workers)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
        self.assertEqual(term["topologyKey"], "kubernetes.io/hostname")
        self.assertTrue(pod(workers)["hostIPC"])
        self.assertNotIn("topologySpreadConstraints", pod(workers))

    def test_leader_worker_set(self):
        objects = self.rendered(MODEL, workers={"kind": "LeaderWorkerSet"})
        self.assertEqual(objects["LeaderWorkerSet", "moe-ballast-main"]["spec"]["leaderWorkerTemplate"]["size"], 2)
        self.assertNotIn(("StatefulSet", "moe-ballast-main"), objects)
        # The operator makes the headless service of that name.
        self.assertNotIn(("Service", "moe-ballast-main"), objects)

    def test_the_data_port_is_open_to_the_group_alone(self):
        policy = self.rendered(MODEL)["NetworkPolicy", "moe-ballast-main"]["spec"]
        everything = [rule for rule in policy["ingress"] if "ports" not in rule]
        self.assertEqual(len(everything), 1)
        self.assertEqual(everything[0]["from"][0]["podSelector"]["matchLabels"]["ballast/group"], "main")
        self.assertEqual({p["port"] for rule in policy["ingress"] for p in rule.get("ports", [])}, {"grpc", "metrics"})

    def test_nobody_in_a_list_is_nobody(self):
        """A rule whose `from` is empty would let everybody in."""
        objects = self.rendered(MODEL, controller={"console": {"enabled": True}},
                                networkPolicy={"clients": [], "operators": [], "monitoring": []})
        ports = {}
        for (kind, name), o in objects.items():
            if kind == "NetworkPolicy":
                for rule in o["spec"]["ingress"]:
                    self.assertTrue(rule["from"], name)
                ports[name] = [p["port"] for rule in o["spec"]["ingress"] for p in rule.get("ports", [])]
        self.assertEqual(ports, {"moe-ballast-controller": ["grpc"], "moe-ballast-main": []})

    def test_selectors_select_the_pods(self):
        objects = self.rendered(MODEL, OPEN)
        labels = {name: o["spec"]["template"]["metadata"]["labels"] for (kind, name), o in objects.items() if kind == "StatefulSet"}
        for (kind, name), o in objects.items():
            selector = {"Service": lambda o: o["spec"]["selector"],
                        "StatefulSet": lambda o: o["spec"]["selector"]["matchLabels"],
                        "PodDisruptionBudget": lambda o: o["spec"]["selector"]["matchLabels"]}.get(kind)
            if selector is None:
                continue
            chosen = [pods for pods, has in labels.items() if selector(o).items() <= has.items()]
            self.assertEqual(chosen, ["moe-ballast-controller" if "controller" in name else "moe-ballast-main"], (kind, name))

    def test_monitoring(self):
        objects = self.rendered(MODEL, metrics={
            "serviceMonitor": {"enabled": True}, "dashboards": {"enabled": True},
            "prometheusRule": {"enabled": True, "without": ["BallastStoreDown"], "docsUrl": "https://docs.example/"}})
        rules = [r for g in objects["PrometheusRule", "moe-ballast"]["spec"]["groups"] for r in g["rules"]]
        names = {r["alert"] for r in rules}
        self.assertIn("BallastControllerGone", names)
        self.assertNotIn("BallastStoreDown", names)
        for rule in rules:
            self.assertTrue(rule["annotations"]["runbook_url"].startswith("https://docs.example/runbooks.md#"))
        # Another release's controller does not stand for this one's.
        gone = next(r for r in rules if r["alert"] == "BallastControllerGone")
        self.assertEqual(gone["expr"], 'absent(ballast_store_up{namespace="serving",service="moe-ballast-controller"})')
        dashboards = objects["ConfigMap", "moe-ballast-dashboards"]
        self.assertEqual(dashboards["metadata"]["labels"]["grafana_dashboard"], "1")
        self.assertIn("ballast-overview.json", dashboards["data"])
        monitor = objects["ServiceMonitor", "moe-ballast"]["spec"]
        scraped = [n for (k, n), o in objects.items() if k == "Service"
                   and monitor["selector"]["matchLabels"].items() <= o["metadata"]["labels"].items()
                   and any(p["name"] == "metrics" for p in o["spec"]["ports"])]
        self.assertEqual(sorted(scraped), ["moe-ballast-controller", "moe-ballast-main-api"])

    def test_an_unchanged_configuration_restarts_nothing(self):
        """An upgrade of the chart alone leaves the pods' templates as they are."""
        template = self.rendered(MODEL)["StatefulSet", "moe-ballast-main"]["spec"]["template"]
        self.assertNotIn("helm.sh/chart", template["metadata"]["labels"])
        changed = self.rendered(MODEL, workers={"config": {"capacity": 64}})["StatefulSet", "moe-ballast-main"]["spec"]["template"]
        self.assertNotEqual(template["metadata"]["annotations"], changed["metadata"]["annotations"])

    def test_images(self):
        objects = self.rendered(MODEL, image={"registry": "registry.example/ballast", "tag": "0.1",
                                              "digests": {"worker": "sha256:" + "a" * 64}})
        self.assertEqual(container(objects["StatefulSet", "moe-ballast-main"])["image"],
                         "registry.example/ballast/ballast-worker:0.1@sha256:" + "a" * 64)
        for spec in (pod(objects["StatefulSet", "moe-ballast-controller"]), objects["Pod", "moe-ballast-test"]["spec"]):
            self.assertEqual(spec["containers"][0]["image"], "registry.example/ballast/ballast-controller:0.1")

    def test_console(self):
        args = container(self.rendered(MODEL, controller={"console": {"enabled": True}})["StatefulSet", "moe-ballast-controller"])["args"]
        self.assertIn("--console-listen=0.0.0.0:7072", args)
        args = container(self.rendered(MODEL)["StatefulSet", "moe-ballast-controller"])["args"]
        self.assertFalse([a for a in args if a.startswith("--console-listen")])


class Refused(unittest.TestCase):
    """Values that cannot work, and what the refusal has to say."""

    CASES = {
        "two controllers": (values(MODEL, controller={"replicas": 2}), "the embedded store has one writer"),
        "no group": (values(MODEL, groups=[]), "controller.enginesOnly=true"),
        "engines only, with groups": (values(MODEL, controller={"enginesOnly": True}), "set groups to []"),
        "no model": ({}, "workers.model.claim"),
        "two models": (values(MODEL, workers={"model": {"hostPath": "/m"}}), "are both set: keep one"),
        "a path out of the volume": (values(MODEL, workers={"model": {"subPath": "../x"}}), "without .."),
        "insecure unawares": (values(MODEL, tls={"mode": "none"}), "tls.acceptInsecure=true"),
        "no controller's secret": (values(MODEL, tls={"mode": "secrets"}), "tls.secrets.controller is empty"),
        "no worker's secret": (values(MODEL, tls={"mode": "secrets", "secrets": {"controller": "c"}}), "tls.secrets.worker is empty"),
        "a group twice": (values(MODEL, groups=[{"name": "a", "size": 1}, {"name": "a", "size": 2}]), "is there twice"),
        "too many GPUs": (values(MODEL, workers={"device": "cuda"}, groups=[{"name": "a", "size": 33}]), "32 at most"),
        "a budget of all": (values(MODEL, podDisruptionBudget={"maxUnavailable": 2}), "could take them all"),
        "the chart's option": (values(MODEL, controller={"config": {"store": "/x"}}), "controller.config.store is the chart's"),
        "a worker's option": (values(MODEL, workers={"config": {"listen": "x"}}), "config.listen is the chart's"),
        "an unknown value": (values(MODEL, wokers={}), "wokers"),
        "an unknown mode": (values(MODEL, tls={"mode": "mtls"}), "certManager"),
        "a digest cut short": (values(MODEL, image={"digests": {"worker": "sha256:12"}}), "/image/digests/worker"),
        "a name too long": (values(MODEL, groups=[{"name": "a" * 21, "size": 1}]), "/groups/0/name"),
    }

    def test_refusals(self):
        for name, (given, words) in self.CASES.items():
            with self.subTest(name):
                objects, error = render(values=given)
                self.assertIsNone(objects)
                self.assertIn(words, error)

    def test_missing_operators(self):
        cases = [
            (MODEL, "cert-manager.io/v1"),
            (values(MODEL, workers={"kind": "LeaderWorkerSet"}), "leaderworkerset.x-k8s.io/v1"),
            (values(MODEL, metrics={"serviceMonitor": {"enabled": True}}), "monitoring.coreos.com/v1"),
            (values(MODEL, metrics={"prometheusRule": {"enabled": True}}), "monitoring.coreos.com/v1"),
        ]
        for given, missing in cases:
            with self.subTest(missing):
                objects, error = render(values=given, apis=[api for api in OPERATORS if api != missing])
                self.assertIsNone(objects)
                self.assertIn(f"the cluster has no {missing}", error)


if __name__ == "__main__":
    unittest.main(verbosity=2)
