"""Fixtures: a sandbox process (``sandbox_process``) for each isolation mode, and ``sandbox``, each in turn."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from ordinary_user import User
from sandbox_process import ARM64, BUSYBOX, QEMU, SandboxProcess, opened

from executor.sandbox import IsolationMode
from platforms import syscalls

_CHROOT = pytest.param("chroot", marks=pytest.mark.slow)
_ANSWERED = pytest.param("answered", marks=pytest.mark.slow)
OTHERWISE_IN_A_CHROOT = {
    "of its processes": (
        "test_the_program_is_process_one_and_alone", "test_nothing_is_left_of_what_mounts_needed",
        "test_a_step_cannot_leave_its_root", "test_nothing_of_the_host_is_seen_in_proc",
    ),
    "no loopback interface of its own": ("test_network_none_has_only_a_loopback_that_works",),
    "fewer capabilities": ("test_capabilities_are_dockers",),
    "no new privileges": (
        "test_insecure_has_what_we_have", "test_set_user_id_programs_work", "test_sync_calls_succeed_at_once",
    ),
    "no limits of file systems in memory": (
        "test_devices", "test_tmpfs", "test_the_next_step_needs_not_have_the_shape_of_the_last",
    ),
    "device files of its own, which are not the machine's": (
        "test_device_nodes_made_by_a_step_cannot_be_opened", "test_devices", "test_standard_input_is_the_steps_own",
        "test_what_a_step_makes_itself_is_no_device",
    ),
    "no overlay": ("test_the_diff_is_what_the_step_changed", "test_mount_points_hidden_by_whiteouts"),
    "no mounts": (
        "test_binds", "test_bind_by_descriptor", "test_mounts_that_cannot_be_made",
        "test_a_mount_below_a_shared_directory_stays_inside", "test_secret",
    ),
    "directories in place of the links of /proc": ("test_the_links_of_proc_lead_nowhere",),
    "no starter": ("test_an_interpreter_that_is_named_so_is_the_starter",),
}  # fmt: skip
"""What a step in a chroot has, or has not, and the tests that therefore say nothing of it."""


OTHERWISE_WHERE_CALLS_ARE_ANSWERED = {
    "no process 1, as only its own processes are there with the machine's numbers": (
        "test_the_program_is_process_one_and_alone", "test_nothing_is_left_of_what_mounts_needed",
        "test_a_step_cannot_leave_its_root",
    ),
    "no privileges": ("test_insecure_has_what_we_have", "test_sync_calls_succeed_at_once"),
    "no limits of file systems in memory": (
        "test_devices", "test_tmpfs", "test_the_next_step_needs_not_have_the_shape_of_the_last",
    ),
    "/sys as the machine has it": ("test_masked_directories_are_empty", "test_kernel_settings_are_read_only"),
    "no overlay": ("test_the_diff_is_what_the_step_changed",),
    "no starter": ("test_an_interpreter_that_is_named_so_is_the_starter",),
    "no mounts": (
        "test_bind_by_descriptor", "test_a_part_of_a_bind_that_is_missing", "test_mounts_that_cannot_be_made",
        "test_any_number_of_mount_points_is_taken_back", "test_secret",
    ),
}  # fmt: skip
"""The same of a step whose path calls are answered."""
_OTHERWISE = {"chroot": OTHERWISE_IN_A_CHROOT, "answered": OTHERWISE_WHERE_CALLS_ARE_ANSWERED}


@pytest.fixture(autouse=True)
def _observable_without_namespaces(request: pytest.FixtureRequest) -> None:
    """Skip tests of what a step without namespaces does otherwise."""
    callspec = getattr(request.node, "callspec", None)
    modes = set(_OTHERWISE).intersection(map(str, callspec.params.values())) if callspec is not None else ()
    for mode in modes:
        for why, names in _OTHERWISE[mode].items():
            if request.node.originalname in names:
                pytest.skip(f"a step in the mode {mode} has {why}")


@pytest.fixture(scope="session")
def _busybox() -> None:
    if not BUSYBOX.exists():
        pytest.skip(f"no {BUSYBOX} (Debian: busybox-static)")


@pytest.fixture(scope="session")
def root_sandbox(_busybox: None) -> Iterator[SandboxProcess]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with opened(None) as sandbox:
        assert sandbox.isolation.mode is IsolationMode.NAMESPACES
        yield sandbox


@pytest.fixture(scope="session")
def private_sandbox(_busybox: None) -> Iterator[SandboxProcess]:
    """Root's, in a user namespace: that is what a private emulator needs."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not QEMU.exists():
        pytest.skip(f"no {QEMU}")
    with opened(None, ARM64) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def mapped_sandbox(_busybox: None, _user_with_ids: User) -> Iterator[SandboxProcess]:
    with opened(_user_with_ids) as sandbox:
        assert sandbox.isolation.mode is IsolationMode.MAPPED, sandbox.isolation.why
        yield sandbox


@pytest.fixture(scope="session")
def single_sandbox(_busybox: None, _user_without_ids: User) -> Iterator[SandboxProcess]:
    with opened(_user_without_ids) as sandbox:
        assert sandbox.isolation.mode is IsolationMode.SINGLE, sandbox.isolation.why
        yield sandbox


@pytest.fixture(scope="session")
def chroot_sandbox(_busybox: None) -> Iterator[SandboxProcess]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if syscalls.landlock_version() < 2:
        pytest.skip("needs Landlock (Linux 5.19)")
    with opened(None, mode="chroot") as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def answered_sandbox(_busybox: None, _user_without_ids: User) -> Iterator[SandboxProcess]:
    with opened(_user_without_ids, mode="answered") as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def scopeless_sandbox(_busybox: None) -> Iterator[SandboxProcess]:
    """As ``chroot_sandbox``, with the Landlock of Linux 6.7 to 6.9."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with opened(None, world=_without_scopes, mode="chroot") as sandbox:
        yield sandbox


def _without_scopes() -> None:
    syscalls.landlock_version = lambda: 4


@pytest.fixture(scope="session", params=["root", "private", "mapped", "single", _CHROOT, _ANSWERED])
def sandbox(request: pytest.FixtureRequest) -> SandboxProcess:
    """The same test on every mode."""
    found: SandboxProcess = request.getfixturevalue(f"{request.param}_sandbox")
    return found


@pytest.fixture(scope="session", params=["root", "mapped", "single", _CHROOT, _ANSWERED])
def either_sandbox(request: pytest.FixtureRequest) -> SandboxProcess:
    """The same test as root and as an ordinary user, where the user namespace of root adds nothing."""
    found: SandboxProcess = request.getfixturevalue(f"{request.param}_sandbox")
    return found
