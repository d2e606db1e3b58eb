"""Splitting a Dockerfile into statements, directives, comments and blank lines. Any other line is an error.

A statement is the logical line of an instruction with its here-documents, as in the Dockerfile reference ("Format",
"Parser directives", "Here-Documents"). What the reference leaves open is as in BuildKit:

- Directives (``syntax``, ``escape``, ``check``) come before anything else; an unknown one is a comment and ends them.
  ``# syntax=`` is recorded; no other front end is fetched or run.
- A line is continued if its last character before blanks is the escape character and the one before that is not.
- Comment lines within a continued instruction are ignored; so are empty lines, with a warning.
- RUN, COPY and ADD (also in ONBUILD) take a here-document for each ``<<NAME`` word, unless they are in JSON form.

The file is read in one pass. A physical line is limited to 65,535 bytes, as in BuildKit; a file with a NUL byte is
rejected. Bytes that are not UTF-8 become U+FFFD, except in the here-documents of COPY and ADD, which are kept byte for
byte as surrogate escapes.
"""

from __future__ import annotations

import posixpath
import re
from typing import Final

import msgspec

from executor.dockerfile import split
from executor.dockerfile.words import Style, expand_words
from platforms.errors import DockerfileError, Location

LINE_LIMIT: Final = 65535
"""Maximum length of a physical line in bytes, without its newline (the limit of BuildKit's scanner)."""
FILE_LIMIT: Final = 16 << 20
"""Maximum size of a Dockerfile in bytes."""
SHOWN: Final = 12
"""Maximum number of lines of an excerpt."""
NAME_LIMIT: Final = 255
"""Maximum length of a file name in bytes (NAME_MAX of linux/limits.h)."""
_ONE_NAME: Final = "give the here-document a name without a slash, and the directory to the destination"

_DIRECTIVE: Final = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)[\t\f\r ]*=(.*)", re.DOTALL)
_DIRECTIVES: Final = ("syntax", "escape", "check")
_HEREDOC: Final = re.compile(r"([0-9]*)<<(-?)[\t\n\f\r ]*+([^<]*)")
_HEREDOC_KEYWORDS: Final = ("run", "copy", "add")
_STRAY: Final = "[\udc80-\udcff]"  # compiled when used, as the next one: few builds have either
_LEADING_TABS: Final = r"(?m:^\t+)"
_MARKS: Final = Style(keep_quotes=True, keep_escapes=True, keep_unset=True)
_QUOTED_NAME: Final = Style(keep_quotes=True, keep_unset=True)
_BARE_NAME: Final = Style(keep_unset=True)


class Heredoc(msgspec.Struct, frozen=True):
    """A here-document. ``content`` is its lines as in the file, with line ends."""

    name: str
    content: str
    expand: bool
    """Whether variables are expanded: no part of the delimiter was quoted."""
    chomp: bool
    """Whether it was written ``<<-``: leading tabs are removed."""

    def chomped(self) -> str:
        """Return the content, without leading tabs if it was written ``<<-``."""
        return re.sub(_LEADING_TABS, "", self.content) if self.chomp else self.content

    def file(self) -> str:
        """Return the name of the file that it stands for: a single path component.

        BuildKit creates that file in an empty root directory: of ``../../name`` only ``name`` is used,
        ``directory/name`` and ``..`` are errors. Raises ``DockerfileError``.
        """
        name = posixpath.normpath(f"/{self.name}").lstrip("/")
        if not name:
            raise DockerfileError(f"<<{self.name}: is a directory", remedy=_ONE_NAME)
        if "/" in name:
            raise DockerfileError(f"<<{self.name}: no such directory", why="it is the name of a file", remedy=_ONE_NAME)
        if len(name.encode("utf-8", "surrogateescape")) > NAME_LIMIT:
            raise DockerfileError(f"<<{name[:32]}…: file name too long", why=f"{NAME_LIMIT} bytes are the most")
        return name


class Statement(msgspec.Struct, frozen=True):
    """An instruction, not yet parsed."""

    keyword: str
    """As written. Build checks report its case."""
    flags: tuple[str, ...]
    rest: str
    """The text after keyword and flags, stripped."""
    text: str
    """The logical line: continuations joined, comments removed, white space as written."""
    heredocs: tuple[Heredoc, ...]
    comments: tuple[str, ...]
    """The comment lines directly above, stripped, without ``#``."""
    location: Location


