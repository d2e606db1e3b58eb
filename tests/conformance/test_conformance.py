"""The suite that says whether kanifold builds what BuildKit builds: every case's image against BuildKit's recording.

Each case is built once in every isolation mode, all by one store, two at a time from the first test on; a test only
waits for its own case and compares. ``cases/NAME`` holds a case (``conformance_case`` describes the files), and
``record.py`` records what BuildKit makes of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import conftest
import ordinary_user
import pytest
from conformance_case import Case, all_cases, lay_out
from conformance_image import differences
from conformance_world import YEAR, World, base_of, world
from forking import Forks
from oci_layout import image_manifests, read_image

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet
    from conftest import Kanifold, Outcome
    from ordinary_user import User

CASES = {case.name: case for case in all_cases()}
CHROOT = "chroot"
"""The name of root's steps in a chroot."""
IN_A_CHROOT = {
    **dict.fromkeys(("heredoc-run-with-mount", "run-mount-tmpfs"), "a tmpfs is a directory, which is removed"),
    **dict.fromkeys(
        ("run-mount-bind-is-read-only", "run-mount-cache-read-only", "run-mount-cache-sharing"),
        "what is written to a read-only mount is thrown away, or kept in a cache, instead of refused",
    ),
    **dict.fromkeys(("run-network-by-flag", "run-network-none"), "there are no interfaces of its own"),
    "run-proc-sys-dev": "/proc and /sys are answered by a supervisor, and show links as files",
    "run-removing-etc-fails": "nothing is mounted in /etc",
}
"""What is otherwise there, by case."""
ANSWERED = "answered"
"""The name of the steps of an ordinary user whose path calls are answered."""
WHEN_ANSWERED = {
    each: IN_A_CHROOT[each]
    for each in ("heredoc-run-with-mount", "run-mount-tmpfs", "run-network-by-flag", "run-network-none")
}
"""What is otherwise there, by case."""
OTHERWISE = {CHROOT: IN_A_CHROOT, ANSWERED: WHEN_ANSWERED}
USUAL_WHEN_ANSWERED = r"^user-(groups|made)|^run-(chown-same|hard|mount-secret-file$|devices)"
"""What is built there in an ordinary run of the suite."""
OFFERS = {
    "root": ("ids", "root", "devices"), "user": ("ids",), "single": ("devices",), "without": ("ids", "devices"),
    CHROOT: ("ids", "root", "devices"), ANSWERED: ("ids", "root", "devices"),
}  # fmt: skip
"""Each mode of isolation with what it offers (``Case.needs``)."""
FULL = "root" if os.geteuid() == 0 else "user"
"""The mode in which every case is built; in the others those in which a mode makes a difference are."""
PLAIN = "plain_"
"""Begins the names of the same modes with the plain snapshotter. There every case is built once too."""
WITHOUT = "without"
"""The name of no isolation, as an ordinary user: only what runs no step is built there."""
MODES = (*OFFERS, *(PLAIN + mode for mode in OFFERS if mode not in (WITHOUT, CHROOT, ANSWERED)))
USUAL_WITHOUT = r"^copy-(chown|cap|hard|from)|^add-|archive"
_OFTEN = r"^run-(mount-bind|deep|hard|devices|chown|dir|rem|rename|sticky|touch)|^user-made|copy-(cap|from-dev)"
USUAL_IN_PLAIN = {"root": rf"{_OFTEN}|^run-(?!mount|net|f)|^copy-from|^workdir", "user": _OFTEN, "single": _OFTEN}
"""What is built there in an ordinary run of the suite: what could go wrong. The others are slow."""
AT_ONCE = 2
"""Builds at a time."""


@dataclass(frozen=True)
class Built:
    """One case, built: how the command ended and where the layout is."""

    outcome: Outcome
    dest: Path


class Builds:
    """The builds of one mode, begun when the first of them is asked for."""

    def __init__(self, build: Callable[[Case], Built], cases: list[Case]) -> None:
        self.pool = ThreadPoolExecutor(AT_ONCE)
        self.futures: dict[str, Future[Built]] = {case.name: self.pool.submit(build, case) for case in cases}

    def of(self, case: Case) -> Built:
        """What came of ``case``; waits for it."""
        return self.futures[case.name].result()


