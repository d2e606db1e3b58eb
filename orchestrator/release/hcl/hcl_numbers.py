"""Functions of HCL on numbers: ``hcl_functions.py`` names them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

from orchestrator.release.hcl import hcl_values as values
from orchestrator.release.hcl.hcl_values import HclValue, SequenceValue, ValueRefused

Number = int | Fraction
_RANGE_LIMIT: Final = 1024
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

divide = values.divided
modulo = values.remainder


def add(one: Number, other: Number) -> Number:
    """Return the sum."""
    return values.rounded(one + other)


def subtract(one: Number, other: Number) -> Number:
    """Return the difference."""
    return values.rounded(one - other)


def multiply(one: Number, other: Number) -> Number:
    """Return the product."""
    return values.rounded(one * other)


def negate(number: Number) -> Number:
    """Return the number with the other sign."""
    return values.rounded(-number)


def ceiling(number: Number) -> int:
    """Return the least whole number that is not less."""
    return math.ceil(number)


def floor(number: Number) -> int:
    """Return the greatest whole number that is not greater."""
    return math.floor(number)


def whole(number: Number) -> int:
    """Return the number without its fraction."""
    return math.trunc(number)


def sign(number: Number) -> int:
    """Return -1, 0 or 1."""
    found = values.as_whole(number)
    return (found > 0) - (found < 0)


def greatest(*numbers: Number) -> Number:
    """Return the greatest. Raises ``ValueRefused`` if there is none."""
    if not numbers:
        raise ValueRefused("at least one number is required")
    return max(numbers)


def least(*numbers: Number) -> Number:
    """Return the least. Raises ``ValueRefused`` if there is none."""
    if not numbers:
        raise ValueRefused("at least one number is required")
    return min(numbers)


def logarithm(number: Number, base: Number) -> Number:
    """Return the logarithm, as a double has it."""
    try:
        return values.rounded(Fraction(repr(math.log(number) / math.log(base))))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueRefused("there is no such logarithm") from error


def power(number: Number, exponent: Number) -> Number:
    """Return the power, as a double has it."""
    try:
        found = math.pow(number, exponent)
        return values.rounded(Fraction(repr(found)))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueRefused("there is no such power") from error


def number_range(*numbers: Number) -> SequenceValue:
    """Return the numbers up to an end, from a start, by a step. Raises ``ValueRefused`` for more than 1,024."""
    if not 1 <= len(numbers) <= 3:
        raise ValueRefused("one, two or three arguments are required")
    start, end = (0, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
    step = numbers[2] if len(numbers) == 3 else 1 if end >= start else -1
    if step == 0:
        raise ValueRefused("the step is zero")
    if (end - start) * step < 0:
        raise ValueRefused("the end cannot be reached by this step")
    count = math.ceil(Fraction(end - start) / step)
    if count > _RANGE_LIMIT:
        raise ValueRefused(f"there are more than {_RANGE_LIMIT} numbers")
    return values.sequence("list", (values.rounded(start + at * step) for at in range(count)))


def parse_int(text: HclValue, base: Number) -> int:
    """Return the whole number that ``text`` is, in a base from 2 to 62."""
    if not isinstance(text, str):
        raise ValueRefused("the first argument has to be a string")
    radix = values.as_whole(base)
    if not 2 <= radix <= 62:
        raise ValueRefused("the base has to be a number from 2 to 62")
    digits = text[1:] if text[:1] in ("+", "-") else text
    if radix <= 36:
        digits = digits.lower()
    found = [_DIGITS.find(each) for each in digits]
    if not found or len(found) > 1024 or not all(0 <= each < radix for each in found):
        raise ValueRefused(f"it is not a whole number of base {radix}")
    number = 0
    for each in found:
        number = number * radix + each
    return -number if text.startswith("-") else number
