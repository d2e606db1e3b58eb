"""Files at URLs, for ``ADD https://…`` and remote build contexts.

Names, modes and times are BuildKit's (reference.md, "Adding files from a URL"; source/http/source.go): the name is the
last component of the URL's path, the mode 0600, the time that of ``Last-Modified``, else 1970.

URLs of a Dockerfile and the answers are untrusted. Besides what ``transport`` ensures (no cookies; no redirect from
HTTPS to HTTP, to link-local addresses or from elsewhere to this machine; no credential to another origin), sizes are
limited, user names and queries of URLs are shown in no message, and a broken download is resumed only if the server
says that the file is still the same (RFC 9110, 13.1.5).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self

import msgspec

from executor.retry import RETRYABLE_STATUSES, Attempts, RetryPolicy, TransientError
from executor.rootfs.compress import Decompressed
from executor.transport import (
    HTTPRequest,
    HTTPResponse,
    SystemTrust,
    TransientStatus,
    Transport,
    load_httpx,
    origin_of,
    with_minimum_rate,
)
from platforms.descriptors import write_all
from platforms.errors import ArchiveError, ContextError, RegistryError, StoreError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

LIMIT: Final = 64 << 30
"""Maximum size of a file in bytes."""
REDIRECTS: Final = 10
"""Maximum number of redirects: that of Go's client, and so of BuildKit."""
UNNAMED: Final = "__unnamed__"
"""The name of a file whose URL has no path."""
_SAFE: Final = "download"
"""The name of a file whose own name is invalid (BuildKit's source/util/pathutil)."""
_CONTENT: Final = "content"
"""The name of a download on this machine."""
_TOKEN_SECRET: Final = "HTTP_AUTH_TOKEN_"
_HEADER_SECRET: Final = "HTTP_AUTH_HEADER_"
_CHECKSUM: Final = re.compile(r"sha256:[0-9a-f]{64}")
_REPORT_SECONDS: Final = 0.1
_NETWORK: Final = "check the URL, the network, and HTTP_PROXY/NO_PROXY"

Progress = Callable[[int, int], None]
"""Receives bytes done, and bytes in all (0 if the server does not say)."""


class Validators(msgspec.Struct, frozen=True):
    """What a server distinguishes versions of a file by; stored with a cached download (RFC 9110, 8.8)."""

    etag: str = ""
    last_modified: str = ""
    """The header; "" also if the file was modified in the second of the answer, because a later change in the same
    second could not be detected (8.8.2.2)."""
    length: str = ""

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.etag or self.last_modified)


class Downloaded(msgspec.Struct, frozen=True):
    """A downloaded file: ``path`` is where it is, ``name`` its name from the URL."""

    path: str
    name: str
    mtime: int | None
    """``Last-Modified`` in seconds since 1970; None if the server does not say, which means 1970."""
    digest: str
    size: int
    """In bytes."""
    validators: Validators


def file_name(url: str) -> str:
    """Return the name of the file at ``url``, without asking the server."""
    from urllib.parse import unquote, urlsplit

    try:
        path = unquote(urlsplit(url).path, errors="surrogateescape")
    except ValueError:
        return UNNAMED
    base = path.rstrip("/").rpartition("/")[2]
    if base in ("", "."):
        return UNNAMED
    base = base.strip()
    if base in ("", ".", "..") or any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in base):
        return _SAFE
    return base


def shown(url: str) -> str:
    """Return ``url`` for display: without user, password and the query, which may be secret."""
    address, mark, _ = url.partition("#")[0].partition("?")
    scheme, separator, rest = address.partition("://")
    authority, slash, path = rest.partition("/")
    plain = f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}" if separator else address
    return printable(plain) + ("?…" if mark else "")


def authorization(url: str, secret: Callable[[str], bytes | None]) -> str:
    """Return the Authorization header for the host of ``url`` from the build's secrets; "" if there is none.

    The secrets are ``HTTP_AUTH_TOKEN_host`` and, after it, ``HTTP_AUTH_HEADER_host`` (reference.md, "Secrets").
    """
    from urllib.parse import urlsplit

    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return ""
    token = secret(_TOKEN_SECRET + host)
    if token is not None:
        return _header("Bearer " + token.decode("latin-1").strip(), _TOKEN_SECRET + host)
    header = secret(_HEADER_SECRET + host)
    return "" if header is None else _header(header.decode("latin-1").strip(), _HEADER_SECRET + host)


