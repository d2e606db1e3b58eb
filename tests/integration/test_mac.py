"""The orchestrator on a Mac: all that a build on nodes elsewhere needs of this machine is there, too.

The processes run in a Python that is like a Mac's (``mac_python.py``); their node is an ordinary executor.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Base
from git_server import Repository, serving
from oci_layout import read_image
from protocol_nodes import Marked

TESTS = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")

IMPORTS = """
import importlib, pkgutil, orchestrator
loaded = [each.name for each in pkgutil.walk_packages(orchestrator.__path__, "orchestrator.")]
for name in loaded:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(loaded))
"""
NODE = """
import os, pathlib, sys
sys.path.insert(0, os.environ["TESTS"])
from protocol_nodes import MARK, Marked, remote
from orchestrator.nodes import node_selection

def made(entry, sends):
    found = remote(pathlib.Path(os.environ["FAR"]), Marked(os.environ[MARK]))
    found.name = entry.name
    return found

node_selection.node = made
from orchestrator.cli import main
sys.exit(main())
"""
"""The command, whose nodes are executors with a store of their own."""

Mac = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mac(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    mark = Marked()
    environment = {
        **os.environ,
        **mark.environment,
        "TESTS": str(TESTS),
        "FAR": str(tmp_path / "far"),
        "KANIFOLD_ROOT": str(tmp_path / "store"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }

    def run(program: str, *arguments: str, stdin: Path | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, str(TESTS / "mac_python.py"), "-c", program, *arguments],
            env=environment,
            input=stdin and stdin.read_text("latin-1"),
            cwd=TESTS.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert mark.wait_until_gone(5) == [], "a process is left"
        return done

    return run


def test_every_module_of_the_orchestrator_is_there(mac: Mac) -> None:
    done = mac(IMPORTS)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80


def test_the_pretended_mac_lacks_what_a_mac_lacks(mac: Mac) -> None:
    """What would need Linux fails in it, so that the other tests can fail."""
    for program, why in (
        ("import os; os.pidfd_open(1)", "pidfd_open"),
        ("from platforms import syscalls; syscalls.prctl(36, 1)", "prctl"),
        ("open('/proc/self/mounts')", "No such file"),
        ("import sys; assert sys.platform == 'linux'", "AssertionError"),
    ):
        done = mac(program)
        assert done.returncode == 1
        assert why in done.stderr


def context(folder: Path) -> Path:
    """A context with all that has to be read of this machine: files, links, directories and what is ignored."""
    (folder / "src" / "deep").mkdir(parents=True)
    (folder / "src" / "deep" / "file").write_text("content")
    (folder / "src" / "link").symlink_to("deep/file")
    (folder / "ignored").write_text("ignored")
    (folder / ".dockerignore").write_text("ignored\n")
    (folder / "word").write_text("hush")
    (folder / "Dockerfile").write_text(
        "FROM --platform=$BUILDPLATFORM base AS tools\nRUN echo $BUILDPLATFORM > /built-on\n"
        "FROM base\nCOPY --from=tools /built-on /\nCOPY src/deep/file /one\nCOPY . /all/\n"
        'RUN --mount=type=secret,id=word test "$(cat /run/secrets/word)" = hush && echo ran > /ran\n'
    )
    return folder


def test_a_build_on_a_node_elsewhere_needs_nothing_of_linux(mac: Mac, busybox: Base, tmp_path: Path) -> None:
    folder, out = context(tmp_path / "context"), tmp_path / "out"
    done = mac(
        NODE, "build", str(folder), "--node", "far=ssh://far", "--platform", "linux/amd64,linux/arm64",
        "--build-context", f"base=oci-layout://{busybox.layout}", "--secret", f"id=word,src={folder / 'word'}",
        "-o", f"type=oci,dest={out}", "-o", f"type=oci,dest={tmp_path / 'out.tar'}",
        "-o", f"type=local,dest={tmp_path / 'files'}", "-o", f"type=tar,dest={tmp_path / 'files.tar'}",
        "--trace", str(tmp_path / "trace"), "--cache-to", f"type=local,dest={tmp_path / 'cache'},mode=max",
        "--cache-from", f"type=local,src={tmp_path / 'cache'}", "--metadata-file", str(tmp_path / "metadata"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for platform in ("linux/amd64", "linux/arm64"):
        seen = read_image(out, platform)
        assert seen.text("/one") == "content"
        assert seen.text("/ran") == "ran\n"
        assert seen.tree["all/src/link"].target == "deep/file"
        assert "all/ignored" not in seen.tree
    assert (tmp_path / "files" / "linux_arm64" / "one").read_text() == "content"
    assert not list((tmp_path / "store").rglob("snapshots/*/*")), "a layer was unpacked here"


def test_it_pushes_to_a_registry(mac: Mac, registry: str, busybox: Base, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text(f"FROM {busybox.ref}\nRUN echo ran > /ran\n")
    ref = f"{registry}/mac:1"
    done = mac(
        NODE, "build", str(tmp_path / "context"), "--node", "far=ssh://far", "--platform", "linux/amd64",
        "--insecure-registry", registry, "-t", ref, "--push",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sha256:")


def test_a_repository_is_fetched(mac: Mac, tmp_path: Path) -> None:
    repositories = tmp_path / "repositories"
    Repository.make(repositories / "app.git").commit(
        {"Dockerfile": "FROM scratch\nCOPY . /\n", "file": "of the repository"}
    )
    with serving(repositories) as server:
        done = mac(
            NODE, "build", f"http://{server.host}/app.git#main", "--node", "far=ssh://far", "--platform", "linux/amd64",
            "-o", f"type=local,dest={tmp_path / 'files'}",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "files" / "file").read_text() == "of the repository"


def test_an_archive_is_unpacked(mac: Mac, tmp_path: Path) -> None:
    """Its files keep their owners; extended attributes are Linux's."""
    archive = tmp_path / "archive"
    with tarfile.open(archive, "w") as tar:
        for name, content in (("Dockerfile", b"FROM scratch\nCOPY . /\n"), ("file", b"of the archive")):
            member = tarfile.TarInfo(name)
            member.size, member.uid, member.gid = len(content), 1234, 1234
            member.pax_headers = {"SCHILY.xattr.user.word": "value"}
            tar.addfile(member, io.BytesIO(content))
        pipe = tarfile.TarInfo("pipe")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
    done = mac(
        NODE, "build", "-", "--node", "far=ssh://far", "--platform", "linux/amd64",
        "-o", f"type=local,dest={tmp_path / 'files'}", "-o", f"type=oci,dest={tmp_path / 'out'}", stdin=archive,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "files" / "file").read_text() == "of the archive"
    assert read_image(tmp_path / "out", "linux/amd64").tree["file"].uid == 1234


def test_without_nodes_it_says_what_to_do(mac: Mac, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    done = mac(NODE.replace("node_selection.node = made", ""), "build", str(tmp_path / "context"))
    assert done.returncode == 3
    assert "steps run on Linux" in done.stderr
    assert "kanifold node add" in done.stderr


def test_the_doctor_and_the_nodes_are_asked_there_too(mac: Mac) -> None:
    assert mac(NODE, "doctor").returncode == 3
    assert mac(NODE, "node", "add", "far", "ssh://far").returncode == 0
    done = mac(NODE, "doctor")
    assert done.returncode == 0, done.stdout
    assert "needs a Linux node" in done.stdout
    assert "ok far: linux/" in done.stdout
