"""An executor that lies, errs or dies: one clear error, nothing published, nothing left, and the orchestrator lives."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from protocol_nodes import Marked, build, liar
from registry_server import MemoryRegistry, served

from executor.registry import reference
from orchestrator import connection
from orchestrator.outputs import OciLayout, Output, Push
from orchestrator.request import BuildRequest
from orchestrator.view import events, open_display
from platforms.errors import BuildError, KanifoldError
from platforms.parsing import parse


@pytest.fixture
def mark() -> Iterator[Marked]:
    mark = Marked()
    yield mark
    assert mark.wait_until_gone(3) == [], "a process is left"


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANIFOLD_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def asked(
    tmp_path: Path, *outputs: Output, tag: str = "", platforms: tuple[str, ...] = ("linux/amd64",)
) -> BuildRequest:
    context = tmp_path / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text("FROM scratch\n")
    return BuildRequest(
        context=str(context),
        platforms=tuple(parse(each) for each in platforms),
        outputs=outputs or (OciLayout(str(tmp_path / "out")),),
        tags=(reference.parse(tag),) if tag else (),
    )


def test_an_honest_one_is_believed(tmp_path: Path, mark: Marked) -> None:
    product = build(asked(tmp_path, platforms=("linux/amd64", "linux/arm64")), liar("honest", mark))
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["manifests"][0]["digest"] == product.root.digest
    assert [str(each.platform) for each in product.images] == ["linux/amd64", "linux/arm64"]


LIES = {
    "junk_first": "malformed",
    "junk_later": "malformed",
    "unknown_message": "malformed",
    "wrong_types": "malformed",
    "endless_line": "too long",
    "wrong_version": "version 99",
    "result_first": "introduce",
    "blob_unasked": "nobody asked for",
    "cache_blob_unasked": "does not export to",
    "negative_cache_blob": "negative size",
    "asks_for_files_above": "told nothing",
    "dies_at_once": "exit status 7",
    "dies_later": "node 7 caught fire",
    "dies_in_a_line": "malformed",
    "killed": "-9",
    "screams": "the last words",
    "deaf": "malformed",
    "asks_without_end": "ask",
    "asks_something_unknown": "malformed",
    "malformed_message_to_an_agent": "malformed",
    "moves_what_cannot_move": "malformed",
    "other_manifest": "another manifest",
    "other_config": "another config",
    "other_platform": "linux/s390x",
    "an_index": "index",
    "two_kinds_at_once": "ambiguous",
    "untold_layer": "other layers",
    "path_as_manifest": "not a digest",
    "path_as_layer": "other layers",
    "endless_layer": "not what its digest says",
    "path_in_the_manifest": "not a digest",
    "blob_cut_short": "in the middle",
    "blob_of_another_name": "something else",
    "blob_of_another_size": "something else",
    "negative_blob": "something else",
    "endless_blob": "announces 1125899906842624 bytes",
    "log_in_place_of_a_blob": "something else",
    "failed_without_reason": "",
    "waits_for_its_job": "did not introduce itself",
}
"""What the error says, in part."""


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_one_clear_error(tmp_path: Path, mark: Marked, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "GREETING", 2.0)
    began = time.monotonic()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BuildError) as caught:
        build(asked(tmp_path), liar(lie, mark))
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 128 << 10, "memory grew without bound"
    assert LIES[lie] in str(caught.value)
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.rglob("escaped*")) == []
    # The store took no harm.
    build(asked(tmp_path), liar("honest", mark))


@pytest.mark.parametrize("lie", ["other_platform", "other_manifest", "an_index", "dies_later", "path_as_manifest"])
def test_a_lie_is_not_pushed(tmp_path: Path, mark: Marked, lie: str) -> None:
    registry = MemoryRegistry()
    with served(registry) as server:
        request = asked(tmp_path, Push(), OciLayout(str(tmp_path / "out")), tag=f"{server.host}/app:1")
        with pytest.raises(BuildError):
            build(request, liar(lie, mark))
    assert registry.manifests == {}
    assert not (tmp_path / "out").exists()


def test_a_push_that_did_not_happen_is_found_out(tmp_path: Path, mark: Marked) -> None:
    """The executor says that it has pushed, and the registry knows nothing of it."""
    registry = MemoryRegistry()
    with served(registry) as server, pytest.raises(BuildError):
        build(asked(tmp_path, Push(), tag=f"{server.host}/app:1"), liar("honest", mark))
    assert registry.manifests == {}


def test_nothing_is_told_that_the_build_was_not_given(tmp_path: Path, mark: Marked) -> None:
    with pytest.raises(BuildError) as caught:
        build(asked(tmp_path), liar("asks_for_anything", mark))
    told = json.loads(caught.value.problem.what)
    assert len(told) == 10
    for _, missing, error, size in told:
        assert (missing or error) and size == 0


def test_nonsense_about_steps_does_no_harm(tmp_path: Path, mark: Marked, capsys: pytest.CaptureFixture[str]) -> None:
    with open_display("plain") as display:
        seen: list[events.Event] = []
        build(asked(tmp_path), liar("chatty", mark), seen)
        for event in seen:
            display.emit(event)
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err + shown.out


def test_one_liar_among_honest_ones_publishes_nothing(tmp_path: Path, mark: Marked) -> None:
    """s390x is lied about (it says amd64); amd64 is well."""
    request = asked(tmp_path, platforms=("linux/s390x", "linux/amd64"))
    node = liar("other_platform", mark)
    with pytest.raises(KanifoldError):
        build(request, node)
    assert not (tmp_path / "out").exists()
