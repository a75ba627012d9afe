"""Bills of materials: SPDX 2.3, https://spdx.github.io/spdx-spec/v2.3."""
import hashlib
import json
import re

import debian

# Bazel's external libraries, by label -> the Debian package that they are compiled from; None: no code.
_SYSTEM = {
    "absl": "libabsl-dev", "boost": "libboost1.74-dev", "cli11": "libcli11-dev", "crypto": "libssl-dev", "dnnl": "libdnnl-dev",
    "eigen": "libeigen3-dev", "grpc++": "libgrpc++-dev", "grpc++_reflection": "libgrpc++-dev", "nlohmann_json": "nlohmann-json3-dev",
    "prometheus_cpp": "prometheus-cpp-dev", "protobuf": "libprotobuf-dev", "re2": "libre2-dev", "sqlite3": "libsqlite3-dev",
    "ssl": "libssl-dev", "ucx": "libucx-dev", "utf8proc": "libutf8proc-dev", "versions": None, "xxhash": "libxxhash-dev",
    "yaml_cpp": "libyaml-cpp-dev", "zlib": "zlib1g-dev",
}

# The same for CUDA -> PyPI's package.
_CUDA = {
    "cublas_lt": "nvidia-cublas", "cudart": "nvidia-cuda-runtime", "headers": "nvidia-cuda-runtime", "nccl": "nvidia-nccl-cu13",
    "nv": "nvidia-cuda-cccl",
}
_CUDA_LICENCES = {"nvidia-nccl-cu13": "BSD-3-Clause", "nvidia-cuda-cccl": "Apache-2.0 WITH LLVM-exception"}

# This tree's copies of others' work: (name, version, licence).
_COPIES = {"//third_party/grpc_health:health": ("grpc-health-proto", "v1", "Apache-2.0")}

_NVIDIA = ("LicenseRef-NVIDIA", "NVIDIA's end user licence agreement of the CUDA toolkit: https://docs.nvidia.com/cuda/eula/")


def _id(*parts):
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", "-".join(parts))


class _Bill:
    def __init__(self):
        self.packages = {}
        self.relationships = []
        self.licences = {}

    def add(self, key, name, version, licence, purl="", **more):
        self.packages.setdefault(key, {
            "SPDXID": key, "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION", "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION", "licenseDeclared": licence, "copyrightText": "NOASSERTION",
            **({"externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}]}
               if purl else {}), **more})
        return key

    def debian(self, package):
        licence = package.licence()
        if licence is None:
            licence = "LicenseRef-" + _id(package.name).removeprefix("SPDXRef-")
            self.licences[licence] = package.copyright().decode("utf-8", "replace")
        more = {"homepage": package.homepage} if package.homepage else {}
        return self.add(_id("deb", package.name), package.name, package.version, licence,
                        f"pkg:deb/debian/{package.name}@{package.version.replace('+', '%2B')}?arch={package.architecture}&distro=bookworm",
                        supplier="Organization: Debian", sourceInfo=f"Debian source package {package.source}", **more)

    def cuda(self, name, versions):
        licence = _CUDA_LICENCES.get(name)
        if licence is None:
            licence, text = _NVIDIA
            self.licences[licence] = text
        return self.add(_id("pypi", name), name, versions[name], licence, f"pkg:pypi/{name}@{versions[name]}",
                        supplier="Organization: NVIDIA")

    def relate(self, one, relation, other):
        self.relationships.append({"spdxElementId": one, "relationshipType": relation, "relatedSpdxElement": other})


def pinned(paths):
    """{name: version} of pip's requirements files."""
    return {name: version for path in paths for name, version in re.findall(
        r"^([\w.-]+)==([^\s\\;]+)", path.read_text(encoding="utf-8"), re.M)}


def bill(image, version, created, programs, packages, dependencies, cuda):
    """The document, as bytes.

    programs: {name: contents' sha256}; packages: Debian's that the image holds; dependencies: labels that the programs are
    linked from; cuda: pinned() where the image is a CUDA one, and holds libraries of these packages; else empty.
    """
    made = _Bill()
    whole = made.add("SPDXRef-image", image, version, "Apache-2.0", primaryPackagePurpose="CONTAINER",
                     supplier="Organization: The Ballast Authors")
    made.relate("SPDXRef-DOCUMENT", "DESCRIBES", whole)
    own = []
    for name, sha in programs.items():
        own.append(made.add(_id("program", name), name, version, "Apache-2.0", primaryPackagePurpose="APPLICATION",
                            checksums=[{"algorithm": "SHA256", "checksumValue": sha}],
                            supplier="Organization: The Ballast Authors"))
        made.relate(whole, "CONTAINS", own[-1])
    for package in packages:
        made.relate(whole, "CONTAINS", made.debian(package))
    for label in dependencies:
        repository, _, target = label.rpartition("//:")
        if repository == "@system" and target in _SYSTEM:
            if _SYSTEM[target] is not None:
                made.relate(made.debian(debian.describe(_SYSTEM[target])), "BUILD_DEPENDENCY_OF", whole)
        elif repository == "@cuda" and target in _CUDA:
            if cuda:
                made.relate(made.cuda(_CUDA[target], cuda), "CONTAINED_BY", whole)
        elif label in _COPIES:
            name, copied, licence = _COPIES[label]
            made.relate(made.add(_id("copy", name), name, copied, licence), "BUILD_DEPENDENCY_OF", whole)
        else:
            raise SystemExit(f"{label}: a library that deploy/image/sbom.py does not know; add where it comes from")
    relations = list({json.dumps(r, sort_keys=True): r for r in made.relationships}.values())
    contents = {
        "packages": [made.packages[key] for key in sorted(made.packages)],
        "relationships": relations,
        "hasExtractedLicensingInfos": [{"licenseId": key, "extractedText": text} for key, text in sorted(made.licences.items())],
    }
    sha = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    document = {
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": f"{image}-{version}",
        # A URI that names this document alone.
        "documentNamespace": f"urn:ballast:{image}-{version}-{sha}",
        "creationInfo": {"created": created, "creators": ["Tool: ballast-make-image", "Organization: The Ballast Authors"]},
        **contents,
    }
    return (json.dumps(document, indent=1) + "\n").encode()
