#!/usr/bin/python3
"""Checks deploy/helm/ballast without a cluster.

The chart passes `helm lint --strict`, and what it renders for each ci/*-values.yaml passes kubeconform, strictly: against the OpenAPI
description of the Kubernetes release that tests start and the operators' resource definitions, all out of their modules. Every
value has a comment before it and is in the schema, and the schema has no other. The chart's versions are the tree's.
"""
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

CHART = Path("deploy/helm/ballast")
GO = Path.home() / ".cache/ballast/tools/go"


def strict(node):
    """OpenAPI to a JSON schema that refuses what it does not name. In place."""
    if isinstance(node, list):
        for item in node:
            strict(item)
    if not isinstance(node, dict):
        return
    for item in node.values():
        strict(item)
    if node.get("format") == "int-or-string" or node.get("x-kubernetes-int-or-string") is True:
        for key in ("type", "format", "anyOf"):
            node.pop(key, None)
        node["type"] = ["string", "integer"]
    if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
        node.setdefault("additionalProperties", False)


def reachable(name, definitions):
    found, todo = {}, [name]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found[name] = definitions[name]
        todo += re.findall(r'"#/definitions/([^"]+)"', json.dumps(definitions[name]))
    return found


def write_schemas(folder, kinds):
    """A schema for each (group, version, kind) of `kinds`; returns those that nobody defines."""
    with open(GO / "openapi/swagger.json", encoding="utf-8") as f:
        definitions = json.load(f)["definitions"]
    strict(definitions)
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {"type": ["string", "number"]}
    known = {}
    for name, definition in definitions.items():
        for gvk in definition.get("x-kubernetes-group-version-kind", []):
            known[gvk["group"], gvk["version"], gvk["kind"]] = {"$ref": f"#/definitions/{name}"}, name
    for path in (GO / "crds").iterdir():
        with open(path, encoding="utf-8") as f:
            crd = yaml.load(f, yaml.CSafeLoader)["spec"]
        for version in crd["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            strict(schema)
            schema["properties"]["metadata"] = {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
            name = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
            known[crd["group"], version["name"], crd["names"]["kind"]] = schema, name
    for group, version, kind in kinds & known.keys():
        schema, name = known[group, version, kind]
        # kubeconform takes the version for the group of the core kinds.
        with open(folder / f"{group or version}_{version}_{kind.lower()}.json", "w", encoding="utf-8") as f:
            json.dump({**schema, "definitions": reachable(name, definitions)}, f)
    return kinds - known.keys()


def helm(*args):
    done = subprocess.run([GO / "bin/helm", *args], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def rendered_problems(folder):
    kubernetes = re.search(r"k8s\.io/kubernetes v(\S+)", Path(".ci/go/tools/go.mod").read_text(encoding="utf-8")).group(1)
    apis = [a for v in ("cert-manager.io/v1", "monitoring.coreos.com/v1", "leaderworkerset.x-k8s.io/v1")
            for a in ("--api-versions", v)]
    manifests, kinds = [], set()
    for values in sorted((CHART / "ci").glob("*-values.yaml")):
        status, out, err = helm("template", "check", str(CHART), "--values", str(values), "--kube-version", kubernetes, *apis)
        if status:
            yield f"{values}: {err.strip()}"
            continue
        manifest = folder / f"{values.stem}.yaml"
        manifest.write_text(out, encoding="utf-8")
        manifests.append(manifest)
        for document in filter(None, yaml.load_all(out, yaml.CSafeLoader)):
            group, _, version = ("/" + document["apiVersion"]).rpartition("/")
            kinds.add((group.lstrip("/"), version, document["kind"]))
    # Lint cannot be told of operators, so it gets values that need none.
    status, out, err = helm("lint", "--strict", str(CHART), "--kube-version", kubernetes, "--values", str(CHART / "ci/engines-values.yaml"))
    if status:
        yield f"helm lint: {out.strip()} {err.strip()}"
    for group, version, kind in write_schemas(folder, kinds):
        yield f"no schema of {group}/{version} {kind}: not in this Kubernetes release nor in {GO}/crds"
    done = subprocess.run(
        [GO / "bin/kubeconform", "-strict", "-summary", "-schema-location",
         str(folder) + "/{{ .Group }}_{{ .ResourceAPIVersion }}_{{ .ResourceKind }}.json", *manifests],
        capture_output=True, text=True, check=False)
    if done.returncode or "Skipped: 0" not in done.stdout:
        yield f"kubeconform: {done.stdout}{done.stderr}"


def comments_problems():
    """Values without a comment on the line above. Maps need none where their values have theirs."""
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"( *)(?:- )?([A-Za-z]+):(.*)$", line)
        if not match:
            continue
        above = lines[number - 1].strip() if number else ""
        opens = not match.group(3).strip()  # a map whose values have comments
        if not opens and not above.lstrip("- ").startswith("#"):
            yield f"{CHART}/values.yaml:{number + 1}: {match.group(2)} has no comment above it"


def schema_problems(values, schema, path=""):
    """Values that the schema does not name, and the other way round."""
    properties = schema.get("properties")
    if properties is None or not isinstance(values, dict):
        return
    for key in values.keys() - properties.keys():
        yield f"{path}{key} is in values.yaml and not in values.schema.json"
    for key in properties.keys() - values.keys() - {"global"}:
        yield f"{path}{key} is in values.schema.json and not in values.yaml"
    for key in values.keys() & properties.keys():
        if not (path.endswith("resources.") or key == "resources"):
            yield from schema_problems(values[key], properties[key], f"{path}{key}.")


def version_problems():
    version = re.search(r'kVersion\[\] = "([^"]+)"', Path("proto/base/version.h").read_text(encoding="utf-8")).group(1)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    for key in ("version", "appVersion"):
        if chart[key] != version:
            yield f"{CHART}/Chart.yaml: {key} is {chart[key]}, proto/base/version.h says {version}"


def main():
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    problems = [*comments_problems(), *schema_problems(values, schema), *version_problems()]
    # A group has its own values and all those of `workers`.
    own, whole = values["groups"][0], schema["properties"]["groups"]["items"]
    problems += schema_problems({**values["workers"], **own}, whole, "groups[].")
    with tempfile.TemporaryDirectory() as folder:
        problems += rendered_problems(Path(folder))
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(1 if problems else 0)


main()
