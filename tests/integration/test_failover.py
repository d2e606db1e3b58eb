"""A node that fails in the middle: its job moves, and the image is the same; an error of the build moves nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from conftest import Base
from msgspec.structs import replace
from oci_layout import image_manifests, read_image
from protocol_nodes import ROOT, Marked, build, build_on, liar, named, remote
from registry_server import MemoryRegistry, served

from executor import protocol
from executor.protocol import BuildOptions, CacheExport, CacheInRegistry, Finished, Log
from orchestrator import heartbeat
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.local_node import LocalNode
from orchestrator.outputs import OciLayout
from orchestrator.request import BuildRequest
from orchestrator.view import events, open_display
from platforms import emulation, errors, host
from platforms.errors import BuildError, ConnectionLost, KanifoldError, PodDisrupted
from platforms.parsing import parse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")

STEPS = "FROM image\nRUN echo one > /one\nRUN echo going && sleep 0.3 && echo two > /two\n"


@pytest.fixture
def marks() -> Iterator[tuple[Marked, Marked]]:
    """Of the processes of the first node and of the second."""
    found = Marked(), Marked()
    yield found
    for each in found:
        assert each.wait_until_gone(5) == [], "a process is left"


class Striking(list[events.Event]):
    """Events; as soon as a step says something, ``signal_`` is sent to all processes of ``mark``, once."""

    def __init__(self, mark: Marked, signal_: signal.Signals) -> None:
        super().__init__()
        self.struck: list[int] = []
        self._mark = mark
        self._signal = signal_

    def append(self, event: events.Event) -> None:
        super().append(event)
        if isinstance(event, events.FromExecutor) and isinstance(event.message, Log) and not self.struck:
            self.struck = self._mark.signal(self._signal)

    @property
    def moves(self) -> list[events.PlatformMoved]:
        return moves(self)


def moves(seen: list[events.Event]) -> list[events.PlatformMoved]:
    return [each for each in seen if isinstance(each, events.PlatformMoved)]


@pytest.fixture
def request_(tmp_path: Path, busybox: Base) -> BuildRequest:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(STEPS)
    return BuildRequest(
        context=str(context),
        platforms=(host.default_platform(),),
        outputs=(OciLayout(str(tmp_path / "out")),),
        build_contexts=(("image", f"oci-layout://{busybox.layout}"),),
        build_args=(("SOURCE_DATE_EPOCH", "1"),),
        options=BuildOptions(root=str(tmp_path / "near")),
    )


@pytest.fixture
def right(request_: BuildRequest, tmp_path: Path, busybox: Base) -> str:
    """The digest of the image if this machine builds it."""
    out = tmp_path / "right"
    build(replace(request_, outputs=(OciLayout(str(out)),)), LocalNode(None))
    return digest(out)


def digest(layout: Path) -> str:
    (found,) = image_manifests(layout).values()
    return str(found["digest"])


def two(tmp_path: Path, marks: tuple[Marked, Marked]) -> tuple[CommandNode, CommandNode]:
    names = ("first", "second")
    nodes = [named(name, remote(tmp_path / name, mark)) for name, mark in zip(names, marks, strict=True)]
    return nodes[0], nodes[1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_the_job_of_a_node_that_fails_moves_to_the_next_one(
    request_: BuildRequest,
    tmp_path: Path,
    marks: tuple[Marked, Marked],
    right: str,
    how: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.2)
    seen = Striking(marks[0], how)
    build_on(request_, two(tmp_path, marks), seen)
    assert seen.struck
    assert digest(tmp_path / "out") == right
    (move,) = seen.moves
    assert (move.old, move.node, move.how) == ("first", "second", "native")
    assert move.problem.kind == ConnectionLost.__name__
    assert "node first" in move.problem.what
    ended = [each for each in seen if isinstance(each, events.PlatformEnded)]
    assert [each.outcome for each in ended] == ["built"]
    marks[0].signal(signal.SIGKILL)  # nobody is there to continue what was stopped


def test_the_same_node_is_tried_again_at_last_and_finds_its_finished_steps(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked], right: str
) -> None:
    seen = Striking(marks[0], signal.SIGKILL)
    build_on(request_, two(tmp_path, marks)[:1], seen)
    assert digest(tmp_path / "out") == right
    (move,) = seen.moves
    assert (move.old, move.node) == ("first", "first")
    later = seen[seen.index(move) :]
    steps = [each.message for each in later if isinstance(each, events.FromExecutor)]
    assert [each.cached for each in steps if isinstance(each, Finished)][:2] == [False, True], "of FROM and of RUN"


def test_this_machine_emulates_in_the_end(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = parse("linux/arm64" if host.default_platform().architecture != "arm64" else "linux/amd64")
    emulation.emulation(foreign)  # else the test fails here, with the remedy
    monkeypatch.setenv("KANIFOLD_TEST_HOST", str(foreign))
    seen: list[events.Event] = []
    nodes = (LocalNode(None), named("native", liar("killed", marks[0])))
    build_on(replace(request_, platforms=(foreign,)), nodes, seen)
    (move,) = moves(seen)
    assert (move.old, move.node) == ("native", "local")
    assert "qemu" in move.how
    assert list(image_manifests(tmp_path / "out")) == [str(foreign)]


def test_another_node_finds_finished_steps_in_a_cache_of_the_build(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked]
) -> None:
    """A step is exported as soon as it is made, not when the platform is done."""
    memory = MemoryRegistry()
    with served(memory) as server:
        cache = CacheInRegistry(f"{server.host}/steps:kept")
        options = replace(request_.options, cache_from=(cache,), cache_to=(CacheExport(cache),))
        (tmp_path / "context" / "Dockerfile").write_text(f"{STEPS}RUN sleep 1.5\n")
        striking = threading.Thread(target=kill_when_cached, args=(memory, marks[0]))
        striking.start()
        seen: list[events.Event] = []
        build_on(replace(request_, options=options), two(tmp_path, marks), seen)
        striking.join()
    (move,) = moves(seen)
    assert (move.old, move.node) == ("first", "second")
    later = [each.message for each in seen[seen.index(move) :] if isinstance(each, events.FromExecutor)]
    assert True in [each.cached for each in later if isinstance(each, Finished)]


def kill_when_cached(memory: MemoryRegistry, mark: Marked) -> None:
    end = time.monotonic() + 30
    while not any(name.startswith("kept.") for _, name in list(memory.manifests)) and time.monotonic() < end:
        time.sleep(0.01)
    mark.signal(signal.SIGKILL)


LIES = ("killed", "dies_later", "dies_in_a_line", "junk_later", "blob_cut_short", "other_manifest", "deaf_to_fetches")


@pytest.mark.parametrize("lie", LIES)
def test_a_node_that_breaks_the_protocol_is_replaced(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked], lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.2)
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    seen: list[events.Event] = []
    build_on(request_, (named("first", liar(lie, marks[0])), two(tmp_path, marks)[1]), seen)
    (move,) = moves(seen)
    assert (move.old, move.node) == ("first", "second")
    assert len(image_manifests(tmp_path / "out")) == 1


def test_a_liar_is_not_tried_again_but_a_connection_is(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked]
) -> None:
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\n")
    for lie, tried in (("junk_later", 0), ("killed", 1)):
        seen: list[events.Event] = []
        with pytest.raises(BuildError):
            build(request_, liar(lie, marks[0]), seen)
        assert len(moves(seen)) == tried
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("retry", "others"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_a_job_is_tried_again_as_often_as_is_asked(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked], retry: int, others: int
) -> None:
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\n")
    nodes = tuple(named(f"node{number}", liar("killed", marks[0])) for number in range(others + 1))
    seen: list[events.Event] = []
    with pytest.raises(BuildError) as caught:
        build_on(replace(request_, retry=retry), nodes, seen)
    assert [each.node for each in moves(seen)] == [f"node{number + 1}" for number in range(retry)]
    assert f"node node{retry}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_pod_that_was_taken_away_is_replaced_before_the_job_moves(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked]
) -> None:
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\n")
    taken = named("first", liar("fails", marks[0], PodDisrupted.__name__))
    seen: list[events.Event] = []
    build_on(request_, (taken, named("second", liar("honest", marks[1]))), seen)
    assert [(each.old, each.node) for each in moves(seen)] == [("first", "first"), ("first", "second")]


def kinds() -> list[type[KanifoldError]]:
    found, waiting = [], [KanifoldError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: str(kind.__name__))
def test_the_kind_of_an_error_says_whether_the_job_moves(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked], kind: type[KanifoldError]
) -> None:
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\n")
    nodes = (named("first", liar("fails", marks[0], kind.__name__)), named("second", liar("honest", marks[1])))
    seen: list[events.Event] = []
    if kind.retry == "never":
        with pytest.raises(KanifoldError, match="it failed"):
            build_on(request_, nodes, seen)
        assert moves(seen) == []
    else:
        build_on(request_, nodes, seen)
        assert moves(seen)[-1].node == "second"


def test_errors_of_a_build_and_errors_of_a_machine() -> None:
    machine = {each.__name__ for each in kinds() if each.retry != "never"}
    assert machine == {
        "ConnectionLost", "EnvironmentUnfit", "Interrupted", "NotBootstrapped", "OutOfMemory", "PodDisrupted",
        "ProtocolError", "RegistryUnreachable", "StepStarved", "StoreError",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dockerfile", "kind"),
    [("FROM image\nRUN exit 7\n", "StepFailed"), ("FROM image\nCOPY missing /\n", "ContextError")],
)
def test_an_error_of_the_build_does_not_move(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked], dockerfile: str, kind: str
) -> None:
    (tmp_path / "context" / "Dockerfile").write_text(dockerfile)
    seen: list[events.Event] = []
    with pytest.raises(BuildError) as caught:
        build_on(request_, two(tmp_path, marks), seen)
    assert caught.value.troubles[0].problem.kind == kind  # type: ignore[attr-defined]
    assert moves(seen) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("dockerfile", ["COPY large /\n", "RUN head -c 20000000 /dev/urandom > /large\n"])
def test_a_full_disk_moves_the_job(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked], dockerfile: str
) -> None:
    (tmp_path / "context" / "Dockerfile").write_text(f"FROM image\n{dockerfile}")
    (tmp_path / "context" / "large").write_bytes(os.urandom(20_000_000))
    store = tmp_path / "first"
    store.mkdir()
    inside = 'mount -t tmpfs -o size=12m none "$1" && shift && exec "$@"'
    environment = {"KANIFOLD_ROOT": str(store / "s"), "PYTHONPATH": str(ROOT), **marks[0].environment}
    order = ("unshare", "--mount", "sh", "-c", inside, "sh", str(store), sys.executable, "-P", "-m", "executor")
    small = CommandNode("first", order, tuple(environment.items()))
    seen: list[events.Event] = []
    build_on(request_, (small, two(tmp_path, marks)[1]), seen)
    (move,) = moves(seen)
    assert move.problem.kind in ("StoreError", "StepStarved")
    assert len(image_manifests(tmp_path / "out")) == 1


FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.mark.skipif(not FAKETIME, reason="faketime is not installed (ci/packages installs it on Debian, as root)")
@pytest.mark.parametrize("years", [-3, 3])
def test_a_wrong_clock_changes_no_image_and_is_a_warning(
    request_: BuildRequest, tmp_path: Path, marks: tuple[Marked, Marked], right: str, years: int
) -> None:
    wrong = {"LD_PRELOAD": str(FAKETIME[0]), "FAKETIME": f"{years:+}y", "NO_FAKE_STAT": "1", "DONT_FAKE_MONOTONIC": "1"}
    node = named("first", remote(tmp_path / "first", marks[0], **wrong))
    seen: list[events.Event] = []
    build(request_, node, seen)
    assert digest(tmp_path / "out") == right
    said = [each.problem.what for each in seen if isinstance(each, events.WarningRaised)]
    much = f"{abs(years) * 365} days {'fast' if years > 0 else 'slow'}"
    assert said == [f"the clock of node first is {much}"]
    untimed = replace(request_, build_args=(), outputs=(OciLayout(str(tmp_path / "untimed")),))
    build(untimed, node)
    created = datetime.fromisoformat(read_image(tmp_path / "untimed", str(host.default_platform())).config["created"])
    assert abs(created.timestamp() - time.time()) < 600


def test_displays_say_where_a_platform_moved_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    problem = ConnectionLost("the executor on node first is silent", why="nothing has come for 45 seconds").problem
    name = "linux/arm64"
    told = (
        events.BuildStarted((events.PlatformPlacement(name, "first", "native"),)),
        events.PlatformStarted(name, "first", "native"),
        events.FromExecutor(name, protocol.Planned((protocol.StepInfo(1, "", "RUN x", 1, 1, 1),))),
        events.FromExecutor(name, protocol.Started(1)),
        events.PlatformMoved(name, "first", "second", "qemu-aarch64", problem),
        events.PlatformStarted(name, "second", "qemu-aarch64"),
        events.PlatformEnded(name, "built"),
        events.BuildEnded("built"),
    )
    with open_display("plain") as display:
        for event in told:
            display.emit(event)
    lines = capsys.readouterr().err.splitlines()
    expected = "is built on second, no longer on first: the executor on node first is silent: nothing has come for 45"
    assert any(line.startswith("WARNING: ") and expected in line for line in lines)
    assert f"[{name}] started: qemu-aarch64, second" in lines
