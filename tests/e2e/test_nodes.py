"""The promise of README.md and docs/nodes.md: a machine is named once, and builds use it, with real ssh and sshd."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from hosts import Hosts
from oci_layout import read_image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="hosts are network namespaces, which root makes")

NO_TRACING = """
import os, struct, sys
from platforms import syscalls
number = {"x86_64": 101, "aarch64": 117}[os.uname().machine]
code = ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000))
syscalls.no_new_privileges()
syscalls.seccomp_filter(b"".join(struct.pack("=HBBI", *each) for each in code))
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Executes a command to which ptrace(2) is refused: load the number, compare it, return EPERM, allow."""
NO_ISOLATION = (
    "unshare", "--user", "--map-root-user", "sh", "-c",
    "echo 0 > /proc/sys/user/max_user_namespaces && "
    'exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"', "sh",
    sys.executable, "-c", NO_TRACING,
)  # fmt: skip
"""Begins a command that can isolate nothing: no executor works where it runs."""


@pytest.fixture
def client(hosts: Hosts, kanifold: Kanifold) -> Kanifold:
    """The command, of a user whose ssh knows the hosts."""
    known = {key: hosts.environment[key] for key in ("PATH", "XDG_RUNTIME_DIR")}
    return replace(kanifold, extra={**kanifold.extra, **known})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A context whose build runs programs of its platform, and has a stage of the build platform."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "file").write_text("of the context")
    (folder / "Dockerfile").write_text(
        "FROM --platform=$BUILDPLATFORM base AS tools\nRUN uname -m > /tool\n"
        "FROM base\nCOPY --from=tools /tool /tool\nCOPY file /file\nRUN uname -m > /machine\n"
    )
    return folder


def test_a_machine_that_is_named_once_is_used_by_builds(
    client: Kanifold, hosts: Hosts, project: Path, busybox: Base, tmp_path: Path
) -> None:
    far = hosts.add("far", user="builder")
    client("node", "add", "far", far.url)
    (before,) = json.loads(client("node", "inspect", "far", "--format", "json").out)
    assert (before["state"], before["problem"]["remedy"]) == ("inactive", "kanifold node check far sends it")
    assert "ok far: linux/amd64" in client("node", "check").out
    (listed,) = json.loads(client("node", "inspect", "far", "--format", "json").out)
    assert (listed["state"], listed["description"]["native"][0]) == ("ok", "linux/amd64")

    wanted = ("--platform", "linux/amd64,linux/arm64=far", "--build-context", f"base=oci-layout://{busybox.layout}")
    plan = json.loads(client("build", project, *wanted, "--dry-run", "--progress", "rawjson").out)
    assert [(each["node"], each["how"]) for each in plan["platforms"]] == [("local", "native"), ("far", "emulated")]
    assert far.wait_until_idle(10) == {}

    done = client("build", project, *wanted, "--progress", "plain", "-o", f"type=oci,dest={tmp_path / 'out'}")
    assert "[linux/arm64] started: emulated, far (as --platform says)" in done.err
    for platform, machine in (("linux/amd64", "x86_64"), ("linux/arm64", "aarch64")):
        seen = read_image(tmp_path / "out", platform)
        said = (seen.text("/machine"), seen.text("/tool"), seen.text("/file"))
        assert said == (f"{machine}\n", "x86_64\n", "of the context")
    assert far.wait_until_idle(10) == {}


@pytest.mark.slow
def test_a_platform_is_built_where_it_is_native(
    client: Kanifold, hosts: Hosts, project: Path, busybox: Base, tmp_path: Path
) -> None:
    """The machine says aarch64 with all of its programs; qemu runs them, and has no system calls to isolate steps."""
    arm = hosts.add("arm", root="linux/arm64")
    client("node", "add", "arm", arm.url)
    (project / "Dockerfile").write_text("FROM base\nCOPY file /file\n")
    wanted = ("--platform", "linux/amd64,linux/arm64=arm", "--build-context", f"base=oci-layout://{busybox.layout}")
    done = client("build", project, *wanted, "--progress", "plain", "-o", f"type=oci,dest={tmp_path / 'out'}")
    assert "executor 0.1.0, linux/arm64" in done.err
    assert read_image(tmp_path / "out", "linux/arm64").text("/file") == "of the context"
    assert arm.wait_until_idle(10) == {}


def test_a_place_where_nothing_can_be_isolated_builds_on_a_node(
    client: Kanifold, hosts: Hosts, project: Path, busybox: Base, tmp_path: Path
) -> None:
    far = hosts.add("far")
    place = replace(client, command=(*NO_ISOLATION, *client.command))
    assert place.run("doctor").code == 3, "a mode works there"
    out = f"type=oci,dest={tmp_path / 'out'}"
    base = f"base=oci-layout://{busybox.layout}"
    place("build", str(project), "--node", f"far={far.url}", "--build-context", base, "-o", out)
    assert read_image(tmp_path / "out", "linux/amd64").text("/file") == "of the context"
    assert far.wait_until_idle(10) == {}
