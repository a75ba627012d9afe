#!/usr/bin/python3
"""Every shell command of docs/ and README.md is run as a reader would, or is in NOT_RUN with the reason.

A page's ```sh blocks are run in their order in one shell, each page in a folder of its own; what a block needs that the
page does not make comes from FILES or from a comment of the page right above it, <!-- test: COMMANDS -->. Of commands
that are not run, those of our own programs must exist with their verbs and flags. Other blocks say another language.
"""
import gzip
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

TREE = pathlib.Path.cwd()
PAGES = [*sorted((TREE / "docs").glob("*.md")), TREE / "README.md"]
# Pages that are written by programs, and have commands of tests of their own.
ELSEWHERE = {"grpcurl.md": "tests/live/grpcurl_test.py runs each and compares what it prints"}
PROGRAMS = {path.name: path for path in (TREE / p for p in (
    "controller/ballast-controller", "controller/ctl/ballastctl", "worker/ballast-worker"))}
# Programs that are built for GPUs alone: where their flags are defined.
SOURCES = {"level_benchmark": TREE / "tests/levelling/level_benchmark.cc"}
BLOCK = re.compile(r"^(?:<!-- test: ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", re.M | re.S)
SHELL = "sh"
# By page and a block's first line: why it is not run here.
NOT_RUN = {
    ("README.md", "make demo"): "make test runs it as tests/demo",
    ("console.md", "openssl pkcs12"): "needs a person's certificate",
    ("console.md", "curl -s"): "needs a controller with a console; tests/web/console_test.cjs sends the same requests",
    ("images.md", "make image"): "builds for minutes; tests/chart/images_test.py makes and checks them",
    ("images.md", "skopeo copy"): "needs a registry",
    ("images.md", "helm install"): "needs a Kubernetes cluster; tests/chart has one",
    ("measurements.md", "ballastctl trace record"): "a benchmark on data that is not in the tree",
    ("measurements.md", "level_benchmark"): "a benchmark on data that is not in the tree",
    ("operations.md", "head -c 32"): "daemons in the foreground; quickstart.md has them in the background",
    ("operations.md", "ballastctl get groups"): "has a plan's id and what does not end; quickstart.md has what needs neither",
    ("operations.md", "ballastctl drain"): "tests/e2e/drain_test.cc does it under load",
    ("operations.md", "ballastctl --tls-cert=tls.crt"): "needs certificates; tests/e2e/drain_test.cc does it",
    ("operations.md", "ballastctl restore --overwrite"): "needs an older release's store",
    ("operations.md", "ballastctl backup"): "needs a controller's store; tests/e2e/operations_test.cc does it",
    ("operations.md", "ballastctl --tls-cert=me.crt"): "needs certificates; tests/e2e/tls_test.cc does it",
    ("planner.md", "ballast-controller --engines-only"): "daemons in the foreground; controller/ctl/sidecar_test.cc runs both",
    ("planner.md", "ballastctl trace record"): "needs a load that goes on; controller/ctl/trace_verbs_test.cc does it",
    ("quickstart.md", "make build"): "builds for minutes; what it makes is here",
    ("vllm.md", "make python"): "builds for minutes; //controller/python has tests of what it makes",
}
# What the commands of a page must have printed, as far as they succeed all the same.
PRINTED = {"quickstart.md": (r"> chat +serving .* 2/2 ", r"\nw1 +#")}


def counts(layers, experts, tilt):
    """An engine's dump of expert loads."""
    rows = [[10 + (7 * e * tilt + 3 * layer) % 90 for e in range(experts)] for layer in range(layers)]
    return json.dumps({"logical_count": rows}).encode()


def routes(tilt):
    """Two of 64 experts for each of 640 tokens in two layers."""
    lines = ["layer,sample,token,e0,e1"]
    for layer in range(2):
        for token in range(640):
            first = (token * tilt + 5 * layer) % 64
            lines.append(f"{layer},{token // 40},{token % 40},{first},{(first + tilt) % 64}")
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


