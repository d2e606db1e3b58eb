"""Nodes behind a real sshd: kanifold is sent once, executors start there by the user's own client, and end with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Base, needs
from hosts import Host, Hosts
from oci_layout import read_image
from protocol_nodes import ROOT, build

from executor.protocol import BuildOptions
from orchestrator.connection import Connection
from orchestrator.nodes import executor_loading, executor_zip, node_states, ssh_node, wheels
from orchestrator.nodes.executor_loading import Wanted
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.node import Description
from orchestrator.nodes.ssh_node import SSHNode
from orchestrator.outputs import OciLayout
from orchestrator.request import BuildRequest
from platforms.errors import EnvironmentUnfit, KanifoldError
from platforms.parsing import parse

AMD64, ARM64 = parse("linux/amd64"), parse("linux/arm64")
EXECUTORS = ".local/share/kanifold/executors"


@pytest.fixture
def client(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Hosts, with the environment of a user who has an ssh client for them. Zips are kept for all tests."""
    for name, value in hosts.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("KANIFOLD_ROOT", raising=False)
    yield hosts
    for host in hosts.hosts:
        assert host.wait_until_idle(5) == {}


def node(host: Host, **more: object) -> SSHNode:
    return SSHNode(NodeEntry(host.name, host.url, **more))  # type: ignore[arg-type]


def describe(host: Host, **more: object) -> Description:
    async def described() -> Description:
        found = node(host, **more)
        try:
            return await found.describe((AMD64, ARM64))
        finally:
            await found.close()

    return asyncio.run(described())


def installations(host: Host) -> list[str]:
    folder = host.home / EXECUTORS
    return sorted(os.listdir(folder)) if folder.exists() else []


def unpacked(folder: Path) -> Path:
    """Write what a node like this machine is sent to ``folder``."""
    here = wheels.here()
    assert here is not None
    with zipfile.ZipFile(
        executor_zip.make(executor_zip.installation_name(executor_zip.code_digest()), here).path
    ) as archive:
        archive.extractall(folder)
    return folder


# -- sending kanifold -----------------------------------------------------------------------------------------------


def test_a_machine_with_nothing_but_python_builds(client: Hosts, busybox: Base, tmp_path: Path) -> None:
    host = client.add("bare", root="linux/amd64")
    (tmp_path / "Dockerfile").write_text("FROM image\nRUN hostname > /where\n")
    request = BuildRequest(
        context=str(tmp_path),
        platforms=(AMD64,),
        outputs=(OciLayout(str(tmp_path / "out")),),
        build_contexts=(("image", f"oci-layout://{busybox.layout}"),),
        options=BuildOptions(root=str(tmp_path / "store")),
    )
    build(request, node(host))
    assert "where" in read_image(tmp_path / "out", "linux/amd64").tree
    assert len(installations(host)) == 1


