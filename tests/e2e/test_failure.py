"""When it cannot be done: one clear error each, the documented exit code, nothing published."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from registry_server import Asked, MemoryRegistry, error, served

if TYPE_CHECKING:
    from conftest import Base, Kanifold, Outcome

Context = Callable[[Mapping[str, str | bytes]], Path]


def tags(registry: str, repository: str) -> list[str]:
    try:
        with urllib.request.urlopen(f"http://{registry}/v2/{repository}/tags/list", timeout=10) as answer:
            return list(json.load(answer).get("tags") or ())
    except urllib.error.HTTPError as error:
        assert error.code == 404
        return []


def assert_clear(outcome: Outcome, code: int, *words: str) -> None:
    """The error names its cause once, is no traceback, and ends with the documented code."""
    assert outcome.code == code, outcome.said
    assert "Traceback" not in outcome.said, outcome.said
    for word in words:
        assert word in outcome.err, f"{word!r} is not in:\n{outcome.err}"
    assert "\x1b" not in outcome.said, "control characters outside of a terminal"


@pytest.mark.parametrize(
    ("dockerfile", "words"),
    [
        ("FROM {base}\nRUN false\n", ("Dockerfile:2", "RUN false")),
        ("FROM {base}\nRUN echo the last words >&2; exit 3\n", ("the last words", "3")),
        ("FROM {base}\nCOPPY a b\n", ("Dockerfile:2", "COPPY", "COPY")),
        ("FROM {base}\nCOPY nowhere /\n", ("Dockerfile:2", "nowhere", ".dockerignore")),
        ("FROM {base}\nCOPY ../outside /\n", ("Dockerfile:2", "/outside", "outside of the build context")),
        ("FROM {base}\nCOPY --from=missing /a /\n", ("missing",)),
        ("FROM {base}\nENV\n", ("Dockerfile:2", "ENV")),
        ("RUN before any FROM\n", ("Dockerfile:1", "FROM")),
        ("", ("Dockerfile",)),
        ("FROM {base}:no-such-tag\n", ("no-such-tag",)),
        ("FROM 127.0.0.1:1/nobody/home\n", ("127.0.0.1:1",)),
    ],
    ids=[
        "a step fails", "a step fails with output", "unknown instruction", "missing file", "file outside",
        "missing stage", "broken line", "no FROM", "empty", "unknown tag", "unreachable registry",
    ],
)  # fmt: skip
def test_a_broken_build_ends_with_one_and_says_where(
    kanifold: Kanifold, busybox: Base, registry: str, context: Context, dockerfile: str, words: tuple[str, ...],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    base = busybox.ref.removesuffix(":latest")
    repository = f"failing/{abs(hash(request.node.name))}"
    outcome = kanifold.run(
        "build", context({"Dockerfile": dockerfile.format(base=base)}), "-t", f"{registry}/{repository}:1", "--push"
    )
    assert_clear(outcome, 1, *words)
    assert tags(registry, repository) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--platform", "linux/amd46"), 2, ("linux/amd46",)),
        (("--platform", "windows/amd64"), 1, ("windows",)),
        (("--platform", "linux/mips64"), 1, ("linux/mips64", "linux/arm64")),
        (("-f", "missing/Dockerfile"), 1, ("missing/Dockerfile",)),
        (("--no-such-flag",), 2, ("--no-such-flag",)),
        (("--push",), 2, ("--tag",)),
        (("-t", "UPPER/CASE:1"), 2, ("UPPER/CASE:1",)),
        (("--target", "nowhere"), 1, ("nowhere",)),
        (("-o", "type=floppy"), 2, ("floppy", "oci")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_named(
    kanifold: Kanifold, busybox: Base, context: Context, arguments: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN true\n"})
    outcome = kanifold.run("build", folder, *arguments)
    assert outcome.code in {code, 3} if "windows" in words or "linux/mips64" in words else outcome.code == code
    assert_clear(outcome, outcome.code, *words)


def test_a_context_whose_path_is_no_text_is_refused(kanifold: Kanifold, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"bad\xff")
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    assert_clear(kanifold.run("build", folder), 1, "is not UTF-8")
    assert_clear(kanifold.run("build", ".", "--build-context", f"a={folder}", cwd=folder), 1, "is not UTF-8")


def test_a_file_from_the_far_future_is_copied(kanifold: Kanifold, context: Context, tmp_path: Path) -> None:
    """Beyond what a signed 64-bit number of nanoseconds can say, which file systems can."""
    folder = context({"Dockerfile": "FROM scratch\nCOPY f /\n", "f": "content"})
    os.utime(folder / "f", (13_569_465_600, 13_569_465_600))
    kanifold("build", folder, "-o", f"type=local,dest={tmp_path / 'out'}")
    assert (tmp_path / "out" / "f").read_text() == "content"


def test_a_missing_context_is_named(kanifold: Kanifold) -> None:
    assert_clear(kanifold.run("build", "/no/such/directory"), 1, "/no/such/directory")


def test_a_base_without_the_platform_lists_those_it_has(kanifold: Kanifold, debian: Base, context: Context) -> None:
    outcome = kanifold.run("build", context({"Dockerfile": f"FROM {debian.ref}\n"}), "--platform", "linux/s390x")
    assert_clear(outcome, 1, "linux/s390x", *debian.platforms)


def test_a_base_that_was_damaged_in_the_store_is_named_and_brought_again(
    kanifold: Kanifold, busybox: Base, context: Context, tmp_path: Path
) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN true\n", "From": f"FROM {busybox.ref}\n"})
    kanifold(
        "build", folder, "-f", folder / "From", "-o", f"type=oci,dest={tmp_path / 'out'}"
    )  # its layer is not unpacked yet
    blob = max(kanifold.root.rglob("blobs/sha256/*"), key=lambda each: each.stat().st_size)
    whole = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(whole[:-5000] + bytes([whole[-5000] ^ 1]) + whole[-4999:])
    assert_clear(kanifold.run("build", folder), 1, "damaged in the store", "build again")
    kanifold("build", folder)


def test_without_an_emulator_the_remedy_is_named(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN true\n"})
    bare = kanifold.home / "bin"
    bare.mkdir()
    (bare / "python3").symlink_to("/usr/bin/python3")
    outcome = kanifold.run("build", folder, "--platform", "linux/s390x", PATH=str(bare))
    if outcome.code == 0:
        pytest.skip("this machine has a handler for s390x registered")
    assert_clear(outcome, 3, "s390x", "qemu-user-static")


def test_a_step_that_fills_the_disk_is_told_what_to_do(
    kanifold: Kanifold, busybox: Base, context: Context, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", small], check=True)
    try:
        folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN cat /dev/zero > /large\n"})
        outcome = kanifold.run("build", folder, KANIFOLD_ROOT=str(small))
        assert_clear(outcome, 1, "Dockerfile:2", f"the disk of {small} is full", "kanifold prune")
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize("status", [401, 403])
def test_a_push_that_will_be_refused_ends_the_build_when_it_begins(
    kanifold: Kanifold, busybox: Base, context: Context, status: int
) -> None:
    def refuse(asked: Asked) -> object:
        return error(status, "DENIED", "not you") if asked.method == "POST" else ...

    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN sleep 1000\n"})
    with served(MemoryRegistry(refuse)) as server:
        begun = time.monotonic()
        outcome = kanifold.run("build", folder, "-t", f"{server.host}/app:1", "--push")
        assert time.monotonic() - begun < 100
        assert_clear(outcome, 1, f"cannot push to {server.host}/app", "not you", f"docker login {server.host}")
        assert server.seen("PUT") == []


def test_a_registry_that_is_busy_when_the_build_begins_is_asked_again_when_it_ends(
    kanifold: Kanifold, busybox: Base, context: Context
) -> None:
    busy = iter([error(503, "UNAVAILABLE", "just a moment")])

    def moody(asked: Asked) -> object:
        return next(busy, ...) if asked.method == "POST" else ...

    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN true\n"})
    registry = MemoryRegistry(moody)
    with served(registry) as server:
        kanifold("build", folder, "-t", f"{server.host}/app:1", "--push")
    assert ("app", "1") in registry.manifests
    assert registry.uploads == {}


# -- all or nothing -------------------------------------------------------------------------------------------------


def test_one_failing_platform_leaves_the_tag_where_it_was(
    kanifold: Kanifold, busybox: Base, registry: str, context: Context
) -> None:
    ref = f"{registry}/all/or/nothing:1"
    both = ("--platform", "linux/amd64,linux/arm64", "-t", ref, "--push")
    kanifold("build", context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo good > /state\n"}), *both)
    before = _manifest(registry, "all/or/nothing", "1")
    broken = f'FROM {busybox.ref}\nRUN test "$(uname -m)" = x86_64\nRUN echo bad > /state\n'
    outcome = kanifold.run("build", context({"Dockerfile": broken}), *both)
    assert_clear(outcome, 1, "linux/arm64", "Dockerfile:2")
    assert _manifest(registry, "all/or/nothing", "1") == before


def _manifest(registry: str, repository: str, tag: str) -> bytes:
    wanted = {"Accept": "application/vnd.oci.image.index.v1+json"}
    request = urllib.request.Request(f"http://{registry}/v2/{repository}/manifests/{tag}", headers=wanted)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return bytes(answer.read())


def test_a_failing_platform_stops_the_others_unless_told_to_keep_going(
    kanifold: Kanifold, busybox: Base, context: Context
) -> None:
    text = f'FROM {busybox.ref}\nRUN if [ "$(uname -m)" = aarch64 ]; then exit 9; fi; sleep 3; echo survived\n'
    folder = context({"Dockerfile": text})
    both = ("--platform", "linux/amd64,linux/arm64", "--progress", "plain")
    outcome = kanifold.run("build", folder, *both)
    assert outcome.code == 1
    assert "survived" not in outcome.said.replace(text, "").replace("echo survived", "")
    outcome = kanifold.run("build", folder, *both, "--keep-going")
    assert outcome.code == 1
    assert "survived" in outcome.said.replace("echo survived", "")


# -- interruption ---------------------------------------------------------------------------------------------------


def _below(pid: int) -> set[int]:
    """``pid``'s descendants."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found: set[int] = set()
    waiting = {pid}
    while waiting:
        waiting = {child for child, parent in parents if parent in waiting} - found
        found |= waiting
    return found


