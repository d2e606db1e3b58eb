"""Values and types of HCL expressions, and the conversions between them.

A string is a ``str``, a bool a ``bool``, a number an ``int`` or, if it is not whole, a ``Fraction``; null is None.
Lists, sets and tuples are ``SequenceValue``; maps and objects are ``MappingValue``. Numbers are rounded to 512 bits, as
HCL has them. As files are not trusted, every composite value knows its size, and none is made that is too large.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Final, Literal, TypeAlias

import msgspec

from executor.dockerfile.suggestions import hint
from platforms.errors import printable

SIZE_LIMIT: Final = 1 << 16
"""The largest size of a value. A scalar counts 1, and 1 more for every 64 characters; the rest, what is in it."""
STRING_LIMIT: Final = 1 << 20
"""The largest number of characters of a string."""
COMPARED_LIMIT: Final = 256
"""The largest number of items that are compared with each other."""
_BITS: Final = 512
_EXPONENT_LIMIT: Final = 4096
"""Numbers beyond 10 to this power, or below its inverse, are refused: their text would be as long."""
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,9}))?")

SequenceKind = Literal["list", "set", "tuple"]
MappingKind = Literal["map", "object"]


class ValueRefused(ValueError):
    """A value is not one that an operation, a function or an attribute takes. The text says why."""


class HclType(msgspec.Struct, frozen=True):
    """A type: ``string``, ``number``, ``bool``, ``any``, or a composite one with what it has."""

    kind: Literal["string", "number", "bool", "any", "list", "set", "tuple", "map", "object"]
    element: HclType | None = None
    """Of a list, set or map."""
    items: tuple[HclType, ...] = ()
    """Of a tuple."""
    attributes: tuple[tuple[str, HclType], ...] = ()
    """Of an object, sorted by name."""
    optional: frozenset[str] = frozenset()
    """The attributes of an object that may be missing."""


class SequenceValue(msgspec.Struct, frozen=True):
    """A list, a set or a tuple. The items of a list or set are of one type. Made by ``sequence``."""

    kind: SequenceKind
    items: tuple[HclValue, ...]
    size: int


class MappingValue(msgspec.Struct, frozen=True):
    """A map or an object, sorted by key. The values of a map are of one type. Made by ``mapping``."""

    kind: MappingKind
    entries: dict[str, HclValue]
    size: int


HclValue: TypeAlias = str | bool | int | Fraction | SequenceValue | MappingValue | None

STRING: Final = HclType("string")
NUMBER: Final = HclType("number")
BOOL: Final = HclType("bool")
ANY: Final = HclType("any")
STRINGS: Final = HclType("list", STRING)
STRING_MAP: Final = HclType("map", STRING)


def size_of(value: HclValue) -> int:
    """Return the size of ``value``, in the units of ``SIZE_LIMIT``."""
    if isinstance(value, str):
        return 1 + len(value) // 64
    return value.size if isinstance(value, SequenceValue | MappingValue) else 1


def sequence(kind: SequenceKind, items: Iterable[HclValue]) -> SequenceValue:
    """Return a sequence; the items of a set are sorted, each once. Raises ``ValueRefused`` if it is too large."""
    found: list[HclValue] = []
    size = 1
    for each in items:
        size += size_of(each)
        if size > SIZE_LIMIT:
            raise ValueRefused("the value is too large")
        found.append(each)
    return SequenceValue(kind, tuple(_set_items(found) if kind == "set" else found), size)


def mapping(kind: MappingKind, entries: dict[str, HclValue]) -> MappingValue:
    """Return a mapping. Raises ``ValueRefused`` if it is too large."""
    size = 1 + sum(1 + len(key) // 64 + size_of(value) for key, value in entries.items())
    if size > SIZE_LIMIT:
        raise ValueRefused("the value is too large")
    return MappingValue(kind, dict(sorted(entries.items())), size)


def text_of(*parts: str) -> str:
    """Return the parts as one string. Raises ``ValueRefused`` if it is too long."""
    if sum(map(len, parts)) > STRING_LIMIT:
        raise ValueRefused("the text is too long")
    return "".join(parts)


def is_number(value: HclValue) -> bool:
    """Tell whether ``value`` is a number (in Python, a bool is an int)."""
    return isinstance(value, int | Fraction) and not isinstance(value, bool)


def type_of(value: HclValue) -> HclType:
    """Return the type of ``value``; ``any`` of null."""
    if isinstance(value, str):
        return STRING
    if isinstance(value, bool):
        return BOOL
    if value is None:
        return ANY
    if isinstance(value, SequenceValue):
        if value.kind == "tuple":
            return HclType("tuple", items=tuple(map(type_of, value.items)))
        return HclType(value.kind, _first_type(value.items))
    if isinstance(value, MappingValue):
        if value.kind == "object":
            return HclType("object", attributes=tuple((key, type_of(each)) for key, each in value.entries.items()))
        return HclType("map", _first_type(value.entries.values()))
    return NUMBER


def friendly(type_: HclType) -> str:
    """Return the name of ``type_`` for messages."""
    if type_.kind in ("list", "set", "map") and type_.element is not None:
        return f"{type_.kind} of {friendly(type_.element)}"
    return {"any": "dynamic"}.get(type_.kind, type_.kind)


def convert(value: HclValue, type_: HclType) -> HclValue:
    """Return ``value`` as one of ``type_``, as HCL converts by itself. Raises ``ValueRefused``."""
    if value is None or type_.kind == "any":
        return value
    if type_.kind == "string":
        return as_string(value)
    if type_.kind == "number":
        return as_number(value)
    if type_.kind == "bool":
        return as_bool(value)
    if type_.kind in ("list", "set", "tuple"):
        return _converted_sequence(value, type_)
    return _converted_mapping(value, type_)


def as_string(value: HclValue) -> str:
    """Return a string, bool or number as a string. Raises ``ValueRefused``."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Fraction):
        return number_text(value)
    raise ValueRefused("string required" if value is not None else "it is null")


