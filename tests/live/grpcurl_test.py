#!/usr/bin/python3
"""Every command of docs/grpcurl.md is run by grpcurl against a live cluster, and prints what the page shows.

Compared is what does not depend on the run: names, states, which fields there are. With --write BIN, outside Bazel, the
page's outputs are written anew.
"""
import argparse
import difflib
import json
import pathlib
import re
import shlex
import subprocess
import sys
import unittest

sys.path.insert(0, "tests/live")
import live  # noqa: E402

PAGE = pathlib.Path("docs/grpcurl.md")
EXAMPLE = re.compile(r"```sh\n(grpcurl [^\n]*)\n```\n```(json|text)\n(.*?)```", re.S)
# Entries of a list that the page shows.
SHOWN = 1
# Fields whose contents depend on the run; so does a node, where that is a host's name.
VARYING = {"kernel_fingerprint", "next_page_token", "reason", "text", "task", "reasons", "moves", "history", "replicas",
           "effect", "tasks", "drain", "drain_reason"}
# What the page shows of a group or a plan in the answers of these.
BRIEFLY = {"/WatchGroup": ("name", "state", "mode", "epoch", "balancedness"),
           "/Pause": ("name", "state", "mode", "paused"), "/Resume": ("name", "state", "mode"),
           "/SetMode": ("name", "state", "mode"), "/SetPolicy": ("name", "state", "policy"),
           "/GetPlan": ("id", "group", "state", "policy"), "/RejectPlan": ("id", "group", "state", "finished")}
# For workers.
NOT_FOR_PEOPLE = {"ballast.v1.WorkerSession"}


