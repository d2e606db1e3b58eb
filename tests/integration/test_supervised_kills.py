"""kill -9 at random moments of what runs steps without namespaces: nothing of a step is left, and nothing is wrong.

KANIFOLD_KILL_ROUNDS and KANIFOLD_KILL_SEED as in ``test_random_kills``; unless they are given, each kind of process is
killed once where slow tests run, and else the one that answers a step's calls.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import store_check
from conftest import TEST_TIMEOUT, Base, Kanifold, needs
from oci_layout import image_manifests
from ordinary_user import User
from protocol_nodes import MARK, Marked

from executor.store.store import open_store
from platforms import syscalls

ROUNDS = int(os.environ.get("KANIFOLD_KILL_ROUNDS", "0"))
SEED = int(os.environ.get("KANIFOLD_KILL_SEED", "1"))
DEADLINE = 60.0
"""Seconds within which a build ends unless something is stuck."""

# The mark is no part of what is made: it gives each round steps to do, and lets their processes be found.
DOCKERFILE = f"""\
FROM {{base}} AS one
ARG {MARK}
RUN (sleep 1000 &) ; for each in 1 2 3 4 5 6; do \\
      mkdir -p /a/$each && cp /bin/busybox /a/$each/ && chown 1:2 /a/$each && md5sum /a/$each/busybox >> /a/sums && \\
      grep -c State /proc/self/status >> /a/states || exit 1; done
RUN --mount=type=cache,target=/c echo more >> /c/log; mkdir /b; for each in 1 2 3 4; do mv /a/$each /b/; done
FROM {{base}}
COPY --from=one /a /a
COPY --from=one /b /b
RUN md5sum /a/*/busybox /b/*/busybox > /sums
"""


@dataclass(frozen=True)
class Way:
    """A mode of isolation: flags and variables of the build, and the names of the processes that run steps, the one
    that answers calls last."""

    mode: str
    platform: str
    processes: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    def start(self, kanifold: Kanifold, context: Path, out: Path, mark: Marked) -> subprocess.Popen[str]:
        return kanifold.start(
            "build", context, "-o", f"type=oci,tar=false,dest={out}", "--build-arg", f"{MARK}={mark.value}",
            "--isolation", self.mode, "--platform", self.platform,
            SOURCE_DATE_EPOCH="1", **mark.environment, **dict(self.variables),
        )  # fmt: skip


EXECUTOR = "kanifold-executor"
"""Stands for the process that builds a platform, whatever its name is."""
CHROOT = Way("chroot", "linux/amd64", (EXECUTOR, "kanifold-steps", "kanifold-reap", "kanifold-answer"))
TRACED = Way(
    "chroot",
    "linux/arm64",
    ("kanifold-reap", "kanifold-tracer", "kanifold-answer"),
    (("KANIFOLD_EMULATION", "traced"),),
)  # fmt: skip
ANSWERED = Way("answered", "linux/amd64", (EXECUTOR, "kanifold-steps", "kanifold-calls"))


@pytest.fixture(params=["chroot", pytest.param("traced", marks=pytest.mark.slow), "answered"])
def case(request: pytest.FixtureRequest) -> tuple[Way, Kanifold]:
    if request.param == "answered":
        return ANSWERED, request.getfixturevalue("kanifold_as_bare_user")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if syscalls.landlock_version() < 2:
        pytest.skip("needs Landlock (Linux 5.19)")
    if request.param == "traced":
        needs("qemu-aarch64-static")
    return {"chroot": CHROOT, "traced": TRACED}[request.param], request.getfixturevalue("kanifold")


@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one", "each"])
def test_a_kill_of_what_runs_steps_leaves_nothing_of_them(
    case: tuple[Way, Kanifold], busybox: Base, each: bool
) -> None:
    way, kanifold = case
    context = kanifold.folder("context")
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=busybox.ref))
    chance = random.Random(SEED)

    def built(out: Path, mark: Marked) -> str:
        with way.start(kanifold, context, out, mark) as process:
            _, said = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, said
        assert gone(mark.processes, 5)
        return str(image_manifests(out)[way.platform]["digest"])

    began = time.monotonic()
    right = built(kanifold.home / "right", Marked())
    usual = time.monotonic() - began

    victims = way.processes if each else way.processes[-1:]
    if ROUNDS:
        victims = tuple(chance.choice(way.processes) for _ in range(ROUNDS))
    for turn, name in enumerate(victims):
        signal.alarm(TEST_TIMEOUT)  # a round is what may not hang
        mark, own = Marked(), kanifold.folder(f"turn{turn}")
        process = way.start(kanifold, context, own / "out", mark)
        victim = _found(process, mark, name)
        time.sleep(chance.uniform(0, usual / 2))  # the random moment
        there = {pid: start for pid in mark.processes() if (start := _started(pid))}
        if victim := _found(process, mark, name, wait=False):
            _kill(victim)
        _, said = process.communicate(timeout=DEADLINE)
        if process.returncode:
            assert process.returncode in (1, 3), said
            assert "Traceback" not in said
            assert "has died" in said or "ended without a result" in said, said
        else:
            assert str(image_manifests(own / "out")[way.platform]["digest"]) == right, (name, said)
        assert gone(mark.processes, 5), f"killing {name} has left a process"
        assert gone(functools.partial(_still, there), 5), "a zombie is left"
        assert built(own / "after", mark) == right
    with acting(kanifold.user), open_store(str(kanifold.root)) as store:
        assert store_check.verify(store) == ()


@contextlib.contextmanager
def acting(user: User) -> Iterator[None]:
    """Be ``user`` for the length of the block, as far as files are concerned."""
    own = os.geteuid(), os.getegid()
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(own[0])
        os.setegid(own[1])


def _found(process: subprocess.Popen[str], mark: Marked, name: str, *, wait: bool = True) -> int | None:
    """Return a process of the build that is called ``name``, as soon as there is one; None if it ends before."""
    while True:
        for each in mark.processes():
            if (name == EXECUTOR and _is_executor(each, process.pid)) or _name(each) == name:
                return each
        if not wait or process.poll() is not None:
            return None


def _is_executor(pid: int, orchestrator: int) -> bool:
    return pid != orchestrator and any(_name(each) == "kanifold-steps" for each in _children(pid))


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process was started, in ticks (proc_pid_stat(5)); "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _still(there: Mapping[int, str]) -> list[int]:
    """Return which processes of ``there``, by when they were started, are running or zombies."""
    return [pid for pid, start in there.items() if _started(pid) == start]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def gone(find: Callable[[], list[int]], seconds: float) -> bool:
    """Wait up to ``seconds`` until ``find`` finds no process."""
    end = time.monotonic() + seconds
    while (found := find()) and time.monotonic() < end:
        time.sleep(0.01)  # /proc announces nothing
    return not found