def as_number(value: HclValue) -> int | Fraction:
    """Return a number, or the number that a string has. Raises ``ValueRefused``."""
    if isinstance(value, str):
        return parse_number(value)
    if isinstance(value, int | Fraction) and not isinstance(value, bool):
        return value
    raise ValueRefused("number required" if value is not None else "it is null")


def as_bool(value: HclValue) -> bool:
    """Return a bool, or the bool that a string has. Raises ``ValueRefused``."""
    if isinstance(value, bool):
        return value
    if value in ("true", "1") and isinstance(value, str):
        return True
    if value in ("false", "0") and isinstance(value, str):
        return False
    raise ValueRefused("bool required" if value is not None else "it is null")


def as_whole(value: HclValue) -> int:
    """Return a whole number. Raises ``ValueRefused``."""
    number = as_number(value)
    if isinstance(number, Fraction) or abs(number) >= 1 << 63:
        raise ValueRefused("a whole number is required")
    return number


def parse_number(text: str) -> int | Fraction:
    """Return the decimal number that ``text`` is. Raises ``ValueRefused``."""
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > _EXPONENT_LIMIT or abs(int(match[1] or 0)) > _EXPONENT_LIMIT:
        raise ValueRefused("a number is required")
    return rounded(Fraction(text.lower()))


def rounded(number: Fraction | int) -> int | Fraction:
    """Return ``number`` with the precision of HCL's numbers. Raises ``ValueRefused`` if it is too large."""
    exact = Fraction(number)
    if exact == 0:
        return 0
    magnitude = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    if abs(magnitude) > 4 * _EXPONENT_LIMIT:
        raise ValueRefused("the number is too large or too small")
    shift = _BITS - magnitude
    for each in (shift, shift - 1):
        scaled = round(exact * (Fraction(2) ** each))  # to the nearest, ties to even
        if abs(scaled).bit_length() <= _BITS:
            exact = scaled / (Fraction(2) ** each)
            break
    return exact.numerator if exact.denominator == 1 else exact


