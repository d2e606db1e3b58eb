"""Functions of HCL on texts: ``hcl_functions.py`` names them. A character is a grapheme cluster, as in go-cty."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import msgspec

from orchestrator.release.hcl import hcl_encodings
from orchestrator.release.hcl import hcl_values as values
from orchestrator.release.hcl.hcl_values import HclValue, SequenceValue, ValueRefused
from platforms.errors import EnvironmentUnfit, printable

if TYPE_CHECKING:
    from types import ModuleType

_PATTERN_MEMORY: Final = 1 << 23
"""Bytes that a compiled pattern may take; matching is linear in the length of the text."""
_VERB: Final = re.compile(
    r"%(?P<flags>[ +\-#0]*)(?P<width>\d{1,4})?(?:\.(?P<precision>\d{1,4}))?(?:\[(?P<at>\d{1,4})\])?(?P<mode>.)",
    re.DOTALL,
)
_REPLACEMENT: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+)|(\$))", re.ASCII)
_VERSION: Final = re.compile(
    r"v?(?P<major>\d{1,18})(?:\.(?P<minor>\d{1,18}))?(?:\.(?P<patch>\d{1,18}))?"
    r"(?:-(?P<pre>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)
_BOUND: Final = re.compile(
    r"\s*(?P<operator>=|!=|>=|=>|<=|=<|>|<|~>|~|\^)?\s*v?(?P<major>\d{1,18}|[xX*])(?:\.(?P<minor>\d{1,18}|[xX*]))?"
    r"(?:\.(?P<patch>\d{1,18}|[xX*]))?(?:-(?P<pre>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?\s*,?\s*"
)
_RANGE: Final = re.compile(r"(\S+)\s+-\s+(\S+)")


def base_name(text: str) -> str:
    """Return the last element of a path, as Go's ``path.Base`` does."""
    return text.rstrip("/").rpartition("/")[2] or ("/" if text else ".")


def directory_name(text: str) -> str:
    """Return all but the last element of a path, as Go's ``path.Dir`` does."""
    found = posixpath.normpath(text.rpartition("/")[0] + "/") if "/" in text else "."
    return "/" + found.lstrip("/") if found.startswith("/") else found


def bytes_refused(*_: HclValue) -> HclValue:
    """Refuse: no value of a bake file is a buffer of bytes."""
    raise ValueRefused("bytes are required, which no value of a file can be")


def graphemes(text: str) -> list[str]:
    """Return the grapheme clusters: characters with their combining marks and what is joined to them."""
    if text.isascii() and "\r\n" not in text:
        return list(text)
    found: list[str] = []
    for each in text:
        if found and _extends(found[-1], each):
            found[-1] += each
        else:
            found.append(each)
    return found


def _extends(cluster: str, character: str) -> bool:
    last = cluster[-1]
    if last == "\r" and character == "\n":
        return True
    if unicodedata.category(last) == "Cc":
        return False
    if character == "\u200d" or unicodedata.category(character) in ("Mn", "Me", "Mc"):
        return True
    if 0x1F3FB <= ord(character) <= 0x1F3FF:  # a skin tone
        return True
    if last == "\u200d":
        return unicodedata.category(character) == "So"
    regional = range(0x1F1E6, 0x1F200)
    return ord(character) in regional and ord(last) in regional and len(cluster) % 2 == 1


def indent(spaces: int, text: str) -> str:
    """Return ``text`` with spaces after each newline."""
    count = values.as_whole(spaces)
    if not 0 <= count <= 1024 or len(text) + count * text.count("\n") > values.STRING_LIMIT:
        raise ValueRefused("the text is too long" if count > 0 else "the number of spaces is negative")
    return text.replace("\n", "\n" + " " * count)


def join(separator: str, *lists: SequenceValue) -> str:
    """Return the strings of all lists with ``separator`` between them."""
    if not lists:
        raise ValueRefused("at least one list is required")
    items = [each for one in lists for each in one.items]
    if None in items:
        raise ValueRefused("an item is null")
    texts = list(map(values.as_string, items))
    if sum(map(len, texts)) + len(separator) * len(texts) > values.STRING_LIMIT:
        raise ValueRefused("the text is too long")
    return separator.join(texts)