class Lines(msgspec.Struct, frozen=True):
    """A file, split."""

    name: str
    physical: tuple[str, ...]
    """The file's lines, without line ends."""
    statements: tuple[Statement, ...]
    escape: str
    syntax: str
    """The image of the ``syntax`` directive, "" if there is none."""
    check: str
    """The options of the ``check`` directive, "" if there is none."""
    empty_continuations: tuple[Location, ...]


def read(data: bytes, name: str = "Dockerfile") -> Lines:
    """Return the statements of a Dockerfile. Raises DockerfileError with the location of a line that is invalid."""
    return _LineScanner(data, name).run()


def location(physical: tuple[str, ...], name: str, line: int, end_line: int) -> Location:
    """Return the location of the lines ``line`` to ``end_line``, with up to two lines of context."""
    first = max(1, line - 2)
    last = min(end_line + 2, first + SHOWN - 1)
    return Location(name, line, end_line, physical[first - 1 : last], first)


def heredoc_mark(word: str) -> Heredoc | None:
    """Return the here-document, still empty, that a word such as ``<<-"EOF"`` starts; None if it starts none."""
    found = _HEREDOC.fullmatch(word)
    if found is None or not found.group(3):
        return None
    try:
        bare = expand_words(found.group(3), {}, style=_BARE_NAME)
        quoted = expand_words(found.group(3), {}, style=_QUOTED_NAME)
    except DockerfileError:  # an unclosed quote
        return None
    if len(bare) != 1:
        return None
    unquoted = len(quoted) == 1 and _quotes(quoted[0]) == _quotes(bare[0])
    return Heredoc(bare[0], "", expand=unquoted, chomp=bool(found.group(2)))


def _quotes(text: str) -> int:
    return text.count('"') + text.count("'")


def heredoc_marks(line: str) -> tuple[Heredoc, ...]:
    """Return the here-documents that a logical line starts, in order. A line with an unclosed quote starts none."""
    try:
        words = expand_words(line, {}, style=_MARKS)
    except DockerfileError:
        return ()
    return tuple(mark for mark in map(heredoc_mark, words) if mark is not None)


def may_hold_heredocs(keyword: str, rest: str, escape: str) -> bool:
    """Whether ``<<`` starts a here-document in this instruction."""
    if keyword.lower() == "onbuild":
        keyword, _, rest = split.command(rest, escape)
    return keyword.lower() in _HEREDOC_KEYWORDS and split.json_array(rest) is None


def _displayable(text: str) -> str:
    """Return ``text`` with U+FFFD for each byte that is not UTF-8, as a config or a log needs it."""
    return text if text.isascii() else re.sub(_STRAY, "\ufffd", text)


