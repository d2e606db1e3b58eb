"""The functions that expressions of a bake file can call.

Source: the standard library of bake, https://docs.docker.com/build/bake/stdlib/, whose functions are those of go-cty
and go-cty-funcs. What they do is in ``hcl_text.py``, ``hcl_collections.py``, ``hcl_numbers.py``, ``hcl_times.py`` and
``hcl_encodings.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from orchestrator.release.hcl import hcl_collections, hcl_encodings, hcl_numbers, hcl_text, hcl_times
from orchestrator.release.hcl import hcl_values as values
from orchestrator.release.hcl.hcl_evaluation import HclFunction, HclScope, arguments, evaluate
from orchestrator.release.hcl.hcl_syntax import (
    CallExpression,
    Expression,
    LiteralExpression,
    ObjectExpression,
    TupleExpression,
    VariableExpression,
)
from orchestrator.release.hcl.hcl_values import ANY, BOOL, NUMBER, STRING, STRINGS, HclType, HclValue, ValueRefused
from platforms.errors import UsageError, printable


class StandardFunction(msgspec.Struct, frozen=True):
    """A function of the standard library."""

    apply: Callable[..., Any]
    """Takes values of the types of the parameters. Raises ``ValueRefused``."""
    parameters: tuple[HclType, ...] = ()
    rest: HclType | None = None
    """The type of any number of further arguments."""
    nulls: bool = False
    """Whether arguments may be null."""

    def call(self, expression: CallExpression, scope: HclScope) -> HclValue:
        """Return the result for the arguments of ``expression``. Raises ``UsageError``."""
        given = arguments(expression, scope)
        name, wanted = expression.name, len(self.parameters)
        if len(given) < wanted or (len(given) > wanted and self.rest is None):
            atleast = "at least " if self.rest is not None else ""
            why = f"it takes {atleast}{wanted} argument{'s' * (wanted != 1)}, and here are {len(given)}"
            raise expression.place.refusal(f"{name}() is called wrongly", why=why)
        types = (*self.parameters, *(self.rest or ANY for _ in given[wanted:]))
        converted = [self._argument(expression, *each) for each in zip(range(len(given)), given, types, strict=True)]
        try:
            return checked(self.apply(*converted))
        except (ValueRefused, OverflowError) as error:
            raise expression.place.refusal(f"{name}() fails", why=str(error)) from error

    def _argument(self, expression: CallExpression, at: int, value: HclValue, type_: HclType) -> HclValue:
        place = expression.arguments[at].place if at < len(expression.arguments) else expression.place
        if value is None and not self.nulls:
            raise place.refusal(f"argument {at + 1} of {expression.name}() is null")
        try:
            return values.convert(value, type_)
        except ValueRefused as error:
            raise place.refusal(f"argument {at + 1} of {expression.name}() is wrong", why=str(error)) from error


def checked(value: HclValue) -> HclValue:
    """Return ``value``, if it is not too large. Raises ``ValueRefused``."""
    if isinstance(value, str) and len(value) > values.STRING_LIMIT:
        raise ValueRefused("the text is too long")
    return value


class TryFunction(msgspec.Struct, frozen=True):
    """``try()``: the first argument that can be evaluated."""

    def call(self, expression: CallExpression, scope: HclScope) -> HclValue:
        """Return the value of the first argument that has one. Raises ``UsageError`` if none has."""
        failures: list[str] = []
        for each in expression.arguments:
            try:
                return evaluate(each, scope)
            except UsageError as error:
                failures.append(error.problem.why or error.problem.what)
        raise expression.place.refusal("no argument of try() can be evaluated", why=printable("; ".join(failures)))


class CanFunction(msgspec.Struct, frozen=True):
    """``can()``: whether the argument can be evaluated."""

    def call(self, expression: CallExpression, scope: HclScope) -> HclValue:
        """Tell whether the argument has a value. Raises ``UsageError`` if there is not one argument."""
        if len(expression.arguments) != 1:
            raise expression.place.refusal("can() is called wrongly", why="it takes 1 argument")
        try:
            evaluate(expression.arguments[0], scope)
        except UsageError:
            return False
        return True


class ConvertFunction(msgspec.Struct, frozen=True):
    """``convert()``: a value as one of the type that the second argument names."""

    def call(self, expression: CallExpression, scope: HclScope) -> HclValue:
        """Return the converted value. Raises ``UsageError``."""
        if len(expression.arguments) != 2:
            raise expression.place.refusal("convert() is called wrongly", why="it takes 2 arguments")
        value, type_ = expression.arguments
        wanted = type_constraint(type_)
        try:
            return values.convert(evaluate(value, scope), wanted)
        except ValueRefused as error:
            raise value.place.refusal("convert() fails", why=str(error)) from error


def type_constraint(expression: Expression, *, optional: bool = False) -> HclType:
    """Return the type that a type expression names: ``list(string)``, ``object({a = number})``.

    Source: https://github.com/hashicorp/hcl/blob/main/ext/typeexpr. Raises ``UsageError``.
    """
    if isinstance(expression, VariableExpression) and expression.name in ("string", "number", "bool", "any"):
        return HclType(expression.name)  # type: ignore[arg-type]
    if isinstance(expression, CallExpression) and len(expression.arguments) == 1:
        inner = expression.arguments[0]
        if expression.name in ("list", "set", "map"):
            return HclType(expression.name, type_constraint(inner))  # type: ignore[arg-type]
        if expression.name == "tuple" and isinstance(inner, TupleExpression):
            return HclType("tuple", items=tuple(map(type_constraint, inner.items)))
        if expression.name == "object" and isinstance(inner, ObjectExpression):
            return _object_constraint(inner)
        if expression.name == "optional" and optional:
            return type_constraint(inner)
    raise expression.place.refusal(
        "it is not a type",
        remedy="string, number, bool, any, list(TYPE), set(TYPE), map(TYPE), tuple([TYPE]), object({NAME = TYPE})",
    )


def _object_constraint(expression: ObjectExpression) -> HclType:
    attributes: dict[str, HclType] = {}
    optional: set[str] = set()
    for key, value in expression.entries:
        if not isinstance(key, LiteralExpression) or not isinstance(key.value, str):
            raise key.place.refusal("it is not the name of an attribute")
        attributes[key.value] = type_constraint(value, optional=True)
        if isinstance(value, CallExpression) and value.name == "optional":
            optional.add(key.value)
    return HclType("object", attributes=tuple(sorted(attributes.items())), optional=frozenset(optional))


_LIST: Final = HclType("list", ANY)
_SET: Final = HclType("set", ANY)
_TEXT: Final = (STRING,)
_TEXTS: Final = (STRING, STRING)
_NUMBERS: Final = (NUMBER, NUMBER)
_ANYS: Final = (ANY, ANY)

FUNCTIONS: Final[dict[str, HclFunction]] = {
    "absolute": StandardFunction(abs, (NUMBER,)),
    "add": StandardFunction(hcl_numbers.add, _NUMBERS),
    "and": StandardFunction(lambda one, other: one and other, (BOOL, BOOL)),
    "base64decode": StandardFunction(hcl_encodings.base64_decoded, _TEXT),
    "base64encode": StandardFunction(hcl_encodings.base64_encoded, _TEXT),
    "basename": StandardFunction(hcl_text.base_name, _TEXT),
    "bcrypt": StandardFunction(hcl_encodings.bcrypt_hash, _TEXT, NUMBER),
    "byteslen": StandardFunction(hcl_text.bytes_refused, (ANY,)),
    "bytesslice": StandardFunction(hcl_text.bytes_refused, (ANY, NUMBER, NUMBER)),
    "can": CanFunction(),
    "ceil": StandardFunction(hcl_numbers.ceiling, (NUMBER,)),
    "chomp": StandardFunction(lambda text: text.rstrip("\r\n"), _TEXT),
    "chunklist": StandardFunction(hcl_collections.chunks, (_LIST, NUMBER)),
    "cidrhost": StandardFunction(hcl_encodings.cidr_host, (STRING, NUMBER)),
    "cidrnetmask": StandardFunction(hcl_encodings.cidr_netmask, _TEXT),
    "cidrsubnet": StandardFunction(hcl_encodings.cidr_subnet, (STRING, NUMBER, NUMBER)),
    "cidrsubnets": StandardFunction(hcl_encodings.cidr_subnets, _TEXT, NUMBER),
    "coalesce": StandardFunction(hcl_collections.coalesce, (), ANY, nulls=True),
    "coalescelist": StandardFunction(hcl_collections.coalesce_list, (), ANY, nulls=True),
    "compact": StandardFunction(hcl_collections.compact, (STRINGS,)),
    "concat": StandardFunction(hcl_collections.concat, (), ANY),
    "contains": StandardFunction(hcl_collections.contains, _ANYS),
    "convert": ConvertFunction(),
    "csvdecode": StandardFunction(hcl_encodings.csv_decoded, _TEXT),
    "dirname": StandardFunction(hcl_text.directory_name, _TEXT),
    "distinct": StandardFunction(hcl_collections.distinct, (_LIST,)),
    "divide": StandardFunction(hcl_numbers.divide, _NUMBERS),
    "element": StandardFunction(hcl_collections.element_of, (ANY, NUMBER)),
    "equal": StandardFunction(values.equal, _ANYS, nulls=True),
    "flatten": StandardFunction(hcl_collections.flatten, (ANY,)),
    "floor": StandardFunction(hcl_numbers.floor, (NUMBER,)),
    "format": StandardFunction(hcl_text.format_text, _TEXT, ANY, nulls=True),
    "formatdate": StandardFunction(hcl_times.format_date, _TEXTS),
    "formatlist": StandardFunction(hcl_text.format_list, _TEXT, ANY, nulls=True),
    "formattimestamp": StandardFunction(hcl_times.format_timestamp, (STRING, ANY)),
    "greaterthan": StandardFunction(lambda one, other: one > other, _NUMBERS),
    "greaterthanorequalto": StandardFunction(lambda one, other: one >= other, _NUMBERS),
    "hasindex": StandardFunction(hcl_collections.has_index, _ANYS),
    "homedir": StandardFunction(hcl_encodings.home_directory),
    "indent": StandardFunction(hcl_text.indent, (NUMBER, STRING)),
    "index": StandardFunction(hcl_collections.index, _ANYS),
    "indexof": StandardFunction(hcl_collections.index_of, _ANYS),
    "int": StandardFunction(hcl_numbers.whole, (NUMBER,)),
    "join": StandardFunction(hcl_text.join, _TEXT, STRINGS),
    "jsondecode": StandardFunction(hcl_encodings.json_decoded, _TEXT),
    "jsonencode": StandardFunction(hcl_encodings.json_encoded, (ANY,), nulls=True),
    "keys": StandardFunction(hcl_collections.keys, (ANY,)),
    "length": StandardFunction(hcl_collections.length, (ANY,)),
    "lessthan": StandardFunction(lambda one, other: one < other, _NUMBERS),
    "lessthanorequalto": StandardFunction(lambda one, other: one <= other, _NUMBERS),
    "log": StandardFunction(hcl_numbers.logarithm, _NUMBERS),
    "lookup": StandardFunction(hcl_collections.lookup, (ANY, STRING, ANY)),
    "lower": StandardFunction(str.lower, _TEXT),
    "max": StandardFunction(hcl_numbers.greatest, (), NUMBER),
    "md5": StandardFunction(hcl_encodings.md5, _TEXT),
    "merge": StandardFunction(hcl_collections.merge, (), ANY, nulls=True),
    "min": StandardFunction(hcl_numbers.least, (), NUMBER),
    "modulo": StandardFunction(hcl_numbers.modulo, _NUMBERS),
    "multiply": StandardFunction(hcl_numbers.multiply, _NUMBERS),
    "negate": StandardFunction(hcl_numbers.negate, (NUMBER,)),
    "not": StandardFunction(lambda value: not value, (BOOL,)),
    "notequal": StandardFunction(lambda one, other: not values.equal(one, other), _ANYS, nulls=True),
    "or": StandardFunction(lambda one, other: one or other, (BOOL, BOOL)),
    "parseint": StandardFunction(hcl_numbers.parse_int, (ANY, NUMBER)),
    "pow": StandardFunction(hcl_numbers.power, _NUMBERS),
    "range": StandardFunction(hcl_numbers.number_range, (), NUMBER),
    "regex": StandardFunction(hcl_text.regex, _TEXTS),
    "regex_replace": StandardFunction(hcl_text.regex_replace, (STRING, STRING, STRING)),
    "regexall": StandardFunction(hcl_text.regex_all, _TEXTS),
    "replace": StandardFunction(hcl_text.replace, (STRING, STRING, STRING)),
    "reverse": StandardFunction(hcl_text.reverse, _TEXT),
    "reverselist": StandardFunction(hcl_collections.reverse_list, (ANY,)),
    "rsadecrypt": StandardFunction(hcl_encodings.rsa_decrypted, _TEXTS),
    "sanitize": StandardFunction(hcl_text.sanitize, _TEXT),
    "semvercmp": StandardFunction(hcl_text.semver_satisfies, _TEXTS),
    "sethaselement": StandardFunction(hcl_collections.set_has_element, (_SET, ANY)),
    "setintersection": StandardFunction(hcl_collections.set_intersection, (_SET,), _SET),
    "setproduct": StandardFunction(hcl_collections.set_product, (), ANY),
    "setsubtract": StandardFunction(hcl_collections.set_subtract, (_SET, _SET)),
    "setsymmetricdifference": StandardFunction(hcl_collections.set_symmetric_difference, (_SET,), _SET),
    "setunion": StandardFunction(hcl_collections.set_union, (_SET,), _SET),
    "sha1": StandardFunction(hcl_encodings.sha1, _TEXT),
    "sha256": StandardFunction(hcl_encodings.sha256, _TEXT),
    "sha512": StandardFunction(hcl_encodings.sha512, _TEXT),
    "signum": StandardFunction(hcl_numbers.sign, (NUMBER,)),
    "slice": StandardFunction(hcl_collections.slice_of, (ANY, NUMBER, NUMBER)),
    "sort": StandardFunction(hcl_collections.sort, (STRINGS,)),
    "split": StandardFunction(hcl_text.split, _TEXTS),
    "strlen": StandardFunction(lambda text: len(hcl_text.graphemes(text)), _TEXT),
    "substr": StandardFunction(hcl_text.substring, (STRING, NUMBER, NUMBER)),
    "subtract": StandardFunction(hcl_numbers.subtract, _NUMBERS),
    "timeadd": StandardFunction(hcl_times.time_add, _TEXTS),
    "timestamp": StandardFunction(hcl_times.timestamp),
    "title": StandardFunction(hcl_text.title, _TEXT),
    "trim": StandardFunction(lambda text, cutset: text.strip(cutset) if cutset else text, _TEXTS),
    "trimprefix": StandardFunction(str.removeprefix, _TEXTS),
    "trimspace": StandardFunction(str.strip, _TEXT),
    "trimsuffix": StandardFunction(str.removesuffix, _TEXTS),
    "try": TryFunction(),
    "unixtimestampparse": StandardFunction(hcl_times.unix_timestamp_parsed, (NUMBER,)),
    "upper": StandardFunction(lambda text: text.upper(), _TEXT),
    "urlencode": StandardFunction(hcl_encodings.url_encoded, _TEXT),
    "uuidv4": StandardFunction(hcl_encodings.uuid_4),
    "uuidv5": StandardFunction(hcl_encodings.uuid_5, _TEXTS),
    "values": StandardFunction(hcl_collections.values_of, (ANY,)),
    "zipmap": StandardFunction(hcl_collections.zip_map, (STRINGS, ANY)),
}
