"""What a build rests on is looked at again, and what cannot be makes the build run: also what nobody thought of yet.

``strange_inputs.py`` is the command with a new kind of input that accounts for itself badly. That each kind there is
today is looked at again, or makes the build run, is in ``test_result_cache`` and ``test_cache_keys``.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import msgspec
import pytest
from conftest import Kanifold
from registry_server import MemoryRegistry, Served
from test_result_cache import World, settled, world

from executor import protocol
from executor.solver.cache import CacheEntry
from executor.solver.inputs import Inputs

__all__ = ["settled", "world"]  # fixtures

HERE = Path(__file__).parent
SIGNED = protocol.StatSignature("", "f", False, (), "0" * 64)
STEP = "WORKDIR /strange"


class AskNew(msgspec.Struct, frozen=True, tag_field="what", tag="new"):
    """A question of which nobody has thought."""

    name: str = ""
    kind: str = "new"


def strange(world: World, kind: str, file: str | Path) -> World:
    """``world`` with a command that knows the new ``kind`` of input."""
    own = world.kanifold
    root = str(HERE.parents[1])
    command = (sys.executable, str(HERE / "strange_inputs.py"), kind, str(file))
    changed = Kanifold(own.home, own.user, command, {**own.extra, "PYTHONPATH": root})
    return dataclasses.replace(world, kanifold=changed)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("an instruction that says nothing", STEP),
        ("an instruction that asks something new", STEP),
        ("an instruction that opens a context", STEP),
        ("a source", "COPY said /"),
        ("a mount", "RUN --mount=type=cache,target=/c cat /said > /seen"),
    ],
)
def test_a_new_kind_of_input_makes_the_build_run(world: World, kind: str, step: str) -> None:
    said = world.context / "said"
    said.write_text("one")
    world.dockerfile(f"FROM {world.host}/busybox\n{step}\n")
    world = strange(world, kind, said)
    first = [world.build() for _ in range(3)]
    said.write_text("two")
    changed, executors = world.build()
    assert [each[1] for each in first] == [1, 1, 1]
    assert len({each[0] for each in first}) == 1
    assert executors == 1
    assert changed != first[0][0]


def test_a_tag_that_nobody_has_pinned_makes_the_build_run(world: World, server: tuple[MemoryRegistry, Served]) -> None:
    registry, _ = server
    media_type, data = registry.manifests["busybox", "latest"]
    registry.add_manifest("said", "1", media_type, data)
    world.dockerfile(f"FROM {world.host}/busybox\n{STEP}\n")
    world = strange(world, "an instruction that asks for a tag", world.host)
    first = [world.build() for _ in range(3)]
    registry.add_manifest("said", "1", media_type, data + b"\n")
    changed, executors = world.build()
    assert [each[1] for each in first] == [1, 1, 1]
    assert executors == 1
    assert changed != first[0][0]


def test_a_new_kind_of_base_makes_the_build_run(world: World) -> None:
    world = strange(world, "a base", "")
    assert [world.build()[1] for _ in range(3)] == [1, 1, 1]


def test_a_new_instruction_that_takes_nothing_from_outside_is_answered_from_memory(world: World) -> None:
    world.dockerfile(f"FROM {world.host}/busybox\n{STEP}\n")
    world = strange(world, "an instruction of the Dockerfile alone", "")
    assert [world.build()[1] for _ in range(3)] == [1, 0, 0]


def test_an_input_is_not_accounted_for_until_somebody_says_how_it_is_looked_at_again() -> None:
    inputs = Inputs()
    assert inputs.record() == protocol.DependencyRecord()
    input_ = inputs.add("something new")
    assert inputs.record() is None
    input_.mark_static()
    assert inputs.record() == protocol.DependencyRecord()


def test_what_was_opened_is_accounted_for_by_its_signature_alone() -> None:
    inputs = Inputs()
    input_ = inputs.add("source f")
    input_.mark_opened()
    input_.mark_static()
    input_.mark_pinned("sha256:" + "0" * 64)
    input_.mark_signed(protocol.StatSignature("", "f", False, (), ""))
    assert inputs.record() is None
    input_.mark_signed(SIGNED)
    assert inputs.record() == protocol.DependencyRecord((), (SIGNED,))


def test_opening_what_was_said_to_be_nothing_takes_that_back() -> None:
    inputs = Inputs()
    input_ = inputs.add("source f")
    input_.mark_static()
    input_.mark_opened()
    assert inputs.record() is None


def test_what_has_no_digest_is_not_pinned() -> None:
    inputs = Inputs()
    inputs.add("base debian").mark_pinned("")
    assert inputs.record() is None


@pytest.mark.parametrize(
    ("question", "cacheable"),
    [
        (protocol.AskCredential("reg.example", "a/b"), True),
        (protocol.AskManifest("reg.example/a/b:1"), True),
        (protocol.AskSecret("s"), False),
        (protocol.AskAgent("default"), False),
        (protocol.AskContext("c", ()), False),
        (AskNew(), False),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_every_question_is_an_input_but_those_that_no_image_depends_on(
    question: protocol.Question, cacheable: bool
) -> None:
    inputs = Inputs()
    inputs.asked(question)
    assert (inputs.record() is not None) is cacheable


def test_a_step_by_the_word_of_an_outside_cache_is_not_cacheable() -> None:
    inputs = Inputs()
    inputs.found("1" * 64, CacheEntry("r", "2000-01-01T00:00:00Z"))
    assert inputs.record() is not None
    inputs.found("2" * 64, CacheEntry("s", "2000-01-01T00:00:00Z", imported="f", source="cache"))
    assert inputs.record() is None
