#!/usr/bin/python3
"""Writes the wheel of ballast-planner: make_wheel.py FOLDER VERSION_HEADER README LICENSE FILE...

The wheel needs no Python version in particular, for the library is loaded by ctypes. Its platform is read off the
library: manylinux with the newest glibc version it asks for when glibc is all it needs, else linux, which the package
index refuses. The same input gives the same bytes.
"""
import base64
import hashlib
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path

GLIBC = {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}

METADATA = """\
Metadata-Version: 2.1
Name: ballast-planner
Version: {version}
Summary: Expert placements for MoE serving: a drop-in for DeepSeek's EPLB
License: Apache-2.0
Requires-Python: >=3.9
Provides-Extra: numpy
Requires-Dist: numpy; extra == "numpy"
Provides-Extra: torch
Requires-Dist: torch; extra == "torch"
Description-Content-Type: text/markdown

{readme}"""

WHEEL = """\
Wheel-Version: 1.0
Generator: make_wheel
Root-Is-Purelib: false
Tag: py3-none-{tag}
"""

ENTRY_POINTS = """\
[vllm.general_plugins]
ballast_eplb = ballast_planner.vllm_plugin:register
"""


def platform_tag(library):
    def readelf(option):
        return subprocess.run(["readelf", option, "-W", library], check=True, capture_output=True, text=True).stdout

    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d")))
    machine = platform.machine()
    if not needed <= GLIBC:
        return f"linux_{machine}"
    minor = max(int(minor) for minor in re.findall(r"GLIBC_2\.(\d+)", readelf("-V")))
    return f"manylinux_2_{minor}_{machine}"


def main():
    folder, version_header, readme, licence, *files = map(Path, sys.argv[1:])
    version = re.search(r'kVersion\[\] = "(.*)"', version_header.read_text()).group(1)
    (library,) = (f for f in files if f.suffix == ".so")
    tag = platform_tag(library)
    info = f"ballast_planner-{version}.dist-info"
    content = {f"ballast_planner/{f.name}": f.read_bytes() for f in sorted(files, key=lambda f: f.name)}
    content[f"{info}/METADATA"] = METADATA.format(version=version, readme=readme.read_text()).encode()
    content[f"{info}/WHEEL"] = WHEEL.format(tag=tag).encode()
    content[f"{info}/entry_points.txt"] = ENTRY_POINTS.encode()
    content[f"{info}/LICENSE"] = licence.read_bytes()
    rows = []
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}\n")
    content[f"{info}/RECORD"] = "".join(rows + [f"{info}/RECORD,,\n"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"ballast_planner-{version}-py3-none-{tag}.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if name.endswith(".so") else 0o644) << 16
            wheel.writestr(entry, data)


main()
