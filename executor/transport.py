"""HTTP for registries and for URLs of a Dockerfile: single requests, redirects, bounded bodies, and httpx's errors.

Every answer is untrusted: no cookies are kept; nothing is decompressed (identity is requested, and bytes are read raw);
redirects are followed here and not by httpx. The ``Authorization`` header is sent to the origin of the request only,
and not again once a redirect has left it. There is no redirect from HTTPS to HTTP, to link-local addresses (cloud
metadata), or from elsewhere to this machine.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from msgspec.structs import replace

from executor.retry import TransientError
from platforms import debug
from platforms.errors import Interrupted, RegistryError, RegistryUnreachable, printable
from platforms.hosts import is_loopback
from platforms.loading import without

if TYPE_CHECKING:
    import socket
    import ssl
    from http.cookiejar import CookieJar

    import httpx

CONNECT_SECONDS: Final = 15.0
STALL_SECONDS: Final = 60.0
"""How long a peer may send nothing, or accept nothing."""
COMMIT_SECONDS: Final = 600.0
"""How long a registry may take to answer a finished upload: some verify and copy gigabytes first."""
SMALL_BODY_SECONDS: Final = 120.0
"""How long the whole body of a manifest, token or error may take, however steadily it arrives."""
RATE_BYTES: Final = 16 << 10
"""Minimum number of bytes that have to arrive in ``RATE_SECONDS``."""
RATE_SECONDS: Final = 60.0
CONNECTIONS: Final = 32
REDIRECTS: Final = 5
ERROR_LIMIT: Final = 64 << 10
"""Maximum number of bytes read of the body of an error."""
CHUNK: Final = 512 << 10

_METADATA: Final = frozenset({"fd00:ec2::254", "100.100.100.200"})
"""Cloud metadata services outside of the link-local ranges (AWS over IPv6, Alibaba)."""


class Cancel(Protocol):
    """Tells transfers to stop; ``threading.Event`` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; return whether to stop."""
        ...


class Certificates(Protocol):
    """TLS material for ``registry``: ``ca`` is PEM text, ``cert`` and ``key`` are paths; "" if there is none."""

    @property
    def registry(self) -> str: ...

    @property
    def ca(self) -> str: ...

    @property
    def cert(self) -> str: ...

    @property
    def key(self) -> str: ...


class Trust(Protocol):
    """Exceptions from TLS verified by the system's authorities. ``name`` is ``HOST`` or ``HOST:PORT``."""

    def is_insecure(self, name: str, /) -> bool:
        """Whether plain HTTP and unverified TLS are allowed for ``name``."""
        ...

    def certificates_for(self, name: str, /) -> Certificates | None:
        """Return the TLS material for ``name``, if any is set."""
        ...


class SystemTrust:
    """Trust in the system's authorities for every host, without exceptions."""

    def is_insecure(self, _: str, /) -> bool:
        """Return False."""
        return False

    def certificates_for(self, _: str, /) -> Certificates | None:
        """Return None."""
        return None


class Origin(msgspec.Struct, frozen=True):
    """Scheme, host and port: the scope of a credential (RFC 6454)."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """``HOST`` or ``HOST:PORT``; without the port if it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"


_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class HTTPRequest(msgspec.Struct, frozen=True):
    """An HTTP request. ``content`` opens the body, again each time it is sent; ``length`` is its size in bytes."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    authorization: str = ""
    content: Callable[[], Iterator[bytes]] | None = None
    length: int = 0
    read_timeout: float = STALL_SECONDS
    """Seconds to wait for the answer once the request is sent."""
    stall_timeout: float = STALL_SECONDS
    """Seconds in which the connection has to be made, or the peer has to accept some bytes."""
    best_effort: bool = False
    """Whether it is sent even after the user has asked to stop, because it cleans up."""


class HTTPResponse(msgspec.Struct, frozen=True):
    """A whole answer. Names in ``headers`` ignore case; ``url`` is the one after redirects."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str

    def header(self, name: str) -> str:
        """Return the header ``name``, "" if there is none."""
        return self.headers.get(name, "")

    @property
    def retry_after(self) -> float:
        """The seconds in ``Retry-After``, which is a number or a date (RFC 9110, 10.2.3); 0 if there is none, or it is
        invalid."""
        text = self.header("retry-after").strip()
        if not text:
            return 0.0
        if text.isascii() and text.isdecimal():
            return float(text[:9])
        import email.utils

        try:
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, OverflowError):
            return 0.0


