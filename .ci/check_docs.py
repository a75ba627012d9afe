#!/usr/bin/python3
"""Fails for a page (*.md) that names what is not there.

Checked: relative links and their #anchors, `paths` in code quotes that start with a folder of this tree, Bazel labels
`//package:target`, and `make TARGET`; the last two in blocks of commands, too.
"""
import os
import re
import subprocess
import sys

FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    with open(path, encoding="utf-8") as f:
        text = FENCE.sub("", f.read())
    found = set()
    for heading in re.findall(r"^#+ +(.*)$", text, re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        number = 0
        while anchor + (f"-{number}" if number else "") in found:
            number += 1
        found.add(anchor + (f"-{number}" if number else ""))
    return found


def label_exists(label):
    package, _, target = label[2:].partition(":")
    if package.endswith("..."):
        return os.path.isdir(package[:-3].rstrip("/") or ".")
    target = target or os.path.basename(package)
    for name in ("BUILD.bazel", "BUILD"):
        build = os.path.join(package, name)
        if os.path.exists(build):
            with open(build, encoding="utf-8") as f:
                stem = re.sub(r"_test$", "", target)  # macros make NAME_test of NAME
                text = f.read()
            return f'"{target}"' in text or f'"{stem}"' in text or os.path.exists(os.path.join(package, target))
    return False


def main():
    files = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.split()
    folders = sorted({f.split("/")[0] for f in files if "/" in f})
    tree_path = re.compile(r"(?:%s)/[\w./-]*$" % "|".join(re.escape(f) for f in folders))
    label = re.compile(r"//[\w./-]+(?::[\w.+-]+)?$")
    with open("Makefile", encoding="utf-8") as f:
        make_targets = set(re.findall(r"^([a-z][\w-]*):", f.read(), re.M))
    problems = []
    for page in (f for f in files if f.endswith(".md")):
        with open(page, encoding="utf-8") as f:
            text = f.read()
        prose = FENCE.sub(lambda m: "\n" * m.group(0).count("\n"), text)

        def report(match, problem, page=page, prose=prose):
            problems.append(f"{page}:{prose[:match.start()].count(chr(10)) + 1}: {problem}")

        for match in LINK.finditer(prose):
            target = match.group(1) or match.group(2)
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            path = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
            if not os.path.exists(path):
                report(match, f"links to {target}, which is not there")
            elif anchor and path.endswith(".md") and anchor not in anchors(path):
                report(match, f"links to {target}, which has no such heading")
        for match in CODE.finditer(prose):
            code = match.group(1)
            if tree_path.match(code) and not os.path.exists(code):
                report(match, f"names the path {code}, which is not there")
            elif label.match(code) and not label_exists(code):
                report(match, f"names the target {code}, which is not there")
            make = re.match(r"make ([a-z][\w-]*)", code)
            if make and make.group(1) not in make_targets:
                report(match, f"names `{code}`, which the Makefile does not have")
        for fence in FENCE.finditer(text):
            for name in re.findall(r"\bbazel (?:run|test|build)\b[^\n]* (//[\w./:+-]+)", fence.group(0)):
                if not label_exists(name):
                    report(fence, f"has a command on the target {name}, which is not there", prose=text)
            for name in re.findall(r"^make ([a-z][\w-]*)", fence.group(0), re.M):
                if name not in make_targets:
                    report(fence, f"has `make {name}`, which the Makefile does not have", prose=text)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(1 if problems else 0)


main()
