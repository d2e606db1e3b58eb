"""Blobs on their way: downloads that resume and verify, uploads that mount, resume and start over.

Every byte is hashed as it passes; nothing is called complete before its size and digest are right.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol
from urllib.parse import urlencode

from executor.image.manifest import Descriptor
from executor.registry.auth import printable
from executor.registry.failure import PASSING, retry_after, unreachable
from executor.registry.session import Call, Endpoint, Session, absolute
from executor.registry.token import merged, scope
from executor.registry.wire import CHUNK, COMMIT_SECONDS, Lost, Reply
from platforms.errors import RegistryError, StoreError

if TYPE_CHECKING:
    import httpx

MONOLITHIC_LIMIT: Final = 512 << 20
"""Bytes up to which a blob is first sent in one request: every registry takes that, and only a broken connection makes
it dear. Larger ones, and those whose connection broke, go in chunks that can be resumed."""
CHUNK_SIZE: Final = 32 << 20
"""Bytes of an upload chunk: above the 5 MiB minimum of object stores, below the 100 MB limit of common proxies."""
PACE_BYTES: Final = 16 << 10
"""Bytes that have to arrive every ``PACE_SECONDS``: less is a peer that keeps us hanging."""
PACE_SECONDS: Final = 60.0
MOUNT_TRIES: Final = 3
"""Repositories to try to mount from: each failed try opens an upload session."""
_REPORT_SECONDS: Final = 0.1

Progress = Callable[[str, str, int, int], None]
"""Told of bytes on their way: ``pull`` or ``push``, the digest, bytes done, bytes in all."""


class Sink(Protocol):
    """Where a download goes."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""
        ...

    def reset(self) -> object:
        """All bytes so far are void: what follows starts at 0 again."""
        ...


class _Wrong(Exception):
    """The content is not what its descriptor says. ``stitched``: it was put together from ranges."""

    def __init__(self, why: str, *, stitched: bool) -> None:
        super().__init__(why)
        self.stitched = stitched


class _Broken(Exception):
    """An upload session is of no more use; the blob may be sent again, ``chunked`` or whole."""

    def __init__(self, why: str, *, chunked: bool, delay: float = 0.0) -> None:
        super().__init__(why)
        self.chunked = chunked
        self.delay = delay


class Meter:
    """Tells ``progress`` how far a transfer is: when it begins, a few times a second, and when it has ended."""

    def __init__(self, progress: Progress | None, action: str, descriptor: Descriptor) -> None:
        self._progress = progress
        self._action = action
        self._descriptor = descriptor
        self._due = 0.0
        self.at(0)

    def at(self, done: int, *, final: bool = False) -> None:
        """``done`` bytes are through."""
        if self._progress is None:
            return
        now = time.monotonic()
        if final or now >= self._due:
            self._due = now + _REPORT_SECONDS
            self._progress(self._action, self._descriptor.digest, done, self._descriptor.size)


# -- down ------------------------------------------------------------------------------------------------------------


def fetch(
    session: Session,
    endpoints: tuple[Endpoint, ...],
    descriptor: Descriptor,
    sink: Sink,
    progress: Progress | None = None,
) -> None:
    """Write the blob of ``descriptor`` to ``sink``, from the first endpoint that has it whole and true."""
    what = f"cannot pull {descriptor.digest} from {endpoints[-1].registry}/{endpoints[-1].repository}"
    written = False
    for number, endpoint in enumerate(endpoints):
        last = number == len(endpoints) - 1
        for ranges in (True, False):
            if written:
                sink.reset()
                written = False
            try:
                meter = Meter(progress, "pull", descriptor)
                with closing(_download(session, endpoint, descriptor, what, meter, ranges=ranges)) as chunks:
                    for chunk in chunks:
                        written = True
                        sink.write(chunk)
            except _Wrong as wrong:
                if wrong.stitched and ranges:
                    continue
                if last:
                    raise _mismatch(what, endpoint, wrong) from wrong
            except RegistryError:
                if last:
                    raise
            else:
                return
            break


def stream(
    session: Session, endpoints: tuple[Endpoint, ...], descriptor: Descriptor, progress: Progress | None = None
) -> Iterator[bytes]:
    """The blob of ``descriptor`` in chunks. Only the end of the iteration says that they were the right ones.

    Endpoints are changed only before the first chunk; from then on a broken connection is resumed where it broke.
    """
    what = f"cannot pull {descriptor.digest} from {endpoints[-1].registry}/{endpoints[-1].repository}"
    for number, endpoint in enumerate(endpoints):
        given = False
        try:
            meter = Meter(progress, "pull", descriptor)
            with closing(_download(session, endpoint, descriptor, what, meter, ranges=True)) as chunks:
                for chunk in chunks:
                    given = True
                    yield chunk
        except _Wrong as wrong:
            if given or number == len(endpoints) - 1:
                raise _mismatch(what, endpoint, wrong) from wrong
        except RegistryError:
            if given or number == len(endpoints) - 1:
                raise
        else:
            return