def split(separator: str, text: str) -> SequenceValue:
    """Return the parts between the separators; the characters, if that is empty."""
    return values.sequence("list", text.split(separator) if separator else list(text))


def replace(text: str, old: str, new: str) -> str:
    """Return ``text`` with all occurrences of ``old`` replaced."""
    if len(text) + text.count(old) * len(new) > values.STRING_LIMIT:
        raise ValueRefused("the text is too long")
    return text.replace(old, new)


def reverse(text: str) -> str:
    """Return the characters from the last to the first."""
    return "".join(reversed(graphemes(text)))


def sanitize(text: str) -> str:
    """Return ``text`` with all that the name of a target cannot have as underscores."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", text)


def substring(text: str, offset: int, length: int) -> str:
    """Return ``length`` characters from ``offset``, which counts from the end if it is negative; -1 for all."""
    start, count = values.as_whole(offset), values.as_whole(length)
    found = graphemes(text)
    if start < 0:
        start = max(0, start + len(found))
    elif count == 0:
        return ""
    return "".join(found[start:] if count < 0 else found[start : start + count] if count else found[start:])


def title(text: str) -> str:
    """Return ``text`` with each letter that begins a word in upper case."""
    return re.sub(r"(?<![\w])[^\W\d_]", lambda match: match[0].upper(), text)


def _re2() -> ModuleType:
    try:
        import re2
    except ImportError as error:
        from orchestrator.release.hcl.hcl_syntax import REMEDY

        raise EnvironmentUnfit(
            "cannot use a regular expression", why="a library is not installed", remedy=REMEDY
        ) from error
    return re2  # type: ignore[no-any-return]


def _pattern(text: str) -> Any:
    re2 = _re2()
    options = re2.Options()
    options.max_mem = _PATTERN_MEMORY
    options.log_errors = False
    try:
        return re2.compile(text, options)
    except re2.error as error:
        why = b"".join(each for each in error.args if isinstance(each, bytes)).decode(errors="replace")
        raise ValueRefused(f"it is not a regular expression: {printable(why or str(error))}") from error


def regex(pattern: str, text: str) -> HclValue:
    """Return the first match: its text, or its groups as a tuple or, if they are named, as an object."""
    compiled = _pattern(pattern)
    _check_groups(compiled)
    match = compiled.search(text)
    if match is None:
        raise ValueRefused("the pattern does not match")
    return _matched(match)


def regex_all(pattern: str, text: str) -> SequenceValue:
    """Return all matches, each as ``regex`` does."""
    compiled = _pattern(pattern)
    _check_groups(compiled)
    return values.sequence("list", map(_matched, compiled.finditer(text)))


def regex_replace(text: str, pattern: str, replacement: str) -> str:
    """Return ``text`` with all matches replaced; ``$1`` and ``${name}`` in the replacement are groups."""
    compiled = _pattern(pattern)
    parts: list[str] = []
    at = size = 0
    for match in compiled.finditer(text):
        parts += (text[at : match.start()], _REPLACEMENT.sub(lambda each: _group(match, each), replacement))  # noqa: B023
        size += sum(map(len, parts[-2:]))
        if size > values.STRING_LIMIT:
            raise ValueRefused("the text is too long")
        at = match.end()
    return "".join((*parts, text[at:]))


def _group(match: Any, reference: re.Match[str]) -> str:
    if reference[3]:
        return "$"
    name = reference[1] or reference[2]
    try:
        return match[int(name)] or "" if name.isdecimal() else match[name] or ""
    except (IndexError, KeyError):
        return ""


def _check_groups(compiled: Any) -> None:
    if compiled.groupindex and len(compiled.groupindex) != compiled.groups:
        raise ValueRefused("either all groups of the pattern are named, or none")


def _matched(match: Any) -> HclValue:
    if match.re.groupindex:
        return values.mapping("object", match.groupdict())
    return values.sequence("tuple", match.groups()) if match.re.groups else match[0]


def format_text(text: str | None, *given: HclValue) -> str:
    """Return ``text`` with its verbs replaced by arguments, as go-cty's ``format`` does."""
    if text is None:
        raise ValueRefused("the format is null")
    parts: list[str] = []
    at = size = 0
    following = used = 1
    while (begin := text.find("%", at)) >= 0:
        parts.append(text[at:begin])
        verb = _VERB.match(text, begin)
        if verb is None:
            raise ValueRefused(f"a verb is not complete at {begin}")
        at = verb.end()
        if verb["mode"] == "%":
            parts.append("%")
            continue
        number = int(verb["at"] or following)
        following, used = number + 1, max(used, number + 1)
        if not 1 <= number <= len(given):
            raise ValueRefused(f"there are not enough arguments for {printable(verb[0])}")
        parts.append(_formatted(verb, given[number - 1]))
        size += len(parts[-1])
        if size > values.STRING_LIMIT:
            raise ValueRefused("the text is too long")
    if used - 1 < len(given):
        raise ValueRefused(f"there are too many arguments: {used - 1} of {len(given)} are used")
    return values.text_of(*parts, text[at:])


