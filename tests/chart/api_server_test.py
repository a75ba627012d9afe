#!/usr/bin/python3
"""The chart on a real API server, with the real Helm: every object is taken as it is rendered, and the commands of the chart's
README do what it says."""
import base64
import json
import os
import re
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

import yaml

from api_server import ApiServer, Refusal
from charts import CHART, TOOLS, render, run

NAMESPACE = "serving"
# Pods in this one have to keep to Kubernetes' strictest standard.
RESTRICTED = "restricted"


def readme_commands():
    blocks = re.findall(r"^```bash\n(.*?)^```", (CHART / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line]


class Api(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.server = ApiServer(cls.folder.name)
        cls.addClassCleanup(cls.server.stop)
        cls.server.install_definitions()
        for name, labels in ((RESTRICTED, {"pod-security.kubernetes.io/enforce": "restricted"}), ("checks", {})):
            cls.server.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        cls.server.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "moe-ballast"}}, RESTRICTED)

    def helm(self, line):
        home = Path(self.folder.name, "helm")
        env = {**os.environ, "PATH": f"{TOOLS}/bin:/usr/bin:/bin", "KUBECONFIG": str(self.server.kubeconfig), "HOME": str(home)}
        return subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=False)

    def command(self, line):
        """Runs a command of the README; returns what it prints."""
        done = self.helm(line)
        self.assertEqual(done.returncode, 0, f"{line}\n{done.stdout}{done.stderr}")
        return done.stdout

    def stateful_set(self, name):
        return self.server.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{name}")

    def test_schemas_of_make_check_are_this_servers(self):
        live = self.server.get("/openapi/v2")["definitions"]
        kept = json.loads((TOOLS / "openapi/swagger.json").read_text(encoding="utf-8"))["definitions"]
        for name in ("apps.v1.StatefulSet", "core.v1.PodSpec", "core.v1.Container", "core.v1.Service", "core.v1.Secret",
                     "core.v1.PersistentVolumeClaim", "policy.v1.PodDisruptionBudget", "networking.v1.NetworkPolicy"):
            fields = [set(d[f"io.k8s.api.{name}"]["properties"]) for d in (live, kept)]
            self.assertEqual(*fields, name)

    def test_every_object_is_taken(self):
        """For each file of ci/, with unknown fields refused."""
        files = sorted((CHART / "ci").glob("*-values.yaml"))
        self.assertTrue(files)
        for path in files:
            objects, error = render("--namespace", "checks", values=yaml.safe_load(path.read_text(encoding="utf-8")))
            self.assertIsNotNone(objects, error)
            # Pods name their account, which admission looks for.
            account = objects.get(("ServiceAccount", "moe-ballast"))
            if account is not None and "moe-ballast" not in self.server.names("v1/serviceaccounts", "checks"):
                self.server.create(account, "checks")
            for (kind, name), document in objects.items():
                with self.subTest(f"{path.name} {kind} {name}"):
                    if kind == "ServiceAccount" and document is account:
                        continue
                    if kind == "Pod":
                        document["spec"]["serviceAccountName"] = "moe-ballast"
                    self.server.create(document, "checks", dry_run=True)

    def test_an_unknown_field_is_refused(self):
        objects, _ = render(values={"workers": {"model": {"claim": "olmoe"}}})
        service = objects["Service", "moe-ballast-main"]
        service["spec"]["publishReadyAddresses"] = True
        with self.assertRaisesRegex(Refusal, "unknown field"):
            self.server.create(service, "checks", dry_run=True)

    def test_pods_keep_to_the_restricted_standard(self):
        objects, error = render(values={"workers": {"model": {"claim": "olmoe"}}})
        self.assertIsNotNone(objects, error)
        pods = [{"metadata": {"name": name}, "spec": o["spec"]["template"]["spec"]}
                for (kind, name), o in objects.items() if kind == "StatefulSet"]
        pods.append({"metadata": {"name": "test"}, "spec": objects["Pod", "moe-ballast-test"]["spec"]})
        self.assertEqual(len(pods), 3)
        for pod in pods:
            self.server.create({"apiVersion": "v1", "kind": "Pod", **pod}, RESTRICTED, dry_run=True)
        pods[0]["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        with self.assertRaisesRegex(Refusal, "restricted"):
            self.server.create({"apiVersion": "v1", "kind": "Pod", **pods[0]}, RESTRICTED, dry_run=True)

    def finish_test_pod(self):
        """What a kubelet would report of the pod of `helm test`: there is none here."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/moe-ballast-test"
        self.server.wait("the test's pod", lambda: self.server.get(path))
        self.server.text(f"{path}/status", "PATCH", {"status": {"phase": "Succeeded"}}, "application/merge-patch+json")

    def test_readme(self):
        """install, test, upgrade, rollback, uninstall: the README's commands, in its order."""
        done = []
        for line in readme_commands():
            verb = line.split()[1]
            done.append(verb)
            if verb == "test":
                kubelet = threading.Thread(target=self.finish_test_pod, daemon=True)
                kubelet.start()
                self.assertIn("Phase:          Succeeded", self.command(line))
                kubelet.join()
                continue
            out = self.command(line)
            getattr(self, f"after_{verb}")(out)
        self.assertEqual(done, ["install", "status", "test", "upgrade", "rollback", "uninstall"])

    def after_install(self, out):
        self.assertIn("STATUS: deployed", out)
        self.assertIn("moe-ballast-controller.serving.svc:7070", out)
        self.assertEqual(self.server.names("apps/v1/statefulsets", NAMESPACE), {"moe-ballast-controller", "moe-ballast-main"})
        self.assertEqual(self.server.names("cert-manager.io/v1/certificates", NAMESPACE), {
            f"moe-ballast-{of}" for of in ("ca", "controller", "worker", "operator", "viewer")})
        self.assertEqual(self.grace(), 630)
        type(self).secret = self.group_secret()
        self.assertGreaterEqual(len(base64.b64decode(self.secret)), 32)

    def after_status(self, out):
        self.assertIn("STATUS: deployed", out)
        # As a cluster with nodes would say it.
        status = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/moe-ballast-main/status"
        for ready, refused in ((2, True), (1, False), (0, False)):
            self.server.text(status, "PATCH", {"status": {"replicas": 2, "readyReplicas": ready}}, "application/merge-patch+json")
            done = self.helm("helm upgrade moe deploy/helm/ballast --namespace serving --reuse-values --dry-run=server "
                             "--set groups[0].name=main,groups[0].size=3")
            self.assertEqual(done.returncode != 0, refused, done.stderr)
            if refused:
                self.assertIn("size is 3, and the group has formed with 2 workers", done.stderr)

    def after_upgrade(self, _):
        self.assertEqual(self.grace(), 930)
        # Other workers of the group still hold it.
        self.assertEqual(self.group_secret(), self.secret)

    def after_rollback(self, _):
        self.assertEqual(self.grace(), 630)
        self.assertEqual(self.group_secret(), self.secret)

    def after_uninstall(self, _):
        for resource in ("apps/v1/statefulsets", "v1/services", "v1/configmaps", "policy/v1/poddisruptionbudgets",
                         "networking.k8s.io/v1/networkpolicies", "cert-manager.io/v1/certificates"):
            self.assertEqual({n for n in self.server.names(resource, NAMESPACE) if n.startswith("moe-")}, set(), resource)
        # The store stays, and a release of the same name takes it up again.
        claim = self.server.get(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/moe-ballast-controller")
        self.assertNotIn("deletionTimestamp", claim["metadata"])
        again = readme_commands()[0]
        self.assertIn("STATUS: deployed", self.command(again))

    def grace(self):
        return self.stateful_set("moe-ballast-main")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]

    def group_secret(self):
        return self.server.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/moe-ballast-group")["data"]["group.secret"]

    def test_without_operators_the_chart_says_what_to_do(self):
        """Helm asks this server what it has: what it does not have is refused, before anything is made."""
        env = {**os.environ, "KUBECONFIG": str(self.server.kubeconfig), "HOME": self.folder.name}
        self.server.text("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/leaderworkersets.leaderworkerset.x-k8s.io", "DELETE")
        self.server.wait("the definition's end", lambda: "leaderworkerset.x-k8s.io" not in self.server.text("/apis"))
        done = run(TOOLS / "bin/helm", "install", "refused", CHART, "--namespace", "checks", "--set",
                   "workers.model.claim=olmoe,workers.kind=LeaderWorkerSet", env=env)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("the cluster has no leaderworkerset.x-k8s.io/v1", done.stderr)
        self.assertEqual(self.server.names("apps/v1/statefulsets", "checks"), set())


if __name__ == "__main__":
    unittest.main(verbosity=2)
