"""The images of the programs that this test build made."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from charts import CHART, run

VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
_PROGRAMS = {
    "controller": "controller/ballast-controller.stripped",
    "worker": "worker/ballast-worker.stripped",
    "worker-cuda": "worker/ballast-worker.stripped",
}


def make(out, *images, more=()):
    """Runs make_image.py into the folder `out`; returns what it prints. Little compression, for that is most of the time."""
    done = run("deploy/image/make_image.py", *(f"--{image}={_PROGRAMS[image]}" for image in images),
               "--ballastctl=controller/ctl/ballastctl.stripped", "--dependencies=deploy/image", f"--version={VERSION}",
               "--revision=test", "--created=1000000000", "--level=1", f"--out={out}", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def unpack(out, image, bundle):
    """By umoci, as runtimes do it: leaves the files in bundle/rootfs and a runtime's configuration in bundle/config.json."""
    done = run("umoci", "unpack", "--image", f"{out}/oci:{image}", bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(bundle)


def main(script):
    """Runs the cases of a script, for root in namespaces of its own, and ends. A case that is skipped is so by name in Bazel's
    test.xml."""
    if os.getuid() == 0:
        in_namespaces(script)
    # Bazel runs it under its target's name, which is no Python file's.
    cases = Path(script).with_suffix(".py")
    xml = [f"--junitxml={os.environ['XML_OUTPUT_FILE']}"] if "XML_OUTPUT_FILE" in os.environ else []
    sys.exit(pytest.main(["-p", "no:cacheprovider", *xml, "-v", "-s", str(cases)]))


def in_namespaces(script):
    """Goes on, as root, in mount, network and process namespaces of its own, whose processes end with it."""
    if os.environ.get("BALLAST_NAMESPACES") == "own":
        # Mounts stay in here, and what `ip` keeps there is gone with them.
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    os.environ["BALLAST_NAMESPACES"] = "own"
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    os.execvp("unshare", ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, script])
