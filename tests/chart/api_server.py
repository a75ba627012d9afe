"""A real Kubernetes API server on etcd, for tests of the chart. There are no nodes and no controllers: objects are stored,
defaulted, validated and admitted as in any cluster, and nothing acts on them.

Takes fixed ports of the loopback interface: the tests have one of their own (Bazel's tag block-network).
"""
import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from charts import TOOLS, run

TOKEN = "admin"
PORT = 6443
ETCD = "http://127.0.0.1:2379"
STARTUP_SECONDS = 240

# Where objects of these API groups live: the chart's kinds, by (apiVersion, kind).
PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "LeaderWorkerSet": "leaderworkersets",
}


class Refusal(Exception):
    """The server's answer to a request that it did not carry out."""

    def __init__(self, status, message):
        super().__init__(f"{status}: {message}")
        self.status = status


class ApiServer:
    """Started when made, ended by stop()."""

    def __init__(self, folder):
        folder = Path(folder)
        self.kubeconfig = folder / "kubeconfig"
        self.url = f"https://127.0.0.1:{PORT}"
        self.tls = ssl._create_unverified_context()  # noqa: the certificate is one that the server made for itself
        key = folder / "service-account.key"
        made = run("openssl", "genrsa", "-out", key, "2048")
        assert made.returncode == 0, made.stderr
        (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n", encoding="utf-8")
        self.processes = []
        self.start(folder, "etcd", "etcd", f"--data-dir={folder}/etcd", f"--listen-client-urls={ETCD}",
                   f"--advertise-client-urls={ETCD}", "--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync")
        self.start(folder, "kube-apiserver", TOOLS / "bin/kube-apiserver", f"--etcd-servers={ETCD}",
                   f"--secure-port={PORT}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
                   "--endpoint-reconciler-type=none", f"--cert-dir={folder}/certificates",
                   f"--token-auth-file={folder}/tokens.csv", "--authorization-mode=RBAC", f"--service-account-key-file={key}",
                   f"--service-account-signing-key-file={key}", f"--service-account-issuer={self.url}",
                   "--service-cluster-ip-range=10.96.0.0/16")
        self.kubeconfig.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        }), encoding="utf-8")
        try:
            self.wait("the API server", lambda: self.text("/readyz") == "ok")
        except RuntimeError:
            self.stop()
            raise

    def start(self, folder, name, *command):
        with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=subprocess.STDOUT)
        self.processes.append((name, process, folder / f"{name}.log"))

    def wait(self, what, done):
        deadline = time.monotonic() + STARTUP_SECONDS
        while True:
            for name, process, log in self.processes:
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{log.read_text(encoding='utf-8')[-4000:]}")
            try:
                if done():
                    return
                last = "not yet"
            except (Refusal, OSError) as e:
                last = str(e)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} is not there after {STARTUP_SECONDS} s: {last}")
            time.sleep(0.2)

    def stop(self):
        for _, process, _ in reversed(self.processes):
            process.terminate()
            process.wait()

    def text(self, path, method="GET", body=None, content_type="application/json"):
        request = urllib.request.Request(self.url + path, method=method,
                                         data=None if body is None else json.dumps(body).encode(),
                                         headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, context=self.tls) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as e:
            text = e.read().decode()
            raise Refusal(e.code, json.loads(text).get("message", text) if text.startswith("{") else text) from None

    def get(self, path):
        return json.loads(self.text(path))

    def path(self, document, namespace):
        version, kind = document["apiVersion"], document["kind"]
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        return f"{base}/namespaces/{namespace}/{PLURALS.get(kind, kind.lower() + 's')}"

    def create(self, document, namespace="", dry_run=False):
        """Makes an object; with `dry_run` all is done but to keep it. A field that the server does not know is refused."""
        if namespace:
            path = self.path(document, namespace)
        elif document["kind"] == "Namespace":
            path = "/api/v1/namespaces"
        else:
            path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        return json.loads(self.text(path + query, "POST", document))

    def names(self, resource, namespace):
        """Names of what is there: names("apps/v1/statefulsets", "serving")."""
        version, _, plural = resource.rpartition("/")
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        return {o["metadata"]["name"] for o in self.get(f"{base}/namespaces/{namespace}/{plural}")["items"]}

    def install_definitions(self):
        """The operators' resource definitions; returns when the server serves them."""
        for path in sorted((TOOLS / "crds").iterdir()):
            definition = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
            self.create(definition)
            spec = definition["spec"]
            for version in spec["versions"]:
                if version["served"]:
                    self.wait(path.stem, lambda s=spec, v=version: self.get(
                        f"/apis/{s['group']}/{v['name']}/{s['names']['plural']}") is not None)
