"""Uploads of blobs: looked up, mounted from another repository, or sent.

A blob is sent whole in one request (POST, PUT), or in chunks that can be resumed (POST, PATCH …, PUT;
distribution-spec, "Pushing blobs"). Registries differ in chunks: some accept at most 4 MiB; some return a ``Range``
that does not advance, counts only the last chunk, or is one too high. Therefore:

(1) After a chunk was accepted, it counts as received, whatever ``Range`` the answer has. A session whose ``Range`` was
    wrong once is not asked for its state after a broken connection.
(2) After 416 the same bytes are never sent again: either the registry says where to continue, or the session fails.
(3) A failed session is followed by one of the other kind, and the last one sends the blob whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final
from urllib.parse import urlencode

import msgspec

from executor.image.manifest import Descriptor
from executor.registry.failure import explained, remedy_for, unreachable
from executor.registry.registry_session import Endpoint, EndpointRequest, RegistrySession, absolute
from executor.registry.token import merged, scope
from executor.registry.transfer import Meter, Progress
from executor.retry import TransientError
from executor.transport import CHUNK, COMMIT_SECONDS, HTTPResponse
from platforms.errors import RegistryError, StoreError, printable

MOUNT_TRIES: Final = 3
"""Maximum number of repositories to try to mount from: each failed attempt opens an upload session."""
LEAST_CHUNK: Final = 512 << 10
"""Minimum size of a chunk in bytes, whatever a proxy's limit."""
_SHRINK: Final = 8
"""Divisor of the chunk size after a chunk was too large: from 32 MiB to 4 MiB, which GitHub's registry accepts, and to
512 KiB, which passes the default limit of nginx."""
OPENED: Final = frozenset({200, 201, 202})
"""Statuses of a successful request for an upload session."""
_ACCEPTED: Final = frozenset({201, 202, 204})
_NO_CHUNKS: Final = frozenset({400, 404, 405, 411, 415, 501})
"""Statuses of a first chunk by which registries say that they accept no chunks."""
_NOT_WHOLE: Final = frozenset({405, 411, 413, 415, 501})
"""Statuses of a whole blob by which registries say that it has to be sent in another way."""


class BlobMount(msgspec.Struct, frozen=True):
    """The result of an attempt to mount a blob."""

    done: bool = False
    location: str = ""
    """The upload session that the registry opened instead, "" if none."""
    forbidden: bool = False
    """Whether the user may not read the source repository, so that further attempts would fail too."""


class _UploadFailed(TransientError):
    """An upload session failed; another one may succeed. ``reply`` is the answer that it failed with, if any."""

    def __init__(self, why: str, *, reply: HTTPResponse | None = None, delay: float = 0.0) -> None:
        super().__init__(why, delay=delay)
        self.reply = reply


class _ChunkFailed(_UploadFailed):
    """A chunk failed; the same session may take it, or a part of it."""


def present(session: RegistrySession, endpoint: Endpoint, descriptor: Descriptor) -> bool:
    """Whether the blob of ``descriptor`` is known to be in the endpoint's repository.

    Any failure means that it is not: the blob is then sent, and a lasting problem is reported by that. The size has to
    match where it is given, unless the digest does: proxies invent the length of an answer without a body.
    """
    digest = descriptor.digest
    what = f"cannot look for {digest} in {endpoint.registry}/{endpoint.repository}"
    call = EndpointRequest(what, "HEAD", f"blobs/{digest}", merged(scope(endpoint.repository, "pull", "push")))
    try:
        reply = session.once(endpoint, call)
    except TransientError:
        return False
    length = reply.header("content-length")
    sized = not (length.isascii() and length.isdecimal()) or int(length[:18]) == descriptor.size
    return reply.status == 200 and (sized or reply.header("docker-content-digest") == digest)


def mount(session: RegistrySession, endpoint: Endpoint, digest: str, source: str) -> BlobMount:
    """Request that the blob be mounted from the repository ``source`` of the same registry.

    No failure is an error, neither a status of the registry nor a token service that refuses the second scope: the
    bytes are sent instead.
    """
    scopes = merged(scope(endpoint.repository, "pull", "push"), scope(source, "pull"))
    what = f"cannot mount {digest} from {source}"
    query = urlencode((("mount", digest), ("from", source)))
    try:
        reply = session.once(endpoint, EndpointRequest(what, "POST", f"blobs/uploads/?{query}", scopes))
        if reply.status == 202:
            return BlobMount(location=absolute(reply, what, endpoint.registry))
    except TransientError:
        return BlobMount()
    except RegistryError:
        return BlobMount(forbidden=True)
    return BlobMount(done=reply.status == 201, forbidden=reply.status in {401, 403})


