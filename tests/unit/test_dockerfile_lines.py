"""Physical lines to statements: directives, continuations, comments, here-documents, limits."""

from __future__ import annotations

import pytest

from executor.dockerfile.lines import LINE_LIMIT, read
from platforms.errors import DockerfileError


def texts(source: str) -> list[str]:
    return [statement.text for statement in read(source.encode()).statements]


def bodies(source: str) -> list[tuple[str, str]]:
    return [(doc.name, doc.content) for statement in read(source.encode()).statements for doc in statement.heredocs]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("RUN a", ["RUN a"]),
        ("RUN a\n", ["RUN a"]),
        ("\n\n  RUN a\n\n", ["RUN a"]),
        ("RUN a\r\nRUN b\r\n", ["RUN a", "RUN b"]),
        ("\ufeffRUN a\n", ["RUN a"]),
        ("RUN a \\\n  b", ["RUN a   b"]),
        ("RUN a \\\r\n  b\r\n", ["RUN a   b"]),
        ("RUN a \\  \t\n  b", ["RUN a   b"]),
        ("RUN a\\\nb", ["RUN ab"]),
        ("RUN a \\\\\nRUN b", ["RUN a \\\\", "RUN b"]),
        ("RUN a \\\\\\\nRUN b", ["RUN a \\\\\\", "RUN b"]),
        ("\\\nRUN a", ["RUN a"]),
        ("RUN a \\\n# comment\n  # another \\\n  b", ["RUN a   b"]),
        ("RUN a \\\n\n  b", ["RUN a   b"]),
        ("RUN a \\", ["RUN a "]),
        ("# comment \\\nRUN a", ["RUN a"]),
        ("RUN a # no comment", ["RUN a # no comment"]),
        ("# escape=`\nRUN a `\n  b \\\nRUN c", ["RUN a   b \\", "RUN c"]),
        ("RUN a\n\t# comment\nRUN b", ["RUN a", "RUN b"]),
    ],
)
def test_logical_lines(source: str, expected: list[str]) -> None:
    assert texts(source) == expected


def test_every_statement_knows_its_lines() -> None:
    found = read(b"# top\nFROM a\n\nRUN b \\\n  # why\n  c\nCOPY <<E /x\nbody\nE\n").statements
    assert [(statement.location.line, statement.location.end_line) for statement in found] == [(2, 2), (4, 6), (7, 9)]
    assert found[1].location.source[0] == "FROM a"
    assert found[1].location.first == 2


def test_empty_continuation_lines_are_noted() -> None:
    found = read(b"RUN a \\\n\n  b\nRUN c \\\n# fine\n d\n")
    assert [place.line for place in found.empty_continuations] == [3]


@pytest.mark.parametrize(
    ("source", "syntax", "escape", "check"),
    [
        ("# syntax=docker/dockerfile:1\nRUN x", "docker/dockerfile:1", "\\", ""),
        ("#syntax = docker/dockerfile:1 more\nRUN x", "docker/dockerfile:1", "\\", ""),
        ("# ESCAPE=`\n# check=skip=all\nRUN x", "", "`", "skip=all"),
        ("# check=skip=A,B;error=true\n# syntax=s\nRUN x", "s", "\\", "skip=A,B;error=true"),
        ("# a comment\n# escape=`\nRUN x", "", "\\", ""),
        ("\n# escape=`\nRUN x", "", "\\", ""),
        ("# unknown=1\n# escape=`\nRUN x", "", "\\", ""),
        ("RUN x\n# escape=`\nRUN y", "", "\\", ""),
        ("# escape\n# escape=`\nRUN x", "", "\\", ""),
        ("# escape=\n# escape=`\nRUN x", "", "\\", ""),
    ],
)
def test_directives(source: str, syntax: str, escape: str, check: str) -> None:
    found = read(source.encode())
    assert (found.syntax, found.escape, found.check) == (syntax, escape, check)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("RUN <<EOF\na\n# b\n\nc \\\nEOF\n", [("EOF", "a\n# b\n\nc \\\n")]),
        ("RUN <<-EOF\n\ta\n\t\tEOF\n", [("EOF", "\ta\n")]),
        ("RUN <<A cat <<B\na\nA\nb\nB\n", [("A", "a\n"), ("B", "b\n")]),
        ("COPY <<A <<'B' /x/\n$a\nA\nb\nB\n", [("A", "$a\n"), ("B", "b\n")]),
        ("ADD << EOF /x\na\nEOF", [("EOF", "a\n")]),
        ("RUN cat 3<<EOF\nEOF", [("EOF", "")]),
        ("RUN <<EOF\r\na\r\nEOF\r\n", [("EOF", "a\r\n")]),
        ('RUN <<"two words"\na\ntwo words\n', [("two words", "a\n")]),
        ("ONBUILD RUN <<EOF\na\nEOF\n", [("EOF", "a\n")]),
        ("ONBUILD COPY --chown=1 <<EOF /x\na\nEOF\n", [("EOF", "a\n")]),
        ("RUN a \\\n  <<EOF\nb\nEOF", [("EOF", "b\n")]),
        # no here-documents:
        ("RUN echo '<<EOF'\nRUN x", []),
        ("RUN echo \\<<EOF\nRUN x", []),
        ("RUN cat <<<word\nRUN x", []),
        ("RUN echo $((1<<3))\nRUN x", []),
        ("RUN it's <<EOF\nRUN x", []),
        ('RUN ["cat", "<<EOF"]\nRUN x', []),
        ("ENV A=<<EOF\nRUN x", []),
        ("CMD cat <<EOF\nRUN x", []),
        ("RUN a <<\nRUN x", []),
    ],
)
def test_here_documents(source: str, expected: list[tuple[str, str]]) -> None:
    assert bodies(source) == expected


