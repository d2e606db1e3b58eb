"""What a Dockerfile offers: targets, and what one target takes."""

from __future__ import annotations

import base64

from executor.dockerfile import parse
from executor.dockerfile.documents import outline_document, targets_document
from executor.dockerfile.outline import outline, targets

SOURCE = b"""\
# VERSION of the base image
ARG VERSION=3 UNUSED=1
ARG TAG=v$VERSION
# base what all have in common
FROM alpine:$TAG AS base
# HOME where things are
ARG HOME=/h
RUN --mount=type=secret,id=token,required --mount=type=ssh true

FROM base AS tools
ARG TARGETARCH DEBUG
RUN --mount=type=secret,target=/run/$HOME/key true

FROM --platform=$BUILDPLATFORM scratch AS apart
ARG LONELY

# out is the result
FROM scratch AS out
COPY --from=tools /x /x
"""
PREDEFINED = {"TARGETARCH": "arm64", "BUILDPLATFORM": "linux/amd64"}


def test_targets() -> None:
    found = targets(parse(SOURCE))
    assert [(each.name, each.description, each.default) for each in found] == [
        ("base", "what all have in common", False),
        ("tools", "", False),
        ("apart", "", False),
        ("out", "is the result", True),
    ]
    assert (found[2].base, found[2].platform, found[2].location.line) == ("scratch", "$BUILDPLATFORM", 14)


def test_the_outline_of_a_target_and_the_stages_it_needs() -> None:
    found = outline(parse(SOURCE), None, {"DEBUG": "yes"}, PREDEFINED)
    assert (found.name, found.description) == ("out", "is the result")
    assert [(arg.name, arg.value, arg.description) for arg in found.arguments] == [
        ("VERSION", "3", "of the base image"),
        ("TAG", "v3", ""),
        ("HOME", "/h", "where things are"),
        ("DEBUG", "yes", ""),
    ]
    assert [(each.name, each.required) for each in found.secrets] == [("token", True), ("key", False)]
    assert [(each.name, each.required) for each in found.ssh] == [("default", False)]


def test_the_outline_of_a_stage_that_needs_no_other() -> None:
    found = outline(parse(SOURCE), "apart", {}, PREDEFINED)
    assert [arg.name for arg in found.arguments] == ["LONELY"]
    assert found.secrets == ()


def test_the_nearest_of_several_args_of_one_name_counts() -> None:
    source = b"ARG A=1\nFROM x AS base\nARG A=2 B=3\nFROM base\nARG B=4\nARG B=5\n"
    found = outline(parse(source), None, {}, {}).arguments
    assert [(arg.name, arg.value, arg.location.line) for arg in found] == [("A", "2", 3), ("B", "5", 6)]


def test_a_long_chain_of_stages() -> None:
    source = b"FROM a AS s0\n" + b"".join(b"FROM s%d AS s%d\nARG A%d\n" % (n, n + 1, n) for n in range(1500))
    assert len(outline(parse(source), None, {}, {}).arguments) == 1500


def test_stages_that_need_each_other_come_to_an_end() -> None:
    source = b"FROM scratch AS a\nCOPY --from=b /x /x\nFROM scratch AS b\nCOPY --from=a /x /x\n"
    assert outline(parse(source), None, {}, {}).arguments == ()


def test_the_json_forms_are_those_of_buildx() -> None:
    dockerfile = parse(SOURCE)
    listed = targets_document(targets(dockerfile), SOURCE)
    assert [target.get("default", False) for target in listed["targets"]] == [False, False, False, True]
    assert base64.b64decode(listed["sources"][0]) == SOURCE
    taken = outline_document(outline(dockerfile, "base", {}, PREDEFINED), SOURCE)
    assert taken["args"][0] == {
        "name": "VERSION",
        "value": "3",
        "description": "of the base image",
        "location": {"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]},
    }
    assert taken["secrets"][0]["required"] is True