def _ends(pidfd: int) -> bool:
    """Whether the process ends, in time that a busy machine may take. Its new parent may be slow to take note of it."""
    try:
        return bool(select.select([pidfd], [], [], 10)[0])
    finally:
        os.close(pidfd)


def _about(pid: int) -> str:
    """What the process is at, for who has to find out why."""
    threads = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stack"))
    return "\n".join((str(pid), Path(f"/proc/{pid}/status").read_text(), *threads))


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda sent: sent.name
)
def test_an_interrupted_build_leaves_nothing_behind(
    kanifold: Kanifold, busybox: Base, context: Context, sent: signal.Signals
) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo begun; sleep 1000\n"})
    dest = kanifold.home / "out"
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored below nohup, and then by what we start, too
    try:
        started = kanifold.start(
            "build", folder, "--platform", "linux/amd64,linux/arm64", "--progress", "plain",
            "-o", f"type=oci,dest={dest}",
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGHUP, inherited)
    with started as process:
        assert process.stderr is not None
        assert process.stdout is not None
        begun = 0
        for line in process.stderr:
            begun += line.rstrip().endswith("begun")
            if begun == 2:
                break
        assert begun == 2, "the build ended before its steps began"
        children = {pid: os.pidfd_open(pid) for pid in _below(process.pid)}
        assert len(children) >= 2
        process.send_signal(sent)
        code = process.wait(timeout=10)
        process.stderr.read()
    assert code == (-signal.SIGKILL if sent == signal.SIGKILL else 130)
    assert [_about(pid) for pid, pidfd in children.items() if not _ends(pidfd)] == [], "processes are left"
    # Of its own only: other builds mount things on this machine at the same time.
    assert [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(kanifold.home) in line] == []
    assert not dest.exists()
    assert [path for path in kanifold.root.rglob("*") if path.name == "begun"] == []


