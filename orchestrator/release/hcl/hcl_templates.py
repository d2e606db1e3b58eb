"""The templates of HCL files: texts with interpolations and directives (``%{if}``, ``%{for}``).

Source: HCL native syntax specification, section Templates,
https://github.com/hashicorp/hcl/blob/main/hclsyntax/spec.md.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from orchestrator.release.hcl.hcl_syntax import (
    ConditionalExpression,
    Expression,
    FilePlace,
    ForExpression,
    LiteralExpression,
    TemplateExpression,
)


class TemplateText(msgspec.Struct, frozen=True):
    """A literal part of a template."""

    text: str
    place: FilePlace


class TemplateInterpolation(msgspec.Struct, frozen=True):
    """An expression in a template: ``${…}``."""

    place: FilePlace
    expression: Expression


class TemplateDirective(msgspec.Struct, frozen=True):
    """One of the marks of an ``if`` or ``for`` in a template: ``%{…}``."""

    place: FilePlace
    kind: Literal["if", "else", "endif", "for", "endfor"]
    condition: Expression | None = None
    names: tuple[str, ...] = ()


TemplatePart: TypeAlias = TemplateText | TemplateInterpolation | TemplateDirective


def template(parts: list[TemplatePart], place: FilePlace) -> Expression:
    """Return the template of ``parts``. Raises ``UsageError``."""
    return _joined(_TemplateReader(parts, place).until(), place)


class _TemplateReader:
    """Nests the directives of a template."""

    def __init__(self, parts: list[TemplatePart], place: FilePlace) -> None:
        self._parts = parts
        self._place = place
        self._at = 0

    def until(self, *ends: str) -> list[Expression]:
        """Return the expressions up to one of the directives ``ends``, or to the end."""
        found: list[Expression] = []
        while self._at < len(self._parts):
            part = self._parts[self._at]
            if isinstance(part, TemplateDirective) and part.kind in ends:
                return found
            self._at += 1
            if isinstance(part, TemplateText):
                found.append(LiteralExpression(part.place, part.text))
            elif isinstance(part, TemplateInterpolation):
                found.append(part.expression)
            elif part.condition is None:
                raise part.place.refusal(f"the directive {part.kind} has no beginning")
            elif part.kind == "if":
                found.append(self._if(part.place, part.condition))
            else:
                found.append(self._for(part.place, part.condition, part.names))
        if ends:
            raise self._place.refusal(f"the directive {ends[-1]} is missing in this text")
        return found

    def _if(self, place: FilePlace, condition: Expression) -> ConditionalExpression:
        yes: list[Expression] = self.until("else", "endif")
        no: list[Expression] = []
        if self._ended() == "else":
            no = self.until("endif")
            self._ended()
        return ConditionalExpression(place, condition, _joined(yes, place), _joined(no, place))

    def _for(self, place: FilePlace, collection: Expression, names: tuple[str, ...]) -> ForExpression:
        body = _joined(self.until("endfor"), place)
        self._ended()
        key = names[0] if len(names) > 1 else ""
        return ForExpression(place, key, names[-1], collection, None, body, None, joined=True)

    def _ended(self) -> str:
        part = self._parts[self._at]
        self._at += 1
        assert isinstance(part, TemplateDirective)
        return part.kind


def _joined(parts: list[Expression], place: FilePlace) -> Expression:
    if not parts:
        return LiteralExpression(place, "")
    if len(parts) == 1 and isinstance(parts[0], LiteralExpression) and isinstance(parts[0].value, str):
        return parts[0]
    return TemplateExpression(place, tuple(parts))


def flushed(parts: list[TemplatePart]) -> list[TemplatePart]:
    """Return the parts of a heredoc without the white space that all its lines begin with."""
    indents: list[int] = []
    first: set[int] = set()
    begins = True
    for at, part in enumerate(parts):
        if begins:
            text = part.text if isinstance(part, TemplateText) else ""
            if not (text.endswith("\n") and not text.strip()):
                indents.append(len(text) - len(text.lstrip()))
                if isinstance(part, TemplateText):
                    first.add(at)
        begins = isinstance(part, TemplateText) and part.text.endswith("\n")
    least = min(indents, default=0)
    return [
        TemplateText(part.text[least:], part.place) if at in first and isinstance(part, TemplateText) else part
        for at, part in enumerate(parts)
    ]
