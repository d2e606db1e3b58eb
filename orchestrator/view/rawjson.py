r"""The display for programs: one JSON object a line, in ASCII, for every event; the first names the version.

``rawjson.schema.json`` has the same as a JSON Schema (2020-12).

Every object has ``type``, ``at`` (seconds since the build started, or since the display opened before that) and
``time`` (RFC 3339, UTC, microseconds). An executor's messages have ``platform``. Fields are only ever added; a field
that is listed here is always there; ``version`` is raised when one is removed or changes its meaning. Text is passed
on as it came, control characters included, as ``\u`` escapes.

=================  ===================================================================================================
type               fields
=================  ===================================================================================================
schema             version, kanifold (the version of the program)
build_started      name, tags [], jobs, platforms [{platform, node, how, why}]
image_placed       platforms [{image, platform, node, how, why, after []}]
resolving          ref
resolved           ref, digest
platform_started   platform, node, how
platform_waiting   platform, node, why (what its executor waits for before it is there; "" when it is)
platform_moved     platform, old, node, how, problem (why it is not built on ``old`` any more; platform_started follows)
hello              platform, kanifold, host, isolation
planned            platform, emulation, steps [{id, stage, name, line, number, of}]
step_started       platform, step (an id of ``planned``)
step_waiting       platform, step, what (unpack or turn; "" when it goes on)
step_finished      platform, step, seconds (without what it waited), cached (bool), error ("" when there is none),
                   missed (why no cache had its result)
log                platform, step, stream (1 stdout, 2 stderr), text (one line)
moved              platform, action (pull, push, unpack, write, compress, context), name, done, total
                   (bytes; 0: unknown)
waiting            platform ("" for the orchestrator), registry, what, seconds, why ("" unless it is tried again),
                   over (bool)
warned             platform ("" for the orchestrator), rule, problem
result             platform, manifest, config, layers [] ({digest, size, media_type}), size, cached, ran, seconds,
                   findings [{layer, path, machine}]
failed             platform, problem
platform_ended     platform, outcome (built, failed, cancelled), reason
publishing         what, done, total
published          ref, digest
build_ended        outcome (built, failed, cancelled), digest, troubles [{platform, problem}]
=================  ===================================================================================================

In a release, wherever there is ``platform`` for one of its images, there is also ``image``, the name of that. The first
event is then ``build_started`` with the platforms of all images, and ``after``, the images that each is built from;
``image_placed`` follows when the build of an image starts.

A ``problem`` is {kind, what, why, remedy, where, log []}; its ``where`` is null or {file, line, end_line, source [],
first}.
"""

from __future__ import annotations

import datetime
import json
import threading
import time
from typing import Any, Final, Self, TextIO

import msgspec

from executor import __version__, protocol
from executor.image.manifest import Descriptor
from orchestrator.view import events
from orchestrator.view.output_stream import OutputStream
from orchestrator.view.stdout import escape_commands
from platforms.errors import Problem

VERSION: Final = 1
"""Version of the lines: raised when a field is removed or changes its meaning."""


