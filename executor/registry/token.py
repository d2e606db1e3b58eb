"""Authentication to registries: challenges, credentials and tokens (distribution's token, jwt and oauth2 documents).

A credential belongs to one registry. It is sent to that registry's own origin, and to a token service by these rules:

(1) at the registry's own origin (scheme, host, port): yes;
(2) over verified HTTPS within the registry's own site (``registry.gitlab.com`` → ``gitlab.com``,
    ``registry-1.docker.io`` → ``auth.docker.io``): yes;
(3) at a host that the user lists under ``token-services`` for this registry: yes, over plain HTTP only for a registry
    that is itself insecure or on this machine;
(4) anywhere else: no. If there is a credential, that is an error; if there is none, an anonymous token is requested,
    provided that a redirect to the address would be allowed (``transport.check_target``).

By the protocol alone, the credential would be sent to any host that the registry names, and clients have sent passwords
to strangers: whoever can answer for the registry once can forge a challenge. Token requests follow no redirect.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode

import msgspec
from msgspec.structs import replace

from executor.registry.auth import Credential, Keychain, Lend, Loan
from executor.registry.failure import diagnostics, refused
from executor.registry.registry_settings import RegistrySettings
from executor.registry.sites import hands_out_names
from executor.retry import RETRYABLE_STATUSES, TransientError
from executor.transport import STALL_SECONDS, HTTPRequest, Origin, Transport, check_target, origin_of
from platforms import decoding
from platforms.errors import RegistryError

TOKEN_LIMIT: Final = 1 << 20
"""Maximum size in bytes of a token service's answer."""
LIFETIME: Final = 60
"""Default lifetime of a token in seconds (token.md, ``expires_in``)."""
CLIENT_ID: Final = "kanifold"
_CHALLENGE_LIMIT: Final = 16 << 10


class Challenge(msgspec.Struct, frozen=True):
    """A challenge of a ``WWW-Authenticate`` header (RFC 9110, 11.6.1). ``scheme`` and keys are in lower case."""

    scheme: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """Return the parameter ``name``, "" if there is none."""
        return dict(self.parameters).get(name, "")


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Return the challenges in ``header`` up to the first one that is malformed."""
    text = header[:_CHALLENGE_LIMIT]
    found: list[Challenge] = []
    scheme = ""
    parameters: dict[str, str] = {}
    at = 0
    while at < len(text):
        if text[at] in " \t,":
            at += 1
            continue
        start = at
        while at < len(text) and text[at] not in " \t,=":
            at += 1
        word = text[start:at]
        after = at
        while after < len(text) and text[after] in " \t":
            after += 1
        if not word:
            break
        if after < len(text) and text[after] == "=" and scheme:
            value, at = _value(text, after + 1)
            parameters.setdefault(word.lower(), value)
            continue
        if scheme:
            found.append(Challenge(scheme, tuple(parameters.items())))
        scheme, parameters = word.lower(), {}
    if scheme:
        found.append(Challenge(scheme, tuple(parameters.items())))
    return tuple(found)


def _value(text: str, at: int) -> tuple[str, int]:
    """Return the token or quoted string at ``at``, and where it ends."""
    while at < len(text) and text[at] in " \t":
        at += 1
    if at >= len(text) or text[at] != '"':
        start = at
        while at < len(text) and text[at] not in " \t,":
            at += 1
        return text[start:at], at
    at += 1
    out: list[str] = []
    while at < len(text) and text[at] != '"':
        if text[at] == "\\" and at + 1 < len(text):
            at += 1
        out.append(text[at])
        at += 1
    return "".join(out), at + 1


def scope(repository: str, *actions: str) -> str:
    """Return the scope of ``actions`` (``pull``, ``push``) on ``repository`` (token scope documentation)."""
    return f"repository:{repository}:{','.join(sorted(actions))}"


def merged(*scopes: str) -> frozenset[str]:
    """Return ``scopes`` with the actions on each resource joined and sorted: registries write them in any order."""
    actions: dict[str, set[str]] = {}
    for each in scopes:
        resource, _, allowed = each.rpartition(":")
        actions.setdefault(resource, set()).update(filter(None, allowed.split(",")))
    return frozenset(f"{resource}:{','.join(sorted(allowed))}" for resource, allowed in actions.items() if resource)


def same_site(registry: Origin, realm: Origin) -> bool:
    """Whether ``realm`` is within the site of ``registry``: its host, its parent domain, or below either.

    The parent counts unless anyone can get a name below it, as below ``com``, ``co.uk`` or a hoster's domain
    (``sites``). IP addresses have no site: another port of a machine may be somebody else's.
    """
    host, other = registry.host, realm.host
    labels = host.split(".")
    if ":" in host or labels[-1].isdecimal() or len(labels) < 2:
        return False
    parent = ".".join(labels[1:])
    if hands_out_names(parent):
        parent = host
    return other in (host, parent) or other.endswith(("." + host, "." + parent))


class Party(msgspec.Struct, frozen=True):
    """The target of a request: a repository of a registry, and the origin that is asked."""

    registry: str
    repository: str
    origin: Origin


class _CachedToken(msgspec.Struct):
    """What is known of one registry's authentication. Guarded by its lock."""

    lock: threading.Lock = msgspec.field(default_factory=threading.Lock)
    challenge: Challenge | None = None
    credentials: dict[str, Credential | None] = msgspec.field(default_factory=dict)
    """By repository: users may have several accounts at one registry."""
    lent: dict[str, Credential] = msgspec.field(default_factory=dict)
    """User names and passwords that were lent, by repository."""
    tokens: dict[tuple[str, frozenset[str]], tuple[str, float]] = msgspec.field(default_factory=dict)


