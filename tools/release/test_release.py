"""Archives, installers, the formula and version numbers, with the program that was built here."""

import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import tarfile
import threading
import zipfile

import pytest
import release

TARGET = "x86_64-unknown-linux-musl"
URL = "https://example.org/lowrank"


@pytest.fixture(scope="session")
def binary():
    target = release.Path(os.environ.get("CARGO_TARGET_DIR", release.ROOT / "target"))
    binary = target / "release/lowrank"
    if not binary.exists():
        pytest.fail(f"there is no {binary}: run cargo build --release --package lowrank")
    return binary


@pytest.fixture(scope="session")
def archived(binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("archived")
    release.archive(TARGET, binary, folder)
    return folder


@pytest.fixture()
def dist(archived, tmp_path):
    """A folder with an archive and what is written from it."""
    shutil.copytree(archived, tmp_path / "dist")
    release.index(tmp_path / "dist", URL)
    return tmp_path / "dist"


@pytest.fixture()
def server(dist):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    serve = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=dist))
    threading.Thread(target=serve.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serve.server_port}"
    serve.shutdown()


def install(dist, server, home, **settings):
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LOWRANK_URL": server, "LOWRANK_TARGET": TARGET} | settings
    return subprocess.run(["sh", dist / "install.sh"], env=env, capture_output=True, text=True)


def test_an_archive_has_the_program_its_pages_and_completions(binary, dist, tmp_path):
    stem = f"lowrank-{release.version()}-{TARGET}"
    with tarfile.open(dist / f"{stem}.tar.gz") as packed:
        modes = {entry.name.removeprefix(f"{stem}/"): entry.mode for entry in packed}
        packed.extractall(tmp_path, filter="data")
    pages = [page for page in modes if page.startswith("man/")]
    assert {"README.md", "LICENSE-MIT", "LICENSE-APACHE", "man/lowrank-train.1", "completions/_lowrank"} <= set(modes)
    assert len(pages) > 15
    assert {name for name, mode in modes.items() if mode == 0o755} == {"lowrank"}
    said = subprocess.run([tmp_path / stem / "lowrank", "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"lowrank {release.version()}\n"
    assert "--learning-rate" in (tmp_path / stem / "completions/lowrank.bash").read_text()
    release.archive(TARGET, binary, tmp_path / "again")
    assert (tmp_path / f"again/{stem}.tar.gz").read_bytes() == (dist / f"{stem}.tar.gz").read_bytes()


def test_windows_has_a_zip(binary, tmp_path):
    program = tmp_path / "lowrank.exe"
    shutil.copy(binary, program)
    release.archive("x86_64-pc-windows-msvc", program, tmp_path / "dist")
    stem = f"lowrank-{release.version()}-x86_64-pc-windows-msvc"
    with zipfile.ZipFile(tmp_path / f"dist/{stem}.zip") as packed:
        assert packed.testzip() is None
        assert {f"{stem}/lowrank.exe", f"{stem}/completions/_lowrank.ps1"} <= set(packed.namelist())
    release.index(tmp_path / "dist", URL)
    digest = hashlib.sha256((tmp_path / f"dist/{stem}.zip").read_bytes()).hexdigest()
    script = (tmp_path / "dist/install.ps1").read_text()
    assert f"$sha256 = '{digest}'" in script and "@" not in script
    assert (tmp_path / "dist/SHA256SUMS").read_text() == f"{digest}  {stem}.zip\n"


def test_the_installer_installs_in_a_clean_home(dist, server, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for _ in range(2):  # Over an older one as well.
        ran = install(dist, server, home)
        assert ran.returncode == 0, ran.stderr
        assert f"installed lowrank {release.version()} to {home}/.local/bin/lowrank" in ran.stdout
        assert f"add {home}/.local/bin to PATH" in ran.stdout
    found = {str(path.relative_to(home / ".local")) for path in home.rglob("*") if path.is_file()}
    assert {
        "bin/lowrank",
        "share/man/man1/lowrank-train.1",
        "share/bash-completion/completions/lowrank",
        "share/zsh/site-functions/_lowrank",
        "share/fish/vendor_completions.d/lowrank.fish",
    } <= found
    assert not any(path.startswith("bin/.") for path in found)
    said = subprocess.run([home / ".local/bin/lowrank", "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"lowrank {release.version()}\n"


def test_the_installer_refuses_what_was_changed_and_what_is_not_there(dist, server, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (path,) = dist.glob("*.tar.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ran = install(dist, server, home)
    assert ran.returncode == 1 and "nothing was installed" in ran.stderr and path.name in ran.stderr
    path.unlink()
    ran = install(dist, server, home)
    assert ran.returncode == 1 and f"cannot download {server}/{path.name}" in ran.stderr
    ran = install(dist, server, home, LOWRANK_TARGET="aarch64-apple-darwin")
    assert ran.returncode == 1 and "no build for aarch64-apple-darwin" in ran.stderr
    assert list(home.iterdir()) == []


def test_the_formula_has_what_was_built(dist):
    (path,) = dist.glob("*.tar.gz")
    formula = (dist / "lowrank.rb").read_text()
    assert re.findall(r'^ +url "(.*)"', formula, re.M) == [f"{URL}/releases/download/v{release.version()}/{path.name}"]
    assert re.findall(r'sha256 "(.*)"', formula) == [hashlib.sha256(path.read_bytes()).hexdigest()]
    assert "on_macos" not in formula and "@" not in formula
    if shutil.which("ruby"):
        subprocess.run(["ruby", "-c", dist / "lowrank.rb"], check=True)


def test_the_workflow_builds_what_the_installers_ask_for():
    workflow = (release.ROOT / ".github/workflows/release.yml").read_text()
    built = set(re.findall(r"target: (\S+), os:", workflow))
    asked = set()
    for template in ("install.sh", "install.ps1", "lowrank.rb"):
        asked |= set(re.findall(r"@SHA256:([^@]+)@", (release.HERE / template).read_text()))
    assert len(built) == 7 and asked == built


def test_versions_that_differ_are_refused_and_set_together(tmp_path, monkeypatch, capsys):
    for name in ("Cargo.toml", "CHANGELOG.md", "python/Cargo.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(release.ROOT / name, tmp_path / name)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release.subprocess, "run", lambda *_, **__: None)  # No lock files here.
    manifest = tmp_path / "python/Cargo.toml"
    manifest.write_text(manifest.read_text().replace('version = "', 'version = "9', 1))
    assert release.main(["check"]) == 1
    assert "the versions differ" in capsys.readouterr().err
    changes = tmp_path / "CHANGELOG.md"
    changes.write_text("# Changelog\n\n## Unreleased\n\n- New.\n\n## 0.0.1\n\n- Old.\n")
    assert release.main(["version", "1.2"]) == 1
    assert release.main(["version", "1.2.3"]) == 0
    assert {version for _, version in release.versions()} == {"1.2.3"}
    assert [release.main(["check", tag]) for tag in ("v1.2.3", "v1.2.4")] == [0, 1]
    capsys.readouterr()
    assert release.main(["changes"]) == 0
    assert capsys.readouterr().out == "- New.\n"
    # Other versions of the manifests stay.
    assert 'rust-version = "1.89"' in (tmp_path / "Cargo.toml").read_text()
    assert 'rayon = "1.12"' in (tmp_path / "Cargo.toml").read_text()


def test_the_wheel_has_the_licences():
    for name in ("LICENSE-APACHE", "LICENSE-MIT"):
        assert (release.ROOT / "python" / name).read_bytes() == (release.ROOT / name).read_bytes()
