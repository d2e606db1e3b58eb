"""Requests to registries: which host and scheme, which credentials, and what is tried again.

Retried are broken and refused connections, silence, and the statuses 408, 429, 500, 502, 503 and 504, with exponential
backoff and jitter (``executor.retry``); ``Retry-After`` (RFC 9110, 10.2.3) is waited for if it asks for at most
``RetryPolicy.longest_retry_after`` seconds, and otherwise ends the attempts.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from executor.registry.auth import Keychain, Lend, Loan, anonymous
from executor.registry.failure import explained, refused, unreachable
from executor.registry.notices import Remark, Tell, WaitMonitor
from executor.registry.reference import Reference, api_host, registry_of
from executor.registry.registry_settings import RegistrySettings
from executor.registry.token import Authenticator, Party
from executor.retry import Attempts, Notify, RetryPolicy, StallClock, TransientError
from executor.transport import (
    ERROR_LIMIT,
    STALL_SECONDS,
    Cancel,
    HTTPRequest,
    HTTPResponse,
    TransientStatus,
    Transport,
    check_target,
    joined,
    origin_of,
)
from platforms.errors import Interrupted, RegistryError, printable

if TYPE_CHECKING:
    import httpx

_WARNING_LIMIT: Final = 20


class TransferOptions(msgspec.Struct, frozen=True):
    """Options of a client's transfers: retries, and sizes in bytes."""

    retry: RetryPolicy = RetryPolicy()
    whole: int = 512 << 20
    """Blobs up to this size are first uploaded in one request, which every registry supports; larger ones in chunks,
    because of what a broken connection costs."""
    chunk: int = 32 << 20
    """Size of a chunk: above the 5 MiB minimum of object stores, below the 100 MB limit of common proxies."""


def for_mirror(policy: RetryPolicy) -> RetryPolicy:
    """Return the policy for a mirror, to which there is an alternative: only a broken connection is tried again, and
    once.

    The mirror may just have closed an idle connection.
    """
    return replace(
        policy, attempts=2, connect_attempts=1, retry_silence=False, longest_retry_after=0.0, statuses=frozenset()
    )


class Endpoint(msgspec.Struct, frozen=True):
    """A place to get a repository's content from: its registry, or a mirror."""

    registry: str
    """Its name in credentials and settings."""
    host: str
    """``HOST[:PORT]`` to connect to."""
    repository: str
    plain: bool = False
    """Whether the mirror's address says ``http://``."""
    mirror: bool = False
    """Whether it is a mirror: others are tried when it fails."""


class EndpointRequest(msgspec.Struct, frozen=True):
    """A request to an endpoint. ``path`` is relative to ``/v2/NAME/``, or an absolute URL that the registry gave."""

    what: str
    """What fails when it fails: ``cannot pull debian:12``."""
    method: str
    path: str
    scopes: frozenset[str]
    headers: tuple[tuple[str, str], ...] = ()
    content: Callable[[], Iterator[bytes]] | None = None
    length: int = 0
    limit: int = ERROR_LIMIT
    """Maximum size in bytes of the body of a successful answer."""
    read_timeout: float = STALL_SECONDS
    """Seconds to wait for the answer once the request is sent; reduced in proportion where the user has set a
    timeout."""
    accept: frozenset[int] = frozenset({200})
    """Statuses that the caller handles; all others are errors."""
    best_effort: bool = False
    """Whether it is sent even after the user has asked to stop, because it cleans up."""


def origin_endpoint(reference: Reference) -> Endpoint:
    """Return the endpoint of the registry of ``reference``."""
    return Endpoint(reference.registry, reference.api_host, reference.repository)


def mirror_endpoints(reference: Reference, settings: RegistrySettings) -> tuple[Endpoint, ...]:
    """Return the mirrors for ``reference``, in the order in which they are tried."""
    found = []
    for mirror in settings.mirrors_of(reference.registry):
        address = mirror.removeprefix("http://")
        host, _, prefix = address.partition("/")
        repository = f"{prefix}/{reference.repository}" if prefix else reference.repository
        found.append(Endpoint(host, api_host(host), repository, plain=address != mirror, mirror=True))
    return tuple(found)


