"""Attack 56 (review): a step takes all of what it shares with the builder: the log, memory, processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from ordinary_user import User
from sandbox_process import Inside, SandboxProcess, opened

from executor.sandbox import cgroup
from platforms.errors import EnvironmentUnfit


def context(kanifold: Kanifold, source: str) -> Path:
    made = kanifold.home / "context"
    made.mkdir(exist_ok=True)
    (made / "Dockerfile").write_text(source)
    return made


def test_a_step_that_writes_without_end_fills_no_log(kanifold: Kanifold, busybox: Base) -> None:
    where = context(kanifold, f"FROM {busybox.ref}\nRUN seq 1 2000000 && echo all; echo last; exit 3\n")
    done = kanifold.run("build", where, "--progress", "plain", BUILDKIT_STEP_LOG_MAX_SPEED="-1")
    assert done.code == 1
    assert "[output clipped, log limit 2MiB reached]" in done.said
    assert 2 << 20 < len(done.said) < 16 << 20  # each line with its step's name before it
    assert "| last" in done.said  # the error shows how it ended


def test_what_is_shown_of_a_step_can_be_set(kanifold: Kanifold, busybox: Base) -> None:
    where = context(kanifold, f"FROM {busybox.ref}\nRUN seq 1 500000\n")
    free = {"BUILDKIT_STEP_LOG_MAX_SPEED": "-1", "BUILDKIT_STEP_LOG_MAX_SIZE": "-1"}
    said = kanifold("build", where, "--progress", "plain", **free).said
    assert "clipped" not in said
    assert " 500000\n" in said


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_step_is_killed_before_whoever_builds(sandbox: SandboxProcess) -> None:
    own = int(Path(f"/proc/{sandbox.pid}/oom_score_adj").read_text())
    seen = sandbox.run("cat /proc/self/oom_score_adj; sh -c 'cat /proc/self/oom_score_adj'").out.split()
    assert seen == [str(min(1000, own + 500))] * 2


def test_a_step_that_takes_too_much_memory_is_ended_or_the_build_says_that_it_cannot_be(
    kanifold: Kanifold, busybox: Base
) -> None:
    where = context(kanifold, f"FROM {busybox.ref}\nRUN tail /dev/zero\n")
    done = kanifold.run("build", where, "--resource", "memory=64m", "--resource", "memory-swap=64m")
    if done.code == 3:
        assert "cannot bound the resources of steps here" in done.said
        assert "systemd-run --user --scope -p Delegate=yes" in done.said
    else:
        assert done.code == 1
        assert "it needed more memory than --resource allows" in done.said


# -- control groups --------------------------------------------------------------------------------------------------


@pytest.fixture
def parent() -> Iterator[Path]:
    """A control group of the test's own, handed on to nobody yet, and removed with what is in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        top, _ = cgroup._hierarchy()
        made = Path(top, f"kanifold-test-{os.getpid()}")
        made.mkdir()
    except (EnvironmentUnfit, OSError) as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        yield made
    finally:
        for each in sorted(made.rglob("*/"), reverse=True):
            each.rmdir()
        made.rmdir()


def test_a_steps_group_is_made_where_it_is_asked_for_and_removed(parent: Path, root_sandbox: SandboxProcess) -> None:
    group = cgroup.make(parent.name, ())
    assert Path(group).parent == parent
    seen = root_sandbox.run("grep 0:: /proc/self/cgroup; true", cgroup=group).out
    assert seen.splitlines()[0] == "0::/"
    cgroup.remove(group)
    assert list(parent.glob("*/")) == []


def test_a_steps_processes_are_in_it(parent: Path) -> None:
    with opened(None) as sandbox:
        group = Path(cgroup.make(parent.name, ()))
        sandbox.begin(sandbox.spec("sleep 1000 & echo up; wait", cgroup=str(group)), "up")
        assert len((group / "cgroup.procs").read_text().split()) == 2
    cgroup.remove(str(group))
    assert not group.exists()


def test_an_ordinary_user_bounds_steps_in_what_was_delegated(parent: Path, _user_without_ids: User) -> None:
    own = parent / "builder"
    own.mkdir()
    for each in (parent, own, *(folder / name for folder in (parent, own) for name in _DELEGATED)):
        os.chown(each, _user_without_ids.uid, _user_without_ids.gid)

    def move() -> None:
        (own / "cgroup.procs").write_text("0")

    with opened(_user_without_ids, world=move) as sandbox:
        group = Path(sandbox.call(_make))
        assert group.parent in (own, parent)
        sandbox.begin(sandbox.spec("echo up; exec sleep 1000", cgroup=str(group)), "up")
        assert len((group / "cgroup.procs").read_text().split()) == 1
    cgroup.remove(str(group))


_DELEGATED = ("cgroup.procs", "cgroup.subtree_control")


def _make(_: Inside) -> str:
    return cgroup.make("", ())


def test_bounds_are_written_and_controllers_handed_on(parent: Path) -> None:
    """With the controller that is there, whichever it is."""
    there = (parent.parent / "cgroup.controllers").read_text().split()
    bounds = {"pids": ("pids.max", "77"), "memory": ("memory.max", "1048576"), "hugetlb": ("hugetlb.2MB.max", "0")}
    wanted = tuple(bounds[name] for name in there if name in bounds)
    if not wanted:
        pytest.skip("no controller of version 2 is there")
    with _handed_on(parent, {name.partition(".")[0] for name, _ in wanted}):
        with cgroup.group(f"{parent.name}/inner", wanted) as group:
            assert [Path(group, name).read_text().strip() for name, _ in wanted] == [text for _, text in wanted]
        assert not Path(group).exists()


@contextlib.contextmanager
def _handed_on(parent: Path, names: set[str]) -> Iterator[None]:
    """What is handed on for the test is taken back."""
    top = parent.parent
    before = set((top / "cgroup.subtree_control").read_text().split())
    try:
        yield
    finally:
        for each in (*sorted(parent.rglob("*/"), reverse=True), parent):
            for name in names:
                (each / "cgroup.subtree_control").write_text(f"-{name}")
        for name in names - before:
            (top / "cgroup.subtree_control").write_text(f"-{name}")


def test_groups_that_a_killed_executor_has_left_are_removed(parent: Path) -> None:
    left, others = parent / f"kanifold-{_dead()}-0", parent / "kanifold-mine"
    left.mkdir()
    others.mkdir()
    with cgroup.group(parent.name, ()):
        assert not left.exists()
        assert others.exists()


def _dead() -> int:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_what_cannot_be_had_is_said(parent: Path) -> None:
    with pytest.raises(EnvironmentUnfit) as caught:
        cgroup.make(parent.name, (("nosuch.max", "1"),))
    assert "has no controller nosuch" in str(caught.value)
