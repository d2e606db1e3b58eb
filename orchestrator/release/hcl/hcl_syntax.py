"""The syntax of HCL files as data: blocks, attributes and expressions, with their places.

Sources: HCL native syntax specification, https://github.com/hashicorp/hcl/blob/main/hclsyntax/spec.md, and the JSON
syntax specification beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from orchestrator.yaml_settings import SettingsSource
from platforms.errors import UsageError

if TYPE_CHECKING:
    from fractions import Fraction

DEPTH_LIMIT: Final = 64
"""How deeply expressions may be nested."""
REMEDY: Final = "pip install 'kanifold[bake]'"


class FilePlace(msgspec.Struct, frozen=True):
    """Where something begins in a file. ``line`` and ``column`` count from 1."""

    source: SettingsSource
    line: int
    column: int

    def refusal(self, what: str, why: str = "", remedy: str = "") -> UsageError:
        """Return the error ``what`` about this place."""
        where = f"{self.source.file}:{self.line}:{self.column}"
        return UsageError(f"{where}: {what}", why=why, remedy=remedy, where=self.source.location(self.line))


class LiteralExpression(msgspec.Struct, frozen=True):
    """A number, a bool, null, or a text without anything to evaluate."""

    place: FilePlace
    value: str | bool | int | Fraction | None


class TemplateExpression(msgspec.Struct, frozen=True):
    """A text with interpolations: the parts are joined."""

    place: FilePlace
    parts: tuple[Expression, ...]


class VariableExpression(msgspec.Struct, frozen=True):
    """A name."""

    place: FilePlace
    name: str


class AttributeExpression(msgspec.Struct, frozen=True):
    """``.name`` after an expression."""

    place: FilePlace
    of: Expression
    name: str


class IndexExpression(msgspec.Struct, frozen=True):
    """``[key]`` or ``.0`` after an expression."""

    place: FilePlace
    of: Expression
    key: Expression


class SplatExpression(msgspec.Struct, frozen=True):
    """``[*]`` or ``.*`` after an expression: ``each`` is evaluated for every element, which is the variable "*"."""

    place: FilePlace
    of: Expression
    each: Expression


class CallExpression(msgspec.Struct, frozen=True):
    """A function with its arguments; ``expand`` tells that the last one is a sequence of arguments."""

    place: FilePlace
    name: str
    arguments: tuple[Expression, ...]
    expand: bool


class UnaryExpression(msgspec.Struct, frozen=True):
    """``-`` or ``!``."""

    place: FilePlace
    operator: str
    operand: Expression


class BinaryExpression(msgspec.Struct, frozen=True):
    """An operator between two operands."""

    place: FilePlace
    operator: str
    left: Expression
    right: Expression


class ConditionalExpression(msgspec.Struct, frozen=True):
    """``condition ? yes : no``; a template's ``%{ if }`` as well."""

    place: FilePlace
    condition: Expression
    yes: Expression
    no: Expression


class TupleExpression(msgspec.Struct, frozen=True):
    """``[…]``."""

    place: FilePlace
    items: tuple[Expression, ...]


class ObjectExpression(msgspec.Struct, frozen=True):
    """``{…}``."""

    place: FilePlace
    entries: tuple[tuple[Expression, Expression], ...]


class ForExpression(msgspec.Struct, frozen=True):
    """``[for …]``, ``{for …}`` (with ``result_key``), and ``%{ for }`` (``joined``)."""

    place: FilePlace
    key: str
    """"" if there is none."""
    value: str
    collection: Expression
    result_key: Expression | None
    result: Expression
    condition: Expression | None
    grouped: bool = False
    joined: bool = False


Expression: TypeAlias = (
    LiteralExpression
    | TemplateExpression
    | VariableExpression
    | AttributeExpression
    | IndexExpression
    | SplatExpression
    | CallExpression
    | UnaryExpression
    | BinaryExpression
    | ConditionalExpression
    | TupleExpression
    | ObjectExpression
    | ForExpression
)


class HclBlock(msgspec.Struct, frozen=True):
    """A block, such as ``target "name" { … }``."""

    place: FilePlace
    kind: str
    labels: tuple[str, ...]
    body: HclBody


class HclBody(msgspec.Struct, frozen=True):
    """What a file or a block has, in its order."""

    place: FilePlace
    attributes: dict[str, Expression]
    names: dict[str, FilePlace]
    """Where the attributes are named."""
    blocks: tuple[HclBlock, ...]
