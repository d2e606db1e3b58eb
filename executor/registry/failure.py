"""Errors for refusals of registries: statuses and diagnostics as ``RegistryError``, with a reason and a remedy."""

from __future__ import annotations

from typing import Final

import msgspec

from executor.registry.reference import DOCKER_HUB
from executor.transport import HTTPResponse
from platforms import decoding
from platforms.errors import RegistryError, RegistryUnreachable, printable

_DIAGNOSTICS: Final = 3
"""Maximum number of a registry's own messages that are shown."""

_MEANINGS: Final = {
    400: "the registry found the request wrong",
    401: "the registry wants to know who asks",
    403: "the registry does not allow it",
    404: "the registry does not have it",
    405: "the registry does not support it",
    408: "the registry ran out of patience",
    413: "the registry, or a proxy before it, finds it too large",
    416: "the registry lost count of the bytes",
    429: "the registry is asked too often",
    500: "the registry failed",
    502: "the registry's proxy could not reach it",
    503: "the registry is not available",
    504: "the registry's proxy lost patience with it",
    507: "the registry has no space left",
}


def refused(what: str, reply: HTTPResponse, registry: str, *, known: bool) -> RegistryError:
    """Return the error for ``reply``. ``what``: what failed (``cannot pull debian:12``); ``known``: whether a
    credential was sent."""
    why = explained(reply, f" from {registry}")
    return RegistryError(what, why=why, remedy=remedy_for(reply, registry, known=known))


def explained(reply: HTTPResponse, source: str = "") -> str:
    """Return the meaning of the status of ``reply``, the status (with its ``source``), and the registry's own
    message."""
    meaning = _MEANINGS.get(reply.status, "an unexpected answer")
    said = diagnostics(reply.body)
    why = f"{meaning} (status {reply.status}{source})"
    return f"{why}: {said}" if said else why


def unreachable(what: str, registry: str, why: str, tries: int) -> RegistryUnreachable:
    """Return the error for a ``registry`` that could not be reached, or whose connections kept breaking."""
    times = f" (tried {tries} times)" if tries > 1 else ""
    return RegistryUnreachable(
        what,
        why=f"{registry}: {why}{times}",
        remedy="check the registry's name and port, the network, and HTTP_PROXY/NO_PROXY",
    )


def codes(body: bytes) -> frozenset[str]:
    """Return the error codes in the body of an answer (distribution-spec, "Error Codes")."""
    return frozenset(code for each in _errors(_json(body)) if isinstance(code := each.get("code"), str))


def diagnostics(body: bytes) -> str:
    """Return the registry's own message (distribution-spec, "Error Codes"), printable and short; "" if there is
    none."""
    document = _json(body)
    if isinstance(document, dict) and isinstance(document.get("errors"), list):
        found = []
        for error in _errors(document):
            code, message = error.get("code"), error.get("message")
            found.append(" ".join(each for each in (code, message) if isinstance(each, str) and each))
        return printable("; ".join(filter(None, found)))
    if isinstance(document, dict):
        # Token services: {"details": …} or OAuth2's {"error": …, "error_description": …}.
        texts = (document.get(key) for key in ("details", "error", "error_description", "message"))
        return printable(": ".join(text for text in texts if isinstance(text, str) and text))
    text = body[:2000].decode(errors="replace")
    return "" if "<" in text else printable(text, 200)


def _json(body: bytes) -> object:
    try:
        document: object = decoding.from_json(body)
    except msgspec.DecodeError:
        return None
    return document


def _errors(document: object) -> list[dict[str, object]]:
    """Return the first errors in ``document``."""
    errors = document.get("errors") if isinstance(document, dict) else None
    return [each for each in errors[:_DIAGNOSTICS] if isinstance(each, dict)] if isinstance(errors, list) else []


def remedy_for(reply: HTTPResponse, registry: str, *, known: bool) -> str:
    """Return what the user can do about ``reply``; "" if nothing is known. ``known`` as in ``refused``."""
    login = "docker login" if registry == DOCKER_HUB else f"docker login {registry}"
    match reply.status:
        case 401 if not known:
            return f"no credential for {registry} was found: {login}"
        case 401 | 403 if known:
            return f"check that the credential for {registry} is current and allows this; to renew it: {login}"
        case 403:
            return f"if it is private, sign in: {login}"
        case 404 if "NAME_UNKNOWN" in codes(reply.body):
            return (
                "check the repository's name; where a registry does not make repositories by itself, create it first; "
                f"if it is private, sign in: {login}"
            )
        case 404:
            return "check the name and the tag; if it is private, sign in: " + login
        case 429 if registry == DOCKER_HUB and not known:
            return f"signed-in users may ask more often: {login}; or set a mirror"
        case 400 if b"HTTPS server" in reply.body:
            return f"it speaks TLS: set 'tls: true' for {registry} in registries.yaml"
        case status if status == 429 or status >= 500:
            return "try again later"
        case _:
            return ""