def test_kanifold_is_sent_once(client: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    host = client.add("one", user="builder")
    first = describe(host)
    assert first.kanifold == executor_zip.VERSION
    assert first.platform.architecture == "amd64"
    monkeypatch.setattr(executor_zip, "for_python", lambda *_: pytest.fail("it is sent again"))
    assert describe(host).isolation == first.isolation != ""


def test_a_machine_of_another_architecture_builds_what_is_native_to_it(client: Hosts, tmp_path: Path) -> None:
    """Without RUN: qemu's user emulation has no clone(2) into namespaces, no mount_setattr(2) and no seccomp(2)."""
    host = client.add("arm", root="linux/arm64")
    described = describe(host)
    assert described.platform == ARM64
    assert described.native == (ARM64,)
    assert "aarch64" in installations(host)[0]
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /there\n")
    request = BuildRequest(
        context=str(tmp_path),
        platforms=(ARM64,),
        outputs=(OciLayout(str(tmp_path / "out")),),
        options=BuildOptions(root=str(tmp_path / "store")),
    )
    build(request, node(host))
    assert "there" in read_image(tmp_path / "out", "linux/arm64").tree


def test_a_node_is_inactive_until_kanifold_may_be_sent_there(client: Hosts) -> None:
    entry = NodeEntry("new", client.add("new", root="linux/amd64").url)
    states = [node_states.examine((entry,), bootstrap)[0] for bootstrap in (False, True, False)]
    assert [each.word for each in states] == ["inactive", "ok", "ok"]
    assert states[0].problem is not None
    assert states[0].problem.remedy == "kanifold node check new sends it"


@pytest.mark.slow
def test_two_builds_may_send_it_at_once(client: Hosts) -> None:
    host = client.add("one")

    async def together() -> None:
        nodes = [node(host) for _ in range(3)]
        for each in await asyncio.gather(*(each.start() for each in nodes)):
            await each.end()

    asyncio.run(together())
    assert len(installations(host)) == 1


@pytest.mark.slow
def test_versions_that_are_not_used_any_more_are_removed(client: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    host = client.add("one")
    (host.home / EXECUTORS).mkdir(parents=True, mode=0o700)
    (host.home / EXECUTORS / "incoming.interrupted").mkdir()

    make, name = executor_zip.for_python, executor_zip.installation_name(executor_zip.code_digest())
    monkeypatch.setattr(executor_zip, "for_python", lambda _, *python: make(name, *python))

    async def all_versions() -> None:
        running = []
        for number in range(5):
            monkeypatch.setattr(executor_zip, "installation_name", lambda _, number=number: f"{number:032}")
            connection = await node(host).start()
            if number == 0:
                running.append(connection)  # the first is in use until the end
            else:
                await connection.end()
        for each in running:
            await each.end()

    asyncio.run(all_versions())
    assert [int(each.partition(".")[0]) for each in installations(host)] == [0, 2, 3, 4]


def test_a_transfer_that_breaks_leaves_no_installation(client: Hosts) -> None:
    host = client.add("one")

    async def broken() -> None:
        task = asyncio.create_task(node(host).start())
        while not any(each.startswith("incoming.") for each in installations(host)):
            assert not task.done()
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(broken())
    assert host.wait_until_idle(5) == {}
    assert [each for each in installations(host) if not each.startswith("incoming.")] == []
    assert describe(host).kanifold == executor_zip.VERSION
    assert len(installations(host)) == 1


def test_what_is_installed_there_is_used_if_its_code_is_the_same(
    client: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = client.add("bare", root="linux/amd64")
    unpacked(host.path("/usr/local/lib/python3.11/dist-packages"))
    monkeypatch.setattr(executor_zip, "for_python", lambda *_: pytest.fail("it is sent"))
    assert describe(host).kanifold == executor_zip.VERSION
    assert installations(host) == []


# -- what a login finds ---------------------------------------------------------------------------------------------


def test_what_a_login_prints_is_no_answer(client: Hosts) -> None:
    host = client.add("loud", user="builder")
    (host.home / ".bashrc").write_text("echo welcome; echo '{}'; printf 'kanifold'\n")
    assert describe(host).kanifold == executor_zip.VERSION


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "tcsh", "fish", "busybox sh"])
def test_any_login_shell_starts_the_loader(shell: str, tmp_path: Path) -> None:
    program, *words = shell.split()
    needs(program)
    opening = executor_loading.opening(NodeEntry("node", "ssh://node"), Wanted("0" * 32, "0" * 64))
    done = subprocess.run(
        [program, *words, "-c", ssh_node.COMMAND],
        input=opening, capture_output=True, check=False, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert b"\nkanifold-node-1 lacking {" in done.stdout
    assert done.stderr == b""


@pytest.mark.parametrize(
    "program",
    [
        ["sh", "-c", ssh_node.COMMAND.replace("alarm(60)", "alarm(1)")],
        [sys.executable, "-c", "from orchestrator.nodes import remote_loader; remote_loader._line(1)"],
    ],
    ids=["the command", "the loader"],
)
def test_what_waits_for_a_network_that_was_cut_ends(program: list[str]) -> None:
    """While it starts: an executor that runs has signs of life."""
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waiting:
        assert waiting.wait(30) == -signal.SIGALRM


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"5 " + b"0" * 64 + b"\nhello", b"its digest is another one"),
        (b"6 " + b"0" * 64 + b"\nhello", b"the connection ended before it had"),
        (b"", b"the connection ended"),
    ],
)
def test_what_arrives_damaged_is_not_run(tmp_path: Path, sent: bytes, why: bytes) -> None:
    opening = executor_loading.opening(NodeEntry("node", "ssh://node"), Wanted("0" * 32, "0" * 64))
    done = subprocess.run(
        ["sh", "-c", ssh_node.COMMAND],
        input=opening + sent, capture_output=True, check=False, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert b"\nkanifold-node-1 refused {" in done.stdout
    assert why in done.stdout
    assert os.listdir(tmp_path / EXECUTORS) == []


@pytest.mark.slow
def test_a_login_that_prints_without_end_is_given_up(client: Hosts) -> None:
    host = client.add("mad", user="builder")
    (host.home / ".bashrc").write_text("yes '\x1b]0;title\x07'\n")
    begun = time.monotonic()
    with pytest.raises(KanifoldError, match="no executor starts on node mad") as caught:
        describe(host)
    assert time.monotonic() - begun < 20
    assert "\x1b" not in str(caught.value)


def test_a_later_python_is_found_if_the_first_is_too_old(client: Hosts) -> None:
    host = client.add("old", root="linux/amd64")
    (host.path("/usr/local/bin") / "python3").write_text(
        '#!/bin/sh\nexec /usr/bin/python3.11 -I -S -c "import sys; sys.version_info = (3, 9); $4"\n'
    )
    host.run("chmod", "755", "/usr/local/bin/python3")
    assert describe(host).kanifold == executor_zip.VERSION
    with pytest.raises(EnvironmentUnfit, match=r"the Python of node old is too old: it is 3\.9") as caught:
        describe(host, python="/usr/local/bin/python3")
    assert "3.11" in caught.value.problem.remedy


def test_a_machine_without_python_is_told_so(client: Hosts) -> None:
    host = client.add("bare", root="linux/amd64")
    with pytest.raises(EnvironmentUnfit, match="node bare has no Python: there is no /opt/none/python3"):
        describe(host, python="/opt/none/python3")
    host.run("sh", "-c", "rm /usr/bin/python3*")
    with pytest.raises(EnvironmentUnfit, match="node bare has no Python") as caught:
        describe(host)
    assert "install Python" in caught.value.problem.remedy


def test_a_disk_that_is_full_is_told(client: Hosts) -> None:
    host = client.add("small", user="builder", disk="2m")
    with pytest.raises(EnvironmentUnfit, match=r"node small: cannot keep kanifold in .*: No space left") as caught:
        describe(host)
    assert "KANIFOLD_ROOT" in caught.value.problem.remedy
    assert installations(host) == []


def test_a_store_that_others_may_change_is_not_run_from(client: Hosts) -> None:
    host = client.add("one")
    describe(host)
    (host.home / EXECUTORS / installations(host)[0]).chmod(0o777)
    with pytest.raises(EnvironmentUnfit, match=r"node one: cannot run kanifold from .*: others could change it"):
        describe(host)


# -- without sending it ---------------------------------------------------------------------------------------------


def test_a_node_that_may_not_be_sent_it_says_what_to_install(client: Hosts) -> None:
    host = client.add("bare", root="linux/amd64")
    with pytest.raises(EnvironmentUnfit, match="node bare: kanifold is not installed there") as caught:
        describe(host, bootstrap=False)
    assert f"kanifold=={executor_zip.VERSION}" in caught.value.problem.remedy
    assert installations(host) == []
    unpacked(host.path("/usr/local/lib/python3.11/dist-packages"))
    assert describe(host, bootstrap=False).kanifold == executor_zip.VERSION


def test_another_version_of_the_protocol_is_refused_in_words(client: Hosts) -> None:
    host = client.add("bare", root="linux/amd64")
    place = unpacked(host.path("/usr/local/lib/python3.11/dist-packages"))
    source = place / "executor" / "protocol.py"
    source.write_text(source.read_text().replace("VERSION: Final = ", "VERSION: Final = 9"))
    with pytest.raises(KanifoldError, match="an executor on node bare speaks protocol version 9") as caught:
        describe(host, bootstrap=False)
    assert "the same version" in caught.value.problem.remedy


# -- the user's client ----------------------------------------------------------------------------------------------


def test_a_connection_is_shared_with_the_next_build(client: Hosts) -> None:
    host = client.add("one")
    describe(host)
    logins = (host.folder / "sshd.log").read_text().count("Accepted publickey")
    describe(host)
    assert (host.folder / "sshd.log").read_text().count("Accepted publickey") == logins == 1


@pytest.mark.slow
def test_a_connection_that_is_dead_is_not_used_again(client: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    host = client.add("one")
    with client.config.open("a") as config:
        config.write("ConnectTimeout 1\n")
    describe(host)
    monkeypatch.setattr(ssh_node, "_REUSED", 1.0)
    host.cut()
    with pytest.raises(EnvironmentUnfit, match=r"cannot reach node one: ssh: connect to host .* timed out"):
        describe(host)
    host.restore()
    assert describe(host).kanifold == executor_zip.VERSION


@pytest.mark.slow
def test_more_executors_than_a_connection_has_sessions_start(client: Hosts) -> None:
    host = client.add("one")

    async def many() -> None:
        started = node(host)
        await started.describe(())  # MaxSessions is 10 (sshd_config(5))
        running = await asyncio.gather(*(started.start() for _ in range(13)))
        assert len(host.processes()) >= 13
        await asyncio.gather(*(each.end() for each in running))

    asyncio.run(many())


def test_the_users_own_sharing_is_left_alone(client: Hosts, tmp_path: Path) -> None:
    host = client.add("one")
    with client.config.open("a") as config:
        config.write(f"ControlMaster auto\nControlPath {tmp_path}/own\nControlPersist 5\n")
    describe(host)
    assert (tmp_path / "own").is_socket()
    assert list(client.runtime.iterdir()) == []
    subprocess.run(["ssh", "-O", "exit", "one"], check=True, capture_output=True)


def test_the_users_agent_and_jump_hosts_are_used(client: Hosts, tmp_path: Path) -> None:
    near, far = client.add("near"), client.add("far")
    socket = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        agent.stdout.readline()
        add = ["ssh-add", "-q", str(client.key)]
        subprocess.run(add, check=True, env={**os.environ, "SSH_AUTH_SOCK": str(socket)})
        client.key.unlink()
        config = client.config.read_text().replace("IdentityAgent none", f"IdentityAgent {socket}")
        client.config.write_text(f"{config}Host far\n  ProxyJump near\n")
        assert describe(far).kanifold == executor_zip.VERSION
        agent.terminate()
    assert f"from {near.address}" in (far.folder / "sshd.log").read_text()


def test_a_host_whose_key_is_not_known_is_not_believed(client: Hosts) -> None:
    host = client.add("new")
    client.known_hosts.write_text("")
    with pytest.raises(EnvironmentUnfit, match="the host key of node new is not known") as caught:
        describe(host)
    assert "Host key verification failed" in caught.value.problem.why
    assert "fingerprint" in caught.value.problem.remedy


def test_a_host_with_another_key_is_not_believed(client: Hosts) -> None:
    host = client.add("other")
    client.known_hosts.write_text(f"{host.address} {client.key.with_suffix('.pub').read_text()}")
    with pytest.raises(EnvironmentUnfit, match="node other has another host key") as caught:
        describe(host)
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in caught.value.problem.why
    assert "ssh-keygen -R" in caught.value.problem.remedy


def test_a_login_that_is_refused_is_told_in_the_clients_words(client: Hosts) -> None:
    host = client.add("closed")
    (host.folder / "run" / "authorized").write_text("")
    with pytest.raises(EnvironmentUnfit, match="node closed refuses the login") as caught:
        describe(host)
    assert "Permission denied (publickey" in caught.value.problem.why
    assert "ssh-add" in caught.value.problem.remedy


DESCRIBE = """
import asyncio, sys
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.ssh_node import SSHNode
from platforms.errors import KanifoldError
async def described():
    node = SSHNode(NodeEntry("new", "ssh://new"))
    try:
        print("platform", (await node.describe(())).platform)
    except KanifoldError as error:
        print("error", error)
    await node.close()
asyncio.run(described())
"""


def on_a_terminal(asked: bytes, answer: bytes) -> str:
    """Describe the node ``new`` where there is a terminal; ``answer`` what is ``asked``, and return the output."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", DESCRIBE])
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while block := os.read(terminal, 4096):
            said += block
            if asked in said:
                os.write(terminal, answer + b"\n")
                asked = b"nothing more"
    os.waitpid(pid, 0)
    os.close(terminal)
    return said.decode()


def test_a_user_with_a_terminal_is_asked(client: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    client.add("new")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client.known_hosts.write_text("")
    client.config.write_text(client.config.read_text().replace("StrictHostKeyChecking yes\n", ""))
    assert "error the host key of node new is not known" in on_a_terminal(b"yes/no", b"no")
    assert "platform linux/amd64" in on_a_terminal(b"yes/no", b"yes")
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "open", "-f", str(client.key)], check=True)
    for each in (client.runtime / "kanifold").iterdir():
        subprocess.run(["ssh", "-S", str(each), "-O", "exit", "new"], check=True, capture_output=True)
    assert "platform linux/amd64" in on_a_terminal(b"passphrase", b"open")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("HostName kanifold.invalid", "cannot find node gone"),
        ("Port 1", "cannot reach node gone: ssh: connect to host .*refused"),
        ("Nonsense yes", "cannot reach node gone: ssh: .*nonsense"),
    ],
)
def test_what_the_client_says_is_the_reason(client: Hosts, line: str, what: str) -> None:
    host = client.add("gone")
    client.config.write_text(f"{line}\n{client.config.read_text()}")
    with pytest.raises(EnvironmentUnfit, match=what) as caught:
        describe(host)
    assert caught.value.problem.remedy


# -- the end --------------------------------------------------------------------------------------------------------


def test_nothing_is_left_there_when_the_client_is_killed(client: Hosts) -> None:
    host = client.add("one")

    async def killed() -> None:
        connection = await node(host).start()
        assert len(host.processes()) > 0
        os.kill(connection.worker.process.pid, signal.SIGKILL)
        await connection.end()

    asyncio.run(killed())
    assert host.wait_until_idle(5) == {}


def test_nothing_is_left_there_when_sshd_is_killed(client: Hosts) -> None:
    host = client.add("one")

    async def killed() -> Connection:
        connection = await node(host).start()
        host.kill_sshd()
        with pytest.raises(KanifoldError, match="node one"):
            await connection.receive()
        await connection.end()
        return connection

    asyncio.run(killed())
    assert host.wait_until_idle(5) == {}
    host.start_sshd()
    assert describe(host).kanifold == executor_zip.VERSION
