#!/usr/bin/python3
"""The pods that the chart renders, run from the images by runc, as a node of a cluster runs them: they come up, serve over mutual
TLS, are replaced and end."""
import copy
import os
import re
import shutil
import tempfile
import time
import unittest
from pathlib import Path

import yaml

import images
from charts import CHART, render
from node import Node

NAMESPACE = "serving"
README = CHART / "README.md"
CONTROLLER = "moe-ballast-controller-0"
WORKERS = ("moe-ballast-main-0", "moe-ballast-main-1")
API = f"moe-ballast-main-api.{NAMESPACE}.svc:7080"
# The chart's defaults but for threads: pods see all of a machine's processors.
VALUES = {"workers": {"model": {"claim": "models", "subPath": "olmoe"}, "computeThreads": 1, "drainTimeoutSeconds": 300}}


@unittest.skipIf(os.getuid() != 0, "no root, which network interfaces and containers are made by")
class Pods(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = Path(temporary.name)
        images.make(cls.folder / "images", "controller", "worker")
        # Bazel's are links to where containers do not look.
        shutil.copytree("testdata/olmoe-9m", cls.folder / "models/olmoe", copy_function=shutil.copyfile)
        cls.node = Node(cls.folder, cls.folder / "images", NAMESPACE, {"models": cls.folder / "models"})
        cls.addClassCleanup(cls.node.stop)
        cls.objects, error = render(values=VALUES)
        assert cls.objects is not None, error
        cls.node.add(cls.objects)
        cls.node.sign_certificates()

    def pod(self, name):
        return self.node.pods[name]

    def client(self, name, role, *args):
        """Runs ballastctl in a pod like that of `helm test`, with the certificate of the role; returns (exit status, output)."""
        document = copy.deepcopy(self.objects["Pod", "moe-ballast-test"])
        for volume in document["spec"]["volumes"]:
            volume["secret"]["secretName"] = f"moe-ballast-{role}-tls"
        given = document["spec"]["containers"][0]["args"]
        document["spec"]["containers"][0]["args"] = [a for a in given if a.startswith("--")] + list(args)
        self.node.add({("Pod", name): document})
        pod = self.pod(name)
        pod.start()
        return pod.finish(), pod.output()

    def test_release(self):
        """One after the other, as a cluster would go through it."""
        for step in (self.comes_up, self.is_confined, self.helm_test, self.notes, self.serves, self.is_scraped,
                     self.worker_is_replaced, self.controller_is_replaced, self.ends):
            start = time.monotonic()
            step()
            print(f"{step.__name__}: {time.monotonic() - start:.1f} s", flush=True)

    def comes_up(self):
        names = (CONTROLLER, *WORKERS)
        self.assertEqual({name for name, pod in self.node.pods.items() if pod.subdomain}, set(names))
        for name in names:
            self.pod(name).start()
        for name in names:
            self.pod(name).wait_ready()

    def is_confined(self):
        for name in (CONTROLLER, *WORKERS):
            status = self.pod(name).status()
            self.assertEqual(status["Uid"].split(), ["65532"] * 4)
            self.assertEqual(status["Gid"].split(), ["65532"] * 4)
            self.assertEqual(int(status["CapEff"], 16) | int(status["CapBnd"], 16), 0)
            self.assertEqual(status["NoNewPrivs"], "1")
            self.assertEqual(status["Seccomp"], "2")
            root = Path(f"/proc/{status['Pid']}/mountinfo").read_text(encoding="utf-8")
            self.assertRegex(root, r"(?m)^\d+ \d+ \S+ \S+ / ro[, ]")
            # The image's programs are all that can be run in it.
            self.assertNotEqual(self.pod(name).run("/bin/sh", "-c", "true").returncode, 0)

    def helm_test(self):
        pod = self.pod("moe-ballast-test")
        pod.start()
        self.assertEqual(pod.finish(), 0, pod.output())
        self.assertRegex(pod.output(), r"(?m)^main +main +serving +auto +fast +2/2 ")

    def notes(self):
        """What the chart's notes say to run in the controller's pod."""
        text = Path("deploy/helm/ballast/templates/NOTES.txt").read_text(encoding="utf-8")
        self.assertIn("-controller-0 -- /usr/bin/ballastctl", text)
        command = ["/usr/bin/ballastctl", *(f"--tls-{of}=/etc/ballast/tls/{file}" for of, file in
                                            (("cert", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt"))),
                   f"--tls-server-name=moe-ballast-controller.{NAMESPACE}.svc", "health", "127.0.0.1:7070"]
        done = self.pod(CONTROLLER).run(*command)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def generate(self, name):
        status, out = self.client(name, "viewer", "generate", f"--worker={API}", "--max-tokens=8", "In the beginning")
        self.assertEqual(status, 0, out)
        return out

    def serves(self):
        type(self).answer = self.generate("client-1")
        self.assertGreater(len(self.answer.strip()), 0)
        # The certificate decides what its bearer may do.
        status, out = self.client("client-2", "viewer", "pause")
        self.assertNotEqual(status, 0)
        self.assertIn("has role viewer, needed is one of: operator", out)
        status, out = self.client("client-3", "operator", "get", "workers")
        self.assertEqual(status, 0, out)
        for name in WORKERS:
            self.assertIn(f"{name}.moe-ballast-main.{NAMESPACE}.svc:7080", out)

    def is_scraped(self):
        self.assertRegex(self.pod(CONTROLLER).metrics(), r'(?m)^ballast_view\{group="main"\}')
        for name in WORKERS:
            self.assertIn("ballast_worker_tokens_total{", self.pod(name).metrics())

    def worker_is_replaced(self):
        """As by a rolling upgrade: its experts go to the other worker, which serves alone until the new one is there."""
        leaving, staying = self.pod(WORKERS[1]), self.pod(WORKERS[0])
        self.assertEqual(leaving.terminate(), 0, leaving.output())
        self.assertRegex(leaving.output(), "DRAIN_STATE_(EMPTY|OUT)")
        staying.wait("readiness", lambda: staying.probe("readiness"))
        # The service has the workers that are ready.
        status, out = self.client("client-4", "viewer", "generate", f"--worker={staying.names()[1]}:7080", "--max-tokens=8",
                                  "In the beginning")
        self.assertEqual(status, 0, out)
        leaving.start()
        leaving.wait_ready()

    def store_pod(self, name, *command):
        """The pod of the README that runs ballastctl on the store's claim."""
        document = yaml.safe_load(re.search(r"(?s)`store.yaml`.*?```yaml\n(.*?)```", README.read_text(encoding="utf-8")).group(1))
        if command:
            document["spec"]["containers"][0]["command"] = ["/usr/bin/ballastctl", *command]
        self.node.add({("Pod", name): document})
        pod = self.pod(name)
        pod.start()
        self.assertEqual(pod.finish(), 0, pod.output())

    def controller_is_replaced(self):
        """Its store is on the claim, is kept and taken back; workers serve on."""
        controller = self.pod(CONTROLLER)
        before = re.search(r'^ballast_view\{group="main"\} (\d+)', controller.metrics(), re.M).group(1)
        self.assertEqual(controller.terminate(), 0, controller.output())
        for name in WORKERS:
            self.pod(name).wait("readiness", lambda name=name: self.pod(name).probe("readiness"))
        self.store_pod("store-1")
        self.store_pod("store-2", "restore", "--overwrite", "/store/backup.db", "/store/controller.db")
        controller.start()
        controller.wait_ready()
        after = re.search(r'^ballast_view\{group="main"\} (\d+)', controller.metrics(), re.M).group(1)
        self.assertGreaterEqual(int(after), int(before))
        self.generate("client-5")

    def ends(self):
        """All workers at once, which have nobody to leave their experts to; then the controller."""
        for name in WORKERS:
            self.pod(name).process.terminate()
        for name in WORKERS:
            self.assertEqual(self.pod(name).finish(), 0, self.pod(name).output())
        self.assertEqual(self.pod(CONTROLLER).terminate(), 0, self.pod(CONTROLLER).output())


if __name__ == "__main__":
    images.main(__file__)