class _LineScanner:
    """The state of the pass over a file. ``at`` is the index of the next physical line."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.data = data
        self.raw = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").split("\n")
        if self.raw[-1] == "":
            self.raw.pop()
        self.physical = tuple(_displayable(line.rstrip("\r")) for line in self.raw)
        self.at = 0
        self.escape = "\\"
        self.directives: dict[str, str] = {}
        self.comments: list[str] = []
        self.empty: list[Location] = []

    def fail(self, what: str, line: int, end_line: int = 0, *, why: str = "", remedy: str = "") -> DockerfileError:
        place = location(self.physical, self.name, line, max(line, end_line))
        return DockerfileError(what, why=why, remedy=remedy, where=place)

    def run(self) -> Lines:
        self.refuse_what_is_no_text()
        self.read_directives()
        statements: list[Statement] = []
        while self.at < len(self.physical):
            statement = self.next_statement()
            if statement is not None:
                statements.append(statement)
        if not statements:
            raise self.fail(
                "file with no instructions" if self.data else "the Dockerfile cannot be empty",
                max(1, len(self.physical)),
                remedy="A Dockerfile needs at least a FROM instruction; is this the right file?",
            )
        return Lines(
            self.name,
            self.physical,
            tuple(statements),
            self.escape,
            self.directives.get("syntax", "").partition(" ")[0],
            self.directives.get("check", "").partition(" ")[0],
            tuple(self.empty),
        )

    def refuse_what_is_no_text(self) -> None:
        if len(self.data) > FILE_LIMIT:
            raise DockerfileError(
                f"{self.name} has {len(self.data)} bytes, more than the {FILE_LIMIT >> 20} MiB of a Dockerfile",
                remedy="Put large content into files of the build context and COPY them.",
            )
        if b"\0" in self.data:
            line = self.data.count(b"\n", 0, self.data.index(b"\0")) + 1
            raise DockerfileError(
                f"{self.name} is not text: line {line} has a NUL byte",
                remedy="Save it as UTF-8 without NUL bytes; a file saved as UTF-16 looks like this too.",
            )
        if len(self.data) > LINE_LIMIT:
            for number, raw in enumerate(self.raw, 1):
                if len(raw.encode("utf-8", "surrogateescape")) > LINE_LIMIT:
                    place = Location(self.name, number, number, (raw[:200] + "…",), number)
                    raise DockerfileError(
                        f"dockerfile line greater than max allowed size of {LINE_LIMIT}",
                        remedy="Break the line with continuations, or COPY a file that holds the content.",
                        where=place,
                    )

    def read_directives(self) -> None:
        for number, line in enumerate(self.physical, 1):
            found = _DIRECTIVE.fullmatch(line.lstrip(split.SPACE))
            key = found.group(1).lower() if found is not None else ""
            value = found.group(2).strip("\t\f\r ") if found is not None else ""
            if key not in _DIRECTIVES or not value:
                return
            if key in self.directives:
                raise self.fail(
                    f"only one {key} parser directive can be used", number, remedy="Remove all but one of them."
                )
            self.directives[key] = value
            if key == "escape":
                if value not in ("\\", "`"):
                    raise self.fail(
                        f"invalid escape token '{value}' does not match ` or \\",
                        number,
                        remedy="Write # escape=` or # escape=\\ (the default).",
                    )
                self.escape = value
            self.at = number

    def next_statement(self) -> Statement | None:
        """Return the statement that begins at the next line; None if that line is blank or a comment."""
        start = self.at + 1
        line = self.physical[self.at]
        stripped = line.lstrip(split.SPACE)
        self.at += 1
        if stripped.startswith("#"):
            self.note_comment(line)
            return None
        part, continued = self.part(stripped)
        if not continued and not part:
            return None
        text = part + self.continuation() if continued else part
        return self.statement(text, start)

    def note_comment(self, line: str) -> None:
        comment = split.strip(line[1:])
        if comment:
            self.comments.append(comment)
        else:
            self.comments.clear()

    def part(self, line: str) -> tuple[str, bool]:
        """Return a line without its continuation character, and whether it had one."""
        stripped = line.rstrip(" \t")
        if stripped.endswith(self.escape) and not stripped.endswith(self.escape * 2):
            return stripped[:-1], True
        return line, False

    def continuation(self) -> str:
        parts: list[str] = []
        has_empty = False
        continued = True
        while continued and self.at < len(self.physical):
            line = self.physical[self.at]
            self.at += 1
            stripped = line.lstrip(split.SPACE)
            if stripped.startswith("#"):
                continue
            if not stripped:
                has_empty = True
                continue
            part, continued = self.part(line)
            parts.append(part)
        if has_empty:
            self.empty.append(location(self.physical, self.name, self.at, self.at))
        return "".join(parts)

    def statement(self, text: str, start: int) -> Statement:
        keyword, flags, rest = split.command(text, self.escape)
        heredocs: tuple[Heredoc, ...] = ()
        try:
            is_file = keyword.lower() in ("copy", "add")
            if "<<" in text and may_hold_heredocs(keyword, rest, self.escape):
                heredocs = tuple(self.body(mark, start, file=is_file) for mark in heredoc_marks(text))
        except split.JSONStringsError as wrong:
            raise self.fail(str(wrong), start, self.at, remedy="Quote every element.") from wrong
        comments = tuple(self.comments)
        self.comments.clear()
        return Statement(
            keyword, flags, rest, text, heredocs, comments, location(self.physical, self.name, start, self.at)
        )

    def body(self, mark: Heredoc, start: int, *, file: bool) -> Heredoc:
        """Read the lines up to the delimiter; those of a ``file`` byte for byte."""
        first = self.at
        while self.at < len(self.physical):
            line = self.physical[self.at]
            self.at += 1
            if (line.lstrip("\t") if mark.chomp else line) == mark.name:
                content = "".join(f"{raw}\n" for raw in self.raw[first : self.at - 1])
                content = content if file else _displayable(content)
                return Heredoc(mark.name, content, mark.expand, mark.chomp)
        raise self.fail(
            "unterminated heredoc",
            start,
            why=f"no line after it is exactly {mark.name!r}",
            remedy=f"End the here-document with a line that holds {mark.name} and nothing else"
            + (", tabs before it apart." if mark.chomp else ", not even blanks before it."),
        )
