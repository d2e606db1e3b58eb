"""Tokens of jobs of GitHub's workflows: what they allow, and until when. The service alone verifies them."""

from __future__ import annotations

import base64
import binascii
import time
from typing import Final

import msgspec

from platforms import decoding

_WRITE: Final = 2
"""The bit of a scope's ``Permission`` that allows to write."""


class TokenScope(msgspec.Struct, frozen=True, rename="pascal"):
    """A ref of the repository, and what a token allows for its entries: 1 to read, 2 to write, or their sum."""

    scope: str
    permission: int


class _Claims(msgspec.Struct, frozen=True):
    """The claims of a token (JWT) that say what it allows, and until when."""

    ac: str = ""
    exp: float = 0.0


_CLAIMS: Final[msgspec.json.Decoder[_Claims]] = msgspec.json.Decoder(_Claims)
_SCOPES: Final[msgspec.json.Decoder[tuple[TokenScope, ...]]] = msgspec.json.Decoder(tuple[TokenScope, ...])


def scopes(token: str) -> tuple[TokenScope, ...] | None:
    """Return the scopes of ``token``, which is not verified; None if it names none, as tokens of act do not."""
    claims = _claims(token)
    if claims is None or not claims.ac:
        return None
    try:
        return decoding.decode(_SCOPES, claims.ac.encode())
    except msgspec.DecodeError:
        return None


def is_expired(token: str) -> bool:
    """Whether ``token`` says that its time is over."""
    claims = _claims(token)
    return claims is not None and 0 < claims.exp < time.time()


def may_write(token: str) -> bool:
    """Whether ``token`` allows to write entries, or does not say what it allows."""
    known = scopes(token)
    return known is None or any(each.permission & _WRITE for each in known)


def _claims(token: str) -> _Claims | None:
    part = token.split(".")[1] if token.count(".") == 2 else ""
    try:
        return decoding.decode(_CLAIMS, base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) if part else None
    except (msgspec.DecodeError, binascii.Error, ValueError):
        return None
