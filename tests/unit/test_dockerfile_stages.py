"""Stages: how a file is divided into them, and how they are found by name and number."""

from __future__ import annotations

import pytest

from executor.dockerfile import find_base, find_named, find_source, find_stage, parse, trigger
from executor.dockerfile.instructions import Copy, From, Run
from platforms.errors import DockerfileError, Location

SOURCE = b"""\
# syntax=docker/dockerfile:1
ARG V=1
FROM a AS Base
RUN one
FROM base AS next
FROM c
COPY --from=0 x /y
FROM next AS base
"""


def test_stages_and_global_args() -> None:
    dockerfile = parse(SOURCE)
    assert [arg.assignments for arg in dockerfile.args] == [(("V", "1"),)]
    assert [(stage.index, stage.name, stage.label) for stage in dockerfile.stages] == [
        (0, "base", "base"),
        (1, "next", "next"),
        (2, "", "2"),
        (3, "base", "base"),
    ]
    assert [len(stage.instructions) for stage in dockerfile.stages] == [1, 0, 1, 0]
    assert dockerfile.syntax == "docker/dockerfile:1"
    assert dockerfile.stages[2].location.line == 6


@pytest.mark.parametrize(
    ("target", "index"), [(None, 3), ("", 3), ("next", 1), ("NEXT", 1), ("base", 3), ("0", 0), ("2", 2)]
)
def test_the_target(target: str | None, index: int) -> None:
    assert find_stage(parse(SOURCE), target).index == index


@pytest.mark.parametrize(
    ("target", "hint"), [("nxt", " (did you mean next?)"), ("4", ""), ("-1", ""), ("elsewhere", "")]
)
def test_a_target_that_does_not_exist(target: str, hint: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        find_stage(parse(SOURCE), target)
    assert caught.value.problem.what == f'target stage "{target}" could not be found{hint}'
    assert caught.value.problem.remedy == "Stages are base, next, 2, base."


def test_a_base_is_looked_up_among_the_stages_before() -> None:
    dockerfile = parse(SOURCE)
    assert find_base(dockerfile, 0, "base") is None
    found = find_base(dockerfile, 1, "base")
    assert found is not None
    assert found.index == 0
    assert find_base(dockerfile, 3, "Next") == dockerfile.stages[1]
    assert find_base(dockerfile, 3, "c") is None


def test_a_source_is_looked_up_among_all_stages() -> None:
    dockerfile = parse(SOURCE)
    assert [stage.index if stage else None for stage in (find_source(dockerfile, number) for number in "02")] == [0, 2]
    assert getattr(find_source(dockerfile, "BASE"), "index", None) == 3
    assert getattr(find_named(dockerfile, "Next"), "index", None) == 1
    assert find_named(dockerfile, "0") is None
    assert find_source(dockerfile, "alpine:3") is None
    with pytest.raises(DockerfileError, match="invalid stage index 4"):
        find_source(dockerfile, "4")


@pytest.mark.parametrize(
    ("source", "what", "line"),
    [
        (b"RUN x\nFROM a\n", "no build stage in current context", 1),
        (b"ARG A\n\nENV x=y\nFROM a\n", "no build stage in current context", 3),
        (b"ARG A=1\n", "dockerfile contains no stages to build", 1),
    ],
)
def test_files_without_stages(source: bytes, what: str, line: int) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse(source)
    problem = caught.value.problem
    assert (problem.what, problem.where and problem.where.line) == (what, line)
    assert problem.remedy


WHERE = Location("Dockerfile", 7, 7, ("FROM with-trigger",), 7)


def test_triggers_stand_where_the_from_stands() -> None:
    copy = trigger("COPY --from=x <<E /b\nbody\nE", WHERE)
    assert isinstance(copy, Copy)
    assert copy.heredocs[0].content == "body\n"
    assert copy.location == WHERE
    assert isinstance(trigger("RUN a", WHERE), Run)


@pytest.mark.parametrize("expression", ["", "NONSENSE", "RUN a\nRUN b", "FROM a", "COPY x", "RUN <<E", "RUN \0"])
def test_triggers_that_cannot_be_used(expression: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        trigger(expression, WHERE)
    assert caught.value.problem.where == WHERE
    assert caught.value.problem.remedy


def test_a_from_keeps_how_its_name_was_written() -> None:
    base = parse(b"from --platform=linux/arm64 a As B").stages[0].base
    assert isinstance(base, From)
    assert (base.image, base.name, base.platform, base.alias) == ("a", "b", "linux/arm64", ("As", "B"))