def number_text(number: int | Fraction) -> str:
    """Return the shortest decimal text that is rounded to ``number``."""
    if isinstance(number, int):
        return _shortest(Fraction(number)) if abs(number).bit_length() > _BITS - 2 else str(number)
    return _shortest(number)


def equal(one: HclValue, other: HclValue) -> bool:
    """Tell whether two values are equal: of one type, and with equal contents."""
    if isinstance(one, SequenceValue) and isinstance(other, SequenceValue):
        same = one.kind == other.kind and len(one.items) == len(other.items)
        return same and all(equal(*pair) for pair in zip(one.items, other.items, strict=True))
    if isinstance(one, MappingValue) and isinstance(other, MappingValue):
        same = one.kind == other.kind and one.entries.keys() == other.entries.keys()
        return same and all(equal(each, other.entries[key]) for key, each in one.entries.items())
    return type_of(one).kind == type_of(other).kind and one == other


def element(of: HclValue, key: HclValue) -> HclValue:
    """Return the element of a sequence or mapping. Raises ``ValueRefused``."""
    if isinstance(of, SequenceValue) and of.kind != "set":
        at = as_whole(key)
        if not 0 <= at < len(of.items):
            raise ValueRefused(f"there is no element {at}: there are {len(of.items)}")
        return of.items[at]
    if isinstance(of, MappingValue):
        name = as_string(key)
        if name not in of.entries:
            raise ValueRefused(f"there is no element {printable(name)}{hint(name, of.entries)}")
        return of.entries[name]
    raise ValueRefused(f"{described(of)} has no elements that can be chosen")


def divided(one: int | Fraction, other: int | Fraction) -> int | Fraction:
    """Return the quotient. Raises ``ValueRefused`` for a division by zero."""
    if other == 0:
        raise ValueRefused("division by zero")
    return rounded(Fraction(one) / other)


def remainder(one: int | Fraction, other: int | Fraction) -> int | Fraction:
    """Return the remainder, which has the sign of ``one``. Raises ``ValueRefused`` for a division by zero."""
    if other == 0:
        raise ValueRefused("division by zero")
    quotient = Fraction(one) / other
    whole = abs(quotient.numerator) // quotient.denominator
    return rounded(one - other * (whole if quotient >= 0 else -whole))


def described(value: HclValue) -> str:
    """Return the kind of ``value`` with its article, for messages."""
    kind = friendly(type_of(value))
    return "null" if value is None else f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def unify(types: Iterable[HclType]) -> HclType | None:
    """Return the type that values of all ``types`` can be converted to; None if there is none."""
    distinct = list(dict.fromkeys(types))
    if len(distinct) == 1:
        return distinct[0]
    known = [each for each in distinct if each.kind != "any"]
    kinds = {each.kind for each in known}
    if kinds and kinds <= {"string", "number", "bool"}:
        return known[0] if len(known) == 1 else STRING if "string" in kinds else None
    if len(known) < len(distinct):
        return ANY
    if kinds == {"object"}:
        return _unified_objects(known)
    if kinds == {"tuple"} and len({len(each.items) for each in known}) == 1:
        items = [unify(column) for column in zip(*(each.items for each in known), strict=True)]
        return HclType("tuple", items=tuple(filter(None, items))) if None not in items else None
    if kinds <= {"map", "object"}:
        return _unified_elements("map", known)
    if kinds <= {"list", "tuple"}:
        return _unified_elements("list", known)
    if kinds <= {"list", "tuple", "set"}:
        return _unified_elements("set", known)
    return None


