"""Finding the external images in a Dockerfile, and replacing their names in its text.

FROM lines are read by dockerfile-parse as well; where it reads another image than ``lines``, the file is not edited. An
edit replaces the bytes of one word, so comments, continuations, line ends and layout stay. The result is parsed again
and compared with the original: every statement must be the same, except for that word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Final

import msgspec

from executor.dockerfile import structure
from executor.dockerfile.instructions import Copy, Instruction, Run
from executor.dockerfile.lines import Statement
from executor.dockerfile.stages import Dockerfile, find_base, find_named, find_source, parse
from platforms.errors import DockerfileError, Location

_SCRATCH: Final = "scratch"


class ImageReference(msgspec.Struct, frozen=True):
    """An external image in a FROM, a ``COPY --from`` or a ``RUN --mount`` with ``from``."""

    name: str
    """As written, variables not expanded."""
    where: Location
    before: str
    """The text directly before the name in the file: "" after FROM, else ``--from=`` or ``from=``."""

    @property
    def has_variables(self) -> bool:
        """Whether the name depends on build arguments."""
        return "$" in self.name


def image_references(dockerfile: Dockerfile) -> tuple[ImageReference, ...]:
    """Return the external images in ``dockerfile``, in the order of its lines; neither stages nor ``scratch``.

    Raises ``DockerfileError`` when dockerfile-parse reads another image in a FROM line.
    """
    theirs = _bases(dockerfile)
    found: list[ImageReference] = []
    for stage in dockerfile.stages:
        line = stage.location.line
        if theirs.get(line) != stage.base.image:
            raise DockerfileError(
                "this FROM is read in different ways",
                why=f"dockerfile-parse reads the image {theirs.get(line)!r}, kanifold {stage.base.image!r}",
                remedy="Write the FROM on one line: FROM [--platform=PLATFORM] IMAGE [AS NAME].",
                where=stage.location,
            )
        if stage.base.image != _SCRATCH and find_base(dockerfile, stage.index, stage.base.image) is None:
            found.append(ImageReference(stage.base.image, stage.location, ""))
        for step in stage.instructions:
            found += _references_of(dockerfile, step)
    return tuple(found)


def _bases(dockerfile: Dockerfile) -> dict[int, str]:
    """Return the image of every FROM, by its first line, as dockerfile-parse reads it."""
    from dockerfile_parse import DockerfileParser
    from dockerfile_parse.parser import image_from

    text = structure.plain(dockerfile)
    entries = DockerfileParser(fileobj=BytesIO(text)).structure
    return {
        entry["startline"] + 1: image_from(entry["value"])[0] or ""
        for entry in entries
        if entry["instruction"] == "FROM"
    }


def _references_of(dockerfile: Dockerfile, step: Instruction) -> Iterator[ImageReference]:
    if isinstance(step, Copy) and step.from_ and step.from_ != _SCRATCH:
        if find_source(dockerfile, step.from_) is None:
            yield ImageReference(step.from_, step.location, "--from=")
    elif isinstance(step, Run):
        for mount in step.mounts:
            if mount.from_ and mount.from_ != _SCRATCH and find_named(dockerfile, mount.from_) is None:
                yield ImageReference(mount.from_, step.location, "from=")


def rewritten(data: bytes, dockerfile: Dockerfile, names: Mapping[ImageReference, str]) -> bytes:
    """Return ``data``, the bytes of ``dockerfile``, with each mention's name replaced by that in ``names``.

    Raises ``DockerfileError`` for a name that is not a single word of the file (continued on another line, or quoted),
    and when the result differs in anything else.
    """
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    statements = {each.location.line: each for each in dockerfile.statements}
    for mention, name in names.items():
        statement = statements[mention.where.line]
        first, last = mention.where.line - 1, mention.where.end_line - structure.body_lines(statement)
        text = "\n".join(lines[first:last])
        changed = _replaced(text, statement, mention, name)
        if changed == text:
            raise DockerfileError(
                f"cannot replace the image {mention.name}",
                why="its name does not stand in the line as one plain word",
                remedy="Write it without quotes and on one line, or pin it by hand.",
                where=mention.where,
            )
        lines[first:last] = changed.split("\n")
    result = "\n".join(lines).encode("utf-8", "surrogateescape")
    if not _same_but_for(names, dockerfile, parse(result, dockerfile.name)):
        raise DockerfileError(
            f"cannot pin the images of {dockerfile.name}",
            why="with the new names other lines would mean something else",
            remedy="Pin them by hand, and report this as a bug.",
        )
    return result


def _replaced(text: str, statement: Statement, mention: ImageReference, name: str) -> str:
    """Return ``text``, the lines of ``statement``, with the name of ``mention`` replaced by ``name``."""
    old = re.escape(mention.name)
    match mention.before:
        case "":
            keyword = text.index(statement.keyword) + len(statement.keyword)
            return text[:keyword] + re.sub(rf"(?<=\s){old}(?=\s|$)", lambda _: name, text[keyword:], count=1)
        case "--from=":
            return re.sub(rf"(?<=\s--from=){old}(?=\s|$)", lambda _: name, text, count=1)
        case _:
            source = re.compile(rf"(?<![^=,])((?i:from)=){old}(?=,|$)")
            mounts = sum(each.startswith("--mount=") for each in statement.flags)
            return re.sub(
                r"(?<=\s--mount=)\S+",
                lambda mount: source.sub(lambda found: found[1] + name, mount[0]),
                text,
                count=mounts,
            )


def _same_but_for(names: Mapping[ImageReference, str], before: Dockerfile, after: Dockerfile) -> bool:
    """Whether ``after``, with the old names put back, equals ``before`` statement by statement."""
    if len(before.statements) != len(after.statements):
        return False
    for old, new in zip(before.statements, after.statements, strict=True):
        text = new.text
        for mention, name in names.items():
            if mention.where.line == old.location.line:
                text = text.replace(name, mention.name)
        if (text, old.heredocs, old.comments) != (old.text, new.heredocs, new.comments):
            return False
    return tuple(each.name for each in image_references(after)) == tuple(
        names.get(each, each.name) for each in image_references(before)
    )
