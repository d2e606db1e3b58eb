"""Conversations with registries: which host and scheme, who we are there, and how often to try.

Retried are broken and refused connections, silence, and the statuses 408, 429, 500, 502, 503 and 504, with exponential
backoff and jitter; ``Retry-After`` (RFC 9110, 10.2.3) is waited for when it is bearable and otherwise ends the attempt.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from executor.registry.auth import Keychain, printable
from executor.registry.config import RegistrySettings
from executor.registry.failure import PASSING, explained, refused, retry_after, unreachable
from executor.registry.notices import Remark, Tell, Watch
from executor.registry.reference import Reference, api_host, registry_of
from executor.registry.token import Authenticator, Party
from executor.transport import (
    ERROR_LIMIT,
    STALL_SECONDS,
    Cancel,
    Reply,
    Request,
    TransientError,
    Transport,
    check_target,
    joined,
    origin_of,
)
from platforms.errors import Interrupted, RegistryError

if TYPE_CHECKING:
    import httpx

MIRROR_TRIES: Final = 2
"""Tries of a mirror whose connection broke: it may just have closed one that was idle."""
_WARNING_LIMIT: Final = 20


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often to try, how long to wait between (seconds), and how much of a blob to send at once (bytes)."""

    tries: int = 6
    connects: int = 3
    """Tries for a host that does not even take the connection."""
    first: float = 0.5
    ceiling: float = 8.0
    retry_after: float = 90.0
    """The longest wait that a registry may ask for: a build is not kept hanging for hours."""
    whole: int = 512 << 20
    """The size up to which a blob is first sent in one request: every registry takes that, and only a broken connection
    makes it dear."""
    chunk: int = 32 << 20
    """The size of a chunk: above the 5 MiB minimum of object stores, below the 100 MB limit of common proxies."""

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the failed ``attempt`` (from 0): doubling, with jitter so that many do not march."""
        return min(self.first * 2.0**attempt, self.ceiling) * random.uniform(0.6, 1.0)


class ReadTimeout:
    """How long one thing is tried: as often as a pace says, and no longer than the user's ``limit`` (seconds; 0: any).

    The limit counts from when it last got further.
    """

    def __init__(self, pace: RetryPolicy, limit: float) -> None:
        self.pace = pace
        self._limit = limit
        self._since = time.monotonic()

    def further(self) -> None:
        """Bytes have moved."""
        self._since = time.monotonic()

    def ends(self, failures: int, tries: int, delay: float) -> bool:
        """Whether that was the last of ``tries``, where the next would come after ``delay`` seconds."""
        if failures >= tries or delay > self.pace.retry_after:
            return True
        return self._limit > 0 and time.monotonic() - self._since + delay > self._limit


class Endpoint(msgspec.Struct, frozen=True):
    """Where a repository's content can be had: its registry, or a mirror of it."""

    registry: str
    """The name that credentials and settings know it by."""
    host: str
    """The host and port to speak to."""
    repository: str
    plain: bool = False
    """Plain HTTP, because a mirror's address says so."""
    mirror: bool = False
    """Whether somebody else can be asked when this one fails."""


class Call(msgspec.Struct, frozen=True):
    """What a request to an endpoint needs. ``path`` follows ``/v2/NAME/``, or is an absolute URL the registry gave."""

    what: str
    """What fails when it fails: ``cannot pull debian:12``."""
    method: str
    path: str
    scopes: frozenset[str]
    headers: tuple[tuple[str, str], ...] = ()
    content: Callable[[], Iterator[bytes]] | None = None
    length: int = 0
    limit: int = ERROR_LIMIT
    """Bytes of a successful answer."""
    patience: float = STALL_SECONDS
    accept: frozenset[int] = frozenset({200})
    """The statuses that the caller deals with; all others are raised."""
    parting: bool = False
    """See ``transport.Request``."""


