"""The variables of a release: those that its file declares, those of the git checkout, and those of a matrix.

A file declares the variables that it uses, as a bake file does. The value is that of ``--var``, else that of the
environment variable of this name, else the default. No other variable of the environment can be named.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from executor.dockerfile.suggestions import hint
from orchestrator.release import checkout
from orchestrator.release.interpolation import InterpolationError, UnknownVariableError, interpolate
from orchestrator.yaml_settings import Setting
from platforms.errors import UsageError

_CHAIN: Final = 32
"""Maximum number of variables whose defaults are made of one another in a row."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


class Variables:
    """The variables of a file. ``declared`` has their defaults, ``given`` what ``--var`` says."""

    def __init__(
        self, declared: Mapping[str, Setting], given: Mapping[str, str], environ: Mapping[str, str], directory: str
    ) -> None:
        for name, default in declared.items():
            if not _NAME.fullmatch(name):
                raise default.refusal(
                    "a variable cannot have this name", "names have letters, digits and underscores, no digit first"
                )
        for name in given:
            if name not in declared:
                raise UsageError(
                    f"--var {name}: the release file has no such variable{hint(name, tuple(declared))}",
                    remedy=f"it declares {', '.join(declared)}" if declared else "it declares none",
                )
        self._declared = declared
        self._given = given
        self._environ = environ
        self._directory = directory
        self._reading: list[str] = []
        """The variables whose defaults are being interpolated."""
        self._defaults: dict[str, str] = {}
        """The defaults that were interpolated, each once."""

    @functools.cached_property
    def checkout(self) -> checkout.CheckedOutCommit | None:
        """The commit that is checked out; None if there is none."""
        return checkout.read(self._directory, self._environ)

    def value(self, name: str) -> str | None:
        """Return the value of ``name``; None for one without. Raises ``UnknownVariableError``."""
        if name.startswith("git."):
            return self._of_git(name)
        if name not in self._declared:
            raise UnknownVariableError(name)
        found = self._given.get(name, self._environ.get(name))
        if found is not None:
            return found
        default = self._declared[name]
        if default.value == "":
            return None
        if name in self._defaults:
            return self._defaults[name]
        if name in self._reading:
            raise InterpolationError(f"its value depends on itself: {' -> '.join((*self._reading, name))}")
        if len(self._reading) >= _CHAIN:
            raise InterpolationError(f"more than {_CHAIN} variables depend on each other in a row")
        self._reading.append(name)
        try:
            self._defaults[name] = self.text(default, {})
        finally:
            self._reading.pop()
        return self._defaults[name]

    def _of_git(self, name: str) -> str | None:
        if name not in checkout.VARIABLES:
            raise UnknownVariableError(name)
        return None if self.checkout is None else self.checkout.variables()[name]

    def text(self, setting: Setting, values: Mapping[str, str]) -> str:
        """Return the scalar ``setting``, which may be empty, with the values of its variables; ``values`` are those of
        a matrix. Raises ``UsageError``."""
        if not isinstance(setting.value, str):
            raise setting.refusal("a text is expected")
        return self.interpolated(setting, setting.value, values)

    def interpolated(self, setting: Setting, text: str, values: Mapping[str, str]) -> str:
        """Return ``text`` of ``setting`` with the values of its variables. Raises ``UsageError``."""
        if "${" not in text:
            return text
        try:
            return interpolate(text, _Values(values, self.value).find)
        except UnknownVariableError as error:
            name = str(error)
            known = (*values, *self._declared, *checkout.VARIABLES)
            raise setting.refusal(
                f"there is no variable {name}{hint(name, known)}",
                remedy=f"declare it in `variables`, or write $${{{name}}} for the text itself",
            ) from error
        except InterpolationError as error:
            raise setting.refusal(str(error)) from error


class _Values(msgspec.Struct, frozen=True):
    """The values of a matrix, before all other variables."""

    values: Mapping[str, str]
    others: Callable[[str], str | None]

    def find(self, name: str) -> str | None:
        return self.values[name] if name in self.values else self.others(name)