class TransientStatus(TransientError):
    """The answer is a status that may pass: ``reply`` has one of a policy's ``statuses``."""

    def __init__(self, reply: HTTPResponse, why: str = "") -> None:
        super().__init__(why or f"status {reply.status}", delay=reply.retry_after)
        self.reply = reply


def load_httpx() -> None:
    """Import httpx and what its clients import later, without its command line and anyio.

    ``httpx/__init__`` imports ``httpx._main`` for its console script, and with it click, rich and pygments where they
    are installed, which is half of the import time. httpx then behaves as if it were installed without the extra
    ``cli``, and httpcore as without ``asyncio``.
    """
    if "httpx" not in sys.modules:
        with without("httpx._main", "anyio"):
            import httpx

            httpx.HTTPTransport(verify=False).close()


@functools.lru_cache(256)
def origin_of(url: str) -> Origin:
    """Return the origin of an absolute http or https ``url``. Raises ``RegistryError`` for anything else."""
    parsed = _parsed(url)
    try:
        host = parsed.host.lower()
    except UnicodeError as error:  # it is decoded only now, and may be none (RFC 5891)
        raise RegistryError("a registry named an address that is none", why=printable(url)) from error
    if parsed.scheme not in _DEFAULT_PORTS or not host:
        raise RegistryError("a registry named an address that is not HTTP", why=printable(url))
    return Origin(parsed.scheme, host, parsed.port or _DEFAULT_PORTS[parsed.scheme])


@functools.lru_cache(256)
def _parsed(url: str) -> httpx.URL:
    """Return the parsed ``url``. Cached, because parsing the long URL of an upload takes as long as the rest of the
    request's preparation."""
    load_httpx()
    import httpx

    try:
        return httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise RegistryError("a registry named an address that is none", why=printable(url)) from error


def joined(base: str, location: str) -> str:
    """Resolve ``location`` relative to ``base`` (RFC 3986, section 5), without user, password and fragment.

    httpx would send a user and password in a Location as credentials, and they are not the user's.
    """
    load_httpx()
    import httpx

    try:
        url = _parsed(base).join(location)
        if url.userinfo or url.fragment:
            url = url.copy_with(username=None, password=None, fragment=None)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise RegistryError("a registry sent us to an address that is none", why=printable(location)) from error
    origin_of(str(url))
    return str(url)


