"""Names of build contexts: which context a FROM, ``--from`` or stage refers to; names are compared like references.

``debian``, ``debian:latest``, ``library/debian`` and ``index.docker.io/library/debian`` are one name, as in BuildKit
(dockerui, ``NamedContext``): the familiar form of the reference without ``:latest``. A digest is part of the name.
``NAME::PLATFORM`` is a context for one platform and takes precedence over the plain name.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from executor.registry import reference
from platforms.errors import UsageError
from platforms.parsing import parse as parse_platform
from platforms.platform import Platform

_FOR_PLATFORM: Final = re.compile(r"(.*?)::([A-Za-z0-9][^\]]*)")
"""``NAME::PLATFORM``, which the address of ``[::1]:5000/name`` is not."""


class Named(msgspec.Struct, frozen=True):
    """The canonical names of a build's contexts, for a build of ``platform``."""

    names: frozenset[str] = frozenset()
    platform: Platform | None = None

    def find(self, name: str, platform: Platform | None = None) -> str:
        """Return the canonical name of the context ``name`` for ``platform`` (None: the build's); "" if there is
        none."""
        if not self.names:
            return ""
        try:
            plain = canonical(name)
        except UsageError:
            return ""
        special = f"{plain}::{platform or self.platform}"
        return next((each for each in (special, plain) if each in self.names), "")

    def find_stage(self, name: str, platform: Platform | None = None) -> str:
        """Return the context that replaces the stage ``name``; "" if there is none."""
        return "" if name.casefold() in ("", "scratch", "context") else self.find(name, platform)


NONE: Final = Named()


def canonical(text: str) -> str:
    """Return the canonical form of the name of a context. Raises ``UsageError``.

    A name without a slash may have capitals, as names of stages may.
    """
    match = _FOR_PLATFORM.fullmatch(text)
    if match is not None:
        return f"{canonical(match[1])}::{parse_platform(match[2])}"
    if "/" not in text:
        name, colon, rest = text.partition(":")
        text = name.lower() + colon + rest
    return reference.parse(text).familiar().removesuffix(":latest")
