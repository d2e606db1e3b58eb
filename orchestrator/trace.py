"""``--trace``: the events of a build as a trace for Chrome (about:tracing) and Perfetto (ui.perfetto.dev).

``trace`` is a pure function of the events. Times are the orchestrator's: events of an executor are stamped when they
arrive, so that a trace has a single clock.

The format is the JSON object format of the "Trace Event Format". Processes are the orchestrator, the platforms and the
nodes; a stage is a thread with its steps; transfers, and platforms on a node, which overlap, are asynchronous slices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from executor import protocol
from orchestrator.view import events
from platforms.errors import UsageError
from platforms.replacing import replacing

_BUILD: Final = 1
"""The orchestrator's process id in the trace; the platforms' follow."""
_NODES: Final = 1000
"""The process id in the trace of the first node; the others' follow."""
_WHOLE: Final = 0
"""The thread that shows the whole process. Stages follow."""

Json = dict[str, Any]


def trace(happened: Iterable[events.Event]) -> Json:
    """Return the trace of ``happened``, in order. What has not ended ends with the last event."""
    drawing = _TraceBuilder()
    for event in happened:
        drawing.add(event)
    return drawing.finish()


@contextlib.contextmanager
def recorded(path: str, emit: Callable[[events.Event], None]) -> Iterator[Callable[[events.Event], None]]:
    """Yield a function that passes events to ``emit`` and records them; their trace is written to ``path`` at the end.

    Raises ``UsageError`` for a file that cannot be written.
    """
    happened: list[events.Event] = []

    def keep(event: events.Event) -> None:
        if not (isinstance(event, events.FromExecutor) and isinstance(event.message, protocol.Log)):  # frequent
            happened.append(event)
        emit(event)

    with contextlib.ExitStack() as stack:
        with _translated(path):
            file = stack.enter_context(replacing(path))  # opened before the build, so that an error is reported then
        failed: BaseException | None = None
        try:
            yield keep
        except BaseException as error:
            failed = error
        with _translated(path):
            import json

            file.write(json.dumps(trace(happened), separators=(",", ":")).encode())
            stack.close()
        if failed is not None:
            raise failed


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write the trace {path}", why=error.strerror or str(error)) from error


class _Slice(msgspec.Struct):
    """Something that has begun and not ended."""

    name: str
    process: int
    thread: int
    began: float
    arguments: Json = msgspec.field(default_factory=dict)


class _Platform(msgspec.Struct):
    process: int
    steps: dict[int, protocol.StepInfo] = msgspec.field(default_factory=dict)


