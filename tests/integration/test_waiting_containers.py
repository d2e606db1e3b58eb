"""Containers whose command is begun by the caller, who learns what it took: benches measure that way."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import containers
import emulators
import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes containers"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed"),
]
LARGE = 150 << 20
BY_A_CHILD = f"import os\nif not os.fork(): os.urandom(1) * {LARGE}; os._exit(0)\nos.wait()\nexit(3)"


@pytest.mark.parametrize("name", ["docker-root", "k8s-userns"])
def test_a_command_begins_when_it_is_told_to(name: str, tmp_path: Path) -> None:
    box, log = tmp_path / "box", tmp_path / "log"
    box.mkdir()
    command = ["/usr/bin/python3", "-c", "print('begun')\n" + BY_A_CHILD]
    environment = containers.ENVIRONMENTS[name]
    with log.open("wb") as output, containers.created(environment, command, box, output=output) as container:
        before = log.read_text()
        container.start()
        _, status, usage = os.wait4(container.pid, 0)
    assert (before, log.read_text(), os.waitstatus_to_exitcode(status)) == ("", "begun\n", 3)
    assert LARGE < usage.ru_maxrss << 10 < 2 * LARGE, "the peak is that of the largest of its processes"


def test_a_container_that_was_never_begun_goes(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    with (
        (tmp_path / "log").open("wb") as output,
        containers.created(containers.ENVIRONMENTS["docker-root"], ["/bin/true"], box, output=output) as container,
    ):
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(container.pid, 0)[1]) < 0
    assert not Path(f"/proc/{container.pid}").exists()


def test_a_container_is_in_the_user_namespace_that_is_named(tmp_path: Path) -> None:
    """Which has handlers of foreign executables, maybe."""
    box, log = tmp_path / "box", tmp_path / "log"
    box.mkdir()
    with subprocess.Popen(
        ["unshare", "--user", "sh", "-c", "echo there; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"there\n"
        emulators.map_ids(holder.pid)
        namespace = Path(f"/proc/{holder.pid}/ns/user")
        environment = replace(containers.ENVIRONMENTS["docker-root"], own_ids=True, joined=str(namespace))
        command = ["readlink", "/proc/self/ns/user"]
        with log.open("wb") as output, containers.created(environment, command, box, output=output) as container:
            container.start()
            os.waitpid(container.pid, 0)
        assert log.read_text().strip() == str(namespace.readlink()) != os.readlink("/proc/self/ns/user")
        holder.kill()