def _header(text: str, name: str) -> str:
    if not text.isprintable():
        raise ContextError(f"cannot use the secret {name}", why="it does not fit into one line of an HTTP request")
    return text


class RequestOptions(msgspec.Struct, frozen=True):
    """Options of requests to a server. ``repr`` shows no secret."""

    authorization: str = ""
    """The Authorization header, for the origin of the URL only; "": that of the user and password in the URL."""
    cancel: Future[None] | None = None
    """Requests raise ``Interrupted`` once it is done."""
    retry: RetryPolicy = RetryPolicy()

    def __repr__(self) -> str:
        return "RequestOptions()"


_DEFAULT: Final = RequestOptions()


def download(
    url: str,
    directory: str,
    options: RequestOptions = _DEFAULT,
    *,
    checksum: str = "",
    progress: Progress | None = None,
) -> Downloaded:
    """Download ``url`` to a new file in ``directory``, in which there is no other download.

    ``checksum``: the expected digest, ``sha256:`` and 64 hexadecimal digits. A broken download is resumed or started
    again. After an error there is no file. Raises ``ContextError``; ``StoreError`` if the file cannot be written;
    ``Interrupted``.
    """
    if checksum and not _CHECKSUM.fullmatch(checksum):
        raise ContextError(
            f"cannot verify {shown(url)}",
            why=f"{printable(checksum)!r} is no checksum",
            remedy="write sha256: and 64 hexadecimal digits, in lower case",
        )
    target = _target(url, options.authorization)
    path = os.path.join(directory, _CONTENT)
    with _File(path) as file, _connected(target, options.cancel) as transport:
        fetch = _Download(target, transport, file, options.retry, progress)
        fetch.run()
        digest = f"sha256:{fetch.digest.hexdigest()}"
        if checksum and digest != checksum:
            raise ContextError(
                target.what,
                why=f"its digest is {digest}; the checksum asks for {checksum}",
                remedy="if the file was meant to change, change the checksum with it",
            )
        headers = fetch.headers
        mtime = http_date(headers.get("last-modified", ""))
        file.finish(mtime or 0)
        return Downloaded(path, file_name(url), mtime, digest, fetch.size, _validators(headers))


def unchanged(url: str, validators: Validators, options: RequestOptions = _DEFAULT) -> bool:
    """Whether ``url`` still is the file that ``validators`` came with, by one conditional HEAD request.

    False unless the server says so clearly. The answer to HEAD is compared here, because some servers send entity tags
    and ignore ``If-None-Match``. Raises ``ContextError`` if the server cannot be reached.
    """
    if not validators:
        return False
    target = _target(url, options.authorization)
    if validators.etag:
        condition = ("If-None-Match", validators.etag)
    else:
        condition = ("If-Modified-Since", validators.last_modified)
    request = HTTPRequest("HEAD", target.url, (condition,), target.authorization)
    with _connected(target, options.cancel) as transport:
        attempts = Attempts(options.retry, transport.pause)
        while True:
            with attempts:
                reply, _ = transport.call(request, 0, redirects=REDIRECTS)
                return reply.status == 304 or (reply.status == 200 and _same(validators, _validators(reply.headers)))


def destination(url: str, options: RequestOptions = _DEFAULT) -> tuple[str, bool]:
    """Return the URL that redirects of ``url`` lead to, and whether it is in the origin of the authorization.

    The answer itself is ignored. Raises as ``download`` does.
    """
    target = _target(url, options.authorization)
    with _connected(target, options.cancel) as transport:
        response, left = transport.open(HTTPRequest("GET", target.url, (), target.authorization), redirects=REDIRECTS)
        response.close()
        return str(response.url), not left


# -- requests --------------------------------------------------------------------------------------------------------


class _Target(msgspec.Struct, frozen=True):
    """A request's target: ``url`` without user and password, which are in ``authorization``; ``repr`` does not show
    it."""

    url: str
    host: str
    what: str
    """What fails when it fails."""
    authorization: str = ""

    def __repr__(self) -> str:
        return f"_Target({self.url!r})"


def _target(url: str, authorization: str) -> _Target:
    load_httpx()
    import httpx

    what = f"cannot download {shown(url)}"
    try:
        parsed = httpx.URL(url)
        if parsed.userinfo and not authorization:
            import base64

            pair = f"{parsed.username}:{parsed.password}".encode()
            authorization = f"Basic {base64.b64encode(pair).decode()}"
        plain = str(parsed.copy_with(username=None, password=None, fragment=None))
        host = origin_of(plain).authority
    except (httpx.InvalidURL, ValueError, TypeError, RegistryError) as error:
        raise ContextError(what, why="that is no address of HTTP or HTTPS", remedy="check the URL") from error
    return _Target(plain, host, what, authorization)