def origin_endpoint(reference: Reference) -> Endpoint:
    """The registry of ``reference`` itself."""
    return Endpoint(reference.registry, reference.api_host, reference.repository)


def mirror_endpoints(reference: Reference, settings: RegistrySettings) -> tuple[Endpoint, ...]:
    """The mirrors to try before the registry, in order."""
    found = []
    for mirror in settings.mirrors_of(reference.registry):
        address = mirror.removeprefix("http://")
        host, _, prefix = address.partition("/")
        repository = f"{prefix}/{reference.repository}" if prefix else reference.repository
        found.append(Endpoint(host, api_host(host), repository, plain=address != mirror, mirror=True))
    return tuple(found)


class Session:
    """Requests to registries as this user. Safe for use by many threads."""

    def __init__(
        self,
        settings: RegistrySettings,
        keychain: Keychain,
        *,
        pace: RetryPolicy | None = None,
        cancel: Cancel | None = None,
        tell: Tell | None = None,
    ) -> None:
        self.settings = settings
        self.pace = pace or RetryPolicy()
        self.transport = Transport(settings, cancel)
        self._authority = Authenticator(self.transport, settings, keychain)
        self._tell = tell
        self.watch = Watch(tell)
        self._lock = threading.Lock()
        self._schemes: dict[str, str] = {}
        self._told: set[str] = set()
        self._left: dict[str, float] = dict.fromkeys(settings.failing, math.inf)
        """Mirrors, or repositories of them, that are not asked until then (monotonic seconds)."""

    def learned(self) -> RegistrySettings:
        """The settings, with what has been found out: which insecure registries have no TLS, which mirrors fail."""
        found = frozenset(registry for registry, scheme in self._schemes.copy().items() if scheme == "http")
        failing = frozenset(name for name, until in self._left.copy().items() if until == math.inf)
        return replace(self.settings, without_tls=self.settings.without_tls | found, failing=failing)

    def mirrors(self, reference: Reference) -> Iterator[Endpoint]:
        """The mirrors to ask for ``reference`` now, in order: those that have not failed."""
        for each in mirror_endpoints(reference, self.settings):
            names = (each.registry, f"{each.registry}/{each.repository}")
            if all(self._left.get(name, 0.0) <= time.monotonic() for name in names):
                yield each

    def leave(self, endpoint: Endpoint, seconds: float = math.inf, *, why: str = "", repository: bool = False) -> None:
        """Ask ``endpoint``, if it is a mirror, no more for so long, or only nothing more of the repository."""
        if endpoint.mirror and seconds > 0:
            name = f"{endpoint.registry}/{endpoint.repository}" if repository else endpoint.registry
            self._left[name] = time.monotonic() + seconds
            if seconds == math.inf:
                self._remark(f"the mirror {name} is not asked any more in this build" + (f": {why}" if why else ""))

    def close(self) -> None:
        """End all connections, those included that other threads wait on."""
        self.transport.close()
        self.watch.close()

    def patience(self, endpoint: Endpoint) -> ReadTimeout:
        """For one thing that is asked of ``endpoint``."""
        return ReadTimeout(self.pace, self.settings.timeout_of(endpoint.registry))

    def url(self, endpoint: Endpoint, path: str) -> str:
        """The absolute URL of ``path`` under the endpoint's repository; an absolute one comes back as it is."""
        if "://" in path:
            return path
        return f"{self._scheme(endpoint)}://{endpoint.host}/v2/{endpoint.repository}/{path}"

    def call(self, endpoint: Endpoint, call: Call) -> Reply:
        """The whole answer, retried as this module says. Raises ``RegistryError`` unless its status is accepted."""
        return self._persist(endpoint, call, lambda: self.once(endpoint, call))

    def once(self, endpoint: Endpoint, call: Call) -> Reply:
        """The whole answer to a single try, whatever its status. Raises ``TransientError``."""
        with self._exchange(endpoint, call) as response:
            body = self.transport.body(response, call.limit)
            reply = Reply(response.status_code, response.headers, body, str(response.url))
        self._report_warnings(reply)
        return reply

    def refused(self, endpoint: Endpoint, what: str, reply: Reply) -> RegistryError:
        """``reply``, which is no success, as the error to raise."""
        known = reply.status in {401, 403, 429} and self._authority.has_credential(self._party(endpoint))
        return refused(what, reply, endpoint.registry, known=known)

    @contextmanager
    def stream(self, endpoint: Endpoint, call: Call) -> Iterator[httpx.Response]:
        """The answer with its body unread, for ``Transport.chunks``. Only getting this far is retried."""
        held: list[httpx.Response] = []

        def once() -> Reply:
            with self._exchange(endpoint, call, keep=held) as response:
                taken = response.status_code in call.accept
                body = b"" if taken else self.transport.body(response, call.limit)
                reply = Reply(response.status_code, response.headers, body, str(response.url))
            self._report_warnings(reply)
            return reply

        try:
            self._persist(endpoint, call, once)
            yield held[-1]
        finally:
            for response in held:
                response.close()

    def abandon(self, endpoint: Endpoint, location: str, scopes: frozenset[str]) -> None:
        """Tell the registry that an upload is given up (distribution-spec, "Cancel a blob upload"); once, briefly."""
        with suppress(TransientError, RegistryError, Interrupted):
            call = Call("cannot cancel an upload", "DELETE", location, scopes, patience=1.0, parting=True)
            self.once(endpoint, call)

    def _persist(self, endpoint: Endpoint, call: Call, once: Callable[[], Reply]) -> Reply:
        attempt = 0
        patience = self.patience(endpoint)
        while True:
            try:
                reply = once()
            except RegistryError as error:
                self.leave(endpoint, why=str(error), repository=True)
                raise
            except TransientError as lost:
                attempt += 1
                delay, why = max(lost.delay, self.pace.delay(attempt - 1)), str(lost)
                if patience.ends(attempt, self._tries(endpoint, lost), delay):
                    self.leave(endpoint, why=why)
                    raise unreachable(call.what, endpoint.registry, why, attempt) from lost
            else:
                if reply.status in call.accept:
                    return reply
                attempt += 1
                asked = retry_after(reply)
                delay, why = max(asked, self.pace.delay(attempt - 1)), f"status {reply.status}"
                passing = reply.status in PASSING and not endpoint.mirror
                if not passing or patience.ends(attempt, self.pace.tries, delay):
                    self._leave_after(endpoint, reply)
                    raise self._given_up(endpoint, call, reply, asked)
            self.watch.trouble(f"{why}, tried again in {delay:.0f} s" if delay >= 1 else why)
            self.transport.pause(delay)

    def _tries(self, endpoint: Endpoint, lost: TransientError) -> int:
        """How often to try what was ``lost``; of a mirror, only a connection that broke is tried again, and once."""
        if endpoint.mirror:
            return 1 if lost.connecting or lost.silent or lost.delay else MIRROR_TRIES
        return self.pace.connects if lost.connecting else self.pace.tries

    def _leave_after(self, endpoint: Endpoint, reply: Reply) -> None:
        """Draw the conclusions from a mirror's refusal.

        One that fails (5xx, 408) is left for the build; one that is asked too often (429) for as long as it asks, since
        bursts pass; one that does not let the user in (401, 403) for that repository. A missing image (404) says
        nothing of the next.
        """
        why = explained(reply)
        if reply.status >= 500 or reply.status == 408:
            self.leave(endpoint, why=why)
        elif reply.status == 429:
            self.leave(endpoint, retry_after(reply))
        elif reply.status in {401, 403}:
            self.leave(endpoint, why=why, repository=True)

    def _given_up(self, endpoint: Endpoint, call: Call, reply: Reply, asked: float) -> RegistryError:
        error = self.refused(endpoint, call.what, reply)
        if reply.status in PASSING and asked > self.pace.retry_after:
            problem = error.problem
            return RegistryError(
                problem.what,
                why=f"{problem.why}; it asks to wait {asked:.0f} s",
                remedy=problem.remedy or "try again later",
            )
        return error

    @contextmanager
    def _exchange(
        self, endpoint: Endpoint, call: Call, keep: list[httpx.Response] | None = None
    ) -> Iterator[httpx.Response]:
        """One request with its challenge answered. ``keep`` takes over the closing of an accepted response."""
        url = self.url(endpoint, call.path)
        party = self._party(endpoint)
        home = party.origin
        there = origin_of(url)
        ours = there == home
        if not ours:
            check_target(there, home, home, self.settings)
        header = self._authority.header(party, call.scopes) if ours else ""
        self.watch.asking(endpoint.registry)
        stall = min(STALL_SECONDS, self.settings.timeout_of(endpoint.registry) or STALL_SECONDS)
        request = Request(
            call.method,
            url,
            call.headers,
            header,
            call.content,
            call.length,
            patience=call.patience * stall / STALL_SECONDS,
            stall=stall,
            parting=call.parting,
        )
        response, left = self.transport.open(request)
        kept = False
        try:
            if response.status_code == 401 and ours and not left:
                # A 401 at the end of a redirect that has left the registry is an answer to somebody else's question.
                challenge = ", ".join(response.headers.get_list("www-authenticate"))
                answer = self._authority.answer(party, call.scopes, challenge, header)
                if answer:
                    self.transport.body(response, ERROR_LIMIT)  # so that the connection can serve the next request
                    response.close()
                    response, _ = self.transport.open(replace(request, authorization=answer))
            if keep is not None and response.status_code in call.accept:
                keep.append(response)
                kept = True
            yield response
        finally:
            if not kept:
                response.close()

    def _party(self, endpoint: Endpoint) -> Party:
        return Party(endpoint.registry, endpoint.repository, origin_of(self.url(endpoint, "")))

    def _scheme(self, endpoint: Endpoint) -> str:
        if endpoint.plain or self.settings.is_plain(endpoint.registry):
            return "http"
        if not self.settings.is_insecure(endpoint.registry):
            return "https"
        with self._lock:
            if endpoint.registry not in self._schemes:
                self._schemes[endpoint.registry] = self._probe(endpoint.host)
            return self._schemes[endpoint.registry]

    def _probe(self, host: str) -> str:
        """An insecure registry's scheme: HTTPS when it answers to that, whatever its certificate; else HTTP."""
        try:
            stall = min(STALL_SECONDS, self.settings.timeout_of(registry_of(host)) or STALL_SECONDS)
            request = Request("GET", f"https://{host}/v2/", patience=stall, stall=stall)
            self.transport.call(request, ERROR_LIMIT, redirects=0)
        except (TransientError, RegistryError):
            return "http"
        return "https"

    def _report_warnings(self, reply: Reply) -> None:
        """Pass on ``Warning: 299 - "…"`` headers, each text once (distribution-spec, "Warnings")."""
        header = reply.header("warning")
        if not header:
            return
        for part in header.split("299 - ")[1:]:
            self._remark(printable(part.strip().rstrip(",").strip().strip('"')))

    def _remark(self, text: str) -> None:
        """Tell the user ``text``, once, and not too much in all."""
        if self._tell is None or not text:
            return
        with self._lock:
            if text in self._told or len(self._told) >= _WARNING_LIMIT:
                return
            self._told.add(text)
        self._tell(Remark(text))


def absolute(reply: Reply, what: str, registry: str) -> str:
    """The ``Location`` of ``reply``, absolute."""
    location = reply.header("location")
    if not location:
        raise RegistryError(what, why=f"{registry} answered {reply.status} without saying where to go on")
    return joined(reply.url, location)
