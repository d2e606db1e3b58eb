"""Uploads of blobs: looked for, mounted from another repository, or sent.

A blob is sent whole in one request (POST, PUT), or in chunks that can be resumed (POST, PATCH …, PUT;
distribution-spec, "Pushing blobs"). Registries are particular about chunks: some take at most 4 MiB, some answer a
``Range`` that stays where it was, counts the last chunk alone, or is one too high. So

(1) after a chunk was accepted, what was sent counts, whatever ``Range`` the answer has; a session whose ``Range`` was
    once wrong is not asked where it stands when a connection broke;
(2) a 416 is never answered with the same bytes: either the registry says where else to go on, or the session is
    given up;
(3) a session that failed is followed by one of the other kind, and the last one sends the blob whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final
from urllib.parse import urlencode

import msgspec

from executor.image.manifest import Descriptor
from executor.registry.auth import printable
from executor.registry.failure import PASSING, explained, remedy_for, retry_after, unreachable
from executor.registry.session import Call, Endpoint, Session, absolute
from executor.registry.token import merged, scope
from executor.registry.transfer import Meter, Progress
from executor.transport import CHUNK, COMMIT_SECONDS, Reply, TransientError
from platforms.errors import RegistryError, StoreError

MOUNT_TRIES: Final = 3
"""Repositories to try to mount from: each failed try opens an upload session."""
LEAST_CHUNK: Final = 512 << 10
"""Bytes below which chunks are not made smaller, whatever a proxy's limit."""
_SHRINK: Final = 8
"""The divisor of the chunk size after a chunk was too large: from 32 MiB to 4 MiB, which GitHub's registry takes, and
to 512 KiB, which passes the default limit of nginx."""
OPENED: Final = frozenset({200, 201, 202})
"""Answers to a request for an upload session that say where it is."""
_ACCEPTED: Final = frozenset({201, 202, 204})
_NO_CHUNKS: Final = frozenset({400, 404, 405, 411, 415, 501})
"""Answers to a first chunk that say that the registry takes none."""
_NOT_WHOLE: Final = frozenset({405, 411, 413, 415, 501})
"""Answers to a whole blob that say that it has to come in another way."""


class Mount(msgspec.Struct, frozen=True):
    """The outcome of an attempt to mount a blob."""

    done: bool = False
    location: str = ""
    """The upload session that the registry opened instead, "" when it opened none."""
    forbidden: bool = False
    """Whether the user may not read the source repository, so that further attempts are in vain."""


class _Failed(Exception):
    """An upload session failed; the blob may be sent again in another. ``reply`` is the answer it failed with."""

    def __init__(self, why: str, *, reply: Reply | None = None, delay: float = 0.0) -> None:
        super().__init__(why)
        self.reply = reply
        self.delay = delay


def present(session: Session, endpoint: Endpoint, descriptor: Descriptor) -> bool:
    """Whether the blob of ``descriptor`` is known to be in the endpoint's repository.

    Any failure means that it is not: the blob is then sent, and whatever is wrong is reported by that. The size has to
    be right where it is told, unless the digest is: proxies make up the length of an answer without a body.
    """
    digest = descriptor.digest
    what = f"cannot look for {digest} in {endpoint.registry}/{endpoint.repository}"
    call = Call(what, "HEAD", f"blobs/{digest}", merged(scope(endpoint.repository, "pull", "push")))
    try:
        reply = session.once(endpoint, call)
    except TransientError:
        return False
    length = reply.header("content-length")
    sized = not (length.isascii() and length.isdecimal()) or int(length[:18]) == descriptor.size
    return reply.status == 200 and (sized or reply.header("docker-content-digest") == digest)


