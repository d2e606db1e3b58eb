"""The hosts that tests of nodes use: what a login finds there, and what cutting, killing and slowing down do."""

from __future__ import annotations

import subprocess
import time

import pytest
from hosts import Hosts


def ssh(hosts: Hosts, *command: str, timeout: float = 60) -> str:
    done = subprocess.run(
        ["ssh", "-o", "BatchMode=yes", *command],
        env=hosts.environment, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("user", ["root", "builder"])
def test_a_login_finds_the_account_and_its_home(hosts: Hosts, user: str) -> None:
    host = hosts.add("one", user=user)
    assert ssh(hosts, "one", "id -un; hostname; touch ~/made; pwd") == f"{user}\none\n/home/{user}\n"
    assert (host.home / "made").exists()
    assert host.wait_until_idle(5) == {}


def test_a_minimal_machine_has_python_and_nothing_more(hosts: Hosts) -> None:
    hosts.add("bare", root="linux/amd64")
    said = ssh(hosts, "bare", "python3 -c 'import sqlite3, ssl; print(1)'; python3 -c 'import msgspec'; id -un")
    assert said.startswith("1\nroot\n")
    assert "No module named 'msgspec'" in said


def test_a_machine_of_another_architecture_says_so(hosts: Hosts) -> None:
    hosts.add("arm", root="linux/arm64")
    said = ssh(hosts, "arm", "uname -m; python3 -c 'import platform; print(platform.machine())'")
    assert said == "aarch64\naarch64\n"


def test_what_is_cut_is_silent_until_it_is_restored(hosts: Hosts) -> None:
    host = hosts.add("one")
    host.cut()
    assert "timed out" in ssh(hosts, "-o", "ConnectTimeout=1", "one", "echo there")
    host.restore()
    assert ssh(hosts, "one", "echo there") == "there\n"


def test_a_delay_is_added_to_each_round_trip(hosts: Hosts) -> None:
    host = hosts.add("one")
    host.slow_down(40)
    begun = time.monotonic()
    assert ssh(hosts, "one", "echo there") == "there\n"
    assert time.monotonic() - begun > 0.2
    host.full_speed()
    assert ssh(hosts, "one", "echo there") == "there\n"


def test_a_killed_sshd_leaves_what_it_started_and_can_start_again(hosts: Hosts) -> None:
    host = hosts.add("one")
    with subprocess.Popen(["ssh", "one", "echo up; exec sleep 1000"], env=hosts.environment, stdout=-1) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        host.kill_sshd()
        assert client.wait(10) == 255
    assert list(host.processes().values()) == ["sleep 1000"]
    assert "refused" in ssh(hosts, "one", "echo there")
    host.start_sshd()
    assert ssh(hosts, "one", "echo there") == "there\n"


def test_a_small_disk_is_full_soon(hosts: Hosts) -> None:
    hosts.add("small", user="builder", disk="1m")
    assert "No space left" in ssh(hosts, "small", "head -c 2M /dev/zero >~/file")