def upload(
    session: RegistrySession,
    endpoint: Endpoint,
    descriptor: Descriptor,
    open_content: Callable[[], BinaryIO],
    *,
    progress: Progress | None = None,
    location: str = "",
) -> None:
    """Send the blob of ``descriptor``. ``location``: an upload session that is already open, if any.

    Sizes and attempts are those of the session's options. Raises ``RegistryError`` if the registry does not accept it.
    """
    open_content().close()  # which may have to be fetched first: no registry waits for bytes as long as that takes
    sending = _Upload(session, endpoint, descriptor, open_content, Meter(progress, "push", descriptor))
    try:
        while True:
            with sending.sessions:
                if not sending.failed:
                    sending.send(location or sending.begin())
                # The answer may have been lost rather than the bytes.
                elif not present(session, endpoint, descriptor):
                    sending.send(sending.begin())
                break
    except _UploadFailed as failure:
        raise _given_up(sending) from failure
    sending.meter.at(descriptor.size, final=True)


def _given_up(sending: _Upload) -> RegistryError:
    """Return the error for a blob all of whose sessions have ``failed``."""
    registry, failures = sending.endpoint.registry, sending.failed
    reasons = tuple(dict.fromkeys(f"{failure}, sent {way}" for way, failure in failures))
    replies = [failure.reply for _, failure in failures if failure.reply is not None]
    if not replies:
        return unreachable(sending.what, registry, "; ".join(reasons), len(failures))
    times = f" (tried {len(failures)} times)" if len(failures) > 1 else ""
    if any(reply.status not in sending.retryable for reply in replies):
        remedy = (
            f"{registry}, or a proxy before it, takes this blob neither whole nor in chunks: raise its limits on the "
            "size and duration of requests, or split the step so that its layer is smaller"
        )
    else:
        remedy = remedy_for(replies[-1], registry, known=True)
    return RegistryError(sending.what, why=f"{registry}: {'; '.join(reasons)}{times}", remedy=remedy)