# What pages read without making it.
FILES = {
    "planner.md": {
        "dump.json": counts(2, 256, 1), "other.json": counts(2, 256, 3), "today.json": counts(2, 64, 5),
        "c.json": counts(2, 64, 1), "d.json": counts(2, 64, 3), "m.json": counts(2, 64, 7),
        "code.csv.gz": routes(3), "law.csv.gz": routes(5), "routes.csv.gz": routes(7),
    },
}
TORCH_FILES = {"dump.pt": "per_token.pt", "rank0.pt": "stat.pt", "rank1.pt": "stat.pt"}


def blocks(page):
    """The page's fenced blocks: what comes before each in a test, its language, its text."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def reason_not_to_run(page, text):
    return next((why for (name, first), why in NOT_RUN.items() if name == page.name and text.startswith(first)), None)


def commands(text):
    """The command lines of a block, each as a list of words, without comments."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [re.sub(r"\s#.*", "", line).split() for line in joined.splitlines() if line.strip()]


def help_of(program, words):
    """What --help says of the verb that `words` lead to; the flags of every verb of ballastctl stand in its own help."""
    text, path = "", []
    for _ in range(3):
        ran = subprocess.run([program, *path, "--help"], capture_output=True, text=True)
        if ran.returncode != 0:
            return None
        text += ran.stdout
        verbs = re.search(r"^Subcommands:\n((?:  .*\n)+)", ran.stdout, re.M)
        names = re.findall(r"^  (\S+)", verbs.group(1), re.M) if verbs else []
        after = words[words.index(path[-1]) + 1:] if path else words
        following = next((word for word in after if word in names), None)
        if following is None:
            return None if names else text
        path.append(following)
    return text


class Commands(unittest.TestCase):
    def test_every_command_succeeds(self):
        for page in PAGES:
            if page.name in ELSEWHERE:
                continue
            to_run = [(before, text) for before, language, text in blocks(page)
                      if language == SHELL and reason_not_to_run(page, text) is None]
            if not to_run:
                continue
            with self.subTest(page=page.name), tempfile.TemporaryDirectory() as folder:
                for name in ("docs", "testdata"):
                    os.symlink(TREE / name, pathlib.Path(folder) / name)
                for name, content in FILES.get(page.name, {}).items():
                    (pathlib.Path(folder) / name).write_bytes(content)
                for name, source in TORCH_FILES.items():
                    shutil.copy(TREE / "controller/formats/testdata" / source, pathlib.Path(folder) / name)
                path = ":".join([*(str(p.parent) for p in PROGRAMS.values()), os.environ["PATH"]])
                # What a page starts in the background ends with its shell, however that ends.
                script = "set -eo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n" + "".join(
                    f"{before}\n{text}" for before, text in to_run)
                ran = subprocess.run(["bash", "-c", script], cwd=folder, env={**os.environ, "PATH": path},
                                     stdin=subprocess.DEVNULL, capture_output=True, text=True)
                logs = "".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in pathlib.Path(folder).glob("*.log"))
                self.assertEqual(ran.returncode, 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}\n{logs}")
                for pattern in PRINTED.get(page.name, ()):
                    self.assertRegex(ran.stdout, pattern)

    def test_every_block_says_its_language(self):
        for page in PAGES:
            for _, language, text in blocks(page):
                with self.subTest(page=page.name, block=text.splitlines()[0]):
                    self.assertIn(language, {SHELL, "c", "json", "python", "text", "yaml"})

    def test_what_is_not_run_is_there_and_has_its_flags(self):
        used = set()
        for page in PAGES:
            for _, language, text in blocks(page):
                if language != SHELL or reason_not_to_run(page, text) is None:
                    continue
                used |= {key for key in NOT_RUN if key[0] == page.name and text.startswith(key[1])}
                for words in commands(text):
                    if words[0] not in PROGRAMS and words[0] not in SOURCES:
                        continue
                    with self.subTest(page=page.name, command=" ".join(words)):
                        known = (help_of(PROGRAMS[words[0]], words[1:]) if words[0] in PROGRAMS
                                 else SOURCES[words[0]].read_text(encoding="utf-8"))
                        self.assertIsNotNone(known, "no such verb")
                        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
                            self.assertRegex(known, rf"{flag}\b")
        self.assertEqual(used, set(NOT_RUN), "listed, and on no page any more")


if __name__ == "__main__":
    unittest.main(verbosity=2)
