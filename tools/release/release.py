#!/usr/bin/env python3
"""What a release is made of: version numbers, archives, checksums, installers and the Homebrew formula.

    tools/release/release.py check [TAG]              fail unless all files have one version (and TAG is v and that version)
    tools/release/release.py version X.Y.Z            write the version to all of them; the changelog's "Unreleased" becomes it
    tools/release/release.py changes                  print what the changelog says of the version
    tools/release/release.py archive TARGET LOWRANK OUT
                                                      pack the program LOWRANK, built for TARGET, into an archive in OUT
    tools/release/release.py index OUT URL            write the checksums of the archives in OUT, and the installers and the
                                                      formula that download them from the release at URL, the repository's

`archive` runs LOWRANK for its completions and manual pages. The same files give the same bytes.
"""

import gzip
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Of every file in an archive: 1980-01-01, the first day that zip knows.
TIME = 315532800
SHELLS = {"bash": "lowrank.bash", "zsh": "_lowrank", "fish": "lowrank.fish", "powershell": "_lowrank.ps1"}
TEXTS = ("README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT")

# Where a version is written: file, and a pattern whose middle group it is.
MANIFEST = r'(?ms)(^\[{}\]\n(?:(?!^\[).)*?^version = ")([^"]+)(")'
VERSIONS = (
    ("Cargo.toml", MANIFEST.format(r"workspace\.package")),
    ("Cargo.toml", r'(^lowrank-[a-z]+ = \{ path = "[^"]+", version = ")([^"]+)(")'),
    ("python/Cargo.toml", MANIFEST.format("package")),
)


class Wrong(Exception):
    """What is wrong with the release, and the fix."""


def versions():
    """Every version that is written somewhere, as (file, version)."""
    for file, pattern in VERSIONS:
        found = re.findall(pattern, (ROOT / file).read_text(), re.M)
        if not found:
            raise Wrong(f"{file}: has no version where one is expected ({pattern})")
        yield from ((file, version) for _, version, _ in found)


def version():
    """The version of all files."""
    found = sorted(set(versions()), key=lambda entry: entry[1])
    if len({number for _, number in found}) > 1:
        listed = ", ".join(f"{file} has {number}" for file, number in found)
        raise Wrong(f"the versions differ: {listed}; run tools/release/release.py version X.Y.Z")
    return found[0][1]


def check(tag=None):
    number = version()
    if tag is not None:
        if tag != f"v{number}":
            raise Wrong(f"the tag {tag} is not v{number}, the version of Cargo.toml")
        section(number)
    print(number)


def section(number):
    """What the changelog says of a version."""
    found = re.search(rf"^## {re.escape(number)}\n(.*?)(?=^## |\Z)", (ROOT / "CHANGELOG.md").read_text(), re.M | re.S)
    if found is None:
        raise Wrong(f'CHANGELOG.md: has no heading "## {number}"; run tools/release/release.py version {number}')
    return found[1].strip()


def changes():
    print(section(version()))


def set_version(number):
    if not re.fullmatch(r"\d+\.\d+\.\d+(-[a-z]+\.\d+)?", number):
        raise Wrong(f"{number} is not a version such as 1.2.3 or 1.2.3-rc.1")
    for file, pattern in VERSIONS:
        path = ROOT / file
        text = re.sub(pattern, lambda match: match[1] + number + match[3], path.read_text(), flags=re.M)
        path.write_text(text)
    changes = ROOT / "CHANGELOG.md"
    changes.write_text(re.sub(r"^## Unreleased$", f"## {number}", changes.read_text(), count=1, flags=re.M))
    # The lock files name the crates of the workspaces.
    for manifest in ("Cargo.toml", "python/Cargo.toml", "fuzz/Cargo.toml"):
        subprocess.run(["cargo", "update", "--workspace", "--quiet", "--manifest-path", ROOT / manifest], check=True)
    print(number)


def output_of(binary, *words):
    return subprocess.run([binary, *words], capture_output=True, check=True).stdout


def contents(binary):
    """The files of an archive: name and bytes."""
    name = "lowrank.exe" if binary.suffix == ".exe" else "lowrank"
    yield name, binary.read_bytes()
    for text in TEXTS:
        yield text, (ROOT / text).read_bytes()
    for shell, file in SHELLS.items():
        yield f"completions/{file}", output_of(binary, "completions", shell)
    with tempfile.TemporaryDirectory() as folder:
        output_of(binary, "man", "--out", folder)
        for page in sorted(Path(folder).iterdir()):
            yield f"man/{page.name}", page.read_bytes()


def archive(target, binary, out):
    binary, out = Path(binary).resolve(), Path(out)
    said = output_of(binary, "--version").decode().split()
    if said != ["lowrank", version()]:
        raise Wrong(f"{binary}: says {' '.join(said)}, and Cargo.toml has {version()}; build it again")
    stem = f"lowrank-{version()}-{target}"
    files = [(f"{stem}/{name}", data) for name, data in contents(binary)]
    out.mkdir(parents=True, exist_ok=True)
    mode = lambda name: 0o755 if name == files[0][0] else 0o644
    if "windows" in target:
        path = out / f"{stem}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in files:
                entry = zipfile.ZipInfo(name)
                entry.external_attr = (0o100000 | mode(name)) << 16
                packed.writestr(entry, data, zipfile.ZIP_DEFLATED)
    else:
        path = out / f"{stem}.tar.gz"
        with open(path, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=TIME) as zipped:
            with tarfile.open(fileobj=zipped, mode="w") as packed:
                for name, data in files:
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mode, entry.mtime = len(data), mode(name), TIME
                    packed.addfile(entry, io.BytesIO(data))
    print(path)


def index(out, url):
    out, number = Path(out), version()
    sums = {}
    for path in sorted([*out.glob("*.tar.gz"), *out.glob("*.zip")]):
        target = re.fullmatch(rf"lowrank-{re.escape(number)}-(.+?)\.(tar\.gz|zip)", path.name)
        if target is None:
            raise Wrong(f"{path}: is not an archive of version {number}; remove it")
        sums[target[1]] = (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    if not sums:
        raise Wrong(f"{out}: has no archives; run tools/release/release.py archive first")
    (out / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.values()))
    fields = {"@URL@": url.rstrip("/"), "@VERSION@": number}
    fields |= {f"@SHA256:{target}@": digest for target, (_, digest) in sums.items()}
    for template in ("install.sh", "install.ps1", "lowrank.rb"):
        text = (HERE / template).read_text()
        for field, value in fields.items():
            text = text.replace(field, value)
        # What was not built has no checksum: the installers say so, the formula leaves it out.
        text = re.sub(r"@SHA256:[^@]+@", "", text)
        text = re.sub(r"    on_\w+ do\n      url .*\n      sha256 \"\"\n    end\n", "", text)
        text = re.sub(r"  on_\w+ do\n  end\n", "", text)
        (out / template).write_text(text)
        print(out / template)


def main(args):
    commands = {
        "check": (check, (0, 1)),
        "version": (set_version, (1,)),
        "changes": (changes, (0,)),
        "archive": (archive, (3,)),
        "index": (index, (2,)),
    }
    command, counts = commands.get(args[0] if args else "", (None, ()))
    if len(args) - 1 not in counts:
        print(__doc__.strip())
        return 2
    try:
        command(*args[1:])
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
