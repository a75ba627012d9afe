#!/usr/bin/python3
"""Writes docs/api.md: every service, message and enum of ballast.v1 with its comment, from the protos.

`--check` writes nothing and fails where the page is not what would be written, or where something has no comment that
needs one: services, methods.
"""
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/api.md"
BUF = pathlib.Path.home() / ".cache/ballast/tools/python/bin/buf"
# Who calls them first, then what they are made of.
ORDER = ("plan_service", "group_service", "model_service", "telemetry_service", "inference", "worker_session", "common")
HEAD = """# API reference

Every service, message and enum of `ballast.v1`, from the comments in `proto/ballast/v1`; written by `docs/make_api.py`. How to call them from a shell is in
[grpcurl.md](grpcurl.md), what the words mean in [concepts.md](concepts.md). Fields and messages are only ever
added: a client of the first release goes on working.
"""


class Comments:
    """The comments of a file by the path of what they stand before."""

    def __init__(self, file):
        self._by_path = {tuple(location.get("path", ())): location
                         for location in file.get("sourceCodeInfo", {}).get("location", ())}

    def of(self, *path):
        location = self._by_path.get(path, {})
        text = location.get("leadingComments") or location.get("trailingComments") or ""
        return [line.removeprefix(" ") for line in text.rstrip().split("\n")] if text.strip() else []


def prose(lines):
    """A comment as Markdown: text as it is, what stands further in (tables of errors) as a block of its own."""
    out, block = [], []

    def end_block():
        if block:
            out.extend(["", "```text", *block, "```", ""])
            block.clear()

    for line in lines:
        if line.startswith("  "):
            block.append(line.removeprefix("  "))
        else:
            end_block()
            out.append(line)
    end_block()
    return "\n".join(out).strip("\n")


def type_of(field, packages):
    """A field's type, a link where it is of this API."""
    name = field.get("typeName", "").lstrip(".")
    if not name:
        shown = field["type"].removeprefix("TYPE_").lower()
    elif name.startswith("ballast.v1."):
        short = name.removeprefix("ballast.v1.")
        shown = f"[{short}](#{short.lower().replace('.', '')})"
    else:
        shown = name
    return f"repeated {shown}" if field["label"] == "LABEL_REPEATED" else shown


def cell(lines):
    return " ".join(line.strip() for line in lines).replace("|", "\\|").replace("<", "&lt;")


def section(file, problems):
    comments = Comments(file)
    out = [f"\n## {file['name'].removeprefix('ballast/v1/')}\n\n"]
    if about := prose(comments.of(12)):
        out.append(about + "\n")
    for i, service in enumerate(file.get("service", ())):
        out.append(f"\n### {service['name']}\n\n")
        if not comments.of(6, i):
            problems.append(f"service {service['name']} has no comment")
        out.append(prose(comments.of(6, i)) + "\n")
        for j, method in enumerate(service.get("method", ())):
            asked, answered = (method[k].removeprefix(".ballast.v1.") for k in ("inputType", "outputType"))
            arrow = [f"{'stream ' if method.get('clientStreaming') else ''}[{asked}](#{asked.lower()})",
                     f"{'stream ' if method.get('serverStreaming') else ''}[{answered}](#{answered.lower()})"]
            out.append(f"\n**`{service['name']}/{method['name']}`**: {arrow[0]} → {arrow[1]}\n")
            if about := prose(comments.of(6, i, 2, j)):
                out.append("\n" + about + "\n")
    for i, message in enumerate(file.get("messageType", ())):
        out.append(f"\n### {message['name']}\n")
        if about := prose(comments.of(4, i)):
            out.append("\n" + about + "\n")
        if not message.get("field"):
            out.append("\nNo fields.\n")
            continue
        out.append("\n| field | type | |\n| --- | --- | --- |\n")
        oneofs = [o["name"] for o in message.get("oneofDecl", ())]
        for j, field in enumerate(message["field"]):
            about = cell(comments.of(4, i, 2, j))
            if "oneofIndex" in field and not field.get("proto3Optional"):
                about = f"One of `{oneofs[field['oneofIndex']]}`. {about}".strip()
            if field.get("proto3Optional"):
                about = f"Optional. {about}".strip()
            out.append(f"| `{field['name']}` | {type_of(field, file)} | {about} |\n")
    for i, enum in enumerate(file.get("enumType", ())):
        out.append(f"\n### {enum['name']}\n")
        if about := prose(comments.of(5, i)):
            out.append("\n" + about + "\n")
        out.append("\n| value | |\n| --- | --- |\n")
        for j, value in enumerate(enum["value"]):
            out.append(f"| `{value['name']}` | {cell(comments.of(5, i, 2, j))} |\n")
    return "".join(out)


def main():
    image = json.loads(subprocess.run([BUF, "build", "proto", "-o", "-#format=json"], cwd=ROOT, check=True,
                                      capture_output=True).stdout)
    files = {f["name"].removeprefix("ballast/v1/").removesuffix(".proto"): f for f in image["file"]
             if f["name"].startswith("ballast/v1/")}
    problems = [f"docs/make_api.py: {name}.proto is not in ORDER" for name in set(files) - set(ORDER)]
    text = HEAD + "".join(section(files[name], problems) for name in ORDER)
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            problems.append("docs/api.md is not what docs/make_api.py writes: run it")
    else:
        PAGE.write_text(text, encoding="utf-8")
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


sys.exit(main())