def _download(
    session: Session, endpoint: Endpoint, descriptor: Descriptor, what: str, meter: Meter, *, ranges: bool
) -> Generator[bytes]:
    """The blob's bytes, verified at the end; a broken body is taken up at the byte where it broke.

    Where the server does not do ranges (or ``ranges`` says not to ask), the part that is already here is read again
    and dropped. Raises ``_Wrong``, or ``RegistryError`` after too many breaks without progress.
    """
    algorithm, _, expected = descriptor.digest.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    offset = failures = 0
    stitched = False
    while True:
        start = offset
        why = "the body ended early"
        try:
            for chunk, ranged in _body(session, endpoint, descriptor, offset, what, ranges=ranges):
                stitched = stitched or ranged
                offset += len(chunk)
                if offset > descriptor.size:
                    raise _Wrong(f"more than the {descriptor.size} bytes announced", stitched=stitched)
                digest.update(chunk)
                meter.at(offset)
                yield chunk
        except Lost as lost:
            why = str(lost)
        if offset == descriptor.size:
            break
        failures = 1 if offset > start else failures + 1
        if failures >= session.pace.tries:
            raise unreachable(what, endpoint.registry, why, failures)
        session.wire.pause(session.pace.delay(failures - 1))
    if digest.hexdigest() != expected:
        raise _Wrong(f"its digest is {algorithm}:{digest.hexdigest()}", stitched=stitched)
    meter.at(offset, final=True)


def _body(
    session: Session, endpoint: Endpoint, descriptor: Descriptor, offset: int, what: str, *, ranges: bool
) -> Iterator[tuple[bytes, bool]]:
    """The blob from ``offset`` on, in chunks, each with whether it came as the answer to a range request."""
    ask = ranges and offset > 0
    call = Call(
        what,
        "GET",
        f"blobs/{descriptor.digest}",
        merged(scope(endpoint.repository, "pull")),
        headers=(("Range", f"bytes={offset}-"),) if ask else (),
        accept=frozenset({200, 206, 416}) if ask else frozenset({200}),
    )
    with session.stream(endpoint, call) as response:
        if _starts_at(response, offset, descriptor.size):
            _check_length(response, descriptor.size - offset)
            for chunk in paced(session.wire.chunks(response)):
                yield chunk, True
            return
        if response.status_code == 200:
            _check_length(response, descriptor.size)
            skip = offset
            for chunk in paced(session.wire.chunks(response)):
                rest = chunk[skip:]
                skip = max(0, skip - len(chunk))
                if rest:
                    yield rest, False
            return
    # The server answered a range request with some other range: ask for everything.
    yield from _body(session, endpoint, descriptor, offset, what, ranges=False)


def _starts_at(response: httpx.Response, offset: int, size: int) -> bool:
    """Whether this is the 206 we asked for (RFC 9110, 14.4: ``bytes 5-9/10``)."""
    if response.status_code != 206:
        return False
    unit, _, rest = response.headers.get("content-range", "").partition(" ")
    span, _, total = rest.partition("/")
    return unit == "bytes" and span.partition("-")[0] == str(offset) and total in {"*", str(size)}


def _check_length(response: httpx.Response, expected: int) -> None:
    said = response.headers.get("content-length", str(expected))
    if said != str(expected):
        raise _Wrong(f"{said} bytes were announced, {expected} belong there", stitched=False)