def test_an_impatient_user_gets_a_clean_stop_too(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    """Ctrl-C pressed again and again, by a step that does not go, is not heard as an order to leave things lying."""
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN trap '' INT TERM; echo begun; sleep 1000\n"})
    scratch = kanifold.folder("scratch")
    with kanifold.start("build", folder, "--progress", "plain", TMPDIR=str(scratch)) as process:
        assert process.stderr is not None
        assert any(line.rstrip().endswith("begun") for line in process.stderr)
        children = _below(process.pid)
        asked = time.monotonic()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)  # as long as it takes to press a key: nothing is awaited
        assert time.monotonic() - asked < 20
        said = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said, said
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
    assert list(scratch.iterdir()) == []
    assert [path for path in (kanifold.root / "tmp").iterdir() if path.name != "partial"] == []


LAYER = 1 << 16
"""Bytes that the base's layer has at least, and nothing else of it."""


@pytest.mark.parametrize("waiting_for", ["images", "context", "layer"])
def test_a_build_that_waits_for_an_answer_is_interrupted_without_a_word_too_many(
    kanifold: Kanifold, busybox: Base, context: Context, waiting_for: str
) -> None:
    asked = threading.Semaphore(0)
    never = threading.Event()

    def mute(request: Asked) -> object:
        digest = request.path.rpartition("/")[2]
        if waiting_for == "layer" and len(registry.blobs.get(("base/busybox", digest), b"")) < LAYER:
            return ...
        asked.release()
        never.wait()
        return None

    registry = MemoryRegistry(mute)
    registry.add_layout("base/busybox", busybox.layout)
    with served(registry) as server:
        text = f"FROM {server.host}/base/busybox\nRUN true\nFROM {server.host}/base/two\nCOPY --from=0 /a /\n"
        if waiting_for == "layer":
            text = f"FROM {server.host}/base/busybox\nRUN true\n"
        folder = context({"Dockerfile": text})
        place = f"http://{server.host}/context.tar" if waiting_for == "context" else folder
        with kanifold.start("build", place, "--progress", "plain") as process:
            for _ in range(2 if waiting_for == "images" else 1):
                assert asked.acquire(timeout=20)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=2)
        never.set()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "ERROR: the build was interrupted"
    assert "Traceback" not in said, said
    assert [path for path in (kanifold.root / "tmp").iterdir() if path.name != "partial"] == []


def test_an_output_that_is_being_written_is_gone_when_the_build_is_interrupted(
    kanifold: Kanifold, busybox: Base, context: Context
) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN head -c 300000000 /dev/zero > /large\n"})
    build = ("build", folder, "--compression", "uncompressed")
    kanifold(*build, "--quiet")  # what takes its time from now on is writing
    place = kanifold.folder("outputs")
    for output in ("type=oci,dest={}", "type=oci,dest={}.tar", "type=docker,dest={}", "type=local,dest={}"):
        with kanifold.start(*build, "--output", output.format(place / "image"), "--progress", "plain") as process:
            while not list(place.iterdir()):
                assert process.poll() is None, "it was too fast for this test"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=2)
        assert process.returncode == 130, said
        assert said.splitlines()[-1] == "ERROR: the build was interrupted"
        assert "Traceback" not in said, said
        assert list(place.iterdir()) == [], output
