"""Attack 77 (CVE-2017-1000117 and CVE-2023-51385, git and OpenSSH; review): names and answers of nodes behind SSH.

A host that is called ``-oProxyCommand=…`` is an option of the ssh client, a user or host with a shell's signs becomes a
command in the user's own configuration, and a node may answer whatever it likes, without end.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from orchestrator.nodes import ssh_node
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.ssh_node import SSHNode
from platforms.errors import KanifoldError, UsageError

CANARY = "touch canary"
NAMES = (
    "ssh://-oProxyCommand=touch canary",
    "ssh://-oProxyCommand=touch${IFS}canary@host",
    "ssh://host:-oProxyCommand=id",
    "ssh://$(touch canary)",
    "ssh://`touch canary`@host",
    "ssh://user;touch canary@host",
    "ssh://host\ntouch canary",
    "ssh://host\0",
    "ssh://[::1%;touch canary]",
    "ssh://host/;touch canary",
    "ssh://host|touch canary",
    "ssh://'host",
    'ssh://"host',
    "ssh://host\\",
    "ssh://~root",
    "ssh://%d@host",
    "ssh://host%n",
    "ssh://*",
)
CLIENT = """#!{python}
import json, os, sys, time
with open({record!r}, "a") as record:
    record.write(json.dumps(sys.argv[1:]) + "\\n")
if "-G" in sys.argv:
    sys.exit()
{behaviour}
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The arguments of each run of the client, as lines of JSON."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "record"


def client(record: Path, behaviour: str) -> None:
    """Make an ``ssh`` that does ``behaviour``."""
    program = record.with_name("ssh")
    program.write_text(CLIENT.format(python=sys.executable, record=str(record), behaviour=behaviour))
    program.chmod(0o755)


def described(entry: NodeEntry) -> str:
    """Return the error that comes of describing the node; it must end soon, and as an error of ours."""
    begun = time.monotonic()

    async def describe() -> None:
        node = SSHNode(entry)
        try:
            await node.describe(())
        finally:
            await node.close()

    with pytest.raises(KanifoldError) as caught:
        asyncio.run(describe())
    assert time.monotonic() - begun < 30
    problem = caught.value.problem
    assert problem.what.isprintable()
    return f"{problem.what} {problem.why} {problem.remedy}"


@pytest.mark.parametrize("url", NAMES)
def test_no_name_reaches_the_client(record: Path, url: str) -> None:
    client(record, "")
    with pytest.raises(UsageError):
        SSHNode(NodeEntry("node", url))
    assert not record.exists()
    assert not record.with_name("canary").exists()


@pytest.mark.parametrize("python", ["python3\nimport os;os.system('touch canary')", "-c", "a\0b", "\x1b[2J"])
def test_the_name_of_a_python_is_one_line(python: str) -> None:
    with pytest.raises(UsageError):
        SSHNode(NodeEntry("node", "ssh://host", python=python))


def test_the_command_line_is_the_same_for_every_node(record: Path) -> None:
    client(record, "sys.exit(255)")
    for entry in (NodeEntry("a", "ssh://me@host-1:22"), NodeEntry("b", "ssh://[::1]", python="/opt/a b/$(id)")):
        described(entry)
    runs = [each for each in map(json.loads, record.read_text().splitlines()) if not {"-G", "-Ostop"} & set(each)]
    for run, host, variable in zip(runs, ("host-1", "::1"), ({"-lme", "-p22"}, set()), strict=True):
        assert run[-3:] == ["--", host, ssh_node.COMMAND]
        assert set(run) >= variable
        assert all(each.startswith("-") for each in run[:-3])
        assert all(shlex.split(each) == [each] for each in run[:-1])
    first, second = ({each for each in run if not each.startswith(("-oControlPath", "-l", "-p"))} for run in runs)
    assert first - {"host-1"} == second - {"::1"}


def kept(record: Path) -> list[str]:
    """Return what was made for a node, and what a name of its led to."""
    return [str(each) for each in record.parent.rglob("*") if each.suffix in {".zip", ".whl"} or "canary" in each.name]


LIES = {
    "endless lines": "while True: sys.stdout.write('noise\\n' * 1000)",
    "a line without end": "while True: sys.stdout.write('x' * 65536)",
    "words on stderr without end": "os.close(1)\nfor _ in range(20000): os.write(2, b'x\\x1b[2J' * 1000)",
    "escapes": "print('kanifold-node-1 refused ' + json.dumps({'what': '\\x1b]0;', 'why': '\\u202e', 'remedy': '\\r'}))",  # noqa: E501
    "another state": "print('kanifold-node-1 \\x1b[2J')",
    "a path": "print('kanifold-node-1 lacking ' + json.dumps({'suffix': '/../../../canary', 'libc': ''}))",
    "no JSON": "print('kanifold-node-1 lacking ' + '[' * 100000)",
    "other types": "print('kanifold-node-1 lacking ' + json.dumps({'suffix': ['.so'], 'libc': 7}))",
    "a version": "print('kanifold-node-1 lacking ' + json.dumps({'suffix': '.cpython-311-x86_64-linux-gnu.so', "
    "'libc': 'glibc ' + '9' * 10000 + '.1'}))",
    "lacking again": "lacking = {'suffix': '.cpython-3999-x86_64-linux-gnu.so'}\n"
    "print('kanifold-node-1 lacking ' + json.dumps(lacking)); print('kanifold-node-1 lacking ' + json.dumps(lacking))",
    "ready, and no greeting": "print('kanifold-node-1 ready'); print('{}')",
    "ready, and gone": "print('kanifold-node-1 ready')",
    "nothing": "",
}


@pytest.mark.parametrize("behaviour", LIES.values(), ids=LIES)
def test_a_lie_is_an_error(record: Path, behaviour: str) -> None:
    client(record, behaviour)
    said = described(NodeEntry("liar", "ssh://host"))
    assert "liar" in said
    assert len(said) < 20_000
    assert all(character.isprintable() or character == "\n" for character in said)
    assert kept(record) == []


def test_a_node_is_not_sent_what_it_may_not_have(record: Path) -> None:
    client(record, "print('kanifold-node-1 lacking ' + json.dumps({'suffix': '.cpython-311-x86_64-linux-gnu.so'}))")
    assert "malformed" in described(NodeEntry("liar", "ssh://host", bootstrap=False))
    assert kept(record) == []