def paced(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """A body's chunks; a peer that drips is ``Lost`` like one that is silent."""
    due = time.monotonic() + PACE_SECONDS
    since = 0
    for chunk in chunks:
        since += len(chunk)
        now = time.monotonic()
        if now > due:
            if since < PACE_BYTES:
                raise Lost(f"only {since} bytes came in {PACE_SECONDS:.0f} s")
            due, since = now + PACE_SECONDS, 0
        yield chunk


def _mismatch(what: str, endpoint: Endpoint, wrong: _Wrong) -> RegistryError:
    return RegistryError(
        what,
        why=f"{endpoint.registry} sent something else: {wrong}",
        remedy="the registry's copy is damaged, or someone altered it on the way",
    )


# -- up --------------------------------------------------------------------------------------------------------------


def present(session: Session, endpoint: Endpoint, digest: str, scopes: frozenset[str]) -> int | None:
    """The size of the blob in the endpoint's repository, None when it is not there; -1 when the answer does not say."""
    what = f"cannot look for {digest} in {endpoint.registry}/{endpoint.repository}"
    call = Call(what, "HEAD", f"blobs/{digest}", scopes, accept=frozenset({200, 404, 405}))
    reply = session.call(endpoint, call)
    if reply.status != 200:
        return None
    length = reply.header("content-length")
    return int(length) if length.isascii() and length.isdecimal() else -1


def mount(session: Session, endpoint: Endpoint, digest: str, source: str) -> str | None:
    """Ask for the blob to be taken over from the repository ``source`` of the same registry.

    None when that is done; else the location of the upload session that the registry opened instead, or "".
    """
    scopes = merged(scope(endpoint.repository, "pull", "push"), scope(source, "pull"))
    what = f"cannot mount {digest} from {source}"
    query = urlencode((("mount", digest), ("from", source)))
    # A refusal to mount is no failure: the bytes are sent instead, and a registry that minds says so then.
    accept = frozenset({201, 202}) | frozenset(range(400, 500)) - {408, 429}
    reply = session.call(endpoint, Call(what, "POST", f"blobs/uploads/?{query}", scopes, accept=accept))
    if reply.status == 201:
        return None
    return absolute(reply, what, endpoint.registry) if reply.status == 202 else ""


def upload(
    session: Session,
    endpoint: Endpoint,
    descriptor: Descriptor,
    open_content: Callable[[], BinaryIO],
    *,
    progress: Progress | None = None,
    location: str = "",
) -> None:
    """Send the blob of ``descriptor``; ``location`` is an upload session that is already open, if one is.

    First whole in one request (POST, PUT); after a break, or above ``MONOLITHIC_LIMIT``, in chunks that are resumed
    where the registry says it stands (POST, PATCH …, PUT); whole again where a registry takes no chunks.
    """
    sending = _Upload(session, endpoint, descriptor, open_content, Meter(progress, "push", descriptor))
    chunked = descriptor.size > MONOLITHIC_LIMIT
    failures = 0
    while True:
        opened = location or sending.begin()
        location = ""
        try:
            if chunked:
                sending.in_chunks(opened)
            else:
                sending.whole(opened)
        except _Broken as broken:
            failures += 1
            if failures >= session.pace.tries:
                session.abandon(endpoint, opened, sending.scopes)
                raise unreachable(sending.what, endpoint.registry, str(broken), failures) from broken
            session.wire.pause(max(broken.delay, session.pace.delay(failures - 1)))
            chunked = broken.chunked and descriptor.size > 0
            # The answer may have been lost rather than the bytes.
            if present(session, endpoint, descriptor.digest, sending.scopes) == descriptor.size:
                break
        except BaseException:
            session.abandon(endpoint, opened, sending.scopes)
            raise
        else:
            break
    sending.meter.at(descriptor.size, final=True)


class _Upload:
    """One blob on its way up: what each request of it needs."""

    def __init__(
        self,
        session: Session,
        endpoint: Endpoint,
        descriptor: Descriptor,
        open_content: Callable[[], BinaryIO],
        meter: Meter,
    ) -> None:
        self.session = session
        self.endpoint = endpoint
        self.descriptor = descriptor
        self.open_content = open_content
        self.meter = meter
        self.scopes = merged(scope(endpoint.repository, "pull", "push"))
        self.what = f"cannot push {descriptor.digest} to {endpoint.registry}/{endpoint.repository}"
        self.chunk = CHUNK_SIZE

    def begin(self) -> str:
        """Open an upload session; its location."""
        call = Call(self.what, "POST", "blobs/uploads/", self.scopes, accept=frozenset({202}))
        reply = self.session.call(self.endpoint, call)
        least = reply.header("oci-chunk-min-length")
        if least.isascii() and least.isdecimal():
            self.chunk = max(CHUNK_SIZE, int(least[:12]))
        return absolute(reply, self.what, self.endpoint.registry)

    def whole(self, location: str) -> None:
        """The whole blob in the request that closes the session."""
        reply = self._try(self._closing(location, 0), chunked=self.descriptor.size > CHUNK_SIZE)
        if reply.status == 413 and self.descriptor.size > CHUNK_SIZE:
            raise _Broken("a single request may not be that large", chunked=True)
        self._check_closed(reply, chunked=self.descriptor.size > CHUNK_SIZE)

    def in_chunks(self, location: str) -> None:
        """Chunk by chunk, each where the registry stands; then the request that closes the session."""
        offset = stuck = 0
        size = self.descriptor.size
        while offset < size:
            end = min(offset + self.chunk, size)
            why = ""
            delay = 0.0
            try:
                reply = self.session.once(self.endpoint, self._patch(location, offset, end))
            except Lost as lost:
                why = str(lost)
            else:
                if reply.status in {202, 201, 204}:
                    location = absolute(reply, self.what, self.endpoint.registry)
                    stands = _stands_at(reply, end)
                    stuck = 0 if stands > offset else stuck + 1
                    offset = stands
                    if stuck < self.session.pace.tries and offset <= size:
                        continue
                    raise _Broken("the registry does not move on", chunked=False)
                if reply.status not in PASSING | {416}:
                    if offset == 0 and reply.status in {400, 404, 405, 411, 415, 501}:
                        raise _Broken("the registry takes no chunks", chunked=False)
                    if reply.status == 404:
                        raise _Broken("the registry forgot the upload", chunked=True)
                    raise self.session.refused(self.endpoint, self.what, reply)
                why, delay = f"status {reply.status}", retry_after(reply)
            stuck += 1
            if stuck >= self.session.pace.tries or delay > self.session.pace.retry_after:
                raise _Broken(why, chunked=True)
            self.session.wire.pause(max(delay, self.session.pace.delay(stuck - 1)))
            location, offset = self._ask(location, offset, why)
        self._check_closed(self._try(self._closing(location, size), chunked=True), chunked=True)

    def _ask(self, location: str, offset: int, why: str) -> tuple[str, int]:
        """Where the registry stands after a break (distribution-spec, "get the current status")."""
        call = Call(self.what, "GET", location, self.scopes)
        try:
            reply = self.session.once(self.endpoint, call)
        except Lost as lost:
            raise _Broken(str(lost), chunked=True) from lost
        if reply.status not in {200, 202, 204} or not reply.header("range"):
            raise _Broken(why, chunked=True)
        stands = _stands_at(reply, offset)
        if stands > self.descriptor.size:
            raise _Broken(why, chunked=True)
        return (absolute(reply, self.what, self.endpoint.registry) if reply.header("location") else location), stands

    def _patch(self, location: str, offset: int, end: int) -> Call:
        return Call(
            self.what,
            "PATCH",
            location,
            self.scopes,
            headers=(("Content-Type", "application/octet-stream"), ("Content-Range", f"{offset}-{end - 1}")),
            content=lambda: self._slice(offset, end),
            length=end - offset,
            patience=COMMIT_SECONDS,
        )

    def _closing(self, location: str, offset: int) -> Call:
        """The PUT that closes the session with the bytes from ``offset`` on."""
        mark = "&" if "?" in location else "?"
        size = self.descriptor.size
        return Call(
            self.what,
            "PUT",
            f"{location}{mark}{urlencode({'digest': self.descriptor.digest})}",
            self.scopes,
            headers=(("Content-Type", "application/octet-stream"),),
            content=(lambda: self._slice(offset, size)) if offset < size else None,
            length=size - offset,
            patience=COMMIT_SECONDS,
        )

    def _try(self, call: Call, *, chunked: bool) -> Reply:
        try:
            return self.session.once(self.endpoint, call)
        except Lost as lost:
            raise _Broken(str(lost), chunked=chunked) from lost

    def _check_closed(self, reply: Reply, *, chunked: bool) -> None:
        if reply.status in {201, 204}:
            said = reply.header("docker-content-digest")
            if said and said != self.descriptor.digest and said.startswith("sha256:"):
                raise RegistryError(self.what, why=f"the registry made something else of it: {printable(said, 100)}")
            return
        asked = retry_after(reply)
        if (reply.status in PASSING and asked <= self.session.pace.retry_after) or reply.status == 404:
            raise _Broken(f"status {reply.status}", chunked=chunked, delay=asked)
        raise self.session.refused(self.endpoint, self.what, reply)

    def _slice(self, start: int, stop: int) -> Iterator[bytes]:
        """The blob's bytes from ``start`` to ``stop``."""
        with self.open_content() as content:
            content.seek(start)
            at = start
            while at < stop:
                data = content.read(min(CHUNK, stop - at))
                if not data:
                    raise StoreError(
                        f"cannot push {self.descriptor.digest}",
                        why=f"it ends after {at} bytes; {self.descriptor.size} belong there",
                        remedy="the local copy is damaged: build again, with --no-cache if need be",
                    )
                self.session.wire.check()
                yield data
                at += len(data)
                self.meter.at(at)


def _stands_at(reply: Reply, otherwise: int) -> int:
    """The bytes a registry holds of an upload, from ``Range: 0-LAST``; ``otherwise`` when it does not say.

    ``0-0`` is what registries say of an empty upload too; it is taken for that.
    """
    _, _, last = reply.header("range").removeprefix("bytes=").partition("-")
    if not last.isascii() or not last.isdecimal() or len(last) > 18:
        return otherwise
    return int(last) + 1 if int(last) else 0