class _Stop:
    """``cancel`` as a ``transport.Cancel``."""

    def __init__(self, cancel: Future[None]) -> None:
        self._cancel = cancel

    def is_set(self) -> bool:
        return self._cancel.done()

    def wait(self, timeout: float) -> bool:
        from concurrent.futures import wait

        return bool(wait((self._cancel,), timeout).done)


@contextmanager
def _connected(target: _Target, cancel: Future[None] | None) -> Iterator[Transport]:
    """Open a transport for ``target``. Its errors become ``ContextError``."""
    with closing(Transport(SystemTrust(), None if cancel is None else _Stop(cancel))) as transport:
        if cancel is not None:
            cancel.add_done_callback(lambda _: transport.close())  # wakes who waits for an answer
        try:
            yield transport
        except TransientError as error:
            raise _unreachable(target, str(error), error.attempts) from error
        except RegistryError as error:
            problem = error.problem
            why = f"{problem.what}: {problem.why}" if problem.why else problem.what
            raise ContextError(target.what, why=why, remedy=_remedy(error)) from error
        except ArchiveError as error:
            raise ContextError(target.what, why=f"{target.host} compressed it wrongly: {error}") from error


def _remedy(error: BaseException) -> str:
    import ssl

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "install its authority's certificate on this machine, or name it in SSL_CERT_FILE"
        cause = cause.__cause__ or cause.__context__
    return _NETWORK


def _unreachable(target: _Target, why: str, tries: int) -> ContextError:
    times = f" (tried {tries} times)" if tries > 1 else ""
    return ContextError(target.what, why=f"{target.host}: {why}{times}", remedy=_NETWORK)


def _refused(target: _Target, response: httpx.Response) -> ContextError:
    status = response.status_code
    meaning = printable(response.reason_phrase, 60)
    remedy = ""
    if status in (401, 403):
        name = target.host.partition(":")[0]
        remedy = f"if it takes a credential, give one: --secret id={_TOKEN_SECRET}{name},env=…"
    elif status in (404, 410):
        remedy = "check the URL"
    elif status in RETRYABLE_STATUSES:
        remedy = "try again later"
    return ContextError(target.what, why=f"{target.host} answered {status} {meaning}".rstrip(), remedy=remedy)


# -- the body --------------------------------------------------------------------------------------------------------


class _Download:
    """A download: the part that has been received, and the conditions for resuming it."""

    def __init__(
        self, target: _Target, transport: Transport, file: _File, policy: RetryPolicy, progress: Progress | None
    ) -> None:
        self.target = target
        self.transport = transport
        self.file = file
        self.policy = policy
        self.progress = progress
        self.digest = hashlib.sha256()
        self.size = 0
        self.headers: Mapping[str, str] = {}
        """Those of the answer that the content is from."""
        self._condition = ""
        """The value for ``If-Range``; "" if the part cannot be continued."""
        self._due = 0.0

    def run(self) -> None:
        """Download the whole file, in as many requests as necessary. Raises ``TransientError`` without progress."""
        attempts = Attempts(self.policy, self.transport.pause)
        furthest = 0
        while True:
            with attempts:
                try:
                    if self._try():
                        return
                    raise TransientError("it changed while it was being read")
                finally:
                    if self.size > furthest:
                        furthest = self.size
                        attempts.progressed()

    def _try(self) -> bool:
        """Make one request, from the present position; return False if the server has another version of the file."""
        headers: tuple[tuple[str, str], ...] = ()
        if self.size and self._condition:
            headers = (("Range", f"bytes={self.size}-"), ("If-Range", self._condition))
        elif self.size:
            self._begin_again()
        request = HTTPRequest("GET", self.target.url, headers, self.target.authorization)
        response, _ = self.transport.open(request, redirects=REDIRECTS)
        with closing(response):
            if headers and response.status_code == 206 and _starts_at(response, self.size):
                self._take(response)
                return True
            if headers and response.status_code in (206, 416):
                self._begin_again()
                return False
            if response.status_code in self.policy.statuses:
                raise self._not_now(HTTPResponse(response.status_code, response.headers, b"", ""))
            if not response.is_success or response.status_code == 206:
                raise _refused(self.target, response)
            self._begin_again()
            self.headers = response.headers
            self._condition = _range_condition(response.headers)
            self._take(response)
            return True

    def _not_now(self, reply: HTTPResponse) -> TransientStatus:
        """Return the error for ``reply``, a status that may pass."""
        asked = reply.retry_after
        why = f"; it asks to wait {asked:.0f} s" if asked > self.policy.longest_retry_after else ""
        return TransientStatus(reply, f"status {reply.status}{why}")

    def _begin_again(self) -> None:
        self.file.empty()
        self.digest = hashlib.sha256()
        self.size = 0
        self._condition = ""

    def _take(self, response: httpx.Response) -> None:
        length = response.headers.get("content-length", "")
        total = self.size + int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else 0
        for chunk in self._chunks(response):
            self.size += len(chunk)
            if self.size > LIMIT:
                raise ContextError(self.target.what, why=f"it is larger than {LIMIT >> 30} GiB")
            self.digest.update(chunk)
            self.file.write(chunk)
            now = time.monotonic()
            if self.progress is not None and now >= self._due:
                self._due = now + _REPORT_SECONDS
                self.progress(self.size, total)
        if self.progress is not None:
            self.progress(self.size, self.size)

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        """Return the content. ``Content-Encoding: gzip`` is decoded although it was not requested, as Go's client
        does."""
        chunks = with_minimum_rate(self.transport.raw(response))
        if response.headers.get("content-encoding", "").strip().lower() != "gzip":
            return chunks
        self._condition = ""  # a range would be one of the compressed bytes
        return _inflated(chunks)


