"""Comparing our reading of a Dockerfile with that of dockerfile-parse; a difference is a finding.

Builds use the line structure of ``lines``. dockerfile-parse skips lines that its pattern does not match, reads the body
of a here-document as instructions, and continues a line that ends in two backslashes, so it does not decide what is
built. But many tools read Dockerfiles with it. So it is given the file with everything that it does not support blanked
out (the bodies of here-documents, the byte order mark), and its instructions are compared with ours line by line. Where
they agree, no line was lost; where they do not, different tools read the file differently, which is worth a warning.

The library takes some milliseconds to import and is quadratic in continued lines, so only build checks use it, for
files of ordinary size. It is given the bytes in memory and writes nothing.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

from executor.dockerfile.lines import Statement, location
from executor.dockerfile.rules import READ_DIFFERENTLY_ELSEWHERE, Violation
from executor.dockerfile.stages import Dockerfile

SIZE_LIMIT: Final = 1 << 18
"""Maximum size of a file that is compared, in bytes."""

_NOTHING: Final = "nothing"


def differences(dockerfile: Dockerfile) -> tuple[Violation, ...]:
    """Return the first place at which dockerfile-parse reads another instruction; later differences follow from it."""
    text = plain(dockerfile)
    if len(text) > SIZE_LIMIT:
        return ()
    ours = {statement.location.line: statement.keyword.upper() for statement in dockerfile.statements}
    theirs = seen(text)
    for line in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(line, _NOTHING), theirs.get(line, _NOTHING)
        if here != there:
            place = location(dockerfile.source, dockerfile.name, line, line)
            return (READ_DIFFERENTLY_ELSEWHERE.at(place, there, "part of another line" if here == _NOTHING else here),)
    return ()


def plain(dockerfile: Dockerfile) -> bytes:
    """Return the file, line for line, without what the library does not support and other rules report."""
    lines = list(dockerfile.source)
    if dockerfile.escape != "\\":
        lines[0] = f"# escape={dockerfile.escape}"
    for statement in dockerfile.statements:
        first, last = statement.location.line, statement.location.end_line
        bodies = last - body_lines(statement)
        for index in range(first, last):  # the lines after the first, as indices from 0
            if index >= bodies:
                lines[index] = ""
            elif not lines[index].strip():
                lines[index] = "#"
    return "\n".join(lines).encode("utf-8", "replace") + b"\n"


def body_lines(statement: Statement) -> int:
    """Return the number of lines of the here-documents of ``statement``, delimiters included."""
    return sum(heredoc.content.count("\n") + 1 for heredoc in statement.heredocs)


def seen(text: bytes) -> dict[int, str]:
    """Return the instruction that begins at each line, in upper case, as dockerfile-parse reads it."""
    from dockerfile_parse import DockerfileParser
    from dockerfile_parse.constants import COMMENT_INSTRUCTION

    structure = DockerfileParser(fileobj=BytesIO(text)).structure
    return {
        entry["startline"] + 1: entry["instruction"]
        for entry in structure
        if entry["instruction"] != COMMENT_INSTRUCTION
    }
