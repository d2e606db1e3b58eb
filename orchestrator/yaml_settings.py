"""Reading YAML settings files that people write: every value has its place, so that errors name line and column.

YAML 1.1 without aliases, merge keys and tags of other types. Scalars are texts: ``1.10`` and ``no`` stay as written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from executor.dockerfile.suggestions import hint
from platforms import regular
from platforms.errors import Location, UsageError, printable

if TYPE_CHECKING:
    from yaml import Node

FILE_LIMIT: Final = 1 << 20
"""Maximum size of a settings file in bytes."""
_AROUND: Final = 2
"""Number of lines that an error shows before and after the one that it is about."""
_TAG: Final = "tag:yaml.org,2002:"
_TAGS: Final = frozenset(f"{_TAG}{each}" for each in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map"))
"""What a plain value is resolved to; all scalars are read as texts."""


class SettingsSource(msgspec.Struct, frozen=True):
    """A settings file that was read."""

    file: str
    lines: tuple[str, ...]

    def location(self, line: int) -> Location:
        """Return the location of ``line``, which counts from 1, with the lines around it."""
        first = max(1, line - _AROUND)
        return Location(self.file, line, line, self.lines[first - 1 : line + _AROUND], first)


class Setting(msgspec.Struct, frozen=True):
    """A value of a settings file, with its place. ``line`` and ``column`` count from 1."""

    source: SettingsSource
    name: str
    """The keys that lead to it, with dots between them: ``runners.linux/arm64``; "" for the whole document."""
    line: int
    column: int
    value: str | tuple[Setting, ...] | dict[str, Setting]
    """A scalar as text, a sequence, or a mapping."""

    def refusal(self, why: str, remedy: str = "") -> UsageError:
        """Return the error that this value is wrong."""
        place = f"{self.source.file}:{self.line}:{self.column}"
        what = f"{place}: {printable(self.name)}" if self.name else place
        return UsageError(what, why=why, remedy=remedy, where=self.source.location(self.line))

    def text(self) -> str:
        """Return the scalar. Raises ``UsageError`` for anything else and for an empty one."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.refusal("a text is expected")
        return self.value.strip()

    def number(self, least: int = 0) -> int:
        """Return the whole number, at least ``least``. Raises ``UsageError`` for anything else."""
        text = self.text()
        if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) >= least):
            raise self.refusal(f"a whole number is expected, {least} or more")
        return int(text)

    def sequence(self) -> tuple[Setting, ...]:
        """Return the items of the sequence; () for an empty value. Raises ``UsageError`` for anything else."""
        if isinstance(self.value, tuple):
            return self.value
        if self.value == "":
            return ()
        raise self.refusal("a list is expected")

    def texts(self) -> tuple[str, ...]:
        """Return the texts of a sequence, or the only one of a scalar. Raises ``UsageError`` for anything else."""
        if isinstance(self.value, str) and self.value:
            return (self.text(),)
        return tuple(each.text() for each in self.sequence())

    def mapping(self, *known: str) -> dict[str, Setting]:
        """Return the entries of the mapping by key; {} for an empty value.

        Raises ``UsageError`` for anything else, and for a key that is not one of ``known``, if any are given.
        """
        if self.value == "":
            return {}
        if not isinstance(self.value, dict):
            raise self.refusal("a mapping is expected")
        for key, each in self.value.items():
            if known and key not in known:
                raise each.refusal(f"unknown key{hint(key, known)}", remedy=f"known are {', '.join(known)}")
        return self.value


def read(path: str) -> Setting:
    """Return the document in the file ``path``. Raises ``UsageError``; ``FileNotFoundError`` if there is no file."""
    try:
        with regular.open_file(path) as file:
            data = file.read(FILE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror or str(error)) from error
    if len(data) > FILE_LIMIT:
        raise UsageError(f"{path} is too large", why=f"it has more than {FILE_LIMIT} bytes")
    return parse(data, path)


def parse(data: bytes, file: str) -> Setting:
    """Return the document ``data`` of the file ``file``. Raises ``UsageError``."""
    import yaml

    try:
        text = data.decode()
        source = SettingsSource(file, tuple(text.splitlines()))
        node = yaml.compose(text, yaml.SafeLoader)
        return Setting(source, "", 1, 1, "") if node is None else _Reader(source).setting(node, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise UsageError(
            f"{file}:{line}:{column}: it is not YAML", why=error.problem or "", where=source.location(line)
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not YAML", why="it is not UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{file} is not YAML", why=printable(str(error))) from error
    except RecursionError as error:
        raise UsageError(f"{file} cannot be read", why="it is nested too deeply") from error


class _Reader:
    """Turns the nodes of one document into settings. Each node is read once: one that comes again is an alias."""

    def __init__(self, source: SettingsSource) -> None:
        self._source = source
        self._seen: set[tuple[int, int, str]] = set()
        """Where the nodes that were read begin and end, and of which kind they are."""

    def setting(self, node: Node, name: str) -> Setting:
        import yaml

        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        empty = Setting(self._source, name, line, column, "")
        extent = node.start_mark.index, node.end_mark.index, type(node).__name__
        if extent in self._seen:
            raise empty.refusal("aliases are not supported", remedy="write the value out")
        self._seen.add(extent)
        if node.tag not in _TAGS:
            raise empty.refusal("tags and merge keys are not supported")
        if isinstance(node, yaml.ScalarNode):
            null = node.tag == f"{_TAG}null" and node.style is None
            return Setting(self._source, name, line, column, "" if null else node.value)
        if isinstance(node, yaml.SequenceNode):
            items = tuple(self.setting(each, f"{name}[{number}]") for number, each in enumerate(node.value))
            return Setting(self._source, name, line, column, items)
        entries: dict[str, Setting] = {}
        for key, value in node.value:
            named = self.setting(key, f"{name}.{key.value}" if name else str(key.value))
            if not isinstance(named.value, str) or not named.value:
                raise empty.refusal("a key is not a text")
            if named.value in entries:
                raise named.refusal("the key is there twice")
            found = self.setting(value, named.name)
            # An empty value has no place of its own; an error about a value is easiest to find by its key.
            entries[named.value] = Setting(self._source, named.name, named.line, named.column, found.value)
        return Setting(self._source, name, line, column, entries)