def format_list(text: str | None, *given: HclValue) -> SequenceValue:
    """Return a list with one text for every item of the arguments that are lists."""
    lengths = {len(each.items) for each in given if isinstance(each, SequenceValue)}
    if len(lengths) > 1:
        raise ValueRefused("the lists have to be of one length")
    rounds = range(next(iter(lengths), 1))
    rows = ([each.items[at] if isinstance(each, SequenceValue) else each for each in given] for at in rounds)
    return values.sequence("list", (format_text(text, *row) for row in rows))


def _formatted(verb: re.Match[str], value: HclValue) -> str:
    mode, flags = verb["mode"], verb["flags"]
    width = int(verb["width"] or 0)
    precision = int(verb["precision"]) if verb["precision"] else None
    if mode == "v":
        plain = isinstance(value, str) and "#" not in flags
        if values.is_number(value) and "#" not in flags:
            return _padded(general_text(value), width, flags)  # type: ignore[arg-type]
        return _padded(str(value) if plain else hcl_encodings.json_encoded(value), width, flags)
    if value is None:
        raise ValueRefused(f"null cannot be formatted by {printable(verb[0])}")
    if mode == "t":
        return "true" if values.as_bool(value) else "false"
    if mode in "sq":
        found = values.as_string(value)
        if precision:
            found = "".join(graphemes(found)[:precision])
        return _padded(found if mode == "s" else hcl_encodings.json_encoded(found), width, flags)
    if mode in "bdoxX":
        number = values.as_number(value)
        if isinstance(number, Fraction):
            raise ValueRefused(f"a whole number is required by {printable(verb[0])}")
        digits = format(abs(number), mode).rjust(precision or 0, "0")
        prefix = {"x": "0x", "X": "0X", "o": "0", "b": "0b"}.get(mode, "") if "#" in flags else ""
        return _signed(prefix + digits, number < 0, width, flags if precision is None else flags.replace("0", ""))
    if mode in "eEfgG":
        return _decimal(values.as_number(value), mode, precision, width, flags)
    raise ValueRefused(f"unknown verb {printable(verb[0])}")


def _decimal(number: int | Fraction, mode: str, precision: int | None, width: int, flags: str) -> str:
    exact = abs(Fraction(number))
    if mode in "gG":
        found = general_text(exact, precision)
    elif mode == "f":
        places = 6 if precision is None else precision
        scaled = str(round(exact * 10**places)).rjust(places + 1, "0")
        found = f"{scaled[:-places]}.{scaled[-places:]}" if places else scaled
    else:
        found = _exponential(exact, 6 if precision is None else precision)
    return _signed(found.upper() if mode in "EG" else found, number < 0, width, flags)


def _exponential(number: Fraction, places: int) -> str:
    power = _power(number)
    scaled = round(number / Fraction(10) ** (power - places))
    if scaled >= 10 ** (places + 1):
        power, scaled = power + 1, scaled // 10
    digits = str(scaled).ljust(places + 1, "0")
    return f"{digits[0]}{'.' if places else ''}{digits[1:]}e{'-' if power < 0 else '+'}{abs(power):02}"


def _power(number: Fraction) -> int:
    """Return the power of ten of the first digit."""
    if number == 0:
        return 0
    power = len(str(number.numerator)) - len(str(number.denominator))
    return power if number >= Fraction(10) ** power else power - 1


