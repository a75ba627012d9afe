"""OCI images, written so that equal contents are equal bytes: https://github.com/opencontainers/image-spec, version 1.0."""
import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Entry:
    """One of: a file (source, a path on this machine, or bytes), a link (target), a folder (neither)."""
    source: object = None
    target: str = ""
    mode: int = 0
    owner: int = 0


class _Hashed:
    """A file that is written, and what was."""

    def __init__(self, file):
        self.file = file
        self.sha = hashlib.sha256()
        self.size = 0

    def write(self, data):
        self.sha.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self):
        self.file.flush()

    def digest(self):
        return f"sha256:{self.sha.hexdigest()}"


class _Tar(_Hashed):
    def tell(self):
        return self.size


def _member(name, entry):
    info = tarfile.TarInfo(name)
    info.uid = info.gid = entry.owner
    if entry.target:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
        return info, None
    if entry.source is None:
        info.type, info.mode = tarfile.DIRTYPE, entry.mode or 0o755
        return info, None
    info.mode = entry.mode or 0o644
    if isinstance(entry.source, bytes):
        info.size = len(entry.source)
        return info, io.BytesIO(entry.source)
    info.size = entry.source.stat().st_size
    return info, open(entry.source, "rb")


class Layout:
    """An OCI image layout, a folder that is there and empty."""

    def __init__(self, folder, level):
        self.folder = Path(folder)
        self.level = level
        self.index = []
        (self.folder / "blobs/sha256").mkdir(parents=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")

    def _path(self, digest):
        return self.folder / "blobs" / digest.replace(":", "/")

    def _blob(self, document, media_type):
        data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def layer(self, entries):
        """Writes a layer of {path: Entry}, with the folders above each path; returns (descriptor, diff id, size unpacked)."""
        whole = dict(entries)
        for name in entries:
            for parent in Path(name).parents:
                if parent.name:
                    whole.setdefault(str(parent), Entry())
        partial = self.folder / "blobs/partial"
        with open(partial, "wb") as file:
            packed = _Hashed(file)
            with gzip.GzipFile(filename="", mode="wb", compresslevel=self.level, fileobj=packed, mtime=0) as stream:
                plain = _Tar(stream)
                with tarfile.open(mode="w", fileobj=plain, format=tarfile.GNU_FORMAT) as archive:
                    for name in sorted(whole):
                        info, source = _member(name, whole[name])
                        archive.addfile(info, source)
                        if source is not None:
                            source.close()
        partial.rename(self._path(packed.digest()))
        return {"mediaType": _LAYER, "digest": packed.digest(), "size": packed.size}, plain.digest(), plain.size

    def image(self, name, tags, created, config, layers):
        """Adds an image under NAME:TAG for each tag; layers: [(what it is, what layer() returned)]. Returns its digest."""
        manifest = self._blob({
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._blob({
                "created": created,
                "architecture": "amd64",
                "os": "linux",
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [diff for _, (_, diff, _) in layers]},
                "history": [{"created": created, "created_by": "make image", "comment": what} for what, _ in layers],
            }, _CONFIG),
            "layers": [descriptor for _, (descriptor, _, _) in layers],
            "annotations": config["Labels"],
        }, _MANIFEST)
        for tag in tags:
            # The second name is for containerd and Docker, which take nothing but whole ones.
            self.index.append({**manifest, "platform": {"architecture": "amd64", "os": "linux"}, "annotations": {
                "org.opencontainers.image.ref.name": f"{name}:{tag}",
                "io.containerd.image.name": f"docker.io/library/{name}:{tag}",
            }})
        return manifest["digest"]

    def finish(self):
        document = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": self.index}
        (self.folder / "index.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
