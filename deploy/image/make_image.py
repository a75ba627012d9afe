#!/usr/bin/python3
"""Makes the container images of the programs given, as an OCI image layout, and a bill of materials beside it for each.

An image holds the programs, stripped, what they load of Debian's packages, and nothing that could be run but them: no shell. It
depends on its contents and the arguments alone: made again, it has the same digest. Prints the digests.
"""
import argparse
import datetime
import hashlib
import shutil
from pathlib import Path

import debian
import oci
import sbom

# User and group of distroless images and of the chart.
USER = 65532
# By image: its program, what it is for, its ports, and whether it takes GPUs.
IMAGES = {
    "controller": ("ballast-controller", "Ballast's controller, and ballastctl", (7070, 7071, 7072), False),
    "worker": ("ballast-worker", "Ballast's worker on CPUs", (7080, 7081, 7082), False),
    "worker-cuda": ("ballast-worker", "Ballast's worker on NVIDIA GPUs", (7080, 7081, 7082), True),
}
COMMON = {
    "bin": oci.Entry(target="usr/bin"),
    "lib": oci.Entry(target="usr/lib"),
    "lib64": oci.Entry(target="usr/lib64"),
    "sbin": oci.Entry(target="usr/sbin"),
    "usr/sbin": oci.Entry(),
    "tmp": oci.Entry(mode=0o1777),
    "etc/passwd": oci.Entry(b"root:x:0:0:root:/root:/usr/sbin/nologin\nballast:x:%d:%d:ballast:/:/usr/sbin/nologin\n" % (USER, USER)),
    "etc/group": oci.Entry(b"root:x:0:\nballast:x:%d:\n" % USER),
    # Without it names are asked of DNS before /etc/hosts.
    "etc/nsswitch.conf": oci.Entry(b"hosts: files dns\n"),
    "etc/os-release": oci.Entry(target="../usr/lib/os-release"),
    # Where the chart mounts things, and a store's place where nothing is mounted.
    "etc/ballast": oci.Entry(),
    "var/lib/ballast": oci.Entry(mode=0o750, owner=USER),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    for image, (program, _, _, _) in IMAGES.items():
        parser.add_argument(f"--{image}", type=Path, metavar="PATH", help=f"{program} of this image; not given: the image is not made")
    parser.add_argument("--ballastctl", type=Path, required=True, metavar="PATH", help="goes into all: probes run it")
    parser.add_argument("--cuda-library", type=Path, action="append", default=[], metavar="PATH",
                        help="shared library that the CUDA worker opens, named as it opens it; repeatable")
    parser.add_argument("--cuda-pins", type=Path, action="append", default=[], metavar="FILE",
                        help="pip's requirements file with the CUDA packages' versions; repeatable")
    parser.add_argument("--dependencies", type=Path, required=True, metavar="FOLDER",
                        help="with controller_dependencies and worker_dependencies, the labels that they are linked from")
    parser.add_argument("--version", required=True, help="the programs' version, the first tag; the second is without its last part")
    parser.add_argument("--revision", required=True, help="what the programs were built from, as git names it")
    parser.add_argument("--created", type=int, required=True, metavar="SECONDS", help="time of the revision since 1970")
    parser.add_argument("--level", type=int, default=6, choices=range(1, 10), help="of the layers' compression")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made anew: oci, SBOM files, values.yaml")
    return parser.parse_args()


def debian_files(loaders):
    """What programs and libraries load: ({path in the image: Entry}, the packages that they are of)"""
    # base-files: the release's name, and the licences that packages refer to.
    base = [Path("/usr/lib/os-release"), *(path for path in Path("/usr/share/common-licenses").iterdir())]
    paths = [*debian.libraries(loaders), *base]
    packages = debian.packages_of(paths)
    entries = dict(COMMON)
    for path in paths:
        entries[str(path)[1:]] = oci.Entry(target=str(path.readlink())) if path.is_symlink() else oci.Entry(path)
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    entries["usr" + str(loader)] = oci.Entry(loader.resolve(), mode=0o755)
    for package in packages:
        entries[f"usr/share/doc/{package.name}/copyright"] = oci.Entry(package.copyright())
        # Where scanners look for packages that are there without dpkg.
        entries[f"var/lib/dpkg/status.d/{package.name}"] = oci.Entry(package.status.encode())
    return entries, packages


def make(layout, image, program, args, created):
    """Makes one image; returns (its digest, sizes packed and unpacked)."""
    command, title, ports, cuda = IMAGES[image]
    name = f"ballast-{image}"
    programs = {command: program, "ballastctl": args.ballastctl}
    entries, packages = debian_files(programs.values())
    dependencies = (args.dependencies / f"{image.removesuffix('-cuda')}_dependencies").read_text(encoding="utf-8").split()
    layers = [("libraries of Debian's packages", layout.layer(entries))]
    if cuda:
        # What they load of Debian's goes with them, so that the layer above is the same in both workers' images.
        whole, packages = debian_files([*programs.values(), *args.cuda_library])
        layers.append(("libraries of NVIDIA's packages", layout.layer({
            **{path: entry for path, entry in whole.items() if path not in entries},
            **{f"{debian.LIBRARIES}/{path.name}": oci.Entry(path) for path in args.cuda_library}})))
    bill = sbom.bill(name, args.version, created, {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in programs.items()},
                     packages, dependencies, sbom.pinned(args.cuda_pins) if cuda else {})
    (args.out / f"{name}.spdx.json").write_bytes(bill)
    layers.append(("the programs", layout.layer({
        **{f"usr/bin/{n}": oci.Entry(p, mode=0o755) for n, p in programs.items()},
        **{f"usr/share/doc/ballast/{text}": oci.Entry(Path(text)) for text in ("LICENSE", "NOTICE")},
        "usr/share/doc/ballast/sbom.spdx.json": oci.Entry(bill),
    })))
    version = args.version
    config = {
        "User": f"{USER}:{USER}",
        "Entrypoint": [f"/usr/bin/{command}"],
        "WorkingDir": "/",
        "ExposedPorts": {f"{port}/tcp": {} for port in ports},
        # What NVIDIA's container runtime mounts of the driver.
        "Env": ["PATH=/usr/bin", *(["NVIDIA_DRIVER_CAPABILITIES=compute,utility"] if cuda else [])],
        "Labels": {
            "org.opencontainers.image.title": name,
            "org.opencontainers.image.description": title,
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.revision": args.revision,
            "org.opencontainers.image.created": created,
            "org.opencontainers.image.licenses": "Apache-2.0",
            "org.opencontainers.image.vendor": "The Ballast Authors",
        },
    }
    digest = layout.image(name, [version, version.rpartition(".")[0]], created, config, layers)
    return digest, sum(d["size"] for _, (d, _, _) in layers), sum(size for _, (_, _, size) in layers)


def main():
    args = arguments()
    created = datetime.datetime.fromtimestamp(args.created, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    layout = oci.Layout(args.out / "oci", args.level)
    digests = {}
    for image in IMAGES:
        program = getattr(args, image.replace("-", "_"))
        if program is None:
            continue
        digests[image], packed, unpacked = make(layout, image, program, args, created)
        print(f"ballast-{image}:{args.version} {digests[image]} {packed / 1e6:.1f} MB, unpacked {unpacked / 1e6:.1f} MB")
    layout.finish()
    # For the chart: these images and no others.
    lines = [f"  {image}: {digest}" for image, digest in digests.items()]
    (args.out / "values.yaml").write_text("\n".join([
        "image:", f'  tag: "{args.version}"', "  digests:", *(f"  {line}" for line in lines)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