def shortened(value):
    """The value with lists cut."""
    if isinstance(value, dict):
        return {key: shortened(v) for key, v in value.items()}
    if isinstance(value, list):
        cut = [shortened(v) for v in value[:SHOWN]]
        return cut + ["..."] if len(value) > SHOWN else cut
    return value


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) or (
        isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?|NaN|-?Infinity", value))


def constant(text):
    """A string without what changes from run to run: numbers, times, addresses, fingerprints."""
    text = re.sub(r"\b[0-9a-f]{8,}\b", "#", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "#", text)
    return re.sub(r"\d+(\.\d+)*", "#", text)


def comparable(value):
    """What has to be the same. Numbers are left out of objects: JSON leaves those out that are 0."""
    if isinstance(value, dict):
        return {key: "#" if key in VARYING or (key == "node" and isinstance(v, str)) else comparable(v)
                for key, v in sorted(value.items()) if key != "..." and not is_number(v) and v != []}
    if isinstance(value, list):
        return [comparable(v) for v in value if v != "..." and not is_number(v)][:SHOWN]
    return constant(value) if isinstance(value, str) else value


def like(shown, printed):
    """What was printed, without the fields that the page leaves out where it says so."""
    if isinstance(shown, dict) and isinstance(printed, dict):
        return {key: like(shown[key], v) if key in shown else v for key, v in printed.items()
                if key in shown or "..." not in shown}
    if isinstance(shown, list) and isinstance(printed, list):
        return [like(s, p) for s, p in zip(shown, printed)] + printed[len(shown):]
    return printed


def abridged(value, command):
    """An answer as the page shows it: of groups and plans that have been shown before only what the command is about."""
    keep = next((fields for method, fields in BRIEFLY.items() if method in command), None)
    for name in ("group", "plan"):
        if keep and isinstance(value.get(name), dict):
            value = {**value, name: {k: v for k, v in value[name].items() if k in keep} | {"...": "..."}}
    return shortened(value)


def documents(text):
    """The JSON documents that follow each other in a text."""
    found, position = [], 0
    while text[position:].strip():
        while text[position].isspace():
            position += 1
        document, position = json.JSONDecoder().raw_decode(text, position)
        found.append(document)
    return found


class Runner:
    """Runs the page's commands on live clusters, the second of them with TLS."""

    def __init__(self, grpcurl, plain, secure):
        self._grpcurl = grpcurl
        self._plain = plain.info
        self._secure = secure.info
        self.ids = {}  # of plans: the page's -> the cluster's

    def _argument(self, argument, info):
        argument = argument.replace("127.0.0.1:7070", info["controller"])
        argument = argument.replace("127.0.0.1:7080", info["workers"][0]["grpc"])
        for role, files in info.get("tls", {}).items():
            argument = {"ca.crt": files["authorities"], f"{role}.crt": files["certificate"],
                        f"{role}.key": files["key"]}.get(argument, argument)
        for page, real in self.ids.items():
            argument = argument.replace(f'"{page}"', f'"{real}"')
        return argument

    def run(self, command):
        """What the command prints; of a watch, which does not end, the first message."""
        info = self._secure if "-cacert" in command else self._plain
        argv = [self._grpcurl, *(self._argument(a, info) for a in shlex.split(command)[1:])]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if "/Watch" not in command:
            return process.communicate()[0]
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        process.kill()
        process.communicate()
        return "".join(lines)

    def learn(self, page, real):
        """The page's id of a plan, from an answer that has one."""
        shown, got = ((d.get("plan") or {}).get("id") if isinstance(d, dict) else None for d in (page, real))
        if shown and got:
            self.ids[shown] = got


def clusters(**where):
    return live.LiveCluster("--quiet", **where), live.LiveCluster("--no-plan", "--tls", "--workers=1", "--slots=0", **where)


class Grpcurl(unittest.TestCase):
    def test_every_command_prints_what_the_page_shows(self):
        page = PAGE.read_text(encoding="utf-8")
        examples = EXAMPLE.findall(page)
        self.assertEqual(len(examples), page.count("\ngrpcurl "), "a command without what it prints")
        plain, secure = clusters()
        with plain, secure:
            runner = Runner("external/system/go/bin/grpcurl", plain, secure)
            for command, kind, shown in examples:
                with self.subTest(command=command):
                    printed = runner.run(command)
                    if kind == "text":
                        self.compare(constant(shown), constant(printed))
                        continue
                    self.assertTrue(printed.lstrip().startswith("{"), printed)
                    want, got = documents(shown), documents(printed)
                    runner.learn(want[0], got[0])
                    if "/Generate" in command:  # how many tokens a message has depends on the run; the last one has the end
                        want, got = ([{"finish": answers[-1].get("finish")}] for answers in (want, got))
                    got = like(want, got)
                    self.compare(json.dumps(comparable(want), indent=1), json.dumps(comparable(got), indent=1))
            methods = set()
            for address in (plain.info["controller"], plain.info["workers"][0]["grpc"]):
                for service in set(self.ask(runner, f"grpcurl -plaintext {address} list").split()) - NOT_FOR_PEOPLE:
                    if service.startswith("ballast."):
                        listed = self.ask(runner, f"grpcurl -plaintext {address} list {service}").split()
                        methods |= {method.replace(f"{service}.", f"{service}/") for method in listed}
            self.assertEqual({method for method in methods if method not in page}, set(), "not on the page")

    def ask(self, runner, command):
        printed = runner.run(command)
        self.assertNotIn("rror", printed)
        return printed

    def compare(self, want, got):
        if want != got:
            self.fail("\n" + "\n".join(difflib.unified_diff(want.splitlines(), got.splitlines(), "page", "printed", n=9)))


def write(bin_folder, grpcurl):
    page = PAGE.read_text(encoding="utf-8")
    plain, secure = clusters(binary=f"{bin_folder}/tests/live/live_cluster", bin_folder=bin_folder)
    with plain, secure:
        runner = Runner(grpcurl, plain, secure)

        def replaced(match):
            command = match.group(1)
            printed = runner.run(command)
            kind = "json" if printed.lstrip().startswith("{") else "text"
            if kind == "json":
                printed = "\n".join(json.dumps(abridged(d, command), indent=2, ensure_ascii=False)
                                    for d in documents(printed)) + "\n"
            for cluster in (plain, secure):
                printed = printed.replace(cluster.info["controller"], "127.0.0.1:7070")
                printed = printed.replace(cluster.info["workers"][0]["grpc"], "127.0.0.1:7080")
            return f"```sh\n{command}\n```\n```{kind}\n{printed}```"

        PAGE.write_text(EXAMPLE.sub(replaced, page), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="BIN", help="write the page's outputs, with the programs of this folder")
    parser.add_argument("--grpcurl", default="grpcurl", help="with --write: the program")
    options = parser.parse_args()
    if options.write:
        write(options.write, options.grpcurl)
    else:
        unittest.main(argv=sys.argv[:1], verbosity=2)
