"""A repository behind a real sshd, which an account of its own runs, with a key that only an agent holds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ordinary_user
import pytest
from conftest import Kanifold, needs
from git_server import Repository

from executor.context.git import checkout, resolve
from executor.context.gitprogram import Access
from executor.context.gitreference import parse
from platforms.errors import ContextError


@dataclass(frozen=True)
class Sshd:
    """A running server, and the agent that opens it."""

    url: str
    """Of the repository."""
    agent: str
    """Path of the socket."""
    known_hosts: Path
    commit: str


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _key(path: Path) -> str:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path.with_suffix(".pub").read_text()


PRIVILEGE_SEPARATION = Path("/run/sshd")


@pytest.fixture
def _separated() -> Iterator[None]:
    """The empty directory that Debian's sshd wants, which its service makes at boot."""
    new = os.geteuid() == 0 and not PRIVILEGE_SEPARATION.exists()
    if new:
        PRIVILEGE_SEPARATION.mkdir(0o755)
    yield
    if new:
        PRIVILEGE_SEPARATION.rmdir()


@pytest.fixture
def sshd(tmp_path: Path, _separated: None) -> Iterator[Sshd]:
    needs("git", "ssh", "ssh-agent", "ssh-add", "ssh-keygen", "sshd")
    if os.geteuid() != 0:
        pytest.skip("needs root, to make an account for sshd")
    needs("useradd", "userdel")
    with ordinary_user.made("sshd", subordinate_ids=False) as user:
        repo = Repository.make(user.home / "x.git")
        commit = repo.commit({"f": "over ssh\n"})
        (user.home / "authorized").write_text(_key(tmp_path / "client"))
        host = _key(user.home / "host")
        port = _free_port()
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{port} {host}")
        config = user.home / "config"
        config.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {user.home}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {user.home}/authorized\nStrictModes no\nPasswordAuthentication no\n"
        )
        subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", str(user.home)], check=True)
        # By its full path: sshd starts itself anew for every connection.
        command = [str(shutil.which("sshd")), "-D", "-e", "-f", str(config)]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, **user.becoming())
        socket_path = str(tmp_path / "agent")
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket_path], stdout=subprocess.PIPE)
        try:
            assert server.stderr is not None
            assert agent.stdout is not None
            while b"listening" not in server.stderr.readline():
                assert server.poll() is None, "sshd does not start"
            agent.stdout.readline()
            added = ["ssh-add", "-q", str(tmp_path / "client")]
            subprocess.run(added, check=True, env={"SSH_AUTH_SOCK": socket_path, "PATH": os.environ["PATH"]})
            yield Sshd(f"ssh://{user.name}@127.0.0.1:{port}{repo.path}", socket_path, known_hosts, commit)
        finally:
            for process in (agent, server):
                process.terminate()
                process.communicate()


def get(url: str, directory: Path, access: Access) -> Path:
    directory.mkdir()
    reference = parse(url)
    assert reference is not None
    resolved = resolve(reference, str(directory), access=access)
    return Path(checkout(reference, resolved, str(directory), access=access).path)


def test_the_agents_key_opens_a_host_that_is_known_or_new(sshd: Sshd, tmp_path: Path) -> None:
    known, new = Access(ssh_socket=sshd.agent, known_hosts=str(sshd.known_hosts)), Access(ssh_socket=sshd.agent)
    for number, access in enumerate((known, new)):
        assert (get(sshd.url, tmp_path / str(number), access) / "f").read_text() == "over ssh\n"


def test_a_host_with_another_key_is_not_believed(sshd: Sshd, tmp_path: Path) -> None:
    other = _key(tmp_path / "other")
    name = sshd.known_hosts.read_text().partition(" ")[0]
    sshd.known_hosts.write_text(f"{name} {other}")
    with pytest.raises(ContextError, match="key verification failed") as caught:
        get(sshd.url, tmp_path / "out", Access(ssh_socket=sshd.agent, known_hosts=str(sshd.known_hosts)))
    assert "known_hosts" in caught.value.problem.remedy


def test_the_users_own_keys_are_not_offered(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the agent's key there is none, whatever lies in ~/.ssh."""
    empty = str(tmp_path / "empty")
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", empty], stdout=subprocess.PIPE)
    try:
        assert agent.stdout is not None
        agent.stdout.readline()
        monkeypatch.setenv("SSH_AUTH_SOCK", sshd.agent)
        with pytest.raises(ContextError, match="denied") as caught:
            get(sshd.url, tmp_path / "out", Access(ssh_socket=empty))
    finally:
        agent.terminate()
        agent.communicate()
    assert "--ssh default" in caught.value.problem.remedy


def add(kanifold: Kanifold, sshd: Sshd, tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM scratch\nADD {sshd.url} /x\n")
    return folder


@pytest.mark.parametrize("deep", [False, True])
def test_a_step_adds_a_repository_with_the_builds_agent(
    kanifold: Kanifold, sshd: Sshd, tmp_path: Path, deep: bool
) -> None:
    root = {"KANIFOLD_ROOT": str(tmp_path / ("d" * 100))} if deep else {}
    folder = add(kanifold, sshd, tmp_path)
    kanifold("build", folder, "--ssh", f"default={sshd.agent}", "-o", "out", **root)
    assert (kanifold.home / "out" / "x" / "f").read_text() == "over ssh\n"


def test_a_step_that_adds_over_ssh_says_what_it_lacks(kanifold: Kanifold, sshd: Sshd, tmp_path: Path) -> None:
    done = kanifold.run("build", add(kanifold, sshd, tmp_path), "-o", "out")
    assert done.code == 1
    assert "the build was given no ssh agent" in done.err
    assert "--ssh default" in done.err


@pytest.mark.parametrize("mode", ["kanifold_as_user", "kanifold_as_bare_user"])
def test_an_ordinary_users_step_adds_it_too(
    request: pytest.FixtureRequest, sshd: Sshd, tmp_path: Path, mode: str
) -> None:
    kanifold: Kanifold = request.getfixturevalue(mode)
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text(f"FROM scratch\nADD {sshd.url} /x\n")
    key = shutil.copy(tmp_path / "client", kanifold.home / "key")
    for path in (folder, folder / "Dockerfile", key):
        os.chown(path, kanifold.user.uid, kanifold.user.gid)
    kanifold("build", folder, "--ssh", f"default={key}", "-o", kanifold.home / "out")
    assert (kanifold.home / "out" / "x" / "f").read_text() == "over ssh\n"