def _unified_objects(types: list[HclType]) -> HclType | None:
    names = [tuple(name for name, _ in each.attributes) for each in types]
    if len(set(names)) > 1:
        return _unified_elements("map", types)
    columns = zip(*((each for _, each in one.attributes) for one in types), strict=True)
    found = [unify(column) for column in columns]
    if None in found:
        return None
    pairs = zip(names[0], (each for each in found if each is not None), strict=True)
    return HclType("object", attributes=tuple(pairs))


def _unified_elements(kind: Literal["list", "set", "map"], types: list[HclType]) -> HclType | None:
    inner: list[HclType] = []
    for each in types:
        inner += each.items
        inner += (found for _, found in each.attributes)
        if each.element is not None:
            inner.append(each.element)
    known = [each for each in inner if each.kind != "any"]
    element = unify(known) if known else ANY
    return element and HclType(kind, element)


def _first_type(values: Iterable[HclValue]) -> HclType:
    return next((type_of(each) for each in values if each is not None), ANY)


def _common(values: Iterable[HclValue]) -> HclType:
    element = unify(type_of(each) for each in values if each is not None) if (values := list(values)) else ANY
    if element is None:
        raise ValueRefused("all elements must be of the same type")
    return element


def _converted_sequence(value: HclValue, type_: HclType) -> SequenceValue:
    if not isinstance(value, SequenceValue):
        raise ValueRefused(f"{friendly(type_)} required")
    if type_.kind == "tuple":
        if value.kind == "set" or len(value.items) != len(type_.items):
            raise ValueRefused(f"a tuple of {len(type_.items)} elements is required")
        return sequence("tuple", (convert(*pair) for pair in zip(value.items, type_.items, strict=True)))
    element = type_.element or ANY
    if element.kind == "any" and any(each is not None for each in value.items):
        element = _common(value.items)
    kind: SequenceKind = "set" if type_.kind == "set" else "list"
    return sequence(kind, (convert(each, element) for each in value.items))


def _converted_mapping(value: HclValue, type_: HclType) -> MappingValue:
    if not isinstance(value, MappingValue):
        raise ValueRefused(f"{friendly(type_)} required")
    if type_.kind == "map":
        element = type_.element or ANY
        if element.kind == "any" and any(each is not None for each in value.entries.values()):
            element = _common(value.entries.values())
        return mapping("map", {key: convert(each, element) for key, each in value.entries.items()})
    missing = [key for key, _ in type_.attributes if key not in value.entries and key not in type_.optional]
    if missing:
        raise ValueRefused(f'attribute "{printable(missing[0])}" is required')
    return mapping("object", {key: convert(value.entries.get(key), each) for key, each in type_.attributes})


def _set_items(items: list[HclValue]) -> list[HclValue]:
    if all(isinstance(each, str) for each in items) or all(is_number(each) for each in items):
        return sorted(dict.fromkeys(items))  # type: ignore[type-var]
    if all(isinstance(each, bool) for each in items):
        return sorted(set(items))  # type: ignore[type-var]
    found: list[HclValue] = []
    for each in items:
        if len(found) > COMPARED_LIMIT:
            raise ValueRefused("the set is too large")
        if not any(equal(each, other) for other in found):
            found.append(each)
    return found


def _shortest(number: Fraction) -> str:
    """Return the fewest decimal digits that are rounded to ``number``, without an exponent."""
    sign, exact = ("-", -number) if number < 0 else ("", number)
    power = len(str(int(exact))) if exact >= 1 else 1 - len(str(int(1 / exact)))
    for digits in range(1, _BITS // 3 + 4):
        unit = Fraction(10) ** (power - digits)
        candidate = round(exact / unit) * unit
        if rounded(candidate) == rounded(exact):
            break
    whole, rest = divmod(candidate, 1)
    if rest == 0:
        return f"{sign}{int(whole)}"
    places = 0
    while (scaled := rest * 10**places).denominator != 1:
        places += 1
    return f"{sign}{int(whole)}.{str(int(scaled)).rjust(places, '0')}"
