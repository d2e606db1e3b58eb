"""Directories with a default access control list, in which the umask does not apply (acl(5))."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sandbox_process import SandboxProcess

pytestmark = pytest.mark.skipif(not shutil.which("setfacl"), reason="no setfacl (Debian: acl)")


def _said(sandbox: SandboxProcess, command: str) -> list[str]:
    """Run ``command`` in a step that has setfacl and getfacl; return the lines that it writes."""
    nodes = {}
    for name in ("setfacl", "getfacl"):
        program = shutil.which(name) or ""
        nodes[f"bin/{name}"] = ("x", "755", program)
        libraries = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        nodes |= {word[1:]: ("x", "755", word) for word in libraries.split() if word.startswith("/")}
    layers = (sandbox.plant(nodes), sandbox.busybox)
    done = sandbox.run("/bin/sh", "-c", f"umask 022; mkdir /d; cd /d; {command}", layers=layers)
    assert done.err == ""
    said: list[str] = done.out.splitlines()
    return said


def test_a_default_list_takes_the_place_of_the_umask(sandbox: SandboxProcess) -> None:
    said = _said(
        sandbox,
        "chmod 2755 .; setfacl -d -m u::rwx,g::rwx,o::r-x .; mkdir d d/e; echo >f; mkfifo p;"
        "ln -s f l; stat -c '%n %a' d d/e f p; setfacl -k .; mkdir g; stat -c '%n %a' g",
    )
    assert said == ["d 2775", "d/e 2775", "f 664", "p 664", "g 2755"]


def test_a_default_list_is_handed_down(sandbox: SandboxProcess) -> None:
    said = _said(sandbox, "setfacl -d -m g:0:rw- .; mkdir d; echo >f; getfacl -cnE d f")
    directory = ["user::rwx", "group::r-x", "group:0:rw-", "mask::rwx", "other::r-x"]
    defaults = [f"default:{each}" for each in directory]
    file = ["user::rw-", "group::r-x", "group:0:rw-", "mask::rw-", "other::r--"]
    assert [each for each in said if each] == [*directory, *defaults, *file]


def test_a_default_list_can_take_permissions_of_the_owner(sandbox: SandboxProcess) -> None:
    said = _said(
        sandbox,
        "setfacl -d -m u::---,g::---,o::r-- .; mkdir d; echo text >f; stat -c '%n %a' d f;"
        "cat f; ls d; getfacl -cnE f; setfacl -k .; touch n; setfacl -m u::--x,g:0:rw- n;"
        "stat -c '%n %a' n; getfacl -cnE n;"
        "cat n",
    )
    assert [each for each in said if each] == [
        "d 4", "f 4", "text", "user::---", "group::---", "other::r--",
        "n 164", "user::--x", "group::r--", "group:0:rw-", "mask::rw-", "other::r--",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["root", "single", "chroot", "answered"])
def test_so_it_does_for_devices(mode: str, request: pytest.FixtureRequest) -> None:
    sandbox: SandboxProcess = request.getfixturevalue(f"{mode}_sandbox")
    said = _said(sandbox, "setfacl -d -m u::rw-,g::rw-,o::r-- .; mknod c c 1 3; mknod b b 8 1; stat -c '%n %a' c b")
    assert said == ["c 664", "b 664"]
