"""Files behind URLs: what ``ADD https://…`` and remote build contexts download.

Names, modes and times are BuildKit's (reference.md, "Adding files from a URL"; source/http/source.go): the file is
called like the last component of the URL's path, has mode 0600, and is as old as ``Last-Modified`` says, or of 1970.

A URL in a Dockerfile is a stranger's word, and so is every answer. Beyond what ``transport`` sees to (no cookies,
no redirect from HTTPS to HTTP, to link-local addresses or from elsewhere to this machine, a credential never sent to
another origin than the one it is for): sizes are bounded, user names and queries of URLs appear in no message, and what
breaks off is only taken up again when the server says that it is still the same file (RFC 9110, 13.1.5).
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
    Reply,
    Request,
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
"""Bytes of one file: more is taken for a server that never ends."""
REDIRECTS: Final = 10
"""As many as Go's client, and so BuildKit, follows."""
UNNAMED: Final = "__unnamed__"
"""What a file is called whose URL has no path."""
_SAFE: Final = "download"
_CONTENT: Final = "content"
"""What a download is called on this machine, whatever its URL calls it."""
"""What a file is called whose name is none: BuildKit's source/util/pathutil."""
_TOKEN_SECRET: Final = "HTTP_AUTH_TOKEN_"
_HEADER_SECRET: Final = "HTTP_AUTH_HEADER_"
_CHECKSUM: Final = re.compile(r"sha256:[0-9a-f]{64}")
_REPORT_SECONDS: Final = 0.1
_NETWORK: Final = "check the URL, the network, and HTTP_PROXY/NO_PROXY"

Progress = Callable[[int, int], None]
"""Told of bytes on their way: bytes done, bytes in all (0 when the server does not say)."""


class Validators(msgspec.Struct, frozen=True):
    """By what a server tells one version of a file from another; kept with a cached download (RFC 9110, 8.8)."""

    etag: str = ""
    last_modified: str = ""
    """The header's text; "" also when the file was changed in the very second of the answer, which the header cannot
    tell from a later change in that second (8.8.2.2)."""
    length: str = ""

    def __bool__(self) -> bool:
        """Whether there is anything to ask by."""
        return bool(self.etag or self.last_modified)


class Downloaded(msgspec.Struct, frozen=True):
    """A file as it came: ``path`` is where it lies, ``name`` what it is called."""

    path: str
    name: str
    mtime: int | None
    """``Last-Modified``, seconds since 1970; None when the server does not say, and then the file is of 1970."""
    digest: str
    size: int
    """Bytes."""
    validators: Validators


def file_name(url: str) -> str:
    """What the file behind ``url`` is called: known without asking the server."""
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
    """``url`` as it may be shown: without user, password and the query's values, which may be secrets."""
    address, mark, _ = url.partition("#")[0].partition("?")
    scheme, separator, rest = address.partition("://")
    authority, slash, path = rest.partition("/")
    plain = f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}" if separator else address
    return printable(plain) + ("?…" if mark else "")


def authorization(url: str, secret: Callable[[str], bytes | None]) -> str:
    """The Authorization header that the build's secrets hold for the host of ``url``; "" when they hold none.

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
    """How a server is asked. ``repr`` shows no secret."""

    authorization: str = ""
    """The Authorization header for the origin of the URL, and no other; "": what a user and password in it say."""
    cancel: Future[None] | None = None
    """Ends requests with ``Interrupted`` once it is done."""
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
    """Download ``url`` into a new file in ``directory``, which may have none that a download has made before.

    ``checksum`` (``sha256:`` and 64 hexadecimal digits) is what the content has to be. What breaks off is resumed or
    started over. Nothing is left behind by a failure. Raises ``ContextError``; ``StoreError`` when the file cannot be
    written; ``Interrupted``.
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
    """Whether ``url`` still leads to the file that ``validators`` came with, by one conditional HEAD request.

    False whenever the server does not say clearly that it is. HEAD, and a comparison of our own, because some servers
    send entity tags and then ignore ``If-None-Match``. Raises ``ContextError`` when the server cannot be reached.
    """
    if not validators:
        return False
    target = _target(url, options.authorization)
    if validators.etag:
        condition = ("If-None-Match", validators.etag)
    else:
        condition = ("If-Modified-Since", validators.last_modified)
    request = Request("HEAD", target.url, (condition,), target.authorization)
    with _connected(target, options.cancel) as transport:
        attempts = Attempts(options.retry, transport.pause)
        while True:
            with attempts:
                reply, _ = transport.call(request, 0, redirects=REDIRECTS)
                return reply.status == 304 or (reply.status == 200 and _same(validators, _validators(reply.headers)))