class _TraceBuilder:
    """The trace so far. Open slices are kept by the key of the event that ends them."""

    def __init__(self) -> None:
        self._out: list[Json] = []
        self._platforms: dict[str, _Platform] = {}
        self._open: dict[tuple[object, ...], _Slice] = {}
        self._transfers: dict[tuple[str, str, str], tuple[_Slice, float]] = {}
        """By platform, action and name; with the time of the last progress."""
        self._nodes: dict[str, int] = {}
        """The process of each node."""
        self._threads: dict[tuple[int, str], int] = {}
        self._zero: float | None = None
        self._last = 0.0
        self._process(_BUILD, "kanifold")

    def add(self, event: events.Event) -> None:
        self._zero = event.at if self._zero is None else self._zero
        self._last = max(self._last, event.at)
        match event:
            case events.BuildStarted():
                self._begin("build", _Slice(event.name or "build", _BUILD, _WHOLE, event.at))
            case events.Resolving():
                self._begin("resolve", _Slice("resolve", _BUILD, self._thread(_BUILD, event.ref), event.at), event.ref)
            case events.Resolved():
                self._end(event.at, "resolve", event.ref, digest=event.digest)
            case events.PlatformStarted():
                self._end(event.at, "node", event.platform, outcome="moved")  # if it was on another before
                process = self._of(event.platform).process
                slice_ = _Slice(event.platform, process, _WHOLE, event.at, {"node": event.node, "how": event.how})
                self._begin("platform", slice_, event.platform)
                there = self._node(event.node or "local")
                slice_ = _Slice(event.platform, there, _WHOLE, event.at, {"how": event.how})
                self._begin("node", slice_, event.platform)
            case events.PlatformMoved():
                self._end_steps(event.at, event.platform)
                self._end(event.at, "platform", event.platform, outcome="moved", reason=event.problem.what)
                self._end(event.at, "node", event.platform, outcome="moved", reason=event.problem.what)
            case events.PlatformEnded():
                self._end(event.at, "platform", event.platform, outcome=event.outcome, reason=event.reason)
                self._end(event.at, "node", event.platform, outcome=event.outcome, reason=event.reason)
            case events.FromExecutor():
                self._add_message(event.platform, event.message, event.at)
            case events.Publishing() if event.total and event.done >= event.total:
                self._end(event.at, "publish", event.what)
            case events.Publishing() if ("publish", event.what) not in self._open:
                slice_ = _Slice(f"publish {event.what}", _BUILD, self._thread(_BUILD, "publish"), event.at)
                self._begin("publish", slice_, event.what)
            case events.Published():
                self._end(event.at, "publish", event.ref)
                thread = self._thread(_BUILD, "publish")
                self._point(f"published {event.ref}", _BUILD, thread, event.at, {"digest": event.digest})
            case events.BuildEnded():
                self._end_all(event.at, "publish")
                self._end(event.at, "build", outcome=event.outcome, digest=event.digest)

    def _add_message(self, platform: str, message: protocol.Message, at: float) -> None:
        known = self._of(platform)
        match message:
            case protocol.Handshake():
                what = {"kanifold": message.kanifold, "host": message.host, "isolation": message.isolation}
                self._point("ready", known.process, _WHOLE, at, what)
            case protocol.Planned():
                known.steps.update((step.id, step) for step in message.steps)
            case protocol.Started():
                step = known.steps.get(message.step) or protocol.StepInfo(message.step, "", f"step {message.step}")
                thread = self._thread(known.process, f"stage {step.stage}" if step.stage else "steps")
                slice_ = _Slice(step.name, known.process, thread, at, {"line": step.line} if step.line else {})
                self._begin("step", slice_, platform, message.step)
            case protocol.Finished():
                arguments: Json = {"cached": message.cached, "seconds": message.seconds}
                if message.error:
                    arguments["error"] = message.error
                self._end(at, "step", platform, message.step, **arguments)
            case protocol.Transfer():
                self._move(platform, message, at)

    def _move(self, platform: str, moved: protocol.Transfer, at: float) -> None:
        name = (platform, moved.action, moved.name)
        slice_, _ = self._transfers.get(name) or (
            _Slice(f"{moved.action} {moved.name[:19]}", self._of(platform).process, _WHOLE, at),
            at,
        )
        slice_.arguments = {"name": moved.name, "done": moved.done, "total": moved.total}
        self._transfers[name] = slice_, at
        if moved.total and moved.done >= moved.total:
            self._transferred(name)

    def _transferred(self, name: tuple[str, str, str]) -> None:
        slice_, ended = self._transfers.pop(name)
        self._overlapping(slice_, ended, name[1])

    def _overlapping(self, slice_: _Slice, ended: float, category: str) -> None:
        """Add a slice that others of its thread may overlap."""
        common = {"cat": category, "name": slice_.name, "id": len(self._out), "pid": slice_.process, "tid": _WHOLE}
        self._out.append({"ph": "b", "ts": self._micros(slice_.began), **common, "args": slice_.arguments})
        self._out.append({"ph": "e", "ts": self._micros(ended), **common})

    def finish(self) -> Json:
        self._end_all(self._last, unfinished=True)
        for name in list(self._transfers):
            self._transferred(name)
        return {"traceEvents": self._out, "displayTimeUnit": "ms"}

    # -- pieces

    def _of(self, platform: str) -> _Platform:
        known = self._platforms.get(platform)
        if known is None:
            known = self._platforms[platform] = _Platform(_BUILD + 1 + len(self._platforms))
            self._process(known.process, platform)
        return known

    def _node(self, name: str) -> int:
        """Return the process that stands for the node ``name``; added when first used."""
        known = self._nodes.get(name)
        if known is None:
            known = self._nodes[name] = _NODES + len(self._nodes)
            self._process(known, f"node {name}")
        return known

    def _process(self, process: int, name: str) -> None:
        self._out.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}})
        self._out.append({"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": process}})
        self._out.append({"ph": "M", "name": "thread_name", "pid": process, "tid": _WHOLE, "args": {"name": "build"}})

    def _thread(self, process: int, name: str) -> int:
        """Return the thread of ``process`` with this name; added when first used."""
        known = self._threads.get((process, name))
        if known is None:
            known = self._threads[process, name] = 1 + sum(1 for each, _ in self._threads if each == process)
            self._out.append({"ph": "M", "name": "thread_name", "pid": process, "tid": known, "args": {"name": name}})
        return known

    def _begin(self, kind: str, slice_: _Slice, *which: object) -> None:
        self._open[kind, *which] = slice_

    def _end(self, at: float, kind: str, *which: object, **arguments: object) -> None:
        slice_ = self._open.pop((kind, *which), None)
        if slice_ is None:
            return  # its start was not announced
        if kind == "node":
            slice_.arguments |= arguments
            self._overlapping(slice_, at, kind)
            return
        self._out.append(
            {
                "ph": "X",
                "name": slice_.name,
                "cat": kind,
                "pid": slice_.process,
                "tid": slice_.thread,
                "ts": self._micros(slice_.began),
                "dur": round((at - slice_.began) * 1e6),
                "args": slice_.arguments | arguments,
            }
        )

    def _end_all(self, at: float, *kinds: str, **arguments: object) -> None:
        for key in list(self._open):
            if not kinds or key[0] in kinds:
                self._end(at, str(key[0]), *key[1:], **arguments)

    def _end_steps(self, at: float, platform: str) -> None:
        """End what a node has not finished."""
        for key in [key for key in self._open if key[:2] == ("step", platform)]:
            self._end(at, str(key[0]), *key[1:], unfinished=True)

    def _point(self, name: str, process: int, thread: int, at: float, arguments: Json) -> None:
        self._out.append(
            {
                "ph": "i",
                "s": "t",
                "name": name,
                "pid": process,
                "tid": thread,
                "ts": self._micros(at),
                "args": arguments,
            }
        )

    def _micros(self, at: float) -> int:
        assert self._zero is not None
        return round((at - self._zero) * 1e6)
