"""Downloads of blobs: resumed, and verified by size and digest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Final, Literal, Protocol

from executor.image.manifest import Descriptor
from executor.registry.failure import unreachable
from executor.registry.registry_session import Endpoint, EndpointRequest, RegistrySession
from executor.registry.token import merged, scope
from executor.retry import TransientError
from executor.transport import with_minimum_rate
from platforms.errors import RegistryError

if TYPE_CHECKING:
    import httpx

_REPORT_SECONDS: Final = 0.1

Direction = Literal["pull", "push"]
Progress = Callable[[Direction, str, int, int], None]
"""Receives the progress of transfers: the direction, the digest, bytes done, and bytes in all."""


class BlobWriter(Protocol):
    """The destination of a download."""

    def write(self, data: bytes, /) -> object:
        """Append ``data``."""
        ...

    def reset(self) -> object:
        """Drop everything written so far: the next bytes start at 0 again."""
        ...


class _Wrong(Exception):
    """The content is not what its descriptor says. ``stitched``: whether it was assembled from ranges."""

    def __init__(self, why: str, *, stitched: bool) -> None:
        super().__init__(why)
        self.stitched = stitched


class Meter:
    """Reports the progress of a transfer: at the start, a few times a second, and at the end."""

    def __init__(self, progress: Progress | None, action: Direction, descriptor: Descriptor) -> None:
        self._progress = progress
        self._action = action
        self._descriptor = descriptor
        self._due = 0.0
        self.done = 0
        """Bytes transferred."""
        self.at(0)

    def at(self, done: int, *, final: bool = False) -> None:
        """``done`` bytes have been transferred."""
        self.done = done
        if self._progress is None:
            return
        now = time.monotonic()
        if final or now >= self._due:
            self._due = now + _REPORT_SECONDS
            self._progress(self._action, self._descriptor.digest, done, self._descriptor.size)


def fetch(
    session: RegistrySession,
    endpoints: tuple[Endpoint, ...],
    descriptor: Descriptor,
    writer: BlobWriter,
    progress: Progress | None = None,
) -> None:
    """Write the blob of ``descriptor`` to ``writer``, from the first endpoint whose copy is complete and correct."""
    what = f"cannot pull {descriptor.digest} from {endpoints[-1].registry}/{endpoints[-1].repository}"
    written = False
    for number, endpoint in enumerate(endpoints):
        last = number == len(endpoints) - 1
        for ranges in (True, False):
            if written:
                writer.reset()
                written = False
            try:
                meter = Meter(progress, "pull", descriptor)
                with closing(_download(session, endpoint, descriptor, what, meter, ranges=ranges)) as chunks:
                    for chunk in chunks:
                        written = True
                        writer.write(chunk)
            except _Wrong as wrong:
                if wrong.stitched and ranges:
                    continue
                if last:
                    raise _mismatch(what, endpoint, wrong) from wrong
                session.leave(endpoint, why=str(wrong))
            except RegistryError:
                if last:
                    raise
            else:
                return
            break


def stream(
    session: RegistrySession, endpoints: tuple[Endpoint, ...], descriptor: Descriptor, progress: Progress | None = None
) -> Iterator[bytes]:
    """Yield the blob of ``descriptor`` in chunks. It is verified only when the iteration has ended.

    Another endpoint is tried only before the first chunk. Afterwards a broken connection is resumed where it broke.
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
            session.leave(endpoint, why=str(wrong))
        except RegistryError:
            if given or number == len(endpoints) - 1:
                raise
        else:
            return


def _download(
    session: RegistrySession, endpoint: Endpoint, descriptor: Descriptor, what: str, meter: Meter, *, ranges: bool
) -> Generator[bytes]:
    """Yield the blob's bytes, which are verified at the end. A broken body is resumed at the byte where it broke.

    If the server does not support ranges, or ``ranges`` is false, the part that was received is read again and skipped.
    Raises ``_Wrong``, or ``RegistryError`` after too many failures without progress.
    """
    algorithm, _, expected = descriptor.digest.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    attempts = session.attempts(endpoint)
    offset = 0
    stitched = False
    try:
        while True:
            with attempts:
                try:
                    for chunk, ranged in _body(session, endpoint, descriptor, offset, what, ranges=ranges):
                        stitched = stitched or ranged
                        offset += len(chunk)
                        if offset > descriptor.size:
                            raise _Wrong(f"more than the {descriptor.size} bytes announced", stitched=stitched)
                        digest.update(chunk)
                        meter.at(offset)
                        attempts.progressed()
                        yield chunk
                except TransientError as error:
                    if offset < descriptor.size:
                        raise TransientError(str(error)) from error  # silence counts no more than any other break here
                if offset < descriptor.size:
                    raise TransientError("the body ended early")
                break
    except TransientError as error:
        session.leave(endpoint, why=str(error))
        raise unreachable(what, endpoint.registry, str(error), error.attempts) from error
    if digest.hexdigest() != expected:
        raise _Wrong(f"its digest is {algorithm}:{digest.hexdigest()}", stitched=stitched)
    meter.at(offset, final=True)


def _body(
    session: RegistrySession, endpoint: Endpoint, descriptor: Descriptor, offset: int, what: str, *, ranges: bool
) -> Iterator[tuple[bytes, bool]]:
    """Yield the blob from ``offset`` on in chunks, each with whether it is from the answer to a range request."""
    ask = ranges and offset > 0
    call = EndpointRequest(
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
            for chunk in with_minimum_rate(session.transport.chunks(response)):
                yield chunk, True
            return
        if response.status_code == 200:
            _check_length(response, descriptor.size)
            skip = offset
            for chunk in with_minimum_rate(session.transport.chunks(response)):
                rest = chunk[skip:]
                skip = max(0, skip - len(chunk))
                if rest:
                    yield rest, False
            return
    # The server answered a range request with some other range: ask for everything.
    yield from _body(session, endpoint, descriptor, offset, what, ranges=False)


def _starts_at(response: httpx.Response, offset: int, size: int) -> bool:
    """Whether this is the 206 for the requested range (RFC 9110, 14.4: ``bytes 5-9/10``)."""
    if response.status_code != 206:
        return False
    unit, _, rest = response.headers.get("content-range", "").partition(" ")
    span, _, total = rest.partition("/")
    return unit == "bytes" and span.partition("-")[0] == str(offset) and total in {"*", str(size)}


def _check_length(response: httpx.Response, expected: int) -> None:
    said = response.headers.get("content-length", str(expected))
    if said != str(expected):
        raise _Wrong(f"{said} bytes were announced, {expected} belong there", stitched=False)


def _mismatch(what: str, endpoint: Endpoint, wrong: _Wrong) -> RegistryError:
    return RegistryError(
        what,
        why=f"{endpoint.registry} sent something else: {wrong}",
        remedy="the registry's copy is damaged, or someone altered it on the way",
    )