class RawJsonDisplay:
    """A ``Display`` of JSON lines."""

    def __init__(self, stream: TextIO) -> None:
        self._sink = OutputStream(stream)
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._wall = time.time() - self._began
        self._write({"type": "schema", "version": VERSION, "kanifold": __version__}, self._began)

    def emit(self, event: events.Event) -> None:
        """Write ``event``. Safe for threads. Questions of an executor and their answers are not written."""
        with self._lock:
            if isinstance(event, events.BuildStarted):
                self._began = event.at
            fields = fields_of(event)
            if fields is None:
                return
            self._write(fields, event.at)

    def _write(self, fields: dict[str, Any], at: float) -> None:
        """Write an object of ``fields``, among them ``type``; for a log of several lines an object for each."""
        moment = datetime.datetime.fromtimestamp(self._wall + at, datetime.UTC)
        line = {
            "type": fields.pop("type"),
            "at": round(at - self._began, 6),
            "time": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            **fields,
        }
        if line["type"] == "log":
            lines = line.pop("text").split("\n")
            head = _dump(line)[:-1]
            text = "".join(f'{head},"text":{_dump(each)}}}\n' for each in lines)
        else:
            text = f"{_dump(line)}\n"
        self._sink.write(escape_commands(text))

    def close(self) -> None:
        """Do nothing: nothing is buffered."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_dump = json.JSONEncoder(separators=(",", ":")).encode


def fields_of(event: events.Event) -> dict[str, Any] | None:
    """Return ``type`` and the fields of ``event`` as listed above; None for one that is not written."""
    fields = _fields(event)
    if fields is not None and " " in fields.get("platform", ""):
        image, platform = _parts(fields.pop("platform"))
        return {"type": fields.pop("type"), "image": image, "platform": platform, **fields}
    return fields


def _parts(label: str) -> tuple[str, str]:
    """Return the image, "" unless it is one of a release, and the platform of ``label``."""
    image, _, platform = label.rpartition(" ")
    return image, platform


def _place(place: events.PlatformPlacement) -> dict[str, Any]:
    image, platform = _parts(place.platform)
    fields = {"platform": platform, "node": place.node, "how": place.how, "why": place.why}
    return {"image": image, **fields, "after": list(place.after)} if image else fields


def _failure(failure: events.Failure) -> dict[str, Any]:
    image, platform = _parts(failure.platform)
    fields = {"platform": platform, "problem": _problem(failure.problem)}
    return {"image": image, **fields} if image else fields


def _fields(event: events.Event) -> dict[str, Any] | None:
    match event:
        case events.FromExecutor(platform=platform, message=message):
            said = _message(message)
            return said and {"type": said.pop("type"), "platform": platform, **said}
        case events.BuildStarted():
            places = [_place(place) for place in event.platforms]
            tags = list(event.tags)
            return {"type": "build_started", "name": event.name, "tags": tags, "jobs": event.jobs, "platforms": places}
        case events.ImagePlaced():
            return {"type": "image_placed", "platforms": [_place(place) for place in event.platforms]}
        case events.Resolving():
            return {"type": "resolving", "ref": event.ref}
        case events.Resolved():
            return {"type": "resolved", "ref": event.ref, "digest": event.digest}
        case events.PlatformStarted():
            return {"type": "platform_started", "platform": event.platform, "node": event.node, "how": event.how}
        case events.PlatformWaiting():
            return {"type": "platform_waiting", "platform": event.platform, "node": event.node, "why": event.why}
        case events.PlatformMoved():
            return {
                "type": "platform_moved",
                "platform": event.platform,
                "old": event.old,
                "node": event.node,
                "how": event.how,
                "problem": _problem(event.problem),
            }
        case events.PlatformEnded():
            return {
                "type": "platform_ended",
                "platform": event.platform,
                "outcome": event.outcome,
                "reason": event.reason,
            }
        case events.RegistryWaiting():
            fields = _struct(event)
            del fields["at"]
            return {"type": "waiting", "platform": "", **fields}
        case events.WarningRaised():
            return {"type": "warned", "platform": "", "rule": event.rule, "problem": _problem(event.problem)}
        case events.Publishing():
            return {"type": "publishing", "what": event.what, "done": event.done, "total": event.total}
        case events.Published():
            return {"type": "published", "ref": event.ref, "digest": event.digest}
        case events.BuildEnded():
            troubles = [_failure(each) for each in event.troubles]
            return {"type": "build_ended", "outcome": event.outcome, "digest": event.digest, "troubles": troubles}
    return None


def _message(message: protocol.Message) -> dict[str, Any] | None:
    match message:
        case protocol.Handshake():
            return {
                "type": "hello",
                "kanifold": message.kanifold,
                "host": message.host,
                "isolation": message.isolation,
            }
        case protocol.Planned():
            steps = [_struct(step) for step in message.steps]
            return {"type": "planned", "emulation": message.emulation, "steps": steps}
        case protocol.Started():
            return {"type": "step_started", "step": message.step}
        case protocol.Held():
            return {"type": "step_waiting", "step": message.step, "what": message.what}
        case protocol.Finished():
            return {"type": "step_finished", **_struct(message)}
        case protocol.Log():
            return {"type": "log", "step": message.step, "stream": message.stream, "text": message.text}
        case protocol.Transfer():
            return {"type": "moved", **_struct(message)}
        case protocol.Waiting():
            return {"type": "waiting", **_struct(message)}
        case protocol.BuildWarning():
            return {"type": "warned", "rule": message.rule, "problem": _problem(message.problem)}
        case protocol.Failed():
            return {"type": "failed", "problem": _problem(message.problem)}
        case protocol.Result():
            return {
                "type": "result",
                "manifest": _descriptor(message.manifest),
                "config": _descriptor(message.config),
                "layers": [_descriptor(layer) for layer in message.layers],
                "size": message.size,
                "cached": message.cached,
                "ran": message.ran,
                "seconds": message.seconds,
                "findings": [_struct(finding) for finding in message.findings],
            }
    return None


def _struct(value: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


def _descriptor(value: Descriptor) -> dict[str, Any]:
    return {"digest": value.digest, "size": value.size, "media_type": value.media_type}


def _problem(value: Problem) -> dict[str, Any]:
    where = value.where and {
        "file": value.where.file,
        "line": value.where.line,
        "end_line": value.where.end_line,
        "source": list(value.where.source),
        "first": value.where.first,
    }
    return {
        "kind": value.kind,
        "what": value.what,
        "why": value.why,
        "remedy": value.remedy,
        "where": where,
        "log": list(value.log),
    }
