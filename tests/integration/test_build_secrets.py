"""Secrets and SSH agents in whole builds: what steps get, and that nothing of it stays anywhere."""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import security_modes
from conftest import Base, Kanifold, needs

SECRET = "hunter2-correct-horse"
LINES = "first-secret-line\nsecond-secret-line\n"


def context(kanifold: Kanifold, source: str) -> Path:
    made = kanifold.home / "context"
    made.mkdir(exist_ok=True)
    (made / "Dockerfile").write_text(source)
    return made


def everything_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file's name and content, unpacked when it is a layer."""
    for path in folder.rglob("*"):
        yield path, os.fsencode(path)
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        yield path, data
        if data.startswith(b"\x1f\x8b"):
            yield path, gzip.decompress(data)


@pytest.mark.parametrize("given", ["src={file}", "env=GIVEN"])
def test_nothing_of_a_secret_stays(kanifold: Kanifold, busybox: Base, tmp_path: Path, given: str) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "lines").write_text(LINES)
    where = context(
        kanifold,
        f"""\
FROM {busybox.ref}
RUN --mount=type=secret,id=one cat /run/secrets/one; echo "<$(cat /run/secrets/one)>" | tee /dev/stderr
RUN --mount=type=secret,id=one,env=ONE echo "$ONE"; for l in 1 2 3; do printf %s "$ONE"; done
RUN --mount=type=secret,id=lines cat /run/secrets/lines
RUN --mount=type=secret,id=one,target=/a/b,mode=0440,uid=7,gid=8 ls -ln /a/b | tee /seen
RUN --mount=type=secret,id=one,env=ONE,target=/a/b cat /a/b; test "$(cat /a/b)" = "$ONE"
RUN ls /run/secrets /a 2>&1; test -z "$ONE"
""",
    )
    output = tmp_path / "layout"
    options = [
        "--secret",
        f"id=one,{given.format(file=tmp_path / 'secret')}",
        "--secret",
        f"id=lines,src={tmp_path / 'lines'}",
    ]
    done = kanifold(
        "build", where, *options, "-o", f"type=oci,tar=false,dest={output}", "--progress", "plain",
        "--metadata-file", output.with_suffix(".json"), "--trace", output.with_suffix(".trace"), GIVEN=SECRET,
    )  # fmt: skip
    for word in (SECRET, *LINES.split()):
        assert word not in done.said
        for folder in (output, kanifold.root):
            assert [path for path, data in everything_below(folder) if word.encode() in data] == []
        for suffix in (".json", ".trace"):
            assert word not in output.with_suffix(suffix).read_text()
    assert "<***>" in done.said