def mount(session: Session, endpoint: Endpoint, digest: str, source: str) -> Mount:
    """Ask for the blob to be taken over from the repository ``source`` of the same registry.

    No failure of this is an error, neither a status of the registry nor a token service that refuses the second scope:
    the bytes are sent instead.
    """
    scopes = merged(scope(endpoint.repository, "pull", "push"), scope(source, "pull"))
    what = f"cannot mount {digest} from {source}"
    query = urlencode((("mount", digest), ("from", source)))
    try:
        reply = session.once(endpoint, Call(what, "POST", f"blobs/uploads/?{query}", scopes))
        if reply.status == 202:
            return Mount(location=absolute(reply, what, endpoint.registry))
    except TransientError:
        return Mount()
    except RegistryError:
        return Mount(forbidden=True)
    return Mount(done=reply.status == 201, forbidden=reply.status in {401, 403})


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

    Sizes and tries are those of the session's pace. Raises ``RegistryError`` when no way leads into the registry.
    """
    open_content().close()  # which may have to be fetched first: no registry waits for bytes as long as that takes
    sending = _Upload(session, endpoint, descriptor, open_content, Meter(progress, "push", descriptor))
    failures: list[tuple[str, _Failed]] = []
    while True:
        opened = location or sending.begin()
        location = ""
        chunked = sending.chunked(len(failures))
        try:
            if chunked:
                sending.in_chunks(opened)
            else:
                sending.whole(opened)
        except _Failed as failure:
            failures.append(("in chunks" if chunked else "whole", failure))
            if failure.reply is not None:  # else nobody is there to be told
                session.abandon(endpoint, opened, sending.scopes)
            delay = max(failure.delay, session.pace.delay(len(failures) - 1))
            if sending.refused or sending.patience.ends(len(failures), session.pace.tries, delay):
                raise _given_up(sending, failures) from failure
            session.watch.trouble(str(failure))
            session.transport.pause(delay)
            # The answer may have been lost rather than the bytes.
            if present(session, endpoint, descriptor):
                break
        except BaseException:
            session.abandon(endpoint, opened, sending.scopes)
            raise
        else:
            break
    sending.meter.at(descriptor.size, final=True)


def _given_up(sending: _Upload, failures: list[tuple[str, _Failed]]) -> RegistryError:
    """The error for a blob that all ``failures`` kept from being sent, each with how it was sent."""
    registry = sending.endpoint.registry
    reasons = tuple(dict.fromkeys(f"{failure}, sent {way}" for way, failure in failures))
    replies = [failure.reply for _, failure in failures if failure.reply is not None]
    if not replies:
        return unreachable(sending.what, registry, "; ".join(reasons), len(failures))
    times = f" (tried {len(failures)} times)" if len(failures) > 1 else ""
    if any(reply.status not in PASSING for reply in replies):
        remedy = (
            f"{registry}, or a proxy before it, takes this blob neither whole nor in chunks: raise its limits on the "
            "size and duration of requests, or split the step so that its layer is smaller"
        )
    else:
        remedy = remedy_for(replies[-1], registry, known=True)
    return RegistryError(sending.what, why=f"{registry}: {'; '.join(reasons)}{times}", remedy=remedy)


class _Upload:
    """One blob on its way up, and what has been learned of how the registry takes it."""

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
        self.patience = session.patience(endpoint)
        self.scopes = merged(scope(endpoint.repository, "pull", "push"))
        self.what = f"cannot push {descriptor.digest} to {endpoint.registry}/{endpoint.repository}"
        self._chunk = session.pace.chunk
        self._least = min(LEAST_CHUNK, self._chunk)
        self._takes_chunks = self._takes_whole = True

    @property
    def refused(self) -> bool:
        """Whether the registry takes the blob in no way at all."""
        return not (self._takes_chunks or self._takes_whole)

    def chunked(self, failed: int) -> bool:
        """Whether to send in chunks, after so many sessions that failed; the last session sends the blob whole."""
        pace = self.session.pace
        if not (self._takes_chunks and self._takes_whole):
            return self._takes_chunks
        chunks_first = self.descriptor.size > pace.whole
        return failed + 1 < pace.tries and (failed % 2 == 0) == chunks_first

    def begin(self) -> str:
        """Open an upload session; its location."""
        call = Call(self.what, "POST", "blobs/uploads/", self.scopes, accept=OPENED)
        reply = self.session.call(self.endpoint, call)
        least = reply.header("oci-chunk-min-length")
        if least.isascii() and least.isdecimal():
            self._least = int(least[:12])
            self._chunk = max(self._chunk, self._least)
        return absolute(reply, self.what, self.endpoint.registry)

    def whole(self, location: str) -> None:
        """The whole blob in the request that closes the session."""
        reply = self._once(self._closing(location, 0))
        if reply.status in _NOT_WHOLE:
            self._takes_whole = False
            raise _Failed(explained(reply), reply=reply)
        if reply.status == 401 and self.descriptor.size > self._chunk:
            # We were let in for this a moment ago: a token that was good when the blob left was not when a proxy had
            # all of it. Chunks do not take as long.
            raise _Failed(explained(reply), reply=reply)
        self._check_closed(reply)

    def in_chunks(self, location: str) -> None:
        """Chunk by chunk, then the request that closes the session."""
        size = self.descriptor.size
        at = failures = 0
        truthful = True
        rejected: set[int] = set()
        while at < size:
            end = min(at + self._chunk, size)
            try:
                reply = self.session.once(self.endpoint, self._patch(location, at, end))
            except TransientError as lost:
                failure = _Failed(self._broken(lost))
            else:
                if reply.status in _ACCEPTED:
                    location = self._next(reply, location)
                    truthful = truthful and _stands_at(reply, end) == end  # (1)
                    at, failures = end, 0
                    continue
                failure = _Failed(explained(reply), reply=reply, delay=retry_after(reply))
                if reply.status == 416:  # (2)
                    rejected.add(at)
                    found = self._elsewhere(reply, location)
                    if found is None or found[1] in rejected:
                        self._shrink()  # its size may be what was wrong
                        raise failure
                    location, at = found
                elif reply.status not in PASSING:
                    self._give_up_chunks(reply, at)
                    raise failure
            failures += 1
            delay = max(failure.delay, self.session.pace.delay(failures - 1))
            if self.patience.ends(failures, self.session.pace.tries, delay):
                raise failure
            self.session.watch.trouble(str(failure))
            self.session.transport.pause(delay)
            if failure.reply is None or failure.reply.status != 416:
                location, at, truthful = self._resumed(location, at, end, failure, truthful=truthful)
        reply = self._once(self._closing(location, size))
        if reply.status in {400, 416} and size:
            raise _Failed(explained(reply), reply=reply)  # its count is not ours
        self._check_closed(reply)

    def _give_up_chunks(self, reply: Reply, at: int) -> None:
        """Learn from a chunk refused at ``at``; raises the refusal when it is not about chunks."""
        if reply.status == 413:
            if not self._shrink():
                self._takes_chunks = False
        elif at == 0 and reply.status in _NO_CHUNKS:
            self._takes_chunks = False
        elif reply.status not in {400, 404}:
            raise self.session.refused(self.endpoint, self.what, reply)

    def _shrink(self) -> bool:
        """Make chunks smaller from now on; whether they can be."""
        smaller = max(self._chunk // _SHRINK, self._least)
        was, self._chunk = self._chunk, smaller
        return smaller < was

    def _elsewhere(self, reply: Reply, location: str) -> tuple[str, int] | None:
        """The location and the byte to go on with after the 416 ``reply``; None when the registry does not say."""
        said = reply if reply.header("range") else self._status(location)
        if said is None or not 0 <= (stands := _stands_at(said, -1)) <= self.descriptor.size:
            return None
        return self._next(said, location), stands

    def _resumed(self, location: str, at: int, end: int, failure: _Failed, *, truthful: bool) -> tuple[str, int, bool]:
        """Where to go on after the chunk from ``at`` to ``end`` broke, and whether the registry's word still counts."""
        if not truthful:
            return location, at, False
        reply = self._status(location)
        if reply is None:
            raise failure
        stands = _stands_at(reply, -1)
        if at <= stands <= end:
            return self._next(reply, location), stands, True
        return self._next(reply, location), at, False

    def _status(self, location: str) -> Reply | None:
        """What the registry says of the session (distribution-spec, "get the current status"), None when nothing."""
        try:
            reply = self.session.once(self.endpoint, Call(self.what, "GET", location, self.scopes))
        except TransientError:
            return None
        return reply if reply.status in {200, 202, 204} and reply.header("range") else None

    def _next(self, reply: Reply, location: str) -> str:
        """The location that ``reply`` names for the next request, the present one when it names none."""
        return absolute(reply, self.what, self.endpoint.registry) if reply.header("location") else location

    def _patch(self, location: str, start: int, end: int) -> Call:
        return Call(
            self.what,
            "PATCH",
            location,
            self.scopes,
            headers=(("Content-Type", "application/octet-stream"), ("Content-Range", f"{start}-{end - 1}")),
            content=lambda: self._slice(start, end),
            length=end - start,
            patience=COMMIT_SECONDS,
        )

    def _closing(self, location: str, start: int) -> Call:
        """The PUT that closes the session with the bytes from ``start`` on."""
        mark = "&" if "?" in location else "?"
        size = self.descriptor.size
        return Call(
            self.what,
            "PUT",
            f"{location}{mark}{urlencode({'digest': self.descriptor.digest})}",
            self.scopes,
            headers=(("Content-Type", "application/octet-stream"),),
            content=(lambda: self._slice(start, size)) if start < size else None,
            length=size - start,
            patience=COMMIT_SECONDS,
        )

    def _once(self, call: Call) -> Reply:
        try:
            return self.session.once(self.endpoint, call)
        except TransientError as lost:
            raise _Failed(self._broken(lost)) from lost

    def _broken(self, lost: TransientError) -> str:
        """``lost``, and how far the blob had come."""
        return f"{lost} after {self.meter.done} of {self.descriptor.size} bytes" if self.meter.done else str(lost)

    def _check_closed(self, reply: Reply) -> None:
        if reply.status in {200, 201, 204}:
            said = reply.header("docker-content-digest")
            if said and said != self.descriptor.digest and said.startswith("sha256:"):
                raise RegistryError(self.what, why=f"the registry made something else of it: {printable(said, 100)}")
            return
        asked = retry_after(reply)
        if (reply.status in PASSING and asked <= self.session.pace.retry_after) or reply.status == 404:
            raise _Failed(explained(reply), reply=reply, delay=asked)
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
                self.session.transport.check()
                yield data
                at += len(data)
                self.meter.at(at)
                self.patience.further()


def _stands_at(reply: Reply, otherwise: int) -> int:
    """The bytes a registry holds of an upload, from ``Range: 0-LAST``; ``otherwise`` when it does not say.

    ``0-0`` is what registries say of an empty upload too; it is taken for that.
    """
    _, _, last = reply.header("range").removeprefix("bytes=").partition("-")
    if not last.isascii() or not last.isdecimal() or len(last) > 18:
        return otherwise
    return int(last) + 1 if int(last) else 0
