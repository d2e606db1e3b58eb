"""The JSON lines: the documented fields, of every event, whatever is in it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import view_story as story
from conftest import Kanifold
from jsonschema import Draft202012Validator
from small_images import Images
from view_story import START

from executor import __version__, protocol
from executor.image.manifest import Descriptor
from orchestrator.view import events, open_display, rawjson
from orchestrator.view.events import Event, FromExecutor

DESCRIPTOR = Descriptor("type", "sha256:aa", 5)
EVERY: tuple[Event, ...] = (
    events.BuildStarted((story.AMD64,), "app", ("app:1",), 2, at=START),
    events.Resolving("debian", at=START),
    events.Resolved("debian", "sha256:aa", at=START),
    events.PlatformStarted("linux/amd64", "node", "native", at=START),
    FromExecutor("linux/amd64", protocol.Handshake(1, "0.1.0", "linux/amd64", "userns"), at=START),
    FromExecutor(
        "linux/amd64", protocol.Planned((protocol.StepInfo(1, "build", "RUN x", 3, 1, 1),), "native"), at=START
    ),
    FromExecutor("linux/amd64", protocol.Started(1), at=START),
    FromExecutor("linux/amd64", protocol.Log(1, "text", 2), at=START + 1.5),
    FromExecutor("linux/amd64", protocol.Held(1, "unpack"), at=START),
    FromExecutor("linux/amd64", protocol.Finished(1, 0.5, True, "no"), at=START),
    FromExecutor("linux/amd64", protocol.Transfer("pull", "sha256:aa", 1, 2), at=START),
    FromExecutor("linux/amd64", protocol.Waiting("r.example", "push app", 6.0, "status 503"), at=START),
    events.RegistryWaiting("docker.io", "resolve debian:12", 12.0, "", True, at=START),
    FromExecutor("linux/amd64", protocol.BuildWarning(story.TRAP, "Rule"), at=START),
    FromExecutor(
        "linux/amd64",
        protocol.Result(
            DESCRIPTOR, DESCRIPTOR, (DESCRIPTOR,), 9, (protocol.Finding("sha256:aa", "bin/x", "arm64"),), 1, 2, 3.5
        ),
        at=START,
    ),
    FromExecutor("linux/amd64", protocol.Failed(story.FAILURE), at=START),
    events.PlatformWaiting("linux/amd64", "farm/amd64", "pulling the image", at=START),
    events.PlatformMoved("linux/amd64", "node", "other", "native", story.TRAP, at=START),
    events.PlatformEnded("linux/amd64", "failed", "why", at=START),
    events.WarningRaised(story.TRAP, "Rule", at=START),
    events.Publishing("index", 1, 2, at=START),
    events.Published("app:1", "sha256:aa", at=START),
    events.BuildEnded("failed", "", (events.Failure(story.FAILURE, "linux/amd64"),), at=START),
    events.ImagePlaced((story.of_release("web", story.AMD64, ("base",)),), at=START),
)


def objects(*told: Event) -> list[dict[str, Any]]:
    out = io.StringIO()
    with open_display("rawjson", out, {}) as display:
        for event in told:
            display.emit(event)
    assert out.getvalue().isascii()
    first, *rest = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (first["type"], first["version"], first["kanifold"]) == ("schema", rawjson.VERSION, __version__)
    return rest


def documented() -> dict[str, set[str]]:
    """Field names by type, as the module's table lists them."""
    table = (rawjson.__doc__ or "").split("\n\n")[3].split("\n")[3:-1]
    rows: dict[str, str] = {}
    name = ""
    for line in table:
        name = line[:19].strip() or name
        rows[name] = rows.get(name, "") + " " + line[19:]
    return {name: set(re.findall(r"\w+", _outermost(fields))) for name, fields in rows.items()}


def _outermost(fields: str) -> str:
    """``fields`` without what stands in brackets."""
    inner = re.compile(r"[\[({][^\[\](){}]*[\])}]")
    while inner.search(fields):
        fields = inner.sub("", fields)
    return fields


def test_an_event_of_a_release_names_the_image_beside_the_platform() -> None:
    placed = objects(events.ImagePlaced((story.of_release("web", story.AMD64, ("base",)),), at=START))
    assert placed[0]["platforms"] == [
        {"image": "web", "platform": "linux/amd64", "node": "", "how": "native", "why": "", "after": ["base"]}
    ]
    (ended,) = objects(events.PlatformEnded("web linux/amd64", "built", at=START))
    assert (ended["image"], ended["platform"]) == ("web", "linux/amd64")
    failed = events.BuildEnded("failed", "", (events.Failure(story.FAILURE, "web linux/amd64"),), at=START)
    (trouble,) = objects(failed)[0]["troubles"]
    assert (trouble["image"], trouble["platform"]) == ("web", "linux/amd64")