def test_a_changed_secret_is_no_reason_to_run_again(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    where = context(
        kanifold, f"FROM {busybox.ref}\nRUN --mount=type=secret,id=one head -c 16 /dev/urandom | md5sum > /x\n"
    )
    digests = set()
    for value in ("one", "another"):
        (tmp_path / "id").unlink(missing_ok=True)
        kanifold(
            "build", where, "--secret", "id=one,env=GIVEN", "--iidfile", tmp_path / "id",
            "-o", f"type=oci,dest={tmp_path / 'out'}", GIVEN=value,
        )  # fmt: skip
        digests.add((tmp_path / "id").read_text())
    assert len(digests) == 1


def test_the_variable_of_a_secret_that_is_not_given_is_empty(kanifold: Kanifold, busybox: Base) -> None:
    where = context(
        kanifold,
        f"""\
FROM {busybox.ref}
ENV OTHER=image
RUN --mount=type=secret,id=one,env=ONE --mount=type=secret,id=one,env=OTHER set -u; echo "one=<$ONE> other=<$OTHER>"
RUN --mount=type=secret,id=one,env=ONE,target=/a/b test ! -e /a/b; env | grep -x ONE=
RUN --mount=type=secret,id=one,env=ONE,target=/a/b,required=false echo "again=<$ONE>"
""",
    )
    done = kanifold("build", where, "--progress", "plain")
    assert "one=<> other=<>" in done.said
    assert "again=<>" in done.said


def test_a_secret_is_at_the_last_part_of_its_name(kanifold: Kanifold, busybox: Base) -> None:
    where = context(kanifold, f"FROM {busybox.ref}\nRUN --mount=type=secret,id=a/one cat /run/secrets/one\n")
    kanifold("build", where, "--secret", "id=a/one,env=GIVEN", GIVEN=SECRET)


@pytest.mark.parametrize("option", ["required", "required=true"])
@pytest.mark.parametrize(("kind", "name"), [("secret,id=one", "one"), ("ssh,id=two", "two"), ("ssh", "default")])
def test_what_is_required_and_absent_is_an_error(
    kanifold: Kanifold, busybox: Base, option: str, kind: str, name: str
) -> None:
    where = context(kanifold, f"FROM {busybox.ref}\nRUN --mount=type={kind},{option} true\n")
    done = kanifold.run("build", where, "-o", "type=oci,dest=out")
    assert done.code == 1
    assert name in done.said
    assert "Dockerfile:2" in done.said


def test_a_secret_is_in_no_list_of_processes(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    """While a step has the secret: no command line on this machine holds it, and no environment but the step's."""
    needs("skopeo")
    (tmp_path / "secret").write_text(SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = context(
            kanifold,
            f"FROM {busybox.ref}\n"
            f"RUN --mount=type=secret,id=one --network=host nc 127.0.0.1 {server.getsockname()[1]}\n",
        )
        process = kanifold.start(
            "build", where, "--allow", "network.host", "--secret", f"id=one,src={tmp_path / 'secret'}",
            "-o", f"type=oci,dest={tmp_path / 'out'}",
        )  # fmt: skip
        server.settimeout(60)
        step, _ = server.accept()
        with step:
            seen = [path for path in Path("/proc").glob("[0-9]*") if SECRET.encode() in _said_of(path)]
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert seen == []


def _said_of(process: Path) -> bytes:
    found = b""
    for name in ("cmdline", "environ", "comm"):
        try:
            found += (process / name).read_bytes()
        except OSError:
            continue
    return found


# -- SSH ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agent:
    """A running ssh-agent with one key."""

    socket: str
    key: Path
    fingerprint: str


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    needs("ssh-agent", "ssh-add", "ssh-keygen", "ldd")
    path, key = str(tmp_path / "agent"), tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, capture_output=True)
    told = subprocess.run(["ssh-keygen", "-lf", key], check=True, capture_output=True, text=True).stdout
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        subprocess.run(
            ["ssh-add", "-q", key], check=True, capture_output=True, env=os.environ | {"SSH_AUTH_SOCK": path}
        )
        yield Agent(path, key, told.split()[1])
    finally:
        process.terminate()
        process.communicate()


def with_ssh_add(folder: Path) -> None:
    """Put ssh-add and the libraries it loads into ``folder``, at their own paths."""
    program = subprocess.run(["which", "ssh-add"], check=True, capture_output=True, text=True).stdout.strip()
    loaded = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for path in (program, *(word for word in loaded.split() if word.startswith("/"))):
        target = folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(path).read_bytes())
        target.chmod(0o755)


def test_an_agent_that_does_not_answer_is_told_of(kanifold: Kanifold, agent: Agent, busybox: Base) -> None:
    where = context(kanifold, f"FROM {busybox.ref}\nCOPY root /\nRUN --mount=type=ssh ! ssh-add -l\n")
    with_ssh_add(where / "root")
    gone = kanifold.home / "gone"
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind(str(gone))  # and does not listen
        done = kanifold("build", where, "--ssh", f"default={gone}", "--progress", "plain")
    assert "the SSH agent does not answer: Connection refused" in done.said


@pytest.mark.parametrize("isolation", security_modes.EACH, indirect=True)
@pytest.mark.parametrize("given", ["default", "default={agent.socket}", "default={agent.key}"])
@pytest.mark.usefixtures("isolation")
def test_a_step_reaches_the_agent(kanifold: Kanifold, agent: Agent, busybox: Base, tmp_path: Path, given: str) -> None:
    where = context(
        kanifold,
        f"""\
FROM {busybox.ref}
COPY root /
RUN --mount=type=ssh ssh-add -l; echo "at $SSH_AUTH_SOCK"; ls -ln "$SSH_AUTH_SOCK"
RUN --mount=type=ssh,target=/s,mode=0666,uid=5 ls -ln /s; SSH_AUTH_SOCK=/s ssh-add -l; ssh-add -D && exit 1; true
RUN test -z "$SSH_AUTH_SOCK" && ! ssh-add -l && test ! -e /run -a ! -e /s
""",
    )
    with_ssh_add(where / "root")
    output = tmp_path / "layout"
    done = kanifold(
        "build", where, "--ssh", given.format(agent=agent), "--progress", "plain",
        "-o", f"type=oci,tar=false,dest={output}", SSH_AUTH_SOCK=agent.socket,
    )  # fmt: skip
    assert done.said.count(agent.fingerprint) == 2
    assert "at /run/buildkit/ssh_agent.0" in done.said
    assert "srw-------" in done.said
    assert "srw-rw-rw-" in done.said
    still = subprocess.run(
        ["ssh-add", "-l"], check=True, capture_output=True, text=True, env=os.environ | {"SSH_AUTH_SOCK": agent.socket}
    )
    assert agent.fingerprint in still.stdout, "a step cannot take keys away"
    private = agent.key.read_bytes().splitlines()[2]
    for folder in (output, kanifold.root):
        assert [path for path, data in everything_below(folder) if private in data] == []