class RegistrySession:
    """Requests to registries with one user's credentials. Thread-safe."""

    def __init__(
        self,
        settings: RegistrySettings,
        keychain: Keychain,
        *,
        options: TransferOptions | None = None,
        cancel: Cancel | None = None,
        tell: Tell | None = None,
    ) -> None:
        self.settings = settings
        self.options = options or TransferOptions()
        self.transport = Transport(settings, cancel)
        self._authenticator = Authenticator(self.transport, settings, keychain)
        self._tell = tell
        self.watch = WaitMonitor(tell)
        self._lock = threading.Lock()
        self._schemes: dict[str, str] = {}
        self._told: set[str] = set()
        self._left: dict[str, float] = dict.fromkeys(settings.failing, math.inf)
        """Mirrors, or repositories on them, that are not to be asked until then (``time.monotonic``)."""

    def probed_settings(self) -> RegistrySettings:
        """Return the settings with what was found out: insecure registries without TLS, and mirrors that fail."""
        found = frozenset(registry for registry, scheme in self._schemes.copy().items() if scheme == "http")
        failing = frozenset(name for name, until in self._left.copy().items() if until == math.inf)
        return replace(self.settings, without_tls=self.settings.without_tls | found, failing=failing)

    def mirrors(self, reference: Reference) -> Iterator[Endpoint]:
        """Yield the mirrors to ask for ``reference`` now, in order, without those that have failed."""
        for each in mirror_endpoints(reference, self.settings):
            names = (each.registry, f"{each.registry}/{each.repository}")
            if all(self._left.get(name, 0.0) <= time.monotonic() for name in names):
                yield each

    def leave(self, endpoint: Endpoint, seconds: float = math.inf, *, why: str = "", repository: bool = False) -> None:
        """Do not ask ``endpoint``, if it is a mirror, for so many ``seconds``; with ``repository`` only not for that
        repository."""
        if endpoint.mirror and seconds > 0:
            name = f"{endpoint.registry}/{endpoint.repository}" if repository else endpoint.registry
            self._left[name] = time.monotonic() + seconds
            if seconds == math.inf:
                self._remark(f"the mirror {name} is not asked any more in this build" + (f": {why}" if why else ""))

    def close(self) -> None:
        """Close all connections, including those that other threads wait for."""
        self.transport.close()
        self.watch.close()

    def clock(self, endpoint: Endpoint) -> StallClock:
        """Return a clock for one request to ``endpoint``, with the user's limit (``--registry-timeout``)."""
        return StallClock(self.settings.timeout_of(endpoint.registry))

    def attempts(
        self,
        endpoint: Endpoint,
        *,
        clock: StallClock | None = None,
        on: type[TransientError] = TransientError,
        notify: Notify | None = None,
    ) -> Attempts:
        """Return the attempts at one request to ``endpoint``. By default they have a ``clock`` of their own.

        By default ``notify`` stores the reason of the last failure for notices about the wait.
        """
        policy = for_mirror(self.options.retry) if endpoint.mirror else self.options.retry
        return Attempts(
            policy, self.transport.pause, notify=notify or self._notify, clock=clock or self.clock(endpoint), on=on
        )

    def url(self, endpoint: Endpoint, path: str) -> str:
        """Return the absolute URL of ``path`` in the endpoint's repository. An absolute URL is returned unchanged."""
        if "://" in path:
            return path
        return f"{self._scheme(endpoint)}://{endpoint.host}/v2/{endpoint.repository}/{path}"

    def call(self, endpoint: Endpoint, call: EndpointRequest) -> HTTPResponse:
        """Return the whole answer; failures are retried. Raises ``RegistryError`` unless its status is accepted."""
        return self._retried(endpoint, call, partial(self.once, endpoint, call))

    def once(self, endpoint: Endpoint, call: EndpointRequest) -> HTTPResponse:
        """Return the whole answer to a single attempt, whatever its status. Raises ``TransientError``."""
        with self._exchange(endpoint, call) as response:
            body = self.transport.body(response, call.limit)
            reply = HTTPResponse(response.status_code, response.headers, body, str(response.url))
        self._report_warnings(reply)
        return reply

    def refused(self, endpoint: Endpoint, what: str, reply: HTTPResponse) -> RegistryError:
        """Return the error for ``reply``, which is no success."""
        known = reply.status in {401, 403, 429} and self._authenticator.has_credential(self._party(endpoint))
        return refused(what, reply, endpoint.registry, known=known)

    @contextmanager
    def stream(self, endpoint: Endpoint, call: EndpointRequest) -> Iterator[httpx.Response]:
        """Open an accepted answer with its body unread, for ``Transport.chunks``. Failures up to there are retried."""
        held: list[httpx.Response] = []
        try:
            self._retried(endpoint, call, partial(self._open, endpoint, call, held))
            yield held[-1]
        finally:
            for response in held:
                response.close()

    def _open(self, endpoint: Endpoint, call: EndpointRequest, held: list[httpx.Response]) -> HTTPResponse:
        """Make a single attempt. An accepted response is appended to ``held``, with its body unread."""
        with self._exchange(endpoint, call, keep=held) as response:
            taken = response.status_code in call.accept
            body = b"" if taken else self.transport.body(response, call.limit)
            reply = HTTPResponse(response.status_code, response.headers, body, str(response.url))
        self._report_warnings(reply)
        return reply

    def borrow(self, lend: Lend, own: Keychain = anonymous) -> None:
        """Use loans where the keychain ``own`` has no credential. To be called before the first request."""
        self._authenticator = Authenticator(self.transport, self.settings, own, lend)

    def lend(self, endpoint: Endpoint, scopes: frozenset[str], *, fresh: bool) -> Loan | None:
        """Return what a client on another machine needs for ``scopes`` (``Authenticator.lend``)."""
        what = f"cannot get a token for {endpoint.registry}"
        attempts = self.attempts(endpoint)
        try:
            while True:
                with attempts:
                    challenge = partial(self._challenge, endpoint)
                    return self._authenticator.lend(self._party(endpoint), scopes, challenge, fresh=fresh)
        except TransientError as error:
            raise unreachable(what, endpoint.registry, str(error), error.attempts) from error

    def _challenge(self, endpoint: Endpoint) -> str:
        """Return the registry's ``WWW-Authenticate``; "" if it wants no credential (distribution-spec, "Determining
        Support")."""
        stall = min(STALL_SECONDS, self.settings.timeout_of(endpoint.registry) or STALL_SECONDS)
        url = f"{self._scheme(endpoint)}://{endpoint.host}/v2/"
        request = HTTPRequest("GET", url, read_timeout=stall, stall_timeout=stall)
        reply, _ = self.transport.call(request, ERROR_LIMIT, redirects=0)
        if reply.status in self.options.retry.statuses:
            raise TransientStatus(reply)
        return reply.header("www-authenticate") if reply.status == 401 else ""

    def abandon(self, endpoint: Endpoint, location: str, scopes: frozenset[str]) -> None:
        """Cancel an upload (distribution-spec, "Cancel a blob upload"): one attempt, with a short timeout. Errors are
        ignored."""
        with suppress(TransientError, RegistryError, Interrupted):
            call = EndpointRequest(
                "cannot cancel an upload", "DELETE", location, scopes, read_timeout=1.0, best_effort=True
            )
            self.once(endpoint, call)

    def _retried(self, endpoint: Endpoint, call: EndpointRequest, once: Callable[[], HTTPResponse]) -> HTTPResponse:
        """Return the first accepted reply of ``once``; failures are retried. Raises ``RegistryError``."""
        attempts = self.attempts(endpoint, notify=self._notify_of_wait)
        try:
            while True:
                with attempts:
                    reply = once()
                    if reply.status in call.accept:
                        return reply
                    if reply.status in attempts.policy.statuses:
                        raise TransientStatus(reply)
                    break
        except TransientStatus as error:
            reply = error.reply
        except TransientError as error:
            self.leave(endpoint, why=str(error))
            raise unreachable(call.what, endpoint.registry, str(error), error.attempts) from error
        except RegistryError as error:
            self.leave(endpoint, why=str(error), repository=True)
            raise
        self._leave_after(endpoint, reply)
        raise self._given_up(endpoint, call, reply)

    def _notify(self, error: TransientError, _: float) -> None:
        self.watch.retrying(str(error))

    def _notify_of_wait(self, error: TransientError, delay: float) -> None:
        self.watch.retrying(f"{error}, tried again in {delay:.0f} s" if delay >= 1 else str(error))

    def _leave_after(self, endpoint: Endpoint, reply: HTTPResponse) -> None:
        """Decide by a mirror's refusal how long not to ask it again.

        After 5xx and 408 for the rest of the build; after 429 for as long as the mirror asks, since bursts pass; after
        401 and 403 for that repository. 404 says nothing about other images.
        """
        why = explained(reply)
        if reply.status >= 500 or reply.status == 408:
            self.leave(endpoint, why=why)
        elif reply.status == 429:
            self.leave(endpoint, reply.retry_after)
        elif reply.status in {401, 403}:
            self.leave(endpoint, why=why, repository=True)

    def _given_up(self, endpoint: Endpoint, call: EndpointRequest, reply: HTTPResponse) -> RegistryError:
        """Return the error for ``reply``, which is not retried."""
        error = self.refused(endpoint, call.what, reply)
        policy, asked = self.options.retry, reply.retry_after
        if reply.status in policy.statuses and asked > policy.longest_retry_after:
            problem = error.problem
            return RegistryError(
                problem.what,
                why=f"{problem.why}; it asks to wait {asked:.0f} s",
                remedy=problem.remedy or "try again later",
            )
        return error

    @contextmanager
    def _exchange(
        self, endpoint: Endpoint, call: EndpointRequest, keep: list[httpx.Response] | None = None
    ) -> Iterator[httpx.Response]:
        """Make one request, and again with credentials if it is challenged. An accepted response is appended to
        ``keep`` and stays open."""
        url = self.url(endpoint, call.path)
        party = self._party(endpoint)
        home = party.origin
        there = origin_of(url)
        ours = there == home
        if not ours:
            check_target(there, home, home, self.settings)
        header = self._authenticator.header(party, call.scopes) if ours else ""
        self.watch.waiting_for(endpoint.registry)
        stall = min(STALL_SECONDS, self.settings.timeout_of(endpoint.registry) or STALL_SECONDS)
        request = HTTPRequest(
            call.method,
            url,
            call.headers,
            header,
            call.content,
            call.length,
            read_timeout=call.read_timeout * stall / STALL_SECONDS,
            stall_timeout=stall,
            best_effort=call.best_effort,
        )
        response, left = self.transport.open(request)
        kept = False
        try:
            if response.status_code == 401 and ours and not left:
                # A 401 at the end of a redirect that has left the registry is an answer to somebody else's question.
                challenge = ", ".join(response.headers.get_list("www-authenticate"))
                answer = self._authenticator.answer(party, call.scopes, challenge, header)
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
        """Return the scheme of an insecure registry: https if it speaks TLS, with whatever certificate, else http."""
        try:
            stall = min(STALL_SECONDS, self.settings.timeout_of(registry_of(host)) or STALL_SECONDS)
            request = HTTPRequest("GET", f"https://{host}/v2/", read_timeout=stall, stall_timeout=stall)
            self.transport.call(request, ERROR_LIMIT, redirects=0)
        except (TransientError, RegistryError):
            return "http"
        return "https"

    def _report_warnings(self, reply: HTTPResponse) -> None:
        """Report ``Warning: 299 - "…"`` headers, each text once (distribution-spec, "Warnings")."""
        header = reply.header("warning")
        if not header:
            return
        for part in header.split("299 - ")[1:]:
            self._remark(printable(part.strip().rstrip(",").strip().strip('"')))

    def _remark(self, text: str) -> None:
        """Tell the user ``text`` once; at most ``_WARNING_LIMIT`` texts."""
        if self._tell is None or not text:
            return
        with self._lock:
            if text in self._told or len(self._told) >= _WARNING_LIMIT:
                return
            self._told.add(text)
        self._tell(Remark(text))


def absolute(reply: HTTPResponse, what: str, registry: str) -> str:
    """Return the ``Location`` of ``reply`` as an absolute URL. Raises ``RegistryError`` if there is none."""
    location = reply.header("location")
    if not location:
        raise RegistryError(what, why=f"{registry} answered {reply.status} without saying where to go on")
    return joined(reply.url, location)
