#!/usr/bin/python3
"""Writes docs/flags.md: what the programs' own --help says. make_flags.py BIN [--check]; BIN: bazel-bin, or `.` in a test.

`--check` writes nothing and fails where the page is not what would be written.
"""
import pathlib
import re
import subprocess
import sys

PAGE = pathlib.Path("docs/flags.md")
PROGRAMS = ("controller/ballast-controller", "worker/ballast-worker", "controller/ctl/ballastctl")
HEAD = """# Flags

What `--help` of each program says; written by `docs/make_flags.py`, and `make test` fails where it is not up to date. The daemons' flags can stand in a YAML file
too, with the same names (`--config`).
"""


def help_of(argv):
    text = subprocess.run([*argv, "--help"], check=True, capture_output=True, text=True).stdout
    return "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))


def page(folder):
    out = [HEAD]
    for program in PROGRAMS:
        name, text = pathlib.Path(program).name, help_of([f"{folder}/{program}"])
        out.append(f"\n## {name}\n\n```text\n{text}\n```\n")
        verbs = re.search(r"^Subcommands:\n((?:  .*\n)+)", text, re.M)
        for verb in re.findall(r"^  (\S+)", verbs.group(1), re.M) if verbs else ():
            out.append(f"\n### {name} {verb}\n\n```text\n{help_of([f'{folder}/{program}', verb])}\n```\n")
    return "".join(out)


def main():
    folder, check = sys.argv[1], "--check" in sys.argv[2:]
    text = page(folder)
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        print("docs/flags.md is not what the programs' --help says: make build, then docs/make_flags.py bazel-bin")
        return 1
    return 0


sys.exit(main())