class _Upload:
    """The upload of one blob, and what was learned about how the registry accepts it."""

    def __init__(
        self,
        session: RegistrySession,
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
        self.clock = session.clock(endpoint)
        self.sessions = session.attempts(endpoint, clock=self.clock, on=_UploadFailed)
        """The attempts to send the blob, each in an upload session of its own."""
        self.failed: list[tuple[str, _UploadFailed]] = []
        """How each failed session sent the blob (in chunks or whole), and its error."""
        self.scopes = merged(scope(endpoint.repository, "pull", "push"))
        self.what = f"cannot push {descriptor.digest} to {endpoint.registry}/{endpoint.repository}"
        self.chunk = session.options.chunk
        self._least = min(LEAST_CHUNK, self.chunk)
        self._takes_chunks = self._takes_whole = True

    @property
    def refused(self) -> bool:
        """Whether the registry accepts the blob neither whole nor in chunks."""
        return not (self._takes_chunks or self._takes_whole)

    @property
    def retryable(self) -> frozenset[int]:
        """Statuses after which a session or a chunk is tried again."""
        return self.sessions.policy.statuses

    def send(self, location: str) -> None:
        """Send the blob in the upload session at ``location``. Raises ``_UploadFailed`` if another may succeed."""
        chunked = self._chunked()
        try:
            if chunked:
                _ChunkedUpload(self, location).send()
            else:
                self.whole(location)
        except _UploadFailed as failure:
            self.failed.append(("in chunks" if chunked else "whole", failure))
            if failure.reply is not None:  # else nobody is there to be told
                self.session.abandon(self.endpoint, location, self.scopes)
            if self.refused:
                raise _given_up(self) from failure
            raise
        except BaseException:
            self.session.abandon(self.endpoint, location, self.scopes)
            raise

    def _chunked(self) -> bool:
        """Whether to send in chunks: in every other session, but not in the last one."""
        if not (self._takes_chunks and self._takes_whole):
            return self._takes_chunks
        failed = len(self.failed)
        chunks_first = self.descriptor.size > self.session.options.whole
        return failed + 1 < self.sessions.policy.attempts and (failed % 2 == 0) == chunks_first

    def begin(self) -> str:
        """Open an upload session; return its location."""
        call = EndpointRequest(self.what, "POST", "blobs/uploads/", self.scopes, accept=OPENED)
        reply = self.session.call(self.endpoint, call)
        least = reply.header("oci-chunk-min-length")
        if least.isascii() and least.isdecimal():
            self._least = int(least[:12])
            self.chunk = max(self.chunk, self._least)
        return absolute(reply, self.what, self.endpoint.registry)

    def whole(self, location: str) -> None:
        """Send the whole blob in the request that closes the session."""
        reply = self.once(self.closing(location, 0))
        if reply.status in _NOT_WHOLE:
            self._takes_whole = False
            raise _UploadFailed(explained(reply), reply=reply)
        if reply.status == 401 and self.descriptor.size > self.chunk:
            # We were let in for this a moment ago: a token that was good when the blob left was not when a proxy had
            # all of it. Chunks do not take as long.
            raise _UploadFailed(explained(reply), reply=reply)
        self.check_closed(reply)

    def give_up_chunks(self, reply: HTTPResponse, at: int) -> None:
        """Adapt to the refusal of a chunk at ``at``; raise it if it is not about chunks."""
        if reply.status == 413:
            if not self.shrink():
                self._takes_chunks = False
        elif at == 0 and reply.status in _NO_CHUNKS:
            self._takes_chunks = False
        elif reply.status not in {400, 404}:
            raise self.session.refused(self.endpoint, self.what, reply)

    def shrink(self) -> bool:
        """Make chunks smaller from now on; return whether they are."""
        smaller = max(self.chunk // _SHRINK, self._least)
        was, self.chunk = self.chunk, smaller
        return smaller < was

    def patch(self, location: str, start: int, end: int) -> EndpointRequest:
        """Return the request that sends the bytes from ``start`` to ``end``."""
        return EndpointRequest(
            self.what,
            "PATCH",
            location,
            self.scopes,
            headers=(("Content-Type", "application/octet-stream"), ("Content-Range", f"{start}-{end - 1}")),
            content=lambda: self._slice(start, end),
            length=end - start,
            read_timeout=COMMIT_SECONDS,
        )

    def closing(self, location: str, start: int) -> EndpointRequest:
        """Return the PUT that closes the session with the bytes from ``start`` on."""
        mark = "&" if "?" in location else "?"
        size = self.descriptor.size
        return EndpointRequest(
            self.what,
            "PUT",
            f"{location}{mark}{urlencode({'digest': self.descriptor.digest})}",
            self.scopes,
            headers=(("Content-Type", "application/octet-stream"),),
            content=(lambda: self._slice(start, size)) if start < size else None,
            length=size - start,
            read_timeout=COMMIT_SECONDS,
        )

    def once(self, call: EndpointRequest) -> HTTPResponse:
        """Return the answer to ``call``. Raises ``_UploadFailed`` if there is none."""
        try:
            return self.session.once(self.endpoint, call)
        except TransientError as error:
            raise _UploadFailed(self.broken(error)) from error

    def broken(self, error: TransientError) -> str:
        """Return the reason in ``error``, and how many bytes were sent."""
        return f"{error} after {self.meter.done} of {self.descriptor.size} bytes" if self.meter.done else str(error)

    def check_closed(self, reply: HTTPResponse) -> None:
        """Raise unless ``reply``, to the request that closes a session, says that the blob is stored."""
        if reply.status in {200, 201, 204}:
            said = reply.header("docker-content-digest")
            if said and said != self.descriptor.digest and said.startswith("sha256:"):
                raise RegistryError(self.what, why=f"the registry made something else of it: {printable(said, 100)}")
            return
        asked = reply.retry_after
        bearable = reply.status in self.retryable and asked <= self.sessions.policy.longest_retry_after
        if bearable or reply.status == 404:
            raise _UploadFailed(explained(reply), reply=reply, delay=asked)
        raise self.session.refused(self.endpoint, self.what, reply)

    def _slice(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the blob's bytes from ``start`` to ``stop``."""
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
                self.session.transport.check()
                yield data
                at += len(data)
                self.meter.at(at)
                self.clock.progressed()


class _ChunkedUpload:
    """An upload session in which a blob is sent in chunks, and its position."""

    def __init__(self, sending: _Upload, location: str) -> None:
        self._sending = sending
        self._location = location
        self._at = 0
        """The next byte to send."""
        self._truthful = True
        """Whether the registry's ``Range`` has always been right."""
        self._rejected: set[int] = set()
        """Offsets of chunks that were refused with 416."""
        self._broken: tuple[int, _ChunkFailed] | None = None
        """The end of a chunk that the registry may have received in part, and its error."""

    def send(self) -> None:
        """Send the blob chunk by chunk, then the request that closes the session. Raises ``_UploadFailed``."""
        sending, size = self._sending, self._sending.descriptor.size
        attempts = sending.session.attempts(sending.endpoint, clock=sending.clock, on=_ChunkFailed)
        while self._at < size:
            self._resume()
            with attempts:
                self._send_chunk(min(self._at + sending.chunk, size))
                attempts.progressed()
        reply = sending.once(sending.closing(self._location, size))
        if reply.status in {400, 416} and size:
            raise _UploadFailed(explained(reply), reply=reply)  # its count is not ours
        sending.check_closed(reply)

    def _send_chunk(self, end: int) -> None:
        """Send the bytes up to ``end``. Raises ``_ChunkFailed`` if this may be tried again, else ``_UploadFailed``."""
        sending = self._sending
        try:
            reply = sending.session.once(sending.endpoint, sending.patch(self._location, self._at, end))
        except TransientError as error:
            failure = _ChunkFailed(sending.broken(error))
            self._broken = end, failure
            raise failure from error
        if reply.status in _ACCEPTED:
            self._location = self._next(reply)
            self._truthful = self._truthful and _stands_at(reply, end) == end  # (1)
            self._at = end
            return
        failure = _ChunkFailed(explained(reply), reply=reply, delay=reply.retry_after)
        if reply.status == 416:  # (2)
            self._go_elsewhere(reply)
        elif reply.status in sending.retryable:
            self._broken = end, failure
        else:
            sending.give_up_chunks(reply, self._at)
            raise _UploadFailed(str(failure), reply=reply, delay=failure.delay)
        raise failure

    def _go_elsewhere(self, refusal: HTTPResponse) -> None:
        """Continue where the registry says after the 416 ``refusal``. Raises ``_UploadFailed`` if it does not say."""
        self._rejected.add(self._at)
        said = refusal if refusal.header("range") else self._status()
        at = _stands_at(said, -1) if said is not None else -1
        if said is None or not 0 <= at <= self._sending.descriptor.size or at in self._rejected:
            self._sending.shrink()  # its size may be what was wrong
            raise _UploadFailed(explained(refusal), reply=refusal, delay=refusal.retry_after)
        self._location, self._at = self._next(said), at

    def _resume(self) -> None:
        """Ask the registry how much of a broken chunk it has received, if its ``Range`` has been right so far."""
        broken, self._broken = self._broken, None
        if broken is None or not self._truthful:
            return
        end, failure = broken
        reply = self._status()
        if reply is None:
            raise failure
        stands = _stands_at(reply, -1)
        self._location = self._next(reply)
        if self._at <= stands <= end:
            self._at = stands
        else:
            self._truthful = False

    def _status(self) -> HTTPResponse | None:
        """Return the state of the session (distribution-spec, "get the current status"), None if it has no
        ``Range``."""
        sending = self._sending
        try:
            reply = sending.session.once(
                sending.endpoint, EndpointRequest(sending.what, "GET", self._location, sending.scopes)
            )
        except TransientError:
            return None
        return reply if reply.status in {200, 202, 204} and reply.header("range") else None

    def _next(self, reply: HTTPResponse) -> str:
        """Return the location for the next request: that of ``reply``, else the present one."""
        sending = self._sending
        named = reply.header("location")
        return absolute(reply, sending.what, sending.endpoint.registry) if named else self._location


def _stands_at(reply: HTTPResponse, otherwise: int) -> int:
    """Return the number of bytes that a registry has received, from ``Range: 0-LAST``; ``otherwise`` if it does not
    say.

    ``0-0``, which registries also send for an empty upload, means empty.
    """
    _, _, last = reply.header("range").removeprefix("bytes=").partition("-")
    if not last.isascii() or not last.isdecimal() or len(last) > 18:
        return otherwise
    return int(last) + 1 if int(last) else 0