class Transport:
    """The HTTP connections of one client. Thread-safe."""

    def __init__(self, trust: Trust, cancel: Cancel | None = None) -> None:
        self._trust = trust
        self._cancel = cancel
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str], httpx.Client] = {}
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._closed = False

    def close(self) -> None:
        """Close all connections. Requests of other threads raise ``Interrupted``."""
        with self._lock:
            self._closed = True
            clients, self._clients = tuple(self._clients.values()), {}
            sockets = tuple(self._sockets)
        for each in sockets:
            # Closing a socket does not wake who waits on it; this does (shutdown(2)).
            with suppress(OSError):
                each.shutdown(2)
        for client in clients:
            client.close()

    def check(self) -> None:
        """Raise ``Interrupted`` once the user has asked to stop."""
        if self._closed or (self._cancel is not None and self._cancel.is_set()):
            raise Interrupted("the transfer was stopped")

    def pause(self, seconds: float) -> None:
        """Wait for so many seconds. Raises ``Interrupted`` as soon as the user asks to stop."""
        if self._cancel is None:
            time.sleep(seconds)
        elif self._cancel.wait(seconds):
            raise Interrupted("the transfer was stopped")

    def call(self, request: HTTPRequest, limit: int, *, redirects: int = REDIRECTS) -> tuple[HTTPResponse, bool]:
        """Return the whole answer to ``request``, and whether a redirect has left its origin.

        At most ``limit`` bytes of the body are read: a longer one is a ``RegistryError`` if the request succeeded, and
        is truncated if it did not. Raises ``TransientError`` for failures that may pass.
        """
        response, left = self.open(request, redirects=redirects)
        try:
            body = self.body(response, limit)
            return HTTPResponse(response.status_code, response.headers, body, str(response.url)), left
        finally:
            response.close()

    def body(self, response: httpx.Response, limit: int) -> bytes:
        """Return the raw body of ``response``; limits as for ``call``."""
        ok = response.is_success
        if not ok and is_encoded(response):
            return b""
        allowed = limit if ok else min(limit, ERROR_LIMIT)
        deadline = time.monotonic() + SMALL_BODY_SECONDS
        parts: list[bytes] = []
        held = 0
        for chunk in self.chunks(response):
            parts.append(chunk[: allowed + 1 - held])
            held += len(parts[-1])
            if held > allowed:
                if ok:
                    raise RegistryError(
                        f"{origin_of(str(response.url)).authority} sent too much",
                        why=f"the answer to {response.request.method} {response.url.path} exceeds {limit} bytes",
                    )
                break
            if time.monotonic() > deadline:
                raise TransientError(f"the answer was not complete after {SMALL_BODY_SECONDS:.0f} s")
        return b"".join(parts)

    def chunks(self, response: httpx.Response) -> Iterator[bytes]:
        """Return the raw body of ``response`` as it arrives. Raises ``RegistryError`` if it is encoded. The iterator
        raises ``TransientError``, ``Interrupted``."""
        if is_encoded(response):
            raise RegistryError(
                f"{origin_of(str(response.url)).authority} sent a compressed answer",
                why="plain bytes were asked for, and decompressing what a stranger sends can fill the memory",
                remedy="if a proxy compresses answers, turn that off for the registry",
            )
        return self.raw(response)

    def raw(self, response: httpx.Response) -> Iterator[bytes]:
        """Yield the raw body of ``response``, in whatever content coding."""
        with translated(str(response.url)):
            for chunk in response.iter_raw():
                self.check()
                yield chunk

    def open(self, request: HTTPRequest, *, redirects: int = REDIRECTS) -> tuple[httpx.Response, bool]:
        """Return the answer to ``request`` after redirects, with its body unread, for the caller to close, and whether
        they left its origin."""
        first = here = origin_of(request.url)
        left = False
        for _ in range(redirects + 1):
            response = self._told(request) if debug.on else self._send(request)
            target = _redirected(request, response) if redirects else None
            if target is None:
                return response, left
            response.close()
            there = origin_of(target)
            check_target(there, here, first, self._trust)
            if there != first:
                left = True
            request = replace(request, url=target, authorization="" if left else request.authorization)
            here = there
        raise RegistryError(f"{first.authority} sent us round in circles", why=f"more than {redirects} redirects")

    def _told(self, request: HTTPRequest) -> httpx.Response:
        """As ``_send``, with a line in the debugging log: the URL without credentials and query."""
        began = time.monotonic()
        where = origin_of(request.url)
        status = "interrupted"
        try:
            response = self._send(request)
            status = str(response.status_code)
        except (TransientError, RegistryError) as error:
            status = str(error)
            raise
        finally:
            url = f"{where.scheme}://{where.authority}{_parsed(request.url).path}"
            debug.log("request", method=request.method, url=url, status=status, seconds=time.monotonic() - began)
        return response

    def _send(self, request: HTTPRequest) -> httpx.Response:
        if not request.best_effort:
            self.check()
        load_httpx()
        import httpx

        client = self._client(origin_of(request.url))
        headers = {"Accept-Encoding": "identity", "User-Agent": "kanifold", **dict(request.headers)}
        if request.authorization:
            headers["Authorization"] = request.authorization
        if request.content is not None or request.method in {"POST", "PUT", "PATCH"}:
            headers["Content-Length"] = str(request.length)
        connect = min(CONNECT_SECONDS, request.stall_timeout)
        timeout = httpx.Timeout(request.stall_timeout, connect=connect, read=request.read_timeout, pool=None)
        with translated(request.url):
            built = client.build_request(
                request.method,
                _parsed(request.url),
                headers=headers,
                content=request.content() if request.content is not None else None,
                timeout=timeout,
                extensions={"trace": self._remember},
            )
            return client.send(built, stream=True, follow_redirects=False)

    def _remember(self, event: str, info: dict[str, Any]) -> None:
        """Store the sockets that are opened, from httpx's trace of a request, so that ``close`` can shut them down.

        One that was being connected meanwhile is not in its pool any more, so it is closed here.
        """
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            with self._lock:
                self._sockets.add(info["return_value"].get_extra_info("socket"))
                closed = self._closed
            if closed:
                info["return_value"].close()

    def _client(self, target: Origin) -> httpx.Client:
        """Return the connection pool for ``target``: there is one for each way of verifying peers."""
        key = ("plain", "")
        if target.scheme == "https":
            names = (target.host, target.authority, f"{target.authority}:{target.port}")
            known = next((name for name in names if self._trust.certificates_for(name) is not None), "")
            insecure = any(self._trust.is_insecure(name) for name in names)
            key = ("unverified", "") if insecure else ("tls", known)
        if is_loopback(target.authority):
            key = (f"{key[0]} local", key[1])
        with self._lock:
            if self._closed:
                raise Interrupted("the transfer was stopped")
            client = self._clients.get(key)
            if client is None:
                client = self._clients[key] = self._make(*key)
            return client

    def _make(self, trust: str, name: str) -> httpx.Client:
        load_httpx()
        import httpx

        verify: ssl.SSLContext | bool = False
        if trust.startswith("tls"):
            verify = self._context(name)
        return httpx.Client(
            verify=verify,
            # Proxies come from the environment as elsewhere, but never stand between us and this machine.
            trust_env=not trust.endswith("local"),
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            cookies=_no_cookies(),
        )

    def _context(self, name: str) -> ssl.SSLContext:
        if not name:
            return system_trust()
        import ssl

        certificates = self._trust.certificates_for(name)
        context = _new_trust()
        if certificates is None:
            return context
        try:
            if certificates.ca:
                context.load_verify_locations(cadata=certificates.ca)
            if certificates.cert:
                context.load_cert_chain(certificates.cert, certificates.key or None)
        except (OSError, ValueError) as error:
            why = (
                error.reason
                if isinstance(error, ssl.SSLError)
                else error.strerror
                if isinstance(error, OSError)
                else ""
            )
            raise RegistryError(
                f"cannot use the certificates set for {certificates.registry}",
                why=why or str(error),
                remedy="check the PEM files",
            ) from error
        return context


