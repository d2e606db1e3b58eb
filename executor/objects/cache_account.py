"""The account with which a remote cache is used, as the orchestrator sends it to an executor."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class CacheAccount(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a service asks for. ``repr`` shows no secret."""

    key_id: str = ""
    """AWS: the id of the access key."""
    secret: str = ""
    """The secret of that; the key of an Azure storage account; a token for GitHub's REST API."""
    token: str = ""
    """A session token for the access key (AWS), or a bearer token (Azure, GitHub)."""
    seconds: float = 0.0
    """How long it may be used before it is asked for again; 0 for as long as the build runs."""

    @property
    def is_sendable(self) -> bool:
        """Whether all can stand in headers of HTTP: visible ASCII."""
        return all(
            char.isascii() and char.isprintable() and char != " " for char in self.key_id + self.secret + self.token
        )

    def __repr__(self) -> str:
        return "CacheAccount()"


Account = Callable[[], CacheAccount]
"""Return the account for a cache. Raises ``KanifoldError`` if there is none."""