def _inflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    stream = Decompressed(_ChunkStream(chunks), limit=LIMIT)
    if stream.compression not in ("gzip", ""):
        raise ArchiveError("it is not gzip")
    while piece := stream.read(256 << 10):
        yield piece


class _ChunkStream:
    """A stream of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int, /) -> bytes:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._left = chunk
        piece, self._left = self._left[:size], self._left[size:]
        return piece


def _starts_at(response: httpx.Response, offset: int) -> bool:
    """Whether a 206 is for the requested range (RFC 9110, 14.4: ``bytes 5-9/10``)."""
    unit, _, rest = response.headers.get("content-range", "").partition(" ")
    start: str = rest.partition("-")[0]
    return bool(unit == "bytes") and start == str(offset)


class _File:
    """A new file, mode 0600. A context manager, which deletes it unless ``finish`` was called."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._finished = False
        with self._storing():
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        if not self._finished:
            with suppress(OSError):
                os.unlink(self._path)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot write {printable(self._path)}", why=error.strerror or str(error)) from error

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        with self._storing():
            write_all(self._fd, data)

    def empty(self) -> None:
        """Truncate it."""
        with self._storing():
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)

    def finish(self, mtime: int) -> None:
        """Keep the file, and set its time to ``mtime`` seconds since 1970."""
        with self._storing():
            os.fchmod(self._fd, 0o600)
            os.utime(self._fd, (mtime, mtime))
        self._finished = True


# -- headers ---------------------------------------------------------------------------------------------------------


def http_date(text: str) -> int | None:
    """Return the seconds since 1970 of a date in one of HTTP's three forms (RFC 9110, 5.6.7); None for anything
    else."""
    if not re.fullmatch(
        r"\w{3,9}, \d\d[ -]\w{3}[ -](\d\d|\d{4}) \d\d:\d\d:\d\d GMT|\w{3} \w{3} [\d ]\d .{8} \d{4}", text
    ):
        return None
    from datetime import UTC
    from email.utils import parsedate_to_datetime

    try:
        return int(parsedate_to_datetime(text).replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError):
        return None


def _validators(headers: Mapping[str, str]) -> Validators:
    modified = headers.get("last-modified", "")
    changed, said = http_date(modified), http_date(headers.get("date", ""))
    if changed is None or said is None or said <= changed:
        modified = ""
    return Validators(headers.get("etag", "").strip(), modified, headers.get("content-length", ""))


def _same(known: Validators, now: Validators) -> bool:
    if known.etag or now.etag:
        return known.etag.removeprefix("W/") == now.etag.removeprefix("W/")
    return known.last_modified == now.last_modified and known.length == now.length


def _range_condition(headers: Mapping[str, str]) -> str:
    """Return the value for ``If-Range``: a strong entity tag, or a date that is strong enough (RFC 9110, 13.1.5)."""
    validators = _validators(headers)
    if validators.etag:
        return "" if validators.etag.startswith("W/") else validators.etag
    return validators.last_modified
