#!/usr/bin/python3
"""The images: two builds are the same bytes, tools that others wrote read them, and what is in them is what the page says."""
import hashlib
import json
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import images
from charts import render, run

NCCL = Path("external/cuda/lib/libnccl.so.2")
PINS = [f"--cuda-pins=.ci/{name}-requirements.txt" for name in ("cuda", "cublas")]


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


@unittest.skipIf(os.getuid() != 0, "no root, which programs in other roots are run by")
class Images(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = Path(temporary.name)
        cls.out = cls.folder / "images"
        # cuBLAS is left out: half a gigabyte, which only a GPU's worker opens.
        names = ("controller", "worker", *(["worker-cuda"] if NCCL.exists() else []))
        cls.printed = images.make(cls.out, *names, more=[*PINS, f"--cuda-library={NCCL}"])
        cls.index = json.loads((cls.out / "oci/index.json").read_text(encoding="utf-8"))
        cls.bundles = {image: images.unpack(cls.out, f"ballast-{image}:{images.VERSION}", cls.folder / image)
                       for image in names}

    def manifests(self):
        return {m["annotations"]["org.opencontainers.image.ref.name"]: m for m in self.index["manifests"]}

    def blob(self, name):
        return (self.out / "oci/blobs" / name.replace(":", "/")).read_bytes()

    def test_two_builds_are_the_same_bytes(self):
        old = os.umask(0o077)
        try:
            images.make(self.folder / "again", "controller", "worker")
        finally:
            os.umask(old)
        again = json.loads((self.folder / "again/oci/index.json").read_text(encoding="utf-8"))["manifests"]
        self.assertEqual([m["digest"] for m in again], [m["digest"] for m in self.index["manifests"]][:len(again)])
        for name in ("ballast-controller.spdx.json", "ballast-worker.spdx.json"):
            self.assertEqual((self.folder / "again" / name).read_bytes(), (self.out / name).read_bytes())

    def test_tags_and_digests(self):
        tags = [f"ballast-{image}:{tag}" for image in self.bundles for tag in (images.VERSION, images.VERSION.rpartition(".")[0])]
        self.assertEqual(list(self.manifests()), tags)
        for name, manifest in self.manifests().items():
            data = self.blob(manifest["digest"])
            self.assertEqual(digest(data), manifest["digest"])
            self.assertEqual(len(data), manifest["size"])
            content = json.loads(data)
            for descriptor in (content["config"], *content["layers"]):
                blob = self.blob(descriptor["digest"])
                self.assertEqual((digest(blob), len(blob)), (descriptor["digest"], descriptor["size"]), name)

    @unittest.skipUnless(NCCL.exists(), "no libnccl.so.2 in the CUDA toolkit, which the CUDA image holds: .ci/setup.sh fetches one that has it where CUDA_HOME is not set")
    def test_the_workers_libraries_are_there_once(self):
        layers = [json.loads(self.blob(self.manifests()[f"ballast-{image}:{images.VERSION}"]["digest"]))["layers"] for image in ("worker", "worker-cuda")]
        self.assertEqual(layers[0][0], layers[1][0])

    def test_skopeo_reads_them(self):
        for image in self.bundles:
            done = run("skopeo", "inspect", f"oci:{self.out}/oci:ballast-{image}:{images.VERSION}")
            self.assertEqual(done.returncode, 0, done.stderr)
            said = json.loads(done.stdout)
            self.assertEqual(said["Labels"]["org.opencontainers.image.title"], f"ballast-{image}")
            self.assertEqual(said["Labels"]["org.opencontainers.image.version"], images.VERSION)
            self.assertIn(f"ballast-{image}:{images.VERSION} {said['Digest']} ", self.printed)

    def test_commands_of_the_page(self):
        """docs/images.md's skopeo commands, with a registry of this machine's."""
        page = Path("docs/images.md").read_text(encoding="utf-8")
        commands = re.findall(r"^skopeo [^#\n]*", page, re.M)
        self.assertEqual(len(commands), 3)
        (self.folder / "registry.yml").write_text(json.dumps({
            "version": 0.1, "storage": {"filesystem": {"rootdirectory": str(self.folder / "registry")}},
            "http": {"addr": "127.0.0.1:5000"}, "log": {"level": "error"}}), encoding="utf-8")
        registry = subprocess.Popen(["docker-registry", "serve", self.folder / "registry.yml"], stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL)
        self.addCleanup(registry.wait)
        self.addCleanup(registry.terminate)
        (self.folder / "bin").mkdir()
        (self.folder / "bin/images").symlink_to(self.out)
        for command in commands:
            # A registry on loopback without TLS, which may still be starting.
            words = command.replace("registry.example/", "127.0.0.1:5000/").split()
            if "--preserve-digests" in words:
                words += ["--dest-tls-verify=false", "--retry-times=10"]
            done = run(*words, cwd=self.folder)
            self.assertEqual(done.returncode, 0, f"{command}\n{done.stderr}")
        done = run("skopeo", "inspect", "--tls-verify=false", "docker://127.0.0.1:5000/ballast/ballast-worker:0.1.0")
        self.assertEqual(json.loads(done.stdout)["Digest"], self.manifests()["ballast-worker:0.1.0"]["digest"])
        self.assertTrue((self.folder / "worker.tar").exists())

    def test_the_chart_takes_their_names_and_digests(self):
        objects, error = render("--values", self.out / "values.yaml", values={"workers": {"model": {"claim": "olmoe"}}})
        self.assertIsNotNone(objects, error)
        used = set(re.findall(r'"image": "(\S+)"', json.dumps(list(objects.values()))))
        names = {f"{name}@{m['digest']}" for name, m in self.manifests().items()}
        self.assertEqual({name.partition(":")[0] for name in used}, {"ballast-controller", "ballast-worker"})
        self.assertLessEqual(used, names)

    def test_they_run_as_nobody(self):
        for bundle in self.bundles.values():
            user = json.loads((bundle / "config.json").read_text(encoding="utf-8"))["process"]["user"]
            self.assertEqual((user["uid"], user["gid"]), (65532, 65532))

    def test_nothing_but_the_programs_can_be_run(self):
        for image, bundle in self.bundles.items():
            root = bundle / "rootfs"
            self.assertEqual({p.name for p in (root / "usr/bin").iterdir()},
                             {"ballast-controller" if image == "controller" else "ballast-worker", "ballastctl"})
            for path in root.rglob("*"):
                status = path.lstat()
                if path.is_file() and not path.is_symlink():
                    self.assertFalse(status.st_mode & 0o6000, f"{path}: set-user-ID")
                    if status.st_mode & 0o111:
                        self.assertIn(path.parent, (root / "usr/bin", root / "usr/lib64"), path)
                if path != root / "var/lib/ballast":
                    self.assertEqual(status.st_uid, 0, path)
                    self.assertTrue(path.is_symlink() or path == root / "tmp" or not status.st_mode & 0o022, path)

    def test_they_hold_what_they_load(self):
        """As the dynamic linker sees it in there."""
        for image, bundle in self.bundles.items():
            root = bundle / "rootfs"
            for program in (root / "usr/bin").iterdir():
                inside = f"/usr/bin/{program.name}"
                done = run("chroot", root, "/lib64/ld-linux-x86-64.so.2", "--list", inside)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                done = run("chroot", "--userspec=65532:65532", root, inside, "--version")
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertIn(images.VERSION, done.stdout)
                self.assertNotIn(".debug_info", run("readelf", "-S", program).stdout)
            # What is opened by name.
            opened = " ".join([*(["libnccl.so.2"] if image == "worker-cuda" else []),
                               *(str(p)[len(str(root)):] for p in (root / "usr/lib/x86_64-linux-gnu").glob("ucx/*.so.0"))])
            done = run("chroot", root, "/lib64/ld-linux-x86-64.so.2", "--preload", opened, "--list", "/usr/bin/ballastctl")
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            libraries = {p.name for p in (root / "usr/lib/x86_64-linux-gnu").iterdir()}
            self.assertEqual("libnccl.so.2" in libraries, image == "worker-cuda")
            transports = {p.name for p in (root / "usr/lib/x86_64-linux-gnu").glob("ucx/*")}
            self.assertEqual("libuct_ib.so.0" in transports, image != "controller")

    def test_bills_of_materials(self):
        for image, bundle in self.bundles.items():
            root = bundle / "rootfs"
            text = (self.out / f"ballast-{image}.spdx.json").read_bytes()
            self.assertEqual((root / "usr/share/doc/ballast/sbom.spdx.json").read_bytes(), text)
            bill = json.loads(text)
            packages = {p["name"]: p for p in bill["packages"]}
            ids = [p["SPDXID"] for p in bill["packages"]]
            self.assertEqual(len(ids), len(set(ids)))
            for relation in bill["relationships"]:
                for key in ("spdxElementId", "relatedSpdxElement"):
                    self.assertIn(relation[key], [*ids, "SPDXRef-DOCUMENT"])
            licences = {word for p in bill["packages"] for word in re.findall(r"LicenseRef-[\w.-]+", p["licenseDeclared"])}
            self.assertEqual(licences, {info["licenseId"] for info in bill["hasExtractedLicensingInfos"]})
            # Debian's packages with their versions and terms, in both forms.
            for name in (root / "var/lib/dpkg/status.d").iterdir():
                version = re.search(r"^Version: (.*)$", name.read_text(encoding="utf-8"), re.M).group(1)
                self.assertEqual(packages[name.name]["versionInfo"], version)
                self.assertTrue((root / "usr/share/doc" / name.name / "copyright").exists())
            self.assertLessEqual({"libc6", "libgrpc++1.51", "libcli11-dev", "libeigen3-dev", "grpc-health-proto"}, set(packages))
            self.assertEqual(packages["grpc-health-proto"]["licenseDeclared"], "Apache-2.0")
            self.assertEqual(packages["libgrpc29"]["licenseDeclared"], "Apache-2.0 AND BSD-3-Clause AND GPL-2.0-or-later AND MIT")
            self.assertEqual("nvidia-nccl-cu13" in packages, image == "worker-cuda")
            program = "ballast-controller" if image == "controller" else "ballast-worker"
            sha = hashlib.sha256((root / "usr/bin" / program).read_bytes()).hexdigest()
            self.assertEqual(packages[program]["checksums"][0]["checksumValue"], sha)


if __name__ == "__main__":
    images.main(__file__)