def test_every_event_has_the_fields_that_the_documentation_lists() -> None:
    table = documented()
    told = objects(*EVERY)
    assert {each["type"] for each in told} == set(table) - {"schema"}
    for each in told:
        assert set(each) - {"type", "at", "time"} == table[each["type"]], each["type"]


SCHEMA = json.loads((Path(rawjson.__file__).parent / "rawjson.schema.json").read_text())


def valid(schema: dict[str, Any], line: dict[str, Any]) -> bool:
    return bool(Draft202012Validator(schema).is_valid(line))


def test_the_schema_has_every_type_with_its_fields() -> None:
    table = documented()
    named = {each["if"]["properties"]["type"]["const"]: each["then"]["$ref"] for each in SCHEMA["allOf"]}
    assert named == {name: f"#/$defs/{name}" for name in table}
    for name, fields in table.items():
        assert set(SCHEMA["$defs"][name]["required"]) == set(SCHEMA["$defs"][name]["properties"]) == fields, name
    assert SCHEMA["$defs"]["schema"]["properties"]["version"]["const"] == rawjson.VERSION
    assert set(SCHEMA["$defs"]["moved"]["properties"]["action"]["enum"]) == set(protocol.Action)


@pytest.mark.parametrize("told", EVERY, ids=lambda event: type(getattr(event, "message", event)).__name__)
def test_every_line_is_valid_by_the_schema(told: Event) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    (line,) = objects(told)
    assert valid(SCHEMA, line)
    assert valid(SCHEMA, {**line, "more": 1}), "fields may be added"
    for field in line:
        less = {key: value for key, value in line.items() if key != field}
        assert not valid(SCHEMA, less), f"{field} is always there"
        assert not valid(SCHEMA, {**line, field: {"another": "type"}}) or field == "type"


def test_a_build_writes_what_the_schema_says(kanifold: Kanifold, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch as only\nCOPY Dockerfile /\n")
    words = ("build", tmp_path, "-o", f"type=oci,dest={tmp_path / 'out'}", "--progress", "rawjson")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "Dockerfile").write_text("FROM scratch\nCOPY none /\n")
    for outcome in (kanifold(*words), kanifold(*words), kanifold.run("build", tmp_path / "none", *words[2:])):
        lines = [json.loads(each) for each in outcome.err.splitlines()]
        assert [each["type"] for each in lines][0 :: len(lines) - 1] == ["schema", "build_ended"]
        assert [each for each in lines if not valid(SCHEMA, each)] == []


def test_a_copy_writes_what_the_schema_says(kanifold: Kanifold, tmp_path: Path) -> None:
    made = Images()
    made.layout(tmp_path / "in", {"1": made.index([made.entry(), made.entry("linux/arm64")])})
    copied = kanifold("copy", "--progress", "rawjson", f"oci:{tmp_path / 'in'}:1", f"oci:{tmp_path / 'out'}:1")
    lines = [json.loads(each) for each in copied.err.splitlines()]
    assert lines[0]["type"] == "schema"
    assert [each for each in lines if not valid(SCHEMA, each)] == []


def test_golden_of_one_step() -> None:
    log = objects(*EVERY)[7]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", log.pop("time"))
    assert log == {"type": "log", "at": 1.5, "platform": "linux/amd64", "step": 1, "stream": 2, "text": "text"}


def test_a_problem_is_whole() -> None:
    failed = objects(*EVERY)[15]["problem"]
    assert failed["kind"] == "StepFailed"
    assert failed["where"] == {
        "file": "Dockerfile",
        "line": 5,
        "end_line": 5,
        "source": list(story.DOCKERFILE[2:8]),
        "first": 3,
    }
    assert failed["log"] == list(story.FAILURE.log)


@pytest.mark.parametrize("text", ["\x1b[2J\x00", "日本\u202e", "half \udc80", "##[add-mask]x", '"\\'])
def test_text_is_passed_on_as_it_came_and_harms_no_terminal(text: str) -> None:
    assert objects(FromExecutor("linux/amd64", protocol.Log(1, text), at=START))[0]["text"] == text


def test_each_line_of_a_log_is_an_object_of_its_own() -> None:
    said = objects(FromExecutor("linux/amd64", protocol.Log(1, "two\n\nlines", 2), at=START))
    assert [(each["type"], each["stream"], each["text"]) for each in said] == [
        ("log", 2, "two"), ("log", 2, ""), ("log", 2, "lines")
    ]  # fmt: skip


def test_github_finds_no_order_in_it() -> None:
    out = io.StringIO()
    with open_display("rawjson", out, {}) as display:
        display.emit(FromExecutor("linux/amd64", protocol.Log(1, "##[add-mask]x"), at=START))
    assert "##[" not in out.getvalue()


def test_the_protocols_questions_are_not_shown() -> None:
    assert objects(FromExecutor("linux/amd64", protocol.Ask(1, protocol.AskSecret("token")), at=START)) == []