class Authenticator:
    """Answers the challenges of registries, and caches tokens. Thread-safe.

    With ``lend``, loans are used where the keychain has no credential.
    """

    def __init__(
        self, transport: Transport, settings: RegistrySettings, keychain: Keychain, lend: Lend | None = None
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._keychain = keychain
        self._lend = lend
        self._lock = threading.Lock()
        self._registries: dict[str, _CachedToken] = {}

    def has_credential(self, party: Party) -> bool:
        """Whether the keychain has a credential for ``party``."""
        known = self._known(party.registry)
        with known.lock:
            lent = self._lend is not None and bool(known.tokens)
            return lent or self._credential(known, party) is not None

    def lend(self, party: Party, scopes: frozenset[str], challenge: Callable[[], str], *, fresh: bool) -> Loan | None:
        """Return what a client on another machine needs for ``scopes``; None without a credential.

        ``challenge`` requests one from the registry (``WWW-Authenticate``). With ``fresh``, a new token is requested.
        The password is lent only if the registry wants it. Raises ``RegistryError`` and ``TransientError``.
        """
        known = self._known(party.registry)
        with known.lock:
            credential = self._credential(known, party)
            if credential is None:
                return None
            if credential.registry_token:
                return Loan(credential.registry_token, LIFETIME)
            if known.challenge is None:
                known.challenge = _chosen(challenge())
            if known.challenge is None:
                return None
            if known.challenge.scheme == "basic":
                return Loan(username=credential.username, password=credential.password)
            if fresh:
                known.tokens.pop((party.repository, scopes), None)
            self._answer(known, party, scopes)
            token, until = known.tokens[party.repository, scopes]
            return Loan(token, max(until - time.monotonic(), 1.0))

    def header(self, party: Party, scopes: frozenset[str]) -> str:
        """Return the ``Authorization`` for a request that needs ``scopes``, "" before the first challenge."""
        known = self._known(party.registry)
        with known.lock:
            if known.challenge is None:
                return ""
            return self._answer(known, party, scopes)

    def answer(self, party: Party, scopes: frozenset[str], header: str, rejected: str) -> str:
        """Return the ``Authorization`` that answers the challenge in ``header`` for a request that needs ``scopes``.

        ``rejected``: the one that was sent and refused; it is dropped from the cache. "" if there is no other one to
        send.
        """
        chosen = _chosen(header)
        if chosen is None:
            return ""
        wanted = merged(*scopes, *chosen.get("scope").split(" "))
        known = self._known(party.registry)
        with known.lock:
            known.challenge = chosen
            for held, (token, _) in tuple(known.tokens.items()):
                if rejected == f"Bearer {token}":
                    del known.tokens[held]
            try:
                found = self._answer(known, party, wanted, fresh=bool(rejected))
            except RegistryError:
                if wanted == scopes:
                    raise
                # Some registries name a scope that stands for none, and that their own token service refuses.
                wanted = scopes
                found = self._answer(known, party, scopes, fresh=bool(rejected))
            if (party.repository, wanted) in known.tokens:
                known.tokens[party.repository, scopes] = known.tokens[party.repository, wanted]
            return "" if found == rejected else found

    def _known(self, registry: str) -> _CachedToken:
        with self._lock:
            return self._registries.setdefault(registry, _CachedToken())

    def _credential(self, known: _CachedToken, party: Party) -> Credential | None:
        if party.repository not in known.credentials:
            known.credentials[party.repository] = self._keychain(f"{party.registry}/{party.repository}")
        return known.credentials[party.repository]

    def _answer(self, known: _CachedToken, party: Party, scopes: frozenset[str], *, fresh: bool = False) -> str:
        challenge = known.challenge
        assert challenge is not None
        credential = self._credential(known, party)
        if self._lend is not None and credential is None:
            return self._borrowed(known, party, scopes, fresh=fresh)
        if credential is not None and credential.registry_token:
            return f"Bearer {credential.registry_token}"
        if challenge.scheme == "basic":
            return _basic(credential) if credential is not None and credential.username else ""
        held = known.tokens.get((party.repository, scopes))
        if held is not None and held[1] > time.monotonic():
            return f"Bearer {held[0]}"
        return self._requested(known, challenge, party, scopes, credential)

    def _requested(
        self,
        known: _CachedToken,
        challenge: Challenge,
        party: Party,
        scopes: frozenset[str],
        credential: Credential | None,
    ) -> str:
        """Return the header with a new token."""
        token, seconds = self._request(challenge, party, scopes, credential)
        # Renewed early: a token has to outlive the request that it is sent with.
        known.tokens[party.repository, scopes] = (token, time.monotonic() + max(seconds * 0.8 - 5, seconds * 0.5))
        return f"Bearer {token}"

    def _borrowed(self, known: _CachedToken, party: Party, scopes: frozenset[str], *, fresh: bool) -> str:
        """As ``_answer``, with a loan."""
        assert self._lend is not None and known.challenge is not None
        basic = known.challenge.scheme == "basic"
        held = known.tokens.get((party.repository, scopes))
        if held is not None and held[1] > time.monotonic() and not basic:
            return f"Bearer {held[0]}"
        if basic and party.repository in known.lent and not fresh:
            return _basic(known.lent[party.repository])
        loan = self._lend(party.registry, party.repository, scopes, fresh)
        if loan is None:
            return "" if basic else self._requested(known, known.challenge, party, scopes, None)
        if loan.token:
            known.tokens[party.repository, scopes] = (loan.token, time.monotonic() + loan.seconds)
            return f"Bearer {loan.token}"
        known.lent[party.repository] = found = Credential(loan.username, loan.password)
        return _basic(found) if basic else ""  # not to a token service that the orchestrator has not seen

    def _request(
        self,
        challenge: Challenge,
        party: Party,
        scopes: frozenset[str],
        credential: Credential | None,
    ) -> tuple[str, float]:
        """Request a token for ``scopes``; return it and its lifetime in seconds (token.md; oauth.md for identity
        tokens)."""
        realm = challenge.get("realm")
        timeout = min(STALL_SECONDS, self._settings.timeout_of(party.registry) or STALL_SECONDS)
        self._check_realm(realm, party.registry, party.origin, credential)
        query = [("service", challenge.get("service"))] if challenge.get("service") else []
        if credential is not None and credential.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                *query,
                ("client_id", CLIENT_ID),
                ("scope", " ".join(sorted(scopes))),
                ("refresh_token", credential.identity_token),
            ]
            body = urlencode(form).encode()
            headers = (("Content-Type", "application/x-www-form-urlencoded"),)
            request = HTTPRequest("POST", realm, headers, content=lambda: iter((body,)), length=len(body))
        else:
            query += [("scope", each) for each in sorted(scopes)]
            if credential is not None and credential.username:
                query.append(("account", credential.username))
            url = realm + ("&" if "?" in realm else "?") + urlencode(query)
            authorization = _basic(credential) if credential is not None and credential.username else ""
            request = HTTPRequest("GET", url, authorization=authorization)
        request = replace(request, read_timeout=timeout, stall_timeout=timeout)
        reply, _ = self._transport.call(request, TOKEN_LIMIT, redirects=0)
        what = f"cannot get a token for {party.registry}"
        if reply.status in RETRYABLE_STATUSES:
            why = f"its token service answers with status {reply.status}"
            said = diagnostics(reply.body)
            raise TransientError(f"{why}: {said}" if said else why, delay=reply.retry_after)
        if reply.status != 200:
            raise refused(what, reply, party.registry, known=credential is not None)
        return _token(reply.body, what, realm)

    def _check_realm(self, realm: str, registry: str, origin: Origin, credential: Credential | None) -> None:
        """Raise ``RegistryError`` unless this module's rules allow a token request to ``realm``."""
        there = origin_of(realm)
        if there == origin:  # (1)
            return
        if there.scheme == "https" and same_site(origin, there) and not self._settings.is_insecure(there.authority):
            return  # (2)
        check_target(there, origin, origin, self._settings)
        named = self._settings.trusts_token_service(registry, there.authority)
        if named and (there.scheme == "https" or origin.scheme == "http" or self._settings.is_insecure(registry)):
            return  # (3)
        if credential is None:
            return  # (4)
        raise RegistryError(
            f"{registry} wants its credential sent to {there.scheme}://{there.authority}",
            why="that is another site, and nothing says that it belongs to the registry",
            remedy=f"if it does, list it for {registry} in registries.yaml: token-services: [{there.authority}]",
        )


def _chosen(header: str) -> Challenge | None:
    """Return the challenge in ``header`` that is answered; None if there is none that can be."""
    offered = parse_challenges(header)
    for scheme in ("bearer", "basic"):
        found = next((each for each in offered if each.scheme == scheme), None)
        if found is not None:
            return found
    return None


def _basic(credential: Credential) -> str:
    import base64

    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()


def _token(body: bytes, what: str, realm: str) -> tuple[str, float]:
    try:
        document = decoding.from_json(body)
    except msgspec.DecodeError:
        document = None
    if not isinstance(document, dict):
        raise RegistryError(what, why=f"{origin_of(realm).authority} did not answer in JSON")
    token = document.get("token") or document.get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
        raise RegistryError(what, why=f"{origin_of(realm).authority} answered without a token")
    seconds = document.get("expires_in")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
        seconds = LIFETIME
    return token, float(min(seconds, 24 * 3600))
