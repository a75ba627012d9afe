#!/usr/bin/python3
"""Runs every ```sh block of the pages named, each page's in order in one shell, as a reader would."""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

PAGES = ("quickstart.md", "sglang.md", "tensorrt-llm.md")
# What the commands of a page must have printed, as far as they succeed all the same.
PRINTED = {"quickstart.md": (r"> chat +serving .* 2/2 ", r"\nw1 +#")}
TREE = pathlib.Path.cwd()
PROGRAMS = ("controller/ballast-controller", "controller/ctl/ballastctl", "worker/ballast-worker")


class Commands(unittest.TestCase):
    def test_every_command_succeeds(self):
        for page in PAGES:
            blocks = re.findall(r"^```sh\n(.*?)^```$", (TREE / "docs" / page).read_text(encoding="utf-8"), re.M | re.S)
            with self.subTest(page=page), tempfile.TemporaryDirectory() as folder:
                self.assertTrue(blocks)
                for name in ("docs", "testdata"):
                    os.symlink(TREE / name, pathlib.Path(folder) / name)
                path = ":".join([*(str((TREE / p).parent) for p in PROGRAMS), os.environ["PATH"]])
                # What a page starts in the background ends with its shell, however that ends.
                script = "set -eo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n" + "".join(blocks)
                ran = subprocess.run(["bash", "-c", script], cwd=folder, env={**os.environ, "PATH": path},
                                     stdin=subprocess.DEVNULL, capture_output=True, text=True)
                logs = "".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in pathlib.Path(folder).glob("*.log"))
                self.assertEqual(ran.returncode, 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}\n{logs}")
                for pattern in PRINTED.get(page, ()):
                    self.assertRegex(ran.stdout, pattern)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
