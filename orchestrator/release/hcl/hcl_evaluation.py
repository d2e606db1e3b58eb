"""Evaluating HCL expressions.

Source: HCL native syntax specification, "Expressions",
https://github.com/hashicorp/hcl/blob/main/hclsyntax/spec.md#expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Final, Protocol

import msgspec

from executor.dockerfile.suggestions import hint
from orchestrator.release.hcl import hcl_values as values
from orchestrator.release.hcl.hcl_syntax import (
    AttributeExpression,
    BinaryExpression,
    CallExpression,
    ConditionalExpression,
    Expression,
    FilePlace,
    ForExpression,
    IndexExpression,
    LiteralExpression,
    ObjectExpression,
    SplatExpression,
    TemplateExpression,
    TupleExpression,
    UnaryExpression,
    VariableExpression,
)
from orchestrator.release.hcl.hcl_values import HclValue, MappingValue, SequenceValue, ValueRefused
from platforms.errors import UsageError, printable

BLOCKS: Final = ("target", "group")
"""Names that begin a reference to a block."""
STEP_LIMIT: Final = 200_000
"""How many expressions the evaluation of all files together may evaluate."""
TIME_LIMIT: Final = 30.0
"""How long that may take, in seconds."""


class HclFunction(Protocol):
    """A function that expressions can call."""

    def call(self, expression: CallExpression, scope: HclScope) -> HclValue:
        """Return the result. Raises ``UsageError``."""


class HclNames(Protocol):
    """What an expression can refer to."""

    def variable(self, name: str, place: FilePlace) -> HclValue:
        """Return the value of the variable ``name``. Raises ``UsageError``."""

    def function(self, name: str, place: FilePlace) -> HclFunction:
        """Return the function ``name``. Raises ``UsageError``."""

    def reference(self, kind: str, name: str, attribute: str, place: FilePlace) -> HclValue:
        """Return an attribute of a target or a group; all of them for "". Raises ``UsageError``."""

    def spend(self, place: FilePlace) -> None:
        """Count one step. Raises ``UsageError`` if there were too many."""


class HclScope(msgspec.Struct, frozen=True):
    """Variables of a function, of a ``for`` or of a matrix, before all that ``names`` has."""

    names: HclNames
    variables: dict[str, HclValue]

    def with_variables(self, variables: dict[str, HclValue]) -> HclScope:
        """Return this scope with more variables."""
        return HclScope(self.names, {**self.variables, **variables})


def evaluate(expression: Expression, scope: HclScope) -> HclValue:
    """Return the value of ``expression``. Raises ``UsageError`` with its place."""
    scope.names.spend(expression.place)
    try:
        return _EVALUATORS[type(expression)](expression, scope)
    except ValueRefused as error:
        raise expression.place.refusal("cannot evaluate this", why=str(error)) from error


def _literal(expression: LiteralExpression, _: HclScope) -> HclValue:
    return expression.value


def _template(expression: TemplateExpression, scope: HclScope) -> str:
    parts: list[str] = []
    for each in expression.parts:
        value = evaluate(each, scope)
        if value is None:
            raise each.place.refusal("a text cannot contain null")
        try:
            parts.append(values.as_string(value))
        except ValueRefused as error:
            why = f"this is {values.described(value)}"
            raise each.place.refusal(
                "a text cannot contain this value", why=why, remedy="join() or jsonencode()"
            ) from error
    return values.text_of(*parts)


def _variable(expression: VariableExpression, scope: HclScope) -> HclValue:
    if expression.name in scope.variables:
        return scope.variables[expression.name]
    return scope.names.variable(expression.name, expression.place)


def _attribute(expression: AttributeExpression, scope: HclScope) -> HclValue:
    root = _reference(expression, scope)
    if root is not None:  # only what is referred to is evaluated, so that targets can refer to each other
        return scope.names.reference(*root, expression.place)
    of = evaluate(expression.of, scope)
    if not isinstance(of, MappingValue):
        why = "it is null" if of is None else f"it is {values.described(of)}"
        raise expression.place.refusal(f"this value has no attribute {printable(expression.name)}", why=why)
    if expression.name not in of.entries:
        why = f"there is no {printable(expression.name)}{hint(expression.name, of.entries)}"
        raise expression.place.refusal("unknown attribute", why=why)
    return of.entries[expression.name]


def _reference(expression: AttributeExpression, scope: HclScope) -> tuple[str, str, str] | None:
    """Return kind, name and attribute of ``target.NAME.ATTRIBUTE``, or of ``target.NAME``."""
    of, names = expression.of, [expression.name]
    if isinstance(of, AttributeExpression):
        names.insert(0, of.name)
        of = of.of
    if not isinstance(of, VariableExpression) or of.name not in BLOCKS or of.name in scope.variables:
        return None
    return of.name, names[0], names[1] if len(names) > 1 else ""


def _index(expression: IndexExpression, scope: HclScope) -> HclValue:
    return values.element(evaluate(expression.of, scope), evaluate(expression.key, scope))


def _splat(expression: SplatExpression, scope: HclScope) -> SequenceValue:
    of = evaluate(expression.of, scope)
    if of is None:
        return values.sequence("tuple", ())
    items = of.items if isinstance(of, SequenceValue) else (of,)
    return values.sequence("tuple", (evaluate(expression.each, scope.with_variables({"*": each})) for each in items))


def _call(expression: CallExpression, scope: HclScope) -> HclValue:
    function = scope.names.function(expression.name, expression.place)
    return function.call(expression, scope)


def arguments(expression: CallExpression, scope: HclScope) -> list[HclValue]:
    """Return the values of the arguments of a call, those of the last one if it is expanded. Raises ``UsageError``."""
    found = [evaluate(each, scope) for each in expression.arguments]
    if expression.expand:
        last = found.pop()
        if not isinstance(last, SequenceValue):
            raise expression.arguments[-1].place.refusal("only a sequence can be expanded to arguments")
        found += last.items
    return found


def _unary(expression: UnaryExpression, scope: HclScope) -> HclValue:
    operand = evaluate(expression.operand, scope)
    if expression.operator == "!":
        return not values.as_bool(operand)
    return values.rounded(-values.as_number(operand))


def _binary(expression: BinaryExpression, scope: HclScope) -> HclValue:
    left, right = evaluate(expression.left, scope), evaluate(expression.right, scope)
    operator = expression.operator
    if operator in ("==", "!="):
        return values.equal(left, right) == (operator == "==")
    if operator in ("&&", "||"):
        one, other = values.as_bool(left), values.as_bool(right)
        return (one and other) if operator == "&&" else (one or other)
    return _NUMBER_OPERATORS[operator](values.as_number(left), values.as_number(right))


def _conditional(expression: ConditionalExpression, scope: HclScope) -> HclValue:
    condition = evaluate(expression.condition, scope)
    try:
        chosen = values.as_bool(condition)
    except ValueRefused as error:
        raise expression.condition.place.refusal("the condition is not a bool", why=str(error)) from error
    # An error of the result that is not chosen does not matter, but its type does: both results have one type.
    other = _result(expression.no if chosen else expression.yes, scope)
    result = evaluate(expression.yes if chosen else expression.no, scope)
    if isinstance(other, _Failed) or other is None or result is None:
        return result
    type_ = values.unify((values.type_of(result), values.type_of(other)))
    if type_ is None:
        why = f"one is {values.described(result)}, the other {values.described(other)}"
        raise expression.place.refusal("the results of a condition have to be of one type", why=why)
    return values.convert(result, type_)


class _Failed(msgspec.Struct, frozen=True):
    """The result that was not chosen cannot be evaluated."""


def _result(expression: Expression, scope: HclScope) -> HclValue | _Failed:
    try:
        return evaluate(expression, scope)
    except UsageError:
        return _Failed()


def _tuple(expression: TupleExpression, scope: HclScope) -> SequenceValue:
    return values.sequence("tuple", (evaluate(each, scope) for each in expression.items))


def _object(expression: ObjectExpression, scope: HclScope) -> MappingValue:
    entries: dict[str, HclValue] = {}
    for key, value in expression.entries:
        name = evaluate(key, scope)
        if name is None:
            raise key.place.refusal("a key cannot be null")
        entries[values.as_string(name)] = evaluate(value, scope)
    return values.mapping("object", entries)


def _for(expression: ForExpression, scope: HclScope) -> HclValue:
    collection = evaluate(expression.collection, scope)
    if expression.joined:
        return values.text_of(*(_joinable(expression, inner) for inner in _rounds(expression, collection, scope)))
    if expression.result_key is None:
        rounds = _rounds(expression, collection, scope)
        return values.sequence("tuple", (evaluate(expression.result, inner) for inner in rounds))
    entries: dict[str, HclValue] = {}
    groups: dict[str, list[HclValue]] = {}
    for inner in _rounds(expression, collection, scope):
        key = evaluate(expression.result_key, inner)
        if key is None:
            raise expression.result_key.place.refusal("a key cannot be null")
        name, result = values.as_string(key), evaluate(expression.result, inner)
        if expression.grouped:
            groups.setdefault(name, []).append(result)
        elif name in entries:
            why = f"two items have the key {printable(name)}"
            raise expression.place.refusal(
                "a key is there twice", why=why, remedy="group them with ... after the value"
            )
        else:
            entries[name] = result
    entries.update((name, values.sequence("tuple", items)) for name, items in groups.items())
    return values.mapping("object", entries)


def _joinable(expression: ForExpression, scope: HclScope) -> str:
    return values.as_string(evaluate(expression.result, scope))


def _rounds(expression: ForExpression, collection: HclValue, scope: HclScope) -> Iterator[HclScope]:
    """Yield a scope with the variables of the ``for`` for each element that its condition permits."""
    for key, value in items_of(collection):
        inner = scope.with_variables({expression.value: value})
        if expression.key:
            inner = inner.with_variables({expression.key: key})
        if expression.condition is not None:
            wanted = evaluate(expression.condition, inner)
            if not values.as_bool(wanted):
                continue
        yield inner


def items_of(collection: HclValue) -> Iterator[tuple[HclValue, HclValue]]:
    """Yield keys and values of a collection. Raises ``ValueRefused`` for what is none."""
    if isinstance(collection, MappingValue):
        yield from collection.entries.items()
    elif isinstance(collection, SequenceValue):
        for at, each in enumerate(collection.items):
            yield (each if collection.kind == "set" else at), each
    else:
        raise ValueRefused(f"{values.described(collection)} has no elements")


_NUMBER_OPERATORS: Final[dict[str, Callable[[int | Fraction, int | Fraction], HclValue]]] = {
    "+": lambda one, other: values.rounded(one + other),
    "-": lambda one, other: values.rounded(one - other),
    "*": lambda one, other: values.rounded(one * other),
    "/": values.divided,
    "%": values.remainder,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}
_EVALUATORS: Final[dict[type, Callable[..., HclValue]]] = {
    LiteralExpression: _literal,
    TemplateExpression: _template,
    VariableExpression: _variable,
    AttributeExpression: _attribute,
    IndexExpression: _index,
    SplatExpression: _splat,
    CallExpression: _call,
    UnaryExpression: _unary,
    BinaryExpression: _binary,
    ConditionalExpression: _conditional,
    TupleExpression: _tuple,
    ObjectExpression: _object,
    ForExpression: _for,
}
