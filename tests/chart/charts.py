"""What the tests of the chart share: where the programs are, and helm."""
import subprocess
from pathlib import Path

import yaml

TOOLS = Path("external/system/go").absolute()
CHART = Path("deploy/helm/ballast")
KUBERNETES = "1.37.2"
OPERATORS = ("cert-manager.io/v1", "monitoring.coreos.com/v1", "leaderworkerset.x-k8s.io/v1")


def run(*command, **kwargs):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **kwargs)


def render(*args, values=None, apis=OPERATORS):
    """(objects by (kind, name), "") or (None, what Helm says)."""
    flags = [flag for api in apis for flag in ("--api-versions", api)]
    done = run(TOOLS / "bin/helm", "template", "moe", CHART, "--namespace", "serving", "--kube-version", KUBERNETES,
               "--values", "-", *flags, *args, input=yaml.safe_dump(values or {}))
    if done.returncode:
        return None, done.stderr
    documents = [d for d in yaml.load_all(done.stdout, yaml.CSafeLoader) if d]
    return {(d["kind"], d["metadata"]["name"]): d for d in documents}, ""
