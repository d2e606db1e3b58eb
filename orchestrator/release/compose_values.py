"""The values of Compose files, with their places: YAML with anchors and merge keys, in bounds.

Scalars are texts in the form that Compose gives them: ``1.10`` is 1.1, ``yes`` stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from orchestrator.release.hcl.hcl_syntax import FilePlace
from orchestrator.yaml_settings import SettingsSource
from platforms.errors import UsageError, printable

if TYPE_CHECKING:
    from yaml import MappingNode, Node, ScalarNode

COUNT_LIMIT: Final = 50_000
"""How many values a file may have, those that aliases repeat included."""
DEPTH_LIMIT: Final = 64
_TAG: Final = "tag:yaml.org,2002:"
_INTEGER: Final = re.compile(r"[-+]?(?:0x[0-9a-fA-F_]+|0o?[0-7_]+|0b[01_]+|[0-9][0-9_]*)")
_FLOAT: Final = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9_]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?")


class ComposeValue(msgspec.Struct, frozen=True):
    """A scalar as text, None for null, a sequence, or a mapping."""

    place: FilePlace
    value: str | tuple[ComposeValue, ...] | Mapping[str, ComposeValue] | None
    literal: bool = False
    """Whether the text is a number or a truth, which has no variables."""

    @property
    def is_null(self) -> bool:
        """Whether it is null, or empty."""
        return self.value is None

    @property
    def is_scalar(self) -> bool:
        """Whether it is one text."""
        return isinstance(self.value, str)

    @property
    def is_mapping(self) -> bool:
        """Whether it has keys."""
        return isinstance(self.value, Mapping)

    def get(self, key: str) -> ComposeValue | None:
        """Return the value of ``key``; None if there is none, or if this is no mapping."""
        return self.value.get(key) if isinstance(self.value, Mapping) else None

    def text(self) -> str:
        """Return the scalar; "" for null. Raises ``UsageError`` for anything else."""
        if self.value is None:
            return ""
        if not isinstance(self.value, str):
            raise self.place.refusal("a text is expected here")
        return self.value

    def items(self) -> tuple[ComposeValue, ...]:
        """Return the items of the sequence. Raises ``UsageError`` for anything else."""
        if self.value is None:
            return ()
        if not isinstance(self.value, tuple):
            raise self.place.refusal("a list is expected here")
        return self.value

    def mapping(self) -> Mapping[str, ComposeValue]:
        """Return the entries of the mapping. Raises ``UsageError`` for anything else."""
        if self.value is None:
            return {}
        if not isinstance(self.value, Mapping):
            raise self.place.refusal("a mapping is expected here")
        return self.value

    def map_texts(self, change: Callable[[str, str], str]) -> ComposeValue:
        """Return this value with each text changed, which ``change`` gets with its place."""
        if isinstance(self.value, str):
            where = f"{self.place.source.file}:{self.place.line}:{self.place.column}"
            return self if self.literal else ComposeValue(self.place, change(self.value, where))
        if isinstance(self.value, tuple):
            return ComposeValue(self.place, tuple(each.map_texts(change) for each in self.value))
        if isinstance(self.value, Mapping):
            return ComposeValue(self.place, {key: each.map_texts(change) for key, each in self.value.items()})
        return self


def merged(one: ComposeValue, other: ComposeValue) -> ComposeValue:
    """Return ``one`` with ``other`` over it: mappings are merged by key, lists are joined, the rest is replaced."""
    if isinstance(one.value, Mapping) and isinstance(other.value, Mapping):
        entries = dict(one.value)
        for key, each in other.value.items():
            entries[key] = merged(entries[key], each) if key in entries else each
        return ComposeValue(other.place, entries)
    if isinstance(one.value, tuple) and isinstance(other.value, tuple):
        return ComposeValue(other.place, _joined(one.value, other.value))
    if isinstance(one.value, Mapping) and isinstance(other.value, tuple):
        return merged(one, _as_mapping(other))
    if isinstance(one.value, tuple) and isinstance(other.value, Mapping):
        return merged(_as_mapping(one), other)
    return one if other.value is None else other


def _joined(one: tuple[ComposeValue, ...], other: tuple[ComposeValue, ...]) -> tuple[ComposeValue, ...]:
    known = [each.value for each in one]
    return (*one, *(each for each in other if each.value not in known))


def _as_mapping(value: ComposeValue) -> ComposeValue:
    entries: dict[str, ComposeValue] = {}
    for each in value.items():
        key, equals, text = each.text().partition("=")
        entries[key] = ComposeValue(each.place, text if equals else None)
    return ComposeValue(value.place, entries)


def parse(data: bytes, file: str) -> ComposeValue:
    """Return the document of the file ``file``. Raises ``UsageError``."""
    import yaml

    try:
        text = data.decode("utf-8-sig")
        source = SettingsSource(file, tuple(text.splitlines()))
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            raise UsageError(f"{file} is empty")
        return _ComposeReader(source).value(node, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise FilePlace(source, line, column).refusal("it is not YAML", why=error.problem or "") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not YAML", why="it is not UTF-8") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not YAML", why=printable(str(error))) from error
    except RecursionError as error:
        raise UsageError(f"{file} cannot be read", why="it is nested too deeply") from error


class _ComposeReader:
    """Turns the nodes of one document into values. What aliases repeat is counted each time."""

    def __init__(self, source: SettingsSource) -> None:
        self._source = source
        self._count = 0

    def value(self, node: Node, depth: int) -> ComposeValue:
        import yaml

        place = FilePlace(self._source, node.start_mark.line + 1, node.start_mark.column + 1)
        self._count += 1
        if self._count > COUNT_LIMIT or depth > DEPTH_LIMIT:
            raise place.refusal("the file is too large or nested too deeply", why="aliases count as what they repeat")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, place)
        if isinstance(node, yaml.SequenceNode):
            return ComposeValue(place, tuple(self.value(each, depth + 1) for each in node.value))
        assert isinstance(node, yaml.MappingNode)
        return ComposeValue(place, self._entries(node, depth))

    def _entries(self, node: MappingNode, depth: int) -> dict[str, ComposeValue]:
        import yaml

        inherited: dict[str, ComposeValue] = {}
        own: dict[str, ComposeValue] = {}
        for key, each in node.value:
            if key.tag == f"{_TAG}merge":
                for part in each.value if isinstance(each, yaml.SequenceNode) else (each,):
                    found = self.value(part, depth + 1)
                    inherited = {**found.mapping(), **inherited}
                continue
            name = self.value(key, depth + 1)
            if name.text() in own:
                raise name.place.refusal(f"the key {printable(name.text())} is there twice")
            own[name.text()] = self.value(each, depth + 1)
        return {**inherited, **own}


def _scalar(node: ScalarNode, place: FilePlace) -> ComposeValue:
    text: str = node.value
    if node.style is not None or node.tag == f"{_TAG}str":
        return ComposeValue(place, text)
    if text in ("", "~", "null", "Null", "NULL"):
        return ComposeValue(place, None)
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return ComposeValue(place, text.lower(), True)
    if _INTEGER.fullmatch(text) and len(text) < 20:
        digits = text.replace("_", "")
        plain = digits.lstrip("+-")
        octal = plain.startswith("0") and len(plain) > 1 and plain.isdecimal() and not set(plain) & {"8", "9"}
        number = int(plain, 8) if octal else int(plain, 0) if not plain.isdecimal() else int(plain)
        return ComposeValue(place, str(-number if digits.startswith("-") else number), True)
    if _FLOAT.fullmatch(text) and len(text) < 40:
        found = float(text.replace("_", ""))
        exponent = abs(found) >= 1e21 or 0 < abs(found) < 1e-4
        plain = repr(found) if exponent else f"{found:f}" if "e" in repr(found) else repr(found)
        return ComposeValue(place, plain.removesuffix(".0"), True)
    return ComposeValue(place, text)