@pytest.fixture(scope="module")
def here(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The registry, web server and repositories that the cases speak of."""
    conftest.needs("skopeo", "git")
    with world(CASES.values(), registry, tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="conformance.") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def as_root(here: World, scratch: Path, request: pytest.FixtureRequest) -> Iterator[Builds]:
    if os.geteuid() != 0:
        pytest.skip("not root")
    home = scratch / "root"
    home.mkdir()
    command, extra = conftest.installed()
    yield from _builds("root", conftest.Kanifold(home, ordinary_user.me(), command, extra), here, request)


@pytest.fixture(scope="module")
def as_plain_root(here: World, scratch: Path, request: pytest.FixtureRequest) -> Iterator[Builds]:
    if os.geteuid() != 0:
        pytest.skip("not root")
    home = scratch / "plain"
    home.mkdir()
    command, extra = conftest.installed()
    yield from _builds("plain_root", conftest.Kanifold(home, ordinary_user.me(), command, extra), here, request)


@pytest.fixture(scope="module")
def as_chroot(here: World, scratch: Path, request: pytest.FixtureRequest) -> Iterator[Builds]:
    if os.geteuid() != 0:
        pytest.skip("not root")
    home = scratch / CHROOT
    home.mkdir()
    command, extra = conftest.installed()
    yield from _builds(CHROOT, conftest.Kanifold(home, ordinary_user.me(), command, extra), here, request)


@pytest.fixture(scope="module")
def as_answered(
    here: World, _user_without_ids: User, _scratch: Path, request: pytest.FixtureRequest
) -> Iterator[Builds]:
    yield from _builds(ANSWERED, conftest.as_user(_user_without_ids, _scratch), here, request)


@pytest.fixture(scope="module")
def as_plain_user(
    here: World, _user_with_ids: User, _scratch: Path, request: pytest.FixtureRequest
) -> Iterator[Builds]:
    yield from _builds("plain_user", conftest.as_user(_user_with_ids, _scratch), here, request)


@pytest.fixture(scope="module")
def as_plain_single(
    here: World, _user_without_ids: User, _scratch: Path, request: pytest.FixtureRequest
) -> Iterator[Builds]:
    yield from _builds("plain_single", conftest.as_user(_user_without_ids, _scratch), here, request)


@pytest.fixture(scope="module")
def as_user(here: World, _user_with_ids: User, _scratch: Path, request: pytest.FixtureRequest) -> Iterator[Builds]:
    yield from _builds("user", conftest.as_user(_user_with_ids, _scratch), here, request)


@pytest.fixture(scope="module")
def as_single(here: World, _user_without_ids: User, _scratch: Path, request: pytest.FixtureRequest) -> Iterator[Builds]:
    yield from _builds("single", conftest.as_user(_user_without_ids, _scratch), here, request)


@pytest.fixture(scope="module")
def as_without(
    here: World, _user_without_ids: User, _scratch: Path, request: pytest.FixtureRequest
) -> Iterator[Builds]:
    conftest.needs("unshare", "setpriv")
    kanifold = conftest.as_user(_user_without_ids, _scratch)
    # In a user namespace that may have no further one.
    start = f"""\
#!/bin/sh
exec unshare --user --map-current-user --keep-caps sh -c 'echo 0 >/proc/sys/user/max_user_namespaces &&
    exec setpriv --inh-caps=-all --ambient-caps=-all {_python(kanifold)} "$@"' sh "$@"
"""
    program = _scratch / "without"
    program.write_text(start)
    program.chmod(0o755)
    yield from _builds(WITHOUT, kanifold, here, request, str(program))


def _python(kanifold: Kanifold) -> str:
    """Return the interpreter of ``kanifold``."""
    return kanifold.command[0] if kanifold.command[1:] == ("-m", "orchestrator") else sys.executable


def _builds(
    mode: str, kanifold: Kanifold, here: World, request: pytest.FixtureRequest, python: str = ""
) -> Iterator[Builds]:
    chosen = [
        item.callspec.params
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == test_builds_as_buildkit_does.__name__
    ]
    cases = [CASES[each["name"]] for each in chosen if each["mode"] == mode]
    # Its start would be a third of what a small case takes.
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[Forks] = queue.SimpleQueue()
        for _ in range(AT_ONCE):
            idle.put(stack.enter_context(Forks(python or _python(kanifold), kanifold.extra, kanifold.user.becoming())))
        fitting = [case for case in cases if _fits(case, mode)]
        builds = Builds(lambda case: _build(case, mode, kanifold, here, idle), fitting)
        try:
            yield builds
        finally:
            builds.pool.shutdown(cancel_futures=True)


def _fits(case: Case, mode: str) -> bool:
    return set(case.needs) <= set(OFFERS[mode.removeprefix(PLAIN)])


def _build(case: Case, mode: str, kanifold: Kanifold, here: World, idle: queue.SimpleQueue[Forks]) -> Built:
    work = kanifold.folder(case.name)
    user = kanifold.user
    main = lay_out(case, work, (user.uid, user.gid), here.places(case))
    dest = work / "layout"
    secrets = {f"SECRET_{name}": value for name, value in case.secrets.items()}
    told = ["build", str(main), *_flags(case, mode, work, here), "-o", f"type=oci,dest={dest}"]
    log = work / "log"
    forks = idle.get()
    try:
        code = forks(told, kanifold.environment(**secrets), log)
    finally:
        idle.put(forks)
    return Built(conftest.Outcome(code, "", log.read_text(errors="replace")), dest)


def _flags(case: Case, mode: str, work: Path, here: World) -> Iterator[str]:
    yield from ("--progress", "rawjson", "--platform", case.platform, "--file", str(work / "context" / case.file))
    yield from ("--snapshotter", "plain" if mode.startswith(PLAIN) else "overlay")
    if mode in OTHERWISE:
        yield from ("--isolation", mode)
    yield from ("--registry-mirror", f"docker.io={here.registry}", "--insecure-registry", here.registry)
    for flag, value in (("--target", case.target), ("--network", case.network)):
        if value:
            yield from (flag, value)
    for flag, values, join in (
        ("--build-arg", case.args, "="),
        ("--label", case.labels, "="),
        ("--add-host", case.hosts, ":"),
    ):
        for key, value in values.items():
            yield from (flag, f"{key}{join}{value}")
    for name in case.secrets:
        yield from ("--secret", f"id={name},env=SECRET_{name}")
    for name, content in case.contexts.items():
        yield from ("--build-context", f"{name}={content if isinstance(content, str) else work / 'contexts' / name}")


def _parameters() -> Iterator[ParameterSet]:
    for name, case in CASES.items():
        text = (case.folder / "Dockerfile").read_text(errors="replace")
        runs = re.search("RUN", f"{text} {case.images}", re.IGNORECASE)
        concerned = re.search(r"RUN|WORKDIR|--ch|archive|OnBuild", f"{name} {text} {case.images}")
        for mode in MODES:
            if mode == WITHOUT:
                if not runs:
                    rare = not re.search(USUAL_WITHOUT, name)
                    yield pytest.param(name, mode, marks=[pytest.mark.slow] if rare else [])
            elif mode in OTHERWISE:
                if runs:
                    usual = mode == ANSWERED and re.search(USUAL_WHEN_ANSWERED, name)
                    yield pytest.param(name, mode, marks=[] if usual else pytest.mark.slow)
            elif mode.removeprefix(PLAIN) == FULL or concerned:
                rare = mode.startswith(PLAIN) and not re.search(USUAL_IN_PLAIN[mode.removeprefix(PLAIN)], name)
                yield pytest.param(name, mode, marks=[pytest.mark.slow] if rare else [])


@pytest.mark.parametrize(("name", "mode"), tuple(_parameters()))
def test_builds_as_buildkit_does(name: str, mode: str, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    if not _fits(case, mode):
        pytest.skip(f"needs {', '.join(case.needs)}")
    builds: Builds = request.getfixturevalue(f"as_{mode}")
    here: World = request.getfixturevalue("here")
    built = builds.of(case)
    golden = json.loads(case.golden.read_text())
    found = _compare(case, golden, built, here)
    differs = case.differs or OTHERWISE.get(mode, {}).get(name, "")
    if differs and not found:
        pytest.fail(f"{name} is said to differ ({differs}) and does not any more", pytrace=False)
    if found and not differs:
        pytest.fail(f"{name} is not what BuildKit builds:\n  " + "\n  ".join(found), pytrace=False)


def _compare(case: Case, golden: dict[str, Any], built: Built, here: World) -> list[str]:
    if "error" in golden:
        return _compare_failure(case, golden["error"], built.outcome)
    if built.outcome.code != 0:
        return [f"the build failed with {built.outcome.code}:", *_said(built.outcome)]
    (platform,) = image_manifests(built.dest)
    seen = read_image(built.dest, platform)
    return differences(golden, seen, base_of(seen, here), time.time() - YEAR, here.neutral)


def _compare_failure(case: Case, golden: dict[str, Any], outcome: Outcome) -> list[str]:
    if outcome.code == 0:
        return [f"the build should have failed: {golden['says']}"]
    problem = _problem(outcome)
    if outcome.code != 1 or problem is None:
        return [f"the build failed with {outcome.code}, for no reason of its own:", *_said(outcome)]
    found = []
    where = problem["where"] or {"line": 0, "end_line": 0}
    blamed = set(range(where["line"], where["end_line"] + 1))
    if golden["lines"] and not blamed & set(golden["lines"]):
        found.append(f"blames lines {sorted(blamed)}, not {golden['lines']} ({golden['says']}): {_text(problem)}")
    if case.says and case.says not in _text(problem):
        found.append(f"does not say {case.says!r}: {_text(problem)}")
    return found


def _problem(outcome: Outcome) -> dict[str, Any] | None:
    for line in reversed(outcome.said.splitlines()):
        if line.startswith('{"type":"build_ended"'):
            troubles = json.loads(line)["troubles"]
            return dict(troubles[0]["problem"]) if troubles else None
    return None


def _text(problem: dict[str, Any]) -> str:
    return f"{problem['what']}: {problem['why']}" if problem["why"] else str(problem["what"])


def _said(outcome: Outcome) -> list[str]:
    problem = _problem(outcome)
    if problem is None:
        return outcome.said.splitlines()[-20:]
    return [_text(problem), json.dumps(problem["where"]), *problem["log"][-10:]]
