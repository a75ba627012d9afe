"""What of Debian goes into an image: the shared libraries that programs need, whose they are, and on what terms."""
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"

# What programs open by name: UCX's transports, and the drivers of the network cards that its InfiniBand transport drives.
OPENED = {
    "libucp.so.0": (f"{LIBRARIES}/ucx/*.so.0", f"{LIBRARIES}/libibverbs/*.so", "etc/libibverbs.d/*.driver"),
}

# Debian's names of licences that SPDX has under another one.
_SPDX = {
    "0bsd": "0BSD", "apache-2.0": "Apache-2.0", "artistic": "Artistic-1.0-Perl", "bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause",
    "bsl-1.0": "BSL-1.0", "expat": "MIT", "gpl-1+": "GPL-1.0-or-later", "gpl-2": "GPL-2.0-only", "gpl-2+": "GPL-2.0-or-later",
    "gpl-2.0+": "GPL-2.0-or-later", "gpl-3+": "GPL-3.0-or-later", "isc": "ISC", "lgpl-2.1": "LGPL-2.1-only",
    "lgpl-2.1+": "LGPL-2.1-or-later", "mit": "MIT", "mpl-2.0": "MPL-2.0", "zlib": "Zlib",
}


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    architecture: str
    source: str
    homepage: str
    status: str  # its paragraph of dpkg's database

    def copyright(self):
        return Path("/usr/share/doc", self.name, "copyright").read_bytes()

    def licence(self):
        """An SPDX expression, or None where the package does not say it in words that a program can read."""
        text = self.copyright().decode("utf-8", "replace")
        if not text.startswith("Format:"):
            return None
        # A licence's own paragraph says what others name.
        said = {re.sub(r"\s+", " ", match.group(1)).strip() for match in re.finditer(
            r"^Files:.*?^License:[ \t]*([^\n]*)", text, re.M | re.S)}
        terms = []
        for words in sorted(said):
            ids = [_SPDX.get(word.lower()) for word in re.split(r",? (?:and|or) ", words)]
            if None in ids or (" and " in words and " or " in words):
                return None
            terms.append(f"({' OR '.join(ids)})" if " or " in words else " AND ".join(ids))
        return " AND ".join(dict.fromkeys(terms)) or None


def _output(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"})
    return done.returncode, done.stdout, done.stderr


def _needed(path):
    """What the dynamic linker loads for a program or library, as it finds it on this machine."""
    status, out, err = _output("ldd", str(path))
    if status or "not found" in out:
        raise SystemExit(f"ldd {path}: {err}{''.join(line for line in out.splitlines(True) if 'not found' in line)}")
    return {Path(found) for found in re.findall(r"^\s*(?:\S+ => )?(/\S+) \(0x", out, re.M)}


def _in_usr(path):
    """/lib is a link to /usr/lib, and dpkg's database has either."""
    text = str(path)
    return Path("/usr" + text) if re.match(r"/(lib|lib64)/", text) else path


def libraries(loaders):
    """The Debian files that programs and libraries need to run, links included."""
    found, todo = set(), [path for loader in loaders for path in _needed(loader)]
    while todo:
        path = _in_usr(todo.pop())
        if path in found:
            continue
        found.add(path)
        if path.is_symlink():
            todo.append(Path(os.path.normpath(path.parent / path.readlink())))
        for pattern in OPENED.get(path.name, ()):
            for opened in Path("/").glob(pattern):
                todo.append(opened)
                if opened.suffix != ".driver":
                    todo += _needed(opened)
    return sorted(found)


def packages_of(paths):
    """The packages that the files are of; every file has to be of one."""
    asked = {str(name) for path in paths for name in (path, str(path).removeprefix("/usr"))}
    owners = {}
    for line in _output("dpkg-query", "-S", *sorted(asked))[1].splitlines():
        if line.startswith("diversion by"):
            continue
        owner, _, path = line.partition(": ")
        owners[_in_usr(Path(path))] = owner.split(",")[0].partition(":")[0]
    strange = [str(path) for path in paths if path not in owners]
    if strange:
        raise SystemExit(f"no Debian package has {', '.join(strange)}: an image holds files of packages alone")
    return [describe(name) for name in sorted(set(owners.values()))]


def describe(name):
    """An installed package."""
    separator = "\x01"
    wanted = ("Package", "Version", "Architecture", "source:Package", "Homepage")
    status, out, err = _output("dpkg-query", "-W", "-f", separator.join(f"${{{field}}}" for field in wanted), name)
    if status:
        raise SystemExit(f"dpkg-query -W {name}: {err}")
    return Package(*out.split(separator), status=_output("dpkg-query", "-s", name)[1])
