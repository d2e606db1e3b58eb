"""Bake files in JSON: the same blocks and expressions as in HCL's native syntax.

Source: https://github.com/hashicorp/hcl/blob/main/json/spec.md. A string is a template; an object in the place of a
block has the labels of blocks as its keys.
"""

from __future__ import annotations

import json.decoder
import re
from collections.abc import Mapping
from typing import Final

from orchestrator.release.hcl.hcl_parser import parse_template
from orchestrator.release.hcl.hcl_syntax import (
    DEPTH_LIMIT,
    Expression,
    FilePlace,
    HclBlock,
    HclBody,
    LiteralExpression,
    ObjectExpression,
    TupleExpression,
)
from orchestrator.release.hcl.hcl_values import ValueRefused, parse_number
from orchestrator.yaml_settings import SettingsSource
from platforms.errors import UsageError, printable

_LABELS: Final[Mapping[str, int]] = {"variable": 1, "function": 1, "target": 1, "group": 1, "validation": 0}
"""How many labels each kind of block has."""
_BLOCKS: Final[Mapping[str, tuple[str, ...]]] = {
    "": ("variable", "function", "target", "group"),
    "variable": ("validation",),
}
"""The kinds of blocks in a file, and in each kind of block."""
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_WORDS: Final = {"true": True, "false": False, "null": None}


def parse(data: bytes, file: str) -> HclBody:
    """Return what the JSON file ``file`` has. Raises ``UsageError``."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not JSON", why="it is not UTF-8") from error
    reader = _JsonReader(text, file)
    return _body(reader.document(), "")


class _JsonReader:
    """Reads one document; every value has its place."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._source = SettingsSource(file, tuple(text.splitlines()))
        self._at = 0

    def document(self) -> Expression:
        found = self._value(0)
        if self._peek():
            raise self._place().refusal("it is not JSON", why="there is more after the document")
        return found

    def _place(self) -> FilePlace:
        before = self._text[: self._at]
        return FilePlace(self._source, before.count("\n") + 1, self._at - before.rfind("\n"))

    def _peek(self) -> str:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._place().refusal("it is not JSON", why=f"{character} is expected here")
        self._at += 1

    def _value(self, depth: int) -> Expression:
        character, place = self._peek(), self._place()
        if depth > DEPTH_LIMIT:
            raise place.refusal("it is nested too deeply")
        if character == "{":
            return ObjectExpression(place, tuple(self._entries(depth)))
        if character == "[":
            return TupleExpression(place, tuple(self._items(depth)))
        if character == '"':
            return parse_template(self._string(), place)
        if match := _NUMBER.match(self._text, self._at):
            self._at = match.end()
            try:
                return LiteralExpression(place, parse_number(match[0]))
            except ValueRefused as error:
                raise place.refusal("it is not a number", why=str(error)) from error
        for word, value in _WORDS.items():
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return LiteralExpression(place, value)
        raise place.refusal("it is not JSON", why="a value is expected here")

    def _string(self) -> str:
        place = self._place()
        try:
            text, self._at = json.decoder.scanstring(self._text, self._at + 1, True)  # type: ignore[attr-defined]
        except json.JSONDecodeError as error:
            raise place.refusal("it is not JSON", why=error.msg) from error
        return text.encode(errors="replace").decode()  # type: ignore[no-any-return]

    def _entries(self, depth: int) -> list[tuple[Expression, Expression]]:
        found: list[tuple[Expression, Expression]] = []
        self._at += 1
        while self._peek() != "}":
            if found:
                self._expect(",")
            place = self._place()
            if self._peek() != '"':
                raise self._place().refusal("it is not JSON", why="a key in quotes is expected here")
            key = parse_template(self._string(), place)
            self._expect(":")
            found.append((key, self._value(depth + 1)))
        self._at += 1
        return found

    def _items(self, depth: int) -> list[Expression]:
        found: list[Expression] = []
        self._at += 1
        while self._peek() != "]":
            if found:
                self._expect(",")
            found.append(self._value(depth + 1))
        self._at += 1
        return found


def _body(expression: Expression, within: str) -> HclBody:
    attributes: dict[str, Expression] = {}
    names: dict[str, FilePlace] = {}
    blocks: list[HclBlock] = []
    for one in _objects(expression):
        for key, value in one.entries:
            name = _name(key)
            if name == "//":
                continue
            if name in _BLOCKS.get(within, ()):
                blocks += _blocks(name, key.place, value, _LABELS[name], ())
            elif name in attributes:
                raise key.place.refusal(
                    f'"{printable(name)}" is set twice', why=f"it is set in line {names[name].line}"
                )
            else:
                attributes[name], names[name] = value, key.place
    return HclBody(expression.place, attributes, names, tuple(blocks))


def _objects(expression: Expression) -> list[ObjectExpression]:
    """Return the object, or the objects of a list, that stand for a body."""
    items = expression.items if isinstance(expression, TupleExpression) else (expression,)
    found = [each for each in items if isinstance(each, ObjectExpression)]
    if len(found) < len(items):
        raise expression.place.refusal("an object is expected here")
    return found


def _name(key: Expression) -> str:
    if not isinstance(key, LiteralExpression) or not isinstance(key.value, str):
        raise key.place.refusal("the name of a block or an attribute is expected here")
    return key.value


def _blocks(kind: str, place: FilePlace, value: Expression, labels: int, found: tuple[str, ...]) -> list[HclBlock]:
    if labels == 0:
        items = value.items if isinstance(value, TupleExpression) else (value,)
        return [HclBlock(place, kind, found, _body(each, kind)) for each in items]
    blocks: list[HclBlock] = []
    for one in _objects(value):
        for key, inner in one.entries:
            blocks += _blocks(kind, key.place, inner, labels - 1, (*found, _name(key)))
    return blocks
