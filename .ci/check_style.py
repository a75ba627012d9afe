#!/usr/bin/python3
"""What clang-format does not see: header guards, white space, and that both lists of Debian packages agree."""
import re
import subprocess
import sys

TEXT = (".bazel", ".bzl", ".cc", ".h", ".cu", ".cuh", ".md", ".proto", ".py", ".sh", ".yaml", ".yml", ".txt", "BUILD")


def problems_of(path):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    for number, line in enumerate(text.split("\n"), 1):
        if line != line.rstrip():
            yield f"{path}:{number}: white space at the end of the line"
    if text and not text.endswith("\n"):
        yield f"{path}: no newline at the end"
    if path.endswith(".h"):
        guard = "BALLAST_" + re.sub(r"[^A-Z0-9]", "_", path.upper()) + "_"
        if f"#ifndef {guard}\n#define {guard}\n" not in text or not text.endswith(f"#endif  // {guard}\n"):
            yield f"{path}: wants the header guard {guard}"


def package_problems():
    with open(".ci/packages.txt", encoding="utf-8") as f:
        rows = [line.split() for line in f if line.strip() and not line.startswith("#")]
    for row in rows:
        if len(row) < 3 or row[1] not in ("build", "cuda", "python", "test"):
            yield f".ci/packages.txt: '{' '.join(row)}': wants NAME, build, cuda, python or test, and what it is for"
    installed = {row[0] for row in rows if row[1] == "build"}
    with open("third_party/system/system.bzl", encoding="utf-8") as f:
        for package in re.findall(r'^    "([a-z0-9+.-]+)": "/usr/', f.read(), re.M):
            if package not in installed:
                yield f".ci/packages.txt: {package} of third_party/system/system.bzl is missing in group build"


def main():
    files = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.split("\n")
    problems = list(package_problems())
    for path in files:
        if path.endswith(TEXT) and not path.startswith("testdata/"):
            problems += problems_of(path)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(1 if problems else 0)


main()