def _no_cookies() -> CookieJar:
    """Return a cookie jar that stays empty."""
    import http.cookiejar

    class Closed(http.cookiejar.CookieJar):
        def extract_cookies(self, *_: object) -> None:
            pass

        def add_cookie_header(self, *_: object) -> None:
            pass

    return Closed()


def is_encoded(response: httpx.Response) -> bool:
    """Whether the body has a content coding, although none was requested."""
    return response.headers.get("content-encoding", "").lower() not in {"", "identity"}


def system_trust() -> ssl.SSLContext:
    """Return the TLS context of the system's authorities. It takes 30 ms to make, so there is one for each process."""
    import ssl

    return _shared_trust(ssl.get_default_verify_paths())


@functools.cache
def _shared_trust(_: ssl.DefaultVerifyPaths) -> ssl.SSLContext:
    return _new_trust()


def _new_trust() -> ssl.SSLContext:
    """Return a new TLS context with the system's authorities, or certifi's if the system has none (some Pythons on
    macOS)."""
    import os
    import ssl

    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and next(os.scandir(paths.capath), None)):
        return ssl.create_default_context()
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def with_minimum_rate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield ``chunks``. Raises ``TransientError`` when they arrive more slowly than ``RATE_BYTES`` in
    ``RATE_SECONDS``."""
    due = time.monotonic() + RATE_SECONDS
    since = 0
    for chunk in chunks:
        since += len(chunk)
        now = time.monotonic()
        if now > due:
            if since < RATE_BYTES:
                raise TransientError(f"only {since} bytes came in {RATE_SECONDS:.0f} s")
            due, since = now + RATE_SECONDS, 0
        yield chunk


def _redirected(request: HTTPRequest, response: httpx.Response) -> str | None:
    """Return the URL that ``response`` redirects to, or None. A request with a body follows only 307 and 308, which
    keep its method."""
    status = response.status_code
    if status not in {301, 302, 303, 307, 308} or "location" not in response.headers:
        return None
    if request.method not in {"GET", "HEAD"} and status not in {307, 308}:
        return None
    return joined(str(response.url), response.headers["location"])


def check_target(there: Origin, here: Origin, registry: Origin, trust: Trust) -> None:
    """Raise ``RegistryError`` unless a redirect from ``here`` to ``there`` is allowed. ``registry``: where the user's
    request went.

    (1) No redirect from HTTPS to HTTP, except to a host that the user calls insecure.
    (2) No redirect to a link-local or metadata address, nor from elsewhere to this machine, by number or by name.

    The origin ``registry`` itself is always allowed.
    """
    if there == registry:
        return
    if here.scheme == "https" and there.scheme == "http" and not trust.is_insecure(there.authority):
        raise RegistryError(
            f"{here.authority} redirected from HTTPS to plain HTTP",
            why=f"the way leads to {there.authority}",
            remedy=f"if that is intended, call it insecure: --insecure-registry {there.authority}",
        )
    if is_loopback(there.authority) and is_loopback(registry.authority):
        return
    for address in _addresses(there):
        if address.is_link_local or address.is_unspecified or address.is_multicast or str(address) in _METADATA:
            kind = "a link-local address, where cloud metadata services live"
        elif address.is_loopback:
            kind = "this machine"
        else:
            continue
        raise RegistryError(f"{registry.authority} sent us to {there.authority}", why=f"that is {kind}")


def _addresses(target: Origin) -> list[Any]:
    """Return the addresses of ``target``; none if it cannot be resolved here (a proxy may be able to)."""
    import ipaddress
    import socket

    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    plain = [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in plain]


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Translate httpx's errors, the most specific first: ``TransientError`` for those that may pass, else
    ``RegistryError``."""
    load_httpx()
    import httpx

    try:
        yield
    except httpx.ConnectTimeout as error:
        raise TransientError("no connection came about in time", connecting=True) from error
    except httpx.TimeoutException as error:
        raise TransientError("the other side fell silent", silent=True) from error
    except httpx.ConnectError as error:
        raise _unconnected(url, error) from error
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise TransientError(printable(str(error)) or "the connection broke") from error
    except (httpx.RequestError, httpx.InvalidURL, httpx.StreamError, UnicodeError) as error:
        # UnicodeError: a host, of the request or of where it is redirected to, that is no name (RFC 5891).
        raise RegistryError(f"cannot speak to {_authority(url)}", why=printable(str(error))) from error


def _unconnected(url: str, error: BaseException) -> Exception:
    import socket
    import ssl

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RegistryUnreachable(
                f"cannot trust {_authority(url)}",
                why=f"its certificate is not valid: {cause.verify_message}",
                remedy="install its authority's certificate (registries.yaml: ca), or accept the risk with "
                f"--insecure-registry {_authority(url)}",
            )
        if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
            break  # the connection broke while TLS was being agreed on, as it may at any time
        if isinstance(cause, ssl.SSLError):
            return RegistryUnreachable(
                f"cannot speak TLS with {_authority(url)}",
                why=printable(cause.reason or str(cause)),
                remedy=f"if it speaks plain HTTP, say so: --insecure-registry {_authority(url)}",
            )
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            return RegistryUnreachable(
                f"cannot find {_authority(url)}",
                why=f"the name does not resolve: {cause.strerror}",
                remedy="check the registry's name, and the network",
            )
        cause = cause.__cause__ or cause.__context__
    return TransientError(printable(str(error)) or "no connection", connecting=True)


def _authority(url: str) -> str:
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2]