def destination(url: str, options: RequestOptions = _DEFAULT) -> tuple[str, bool]:
    """Where redirects lead from ``url``, and whether that is the origin that the authorization is for.

    The answer itself does not matter. Raises as ``download`` does.
    """
    target = _target(url, options.authorization)
    with _connected(target, options.cancel) as transport:
        response, left = transport.open(Request("GET", target.url, (), target.authorization), redirects=REDIRECTS)
        response.close()
        return str(response.url), not left


# -- requests --------------------------------------------------------------------------------------------------------


class _Target(msgspec.Struct, frozen=True):
    """Where to ask: ``url`` without user and password, which became ``authorization``; ``repr`` does not show it."""

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
    """Connections for ``target``; what goes wrong with them is a ``ContextError`` about it."""
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
    """A file on its way: how much of it is here, and what would have to be true to go on from there."""

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
        """Of the answer that the content comes from."""
        self._condition = ""
        """For ``If-Range``; "" when what is here cannot be continued."""
        self._due = 0.0

    def run(self) -> None:
        """Get all of it, in as many requests as that takes. Raises ``TransientError`` when no progress is made."""
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
        """One request, from where we stand; False when the server's file is not the one that we hold a part of."""
        headers: tuple[tuple[str, str], ...] = ()
        if self.size and self._condition:
            headers = (("Range", f"bytes={self.size}-"), ("If-Range", self._condition))
        elif self.size:
            self._begin_again()
        request = Request("GET", self.target.url, headers, self.target.authorization)
        response, _ = self.transport.open(request, redirects=REDIRECTS)
        with closing(response):
            if headers and response.status_code == 206 and _starts_at(response, self.size):
                self._take(response)
                return True
            if headers and response.status_code in (206, 416):
                self._begin_again()
                return False
            if response.status_code in self.policy.statuses:
                raise self._not_now(Reply(response.status_code, response.headers, b"", ""))
            if not response.is_success or response.status_code == 206:
                raise _refused(self.target, response)
            self._begin_again()
            self.headers = response.headers
            self._condition = _range_condition(response.headers)
            self._take(response)
            return True

    def _not_now(self, reply: Reply) -> TransientStatus:
        """The error for ``reply``, which says that the server cannot just now."""
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
        """The content. ``Content-Encoding: gzip`` is undone although nobody asked for it, as Go's client does."""
        chunks = with_minimum_rate(self.transport.raw(response))
        if response.headers.get("content-encoding", "").strip().lower() != "gzip":
            return chunks
        self._condition = ""  # a range would be one of the compressed bytes
        return _inflated(chunks)


def _inflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    stream = Decompressed(_Chunks(chunks), limit=LIMIT)
    if stream.compression not in ("gzip", ""):
        raise ArchiveError("it is not gzip")
    while piece := stream.read(256 << 10):
        yield piece


class _Chunks:
    """Chunks as a stream."""

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
    """Whether a 206 is the part that was asked for (RFC 9110, 14.4: ``bytes 5-9/10``)."""
    unit, _, rest = response.headers.get("content-range", "").partition(" ")
    start: str = rest.partition("-")[0]
    return bool(unit == "bytes") and start == str(offset)


class _File:
    """The new file ``path``, mode 0600. A context manager, which deletes it unless it was ``finish``ed."""

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
        """The next bytes."""
        with self._storing():
            write_all(self._fd, data)

    def empty(self) -> None:
        """Forget everything."""
        with self._storing():
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)

    def finish(self, mtime: int) -> None:
        """The content is complete, and ``mtime`` seconds since 1970 its time."""
        with self._storing():
            os.fchmod(self._fd, 0o600)
            os.utime(self._fd, (mtime, mtime))
        self._finished = True


# -- headers ---------------------------------------------------------------------------------------------------------


def http_date(text: str) -> int | None:
    """Seconds since 1970 of a date in one of HTTP's three forms (RFC 9110, 5.6.7); None for anything else."""
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
    """What ``If-Range`` may hold: a strong entity tag, or a date that is strong enough (RFC 9110, 13.1.5)."""
    validators = _validators(headers)
    if validators.etag:
        return "" if validators.etag.startswith("W/") else validators.etag
    return validators.last_modified
