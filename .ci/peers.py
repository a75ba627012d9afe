#!/usr/bin/python3
"""Fills a folder with modules of other projects that tests and benchmarks compare with: peers.py FOLDER.

FOLDER/vllm and FOLDER/sglang get the files below out of the packages of .ci/peers.txt. Nothing is installed or run. pip
fetches a source package only together with its metadata, for which it runs the package's build; a build backend that
hands out the metadata that the package brings along stands in for it.
"""
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

FILES = {
    "vllm": [
        "vllm/config/parallel.py",
        "vllm/distributed/eplb/eplb_state.py",
        "vllm/distributed/eplb/policy/__init__.py",
        "vllm/distributed/eplb/policy/abstract.py",
        "vllm/distributed/eplb/policy/default.py",
        "vllm/plugins/__init__.py",
        "tests/distributed/test_eplb_algo.py",
    ],
    "sglang": ["sglang/srt/eplb/eplb_algorithms/deepseek.py"],
}

BACKEND = """
import email, pathlib, shutil
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    known = email.message_from_string(pathlib.Path("PKG-INFO").read_text(encoding="utf-8"))
    info = pathlib.Path(folder, f"{known['Name']}-{known['Version']}.dist-info")
    info.mkdir()
    shutil.copy("PKG-INFO", info / "METADATA")
    return info.name
"""


def unpack(package, archive, folder):
    """Copies FILES[package] out of the archive."""
    for name in FILES[package]:
        target = folder / package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as packed:
                target.write_bytes(packed.read(name))
        else:
            top = archive.name.removesuffix(".tar.gz")
            with tarfile.open(archive) as packed, packed.extractfile(f"{top}/{name}") as source:
                target.write_bytes(source.read())


def main():
    folder = Path(sys.argv[1])
    requirements = Path(__file__).with_name("peers.txt")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        backend = work / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(BACKEND)
        subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
        subprocess.run(
            [work / "venv/bin/pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes",
             "--no-deps", "--no-build-isolation", "--no-binary", "vllm", "--only-binary", "sglang",
             "--dest", work / "packages", "-r", requirements],
            check=True,
            env={**os.environ, "PYTHONPATH": str(backend.parent)},
        )
        for package in FILES:
            (archive,) = (work / "packages").glob(f"{package}-*")
            unpack(package, archive, folder)
        shutil.copy(requirements, folder)


main()
