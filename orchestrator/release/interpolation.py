"""Interpolation of the texts of a release file: ``${NAME}``, ``${NAME:-default}``, ``${NAME:+text}``.

``$${`` stands for ``${``. A default and a text may have variables in them. ``:-`` and ``:+`` treat an empty value as an
absent one, as in a shell.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

DEPTH: Final = 8
"""Maximum number of variables that are within each other."""
LENGTH: Final = 64 << 10
"""Maximum length of a result in characters."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*?(?=:[-+]|\}|$)")

Lookup = Callable[[str], "str | None"]
"""Returns the value of a variable, or None for one without a value. Raises ``UnknownVariableError``."""


class InterpolationError(Exception):
    """A text cannot be interpolated; the argument is the reason."""


class UnknownVariableError(Exception):
    """There is no variable of this name, which is the argument."""


class _Reader(msgspec.Struct, frozen=True):
    """Interpolates one text."""

    text: str
    lookup: Lookup

    def read(self, at: int, depth: int, *, within: bool) -> tuple[str, int]:
        """Return the text from ``at`` to its end, or, ``within`` a variable, to the brace; and where that is."""
        if depth > DEPTH:
            raise InterpolationError("variables are nested too deeply")
        found: list[str] = []
        while at < len(self.text):
            if self.text.startswith("$${", at):
                found.append("${")
                at += 3
            elif self.text.startswith("${", at):
                value, at = self._variable(at + 2, depth)
                found.append(value)
            elif within and self.text[at] == "}":
                break
            else:
                found.append(self.text[at])
                at += 1
        return "".join(found), at

    def _variable(self, at: int, depth: int) -> tuple[str, int]:
        match = _NAME.match(self.text, at)
        if match is None:
            raise InterpolationError("what follows ${ is not the name of a variable; $${ stands for itself")
        name, at = match[0], match.end()
        operator = self.text[at : at + 2] if self.text[at : at + 1] == ":" else ""
        value, word = self.lookup(name), ""
        if operator:
            wanted = bool(value) == (operator == ":+")
            reader = self if wanted else _Reader(self.text, lambda each: self.lookup(each) or "")
            word, at = reader.read(at + len(operator), depth + 1, within=True)
            value = word if wanted else value if operator == ":-" else ""
        if self.text[at : at + 1] != "}":
            raise InterpolationError(f"the brace of ${{{name} is not closed")
        if value is None:
            raise InterpolationError(f"the variable {name} has no value")
        return value, at + 1


def interpolate(text: str, lookup: Lookup) -> str:
    """Return ``text`` with the values of its variables.

    Raises ``InterpolationError``, and what ``lookup`` raises.
    """
    found, _ = _Reader(text, lookup).read(0, 0, within=False)
    if len(found) > LENGTH:
        raise InterpolationError(f"the result has more than {LENGTH} characters")
    return found