@pytest.mark.parametrize(
    ("mark", "expand", "chomp"),
    [("<<E", True, False), ("<<-E", True, True), ('<<"E"', False, False), ("<<'E'F", False, False)],
)
def test_quoting_any_part_of_the_name_forbids_expansion(mark: str, expand: bool, chomp: bool) -> None:
    name = "EF" if "F" in mark else "E"
    (doc,) = read(f"RUN {mark}\n{name}\n".encode()).statements[0].heredocs
    assert (doc.name, doc.expand, doc.chomp) == (name, expand, chomp)


def test_leading_tabs_are_removed_on_demand_only() -> None:
    (doc,) = read(b"COPY <<-E /x\n\t\ta\n\t b\nc\n\tE\n").statements[0].heredocs
    assert doc.content == "\t\ta\n\t b\nc\n"
    assert doc.chomped() == "a\n b\nc\n"


def test_comments_above_an_instruction_belong_to_it() -> None:
    found = read(b"# one\n# two\nRUN a\n# three\n#\n# four\nRUN b\nRUN c\n").statements
    assert [statement.comments for statement in found] == [("one", "two"), ("four",), ()]


@pytest.mark.parametrize(
    ("source", "what", "line"),
    [
        (b"\n# only\n", "file with no instructions", 2),
        (b"# escape=x\nFROM a\n", "invalid escape token 'x' does not match ` or \\", 1),
        (b"# escape=`\n# escape=`\nFROM a\n", "only one escape parser directive can be used", 2),
        (b"FROM a\nRUN <<EOF\nno end\n", "unterminated heredoc", 2),
        (b"FROM a\nRUN echo $((1 << 3))\n", "unterminated heredoc", 2),  # in BuildKit too
        (b"FROM a\n" + b"x" * (LINE_LIMIT + 1), "dockerfile line greater than max allowed size of 65535", 2),
    ],
)
def test_refusals_name_the_line(source: bytes, what: str, line: int) -> None:
    with pytest.raises(DockerfileError) as caught:
        read(source, "sub/Dockerfile")
    problem = caught.value.problem
    assert problem.what == what
    assert problem.remedy
    assert problem.where is not None
    assert (problem.where.file, problem.where.line) == ("sub/Dockerfile", line)


@pytest.mark.parametrize("source", [b"", b"FROM a\nRUN \0\n", "FROM a\n".encode("utf-16-le"), b"F" * (17 << 20)])
def test_what_is_no_dockerfile_at_all(source: bytes) -> None:
    with pytest.raises(DockerfileError) as caught:
        read(source)
    assert caught.value.problem.remedy


def test_the_longest_line_is_read() -> None:
    line = b"RUN " + b"x" * (LINE_LIMIT - 4)
    assert len(read(line + b"\n" + line).statements) == 2


def test_bytes_that_are_not_utf8_survive_in_files_only() -> None:
    found = read(b"COPY <<E /\xe9\n\xe9t\xe9\nE\n# \xff\nRUN <<E\n\xe9\nE\nMAINTAINER \xe9\xe8\n").statements
    assert found[0].heredocs[0].content.encode("utf-8", "surrogateescape") == b"\xe9t\xe9\n"
    assert found[0].rest == "<<E /\ufffd"
    assert found[1].heredocs[0].content == "\ufffd\n"
    assert found[1].comments == ("\ufffd",)
    assert found[2].rest == "\ufffd\ufffd"