def general_text(number: int | Fraction, precision: int | None = None) -> str:
    """Return the number as Go's ``%g`` does: with an exponent, if it is large or small."""
    exact = Fraction(number)
    if exact < 0:
        return "-" + general_text(-exact, precision)
    if precision is not None and exact:
        unit = Fraction(10) ** (_power(exact) - max(precision, 1) + 1)
        exact = round(exact / unit) * unit
    text = values.number_text(exact.numerator if exact.denominator == 1 else exact)
    digits = text.replace(".", "").strip("0") or "0"
    power = _power(Fraction(text))
    limit = 6 if precision is None else max(precision, 1)
    if precision is not None and limit > len(digits) and len(digits) >= power + 1:
        limit = len(digits)
    if -4 <= power < max(limit, 1) or exact == 0:
        return text
    rest = digits[1:]
    return f"{digits[0]}{'.' if rest else ''}{rest}e{'-' if power < 0 else '+'}{abs(power):02}"


def _signed(digits: str, negative: bool, width: int, flags: str) -> str:
    sign = "-" if negative else "+" if "+" in flags else " " if " " in flags else ""
    if "0" in flags and "-" not in flags:
        digits = digits.rjust(width - len(sign), "0")
    return (sign + digits).ljust(width) if "-" in flags else (sign + digits).rjust(width)


def _padded(text: str, width: int, flags: str) -> str:
    padding = ("0" if "0" in flags else " ") * (width - len(graphemes(text)))
    return text + padding if "-" in flags else padding + text


class _Version(msgspec.Struct, frozen=True):
    """A version, with the parts that a constraint leaves open as 0."""

    numbers: tuple[int, int, int]
    pre: str = ""

    def order(self) -> tuple[Any, ...]:
        """Return a key by which versions are in order: a pre-release is before its release."""
        parts = self.pre.split(".") if self.pre else []
        keys = [(0, int(each), "") if each.isdecimal() else (1, 0, each) for each in parts]
        return (self.numbers, not parts, keys)


def _version(match: re.Match[str]) -> tuple[_Version, int]:
    """Return the version of ``match``, and how many of its numbers are given."""
    given = [match["major"], match["minor"], match["patch"]]
    known = next((at for at, each in enumerate(given) if each is None or each in "xX*"), 3)
    numbers = [int(each) for each in given[:known] if each] + [0, 0, 0]
    return _Version((numbers[0], numbers[1], numbers[2]), match["pre"] or ""), known


def semver_satisfies(version: str, constraint: str) -> bool:
    """Tell whether a version satisfies a constraint, by the rules of https://github.com/Masterminds/semver."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueRefused("the first argument is not a version")
    found, _ = _version(match)
    choices = [list(_bounds(one)) for one in constraint.split("||")]
    return any(all(_within(found, *each) for each in bounds) for bounds in choices)


def _bounds(text: str) -> Iterator[tuple[str, _Version, int]]:
    text = _RANGE.sub(r">=\1 <=\2", text.strip())
    at = 0
    while at < len(text):
        match = _BOUND.match(text, at)
        if match is None or match.end() == at:
            raise ValueRefused("the second argument is not a constraint of versions")
        at = match.end()
        yield match["operator"] or "", *_version(match)
    if not text:
        yield "", _Version((0, 0, 0)), 0


def _within(version: _Version, operator: str, bound: _Version, known: int) -> bool:
    if version.pre and not bound.pre and not (operator == "!=" and known == 3):
        return False
    one, other = version.order(), bound.order()
    part, limit = version.numbers[:known], bound.numbers[:known]
    match operator:
        case "!=":
            return part != limit if known < 3 else one != other
        case ">":
            return one > other if known == 3 else part > limit
        case ">=" | "=>":
            return one >= other
        case "<":
            return one < other
        case "<=" | "=<":
            return one <= other if known == 3 else part <= limit
        case "^":
            return one >= other and _below_caret(version.numbers, bound.numbers, known)
        case "~" | "~>":
            return known == 0 or (one >= other and version.numbers[: min(known, 2)] == bound.numbers[: min(known, 2)])
    return one == other if known == 3 else part == limit


def _below_caret(numbers: tuple[int, int, int], bound: tuple[int, int, int], known: int) -> bool:
    """Tell whether nothing before and at the first number of ``bound`` that is not zero has changed."""
    fixed = next((at for at, each in enumerate(bound[:known]) if each), known - 1)
    return known == 0 or numbers[: fixed + 1] == bound[: fixed + 1]
