"""Which external images a Dockerfile names, and an edit that changes their names and nothing else."""

from __future__ import annotations

import pytest

from executor.dockerfile import parse
from executor.dockerfile.pinning import image_references, rewritten
from platforms.errors import DockerfileError

DIGEST = "sha256:" + "0" * 64

SOURCE = b"""\
# the base: debian stays debian here\r
ARG VERSION=1
FROM --platform=$BUILDPLATFORM debian AS debian-build
RUN --mount=type=bind,from=alpine:3,target=/a --mount=from=debian-build,target=/b \\
    --mount=type=bind,source=/,from=alpine:3,target=/c  cp --mount=type=bind,from=alpine:3 /a /b
COPY <<FROM /x
FROM not-an-image
COPY --from=neither /a /b
FROM
from scratch
COPY --from=debian-build /a /
COPY --from=0 /a /
copy --link --from=tool:v1 --chmod=755 /tool:v1 /
FROM base:${VERSION}
FROM debian-build
"""


def test_external_images_are_those_that_are_neither_stages_nor_scratch() -> None:
    found = [
        (each.where.line, each.name, each.has_variables)
        for each in image_references(parse(SOURCE.replace(b"  # debian", b"")))
    ]
    assert found == [
        (3, "debian", False),
        (4, "alpine:3", False),
        (4, "alpine:3", False),
        (13, "tool:v1", False),
        (14, "base:${VERSION}", True),
    ]


def test_only_the_names_change() -> None:
    dockerfile = parse(SOURCE)
    new = {each: f"{each.name}@{DIGEST}" for each in image_references(dockerfile) if not each.has_variables}
    expected = (
        SOURCE.replace(b"$BUILDPLATFORM debian AS", f"$BUILDPLATFORM debian@{DIGEST} AS".encode())
        .replace(b"from=alpine:3,target", f"from=alpine:3@{DIGEST},target".encode())
        .replace(b"--from=tool:v1 ", f"--from=tool:v1@{DIGEST} ".encode())
    )
    assert rewritten(SOURCE, dockerfile, new) == expected


@pytest.mark.parametrize(
    "line",
    [
        b"FROM \\\n  debian:12 \\\n  AS x\n",
        b"FROM\tdebian:12\tAS x\r\n",
        b"\xef\xbb\xbfFROM debian:12",
        b"from  debian:12 \n",
    ],
    ids=["continued", "tabs and CRLF", "byte order mark, no newline", "blanks around"],
)
def test_layouts_that_stay(line: bytes) -> None:
    dockerfile = parse(line)
    (mention,) = image_references(dockerfile)
    assert rewritten(line, dockerfile, {mention: "debian:13"}) == line.replace(b"debian:12", b"debian:13")


def test_an_image_that_is_called_as_its_keyword() -> None:
    dockerfile = parse(b"from from AS from2")
    (mention,) = image_references(dockerfile)
    assert rewritten(b"from from AS from2", dockerfile, {mention: "to"}) == b"from to AS from2"


@pytest.mark.parametrize(
    "source",
    [
        b"FROM deb\\\nian\n",
        b"FROM a\nCOPY --from=b\\\nc /x /\n",
        b"FROM a\nRUN --mount=type=bind,\\\nfrom=b,target=/x true\n",
    ],
    ids=["FROM", "COPY", "mount"],
)
def test_a_name_in_two_lines_is_refused(source: bytes) -> None:
    dockerfile = parse(source)
    with pytest.raises(DockerfileError):
        rewritten(source, dockerfile, {each: f"{each.name}@{DIGEST}" for each in image_references(dockerfile)})


def test_what_dockerfile_parse_reads_otherwise_is_refused() -> None:
    with pytest.raises(DockerfileError, match="read in different ways"):
        image_references(parse(b"FROM a\nRUN echo \\\\\nFROM b\n"))
