"""A Kubernetes node for tests, of one process: runs pods as they are rendered with runc, the runtime below containerd, the way a
kubelet does: network namespace, host name, user, read-only root, capabilities, seccomp, memory limit, volumes, probes by
command, SIGTERM and grace.

What is not there: a kubelet itself, DNS (names stand in /etc/hosts), network policies, CPU shares, restarts.
"""
import base64
import contextlib
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import images
from charts import run

# Generous: other tests share the processors.
PATIENCE_SECONDS = 400
BRIDGE = "10.244.0.1"
_SECCOMP = Path("/usr/share/containers/seccomp.json")


def seccomp():
    """Podman's and Docker's default profile, which RuntimeDefault stands for, for a container without capabilities on amd64."""
    profile = json.loads(_SECCOMP.read_text(encoding="utf-8"))
    rules = []
    for rule in profile["syscalls"]:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if includes.get("caps") or "amd64" not in includes.get("arches", ["amd64"]) or "amd64" in excludes.get("arches", []):
            continue
        kept = {"names": rule["names"], "action": rule["action"]}
        if rule.get("args"):
            kept["args"] = rule["args"]
        if "errnoRet" in rule:
            kept["errnoRet"] = rule["errnoRet"]
        rules.append(kept)
    result = {"defaultAction": profile["defaultAction"], "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules}
    if "defaultErrnoRet" in profile:
        result["defaultErrnoRet"] = profile["defaultErrnoRet"]
    return result


def quantity(text):
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(text[:-2]) * units[text[-2:]] if text[-2:] in units else int(text)


class Pod:
    """A pod of one container."""

    def __init__(self, node, name, metadata, spec, subdomain=""):
        self.node = node
        self.name = name
        self.labels = metadata.get("labels", {})
        self.spec = spec
        self.subdomain = subdomain
        self.container = spec["containers"][0]
        assert len(spec["containers"]) == 1 and not spec.get("initContainers")
        self.address = f"10.244.0.{len(node.pods) + 10}"
        self.process = None
        self.starts = 0

    def names(self):
        return [self.name] + ([f"{self.name}.{self.subdomain}.{self.node.namespace}.svc"] if self.subdomain else [])

    def environment(self):
        """The container's variables in their order, references to earlier ones and to the pod's fields filled in."""
        fields = {"metadata.name": self.name, "spec.nodeName": "node"}
        result = {}
        for variable in self.container.get("env", []):
            if "valueFrom" in variable:
                result[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            else:
                result[variable["name"]] = self.expand(variable["value"], result)
        return result

    @staticmethod
    def expand(text, variables):
        return re.sub(r"\$\((\w+)\)", lambda match: variables.get(match.group(1), match.group(0)), text)

    def start(self):
        assert self.process is None, f"{self.name} runs"
        self.starts += 1
        bundle = self.node.folder / "pods" / f"{self.name}-{self.starts}"
        bundle.mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps(self.configuration(bundle)), encoding="utf-8")
        self.log = bundle / "log"
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen([*self.node.runc, "run", "--bundle", bundle, self.name], stdout=log,
                                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def configuration(self, bundle):
        base, rootfs = self.node.image(self.container["image"])
        config = copy.deepcopy(base)
        security, pod_security = self.container["securityContext"], self.spec["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]} and pod_security["seccompProfile"] == {"type": "RuntimeDefault"}
        environment = self.environment()
        process = config["process"]
        args = [*self.container["command"], *self.container.get("args", [])]
        config["process"] = {
            "args": [self.expand(arg, environment) for arg in args],
            "env": [*process["env"], *(f"{name}={value}" for name, value in environment.items())],
            "cwd": process["cwd"],
            "user": {"uid": pod_security["runAsUser"], "gid": pod_security["runAsGroup"],
                     "additionalGids": [pod_security["fsGroup"]]},
            "noNewPrivileges": not security["allowPrivilegeEscalation"],
            "capabilities": {},
        }
        config["hostname"] = self.name
        config["root"] = {"path": str(rootfs), "readonly": security["readOnlyRootFilesystem"]}
        config["mounts"] = [m for m in config["mounts"] if m["type"] != "cgroup"]
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        for mount in self.container.get("volumeMounts", []):
            source = self.node.volume(self, volumes[mount["name"]], bundle, pod_security["fsGroup"]) / mount.get("subPath", "")
            config["mounts"].append({"destination": mount["mountPath"], "type": "bind", "source": str(source),
                                     "options": ["rbind", "ro" if mount.get("readOnly") else "rw"]})
        config["mounts"].append({"destination": "/etc/hosts", "type": "bind", "source": str(self.node.hosts),
                                 "options": ["rbind", "ro"]})
        config["linux"]["seccomp"] = seccomp()
        config["linux"]["resources"] = {"memory": {"limit": quantity(self.container["resources"]["limits"]["memory"])}}
        config["linux"]["cgroupsPath"] = f"/{self.node.cgroup}/{self.name}"
        network = f"/run/netns/{self.name}"
        if not Path(network).exists():
            self.node.connect(self)
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = network
        return config

    def run(self, *command):
        """Runs a command in the container, as a probe or `kubectl exec` does."""
        return run(*self.node.runc, "exec", self.name, *command)

    def probe(self, which):
        """Whether the probe `which` passes now: started, live, ready."""
        probe = self.container[f"{which}Probe"]
        if "httpGet" not in probe:
            return self.run(*probe["exec"]["command"]).returncode == 0
        assert probe["httpGet"] == {"path": "/metrics", "port": "metrics"}
        try:
            return bool(self.metrics())
        except OSError:
            return False

    def output(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, what, done):
        """Until done() is true while the pod runs."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not done():
            assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.output()[-4000:]}"
            assert time.monotonic() < deadline, f"{self.name}: {what}: not in {PATIENCE_SECONDS} s:\n{self.output()[-4000:]}"
            time.sleep(0.2)

    def wait_ready(self):
        for which in ("startup", "readiness", "liveness"):
            self.wait(f"{which} probe", lambda which=which: self.probe(which))

    def finish(self):
        """Waits for its end; returns its exit status."""
        status = self.process.wait(PATIENCE_SECONDS)
        self.process = None
        return status

    def terminate(self):
        """As a pod is deleted: SIGTERM. Returns the exit status."""
        self.process.send_signal(signal.SIGTERM)  # runc passes it on
        return self.finish()

    def metrics(self):
        port = next(p["containerPort"] for p in self.container["ports"] if p["name"] == "metrics")
        with urllib.request.urlopen(f"http://{self.address}:{port}/metrics") as answer:
            return answer.read().decode()

    def status(self):
        """/proc/PID/status of its program, as a map."""
        state = json.loads(run(*self.node.runc, "state", self.name).stdout)
        text = Path(f"/proc/{state['pid']}/status").read_text(encoding="utf-8")
        return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


class Node:
    """Runs pods of images of an OCI layout. `folders`: path on the node, or claim's name -> folder of this machine.

    For a process in namespaces of its own (images.in_namespaces).
    """

    def __init__(self, folder, layout, namespace, folders):
        self.folder = Path(folder)
        # Control groups are the machine's: other tests have theirs there.
        self.cgroup = f"ballast-{self.folder.name}"
        self.layout = layout
        self.namespace = namespace
        self.folders = folders
        self.pods = {}
        self.objects = {}
        self.unpacked = {}
        self.runc = ["runc", "--root", str(self.folder / "runc")]
        self.hosts = self.folder / "hosts"
        os.chmod(folder, 0o755)
        self.command("ip", "link", "add", "pods", "type", "bridge")
        self.command("ip", "addr", "add", f"{BRIDGE}/24", "dev", "pods")
        self.command("ip", "link", "set", "pods", "up")

    def command(self, *command):
        done = run(*command)
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
        return done.stdout

    def image(self, name):
        """(configuration for the runtime, root), unpacked once."""
        if name not in self.unpacked:
            bundle = images.unpack(self.layout, name, self.folder / f"image-{len(self.unpacked)}")
            self.unpacked[name] = json.loads((bundle / "config.json").read_text(encoding="utf-8")), bundle / "rootfs"
        return self.unpacked[name]

    def add(self, objects):
        """Takes what the chart renders. Makes the pods that the cluster's controllers would make, and starts none."""
        self.objects.update(objects)
        for (kind, name), document in objects.items():
            if kind == "Pod":
                self.pods[name] = Pod(self, name, document["metadata"], document["spec"])
            elif kind == "StatefulSet":
                template = document["spec"]["template"]
                for ordinal in range(document["spec"]["replicas"]):
                    pod = f"{name}-{ordinal}"
                    self.pods[pod] = Pod(self, pod, template["metadata"], template["spec"], document["spec"]["serviceName"])
        lines = ["127.0.0.1 localhost"]
        for pod in self.pods.values():
            lines.append(" ".join([pod.address, *pod.names()]))
        for (kind, name), document in self.objects.items():
            if kind == "Service":
                selector = document["spec"]["selector"].items()
                lines += [f"{pod.address} {name}.{self.namespace}.svc" for pod in self.pods.values() if selector <= pod.labels.items()]
        self.hosts.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def connect(self, pod):
        """A network namespace for the pod, on the node's bridge."""
        link = f"veth{list(self.pods).index(pod.name)}"
        self.command("ip", "netns", "add", pod.name)
        self.command("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", pod.name)
        self.command("ip", "link", "set", link, "master", "pods", "up")
        for line in (("addr", "add", f"{pod.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up"), ("link", "set", "lo", "up")):
            self.command("ip", "-n", pod.name, *line)

    def volume(self, pod, volume, bundle, group):
        """The folder of a pod's volume, with the owner and modes that a kubelet gives it."""
        kind = next(key for key in volume if key != "name")
        given = volume[kind]
        if kind == "hostPath":
            return self.folders[given["path"]]
        if kind == "persistentVolumeClaim" and given.get("readOnly"):
            return self.folders[given["claimName"]]
        if kind == "persistentVolumeClaim":
            folder = self.folder / "claims" / given["claimName"]
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, 0, group)
            folder.chmod(0o2775)
            return folder
        folder = bundle / volume["name"]
        folder.mkdir()
        if kind == "emptyDir":
            folder.chmod(0o777)
            return folder
        if kind == "configMap":
            contents = {key: text.encode() for key, text in self.objects["ConfigMap", given["name"]]["data"].items()}
        else:
            assert kind == "secret", f"a volume of a kind that this node does not know: {kind}"
            secret = self.objects["Secret", given["secretName"]]
            contents = {key: base64.b64decode(text) for key, text in secret["data"].items()}
        for key, data in contents.items():
            (folder / key).write_bytes(data)
            os.chown(folder / key, 0, group)
            (folder / key).chmod(given.get("defaultMode", 0o644))
        return folder

    def sign_certificates(self):
        """What cert-manager does for the chart's Certificates: the secrets that they name."""
        certificates = {name: o["spec"] for (kind, name), o in self.objects.items() if kind == "Certificate"}
        folder = self.folder / "certificates"
        folder.mkdir()
        # Debian's own adds extensions.
        (folder / "openssl.cnf").write_text("[req]\ndistinguished_name = name\n[name]\n", encoding="utf-8")
        # The authority first.
        for name, spec in sorted(certificates.items(), key=lambda item: not item[1].get("isCA")):
            subject = "".join(f"/O={o}" for o in spec.get("subject", {}).get("organizations", [])) + f"/CN={spec['commonName']}"
            base = ["openssl", "req", "-config", folder / "openssl.cnf", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                    "-subj", subject, "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
            if spec.get("isCA"):
                authority = name
                self.command(*base, "-addext", "keyUsage=critical,keyCertSign,cRLSign",
                             "-addext", "basicConstraints=critical,CA:TRUE")
            else:
                names = ",".join(f"DNS:{n}" for n in spec.get("dnsNames", []))
                usages = {"digital signature": "", "server auth": "serverAuth", "client auth": "clientAuth"}
                extended = ",".join(filter(None, (usages[u] for u in spec["usages"])))
                extensions = [f"extendedKeyUsage={extended}", "keyUsage=critical,digitalSignature", "basicConstraints=critical,CA:FALSE",
                              *([f"subjectAltName={names}"] if names else [])]
                self.command(*base, "-CA", folder / f"{authority}.crt", "-CAkey", folder / f"{authority}.key",
                             *(part for e in extensions for part in ("-addext", e)))
            files = {"tls.crt": f"{name}.crt", "tls.key": f"{name}.key", "ca.crt": f"{authority}.crt"}
            self.objects["Secret", spec["secretName"]] = {
                "data": {key: base64.b64encode((folder / file).read_bytes()).decode() for key, file in files.items()}}

    def stop(self):
        for pod in self.pods.values():
            while pod.process is not None:
                # Fails while the container is being made.
                run(*self.runc, "kill", pod.name, "KILL")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pod.process.wait(1)
                    pod.process = None
        groups = Path("/sys/fs/cgroup")
        # Version 1 has a tree for each controller, version 2 one for all.
        for tree in (groups, *groups.iterdir()):
            if (tree / self.cgroup).is_dir():
                (tree / self.cgroup).rmdir()
        shutil.rmtree(self.folder / "pods", ignore_errors=True)
