"""The OCI distribution client: what a build asks of a registry, in its own words.

    client.resolve(ref)                    tag -> descriptor
    client.manifest(ref)                   the document, its bytes and their descriptor
    client.fetch(ref, descriptor, sink)    a blob, verified, resumed when the connection breaks
    client.check_push(ref)                 whether we may
    client.push(ref, descriptor, open)     a blob, unless it is there or can be mounted
    client.put_manifest(ref, data, type)   the document, under a tag or its digest

Reads try the registry's mirrors first; digests make a mirror's content as good as the registry's own, and a tag means
what the first mirror that knows it says. Writes go to the registry. A ``Client`` may be used by many threads; httpx is
imported when the first request is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, Final, Literal, Self, TypeVar

from msgspec.structs import replace

from executor.image import mediatypes
from executor.image.digest import check_digest
from executor.image.manifest import MANIFEST_LIMIT, Descriptor, Index, Manifest, parse
from executor.registry import transfer, upload
from executor.registry.auth import Keychain, anonymous
from executor.registry.config import RegistrySettings
from executor.registry.failure import codes
from executor.registry.notices import Tell
from executor.registry.reference import Reference
from executor.registry.session import Call, Endpoint, Session, TransferOptions, absolute, origin_endpoint
from executor.registry.token import merged, scope
from executor.registry.transfer import Direction, Progress, Sink
from executor.retry import RETRYABLE_STATUSES, Attempts
from executor.transport import Cancel, Reply, TransientStatus
from platforms.errors import ArchiveError, RegistryError, printable

SMALL_BLOB: Final = 16 << 20
"""Bytes of a blob that is read into memory: image configurations are kilobytes."""
_MANIFEST_ATTEMPTS: Final = 4
_ANSWERED: Final = frozenset({200}) | frozenset(range(400, 500)) - {408, 429}
"""Answers to a HEAD that no other try would change."""
_STORED: Final = frozenset({200, 201, 202})
_REFUSED: Final = frozenset(range(400, 500)) - {401, 408, 413, 429}
"""Answers to a manifest that no other try would cure."""
_NOT_YET: Final = frozenset({"MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"})
"""Error codes for something that a manifest names and the registry does not have."""
_UNKNOWN_TYPE: Final = frozenset({400, 404, 405, 406, 409, 415, 422})
"""What registries say to a media type that they do not know: they agree on no status."""
_KNOWN: Final = mediatypes.INDEXES | mediatypes.MANIFESTS

Outcome = Literal["present", "mounted", "uploaded"]
"""How a pushed blob came to be in its repository."""
_T = TypeVar("_T")


class Client:
    """A user's registries. ``progress`` and ``tell`` are called from the threads that do the work."""

    def __init__(
        self,
        settings: RegistrySettings | None = None,
        keychain: Keychain = anonymous,
        *,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        tell: Tell | None = None,
        options: TransferOptions | None = None,
    ) -> None:
        self.settings = settings or RegistrySettings()
        self._told = progress
        self._forbidden: set[tuple[Endpoint, str]] = set()
        """Where blobs cannot be mounted from, by where to."""
        self._session = Session(self.settings, keychain, options=options, cancel=cancel, tell=tell)

    def close(self) -> None:
        """End all connections; transfers under way in other threads are ``Interrupted`` at once."""
        self._session.close()

    def learned(self) -> RegistrySettings:
        """The settings, with what has been found out on the way and others need not find out again."""
        return self._session.learned()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading

    def resolve(self, reference: Reference) -> Descriptor:
        """What ``reference`` points to now. Raises ``RegistryError``, also when there is no such thing."""
        what = f"cannot resolve {reference.familiar()}"
        with self._watched(what):
            return self._first(reference, lambda endpoint: self._resolve(endpoint, reference, what))

    def manifest(self, reference: Reference) -> tuple[Manifest | Index, bytes, Descriptor]:
        """The manifest or index of ``reference``: read strictly, its bytes verified, and their descriptor."""
        what = f"cannot pull {reference.familiar()}"
        with self._watched(what):
            return self._first(reference, lambda endpoint: self._manifest(endpoint, reference, what))

    def read_manifest(self, reference: Reference) -> tuple[bytes, Descriptor]:
        """The bytes of ``manifest``, and their descriptor."""
        return self.manifest(reference)[1:]

    def has_manifest(self, reference: Reference) -> Descriptor | None:
        """What ``reference`` points to in its own registry (no mirror), or None when it does not exist."""
        endpoint = origin_endpoint(reference)
        what = f"cannot look for {reference.familiar()}"
        call = _manifest_call(endpoint, reference, what=what, method="HEAD", accept=_ANSWERED)
        with self._watched(what):
            reply = self._session.call(endpoint, call)
            if reply.status == 404:
                return None
            found = _described(reply, reference) if reply.status == 200 else None
            if found is None and (whole := self._found(endpoint, reference, what)) is not None:
                found = whole[2]
            return found

    def find(self, reference: Reference) -> tuple[Manifest | Index, bytes, Descriptor] | None:
        """Like ``manifest``, of the registry itself (no mirror), and None when there is no such thing.

        One request, with a method that every registry knows: some answer 404 to any HEAD.
        """
        what = f"cannot pull {reference.familiar()}"
        with self._watched(what):
            return self._found(origin_endpoint(reference), reference, what)

    def referrers(self, reference: Reference) -> tuple[Descriptor, ...] | None:
        """What the registry itself (no mirror) lists as referrers of ``reference``'s digest; None if it cannot."""
        from executor.registry import referrers

        what = f"cannot list the referrers of {reference.familiar()}"
        with self._watched(what):
            return referrers.listed(self._session, origin_endpoint(reference), _digest(reference.digest), what)

    def fetch(self, reference: Reference, descriptor: Descriptor, sink: Sink) -> None:
        """Write the blob of ``descriptor`` to ``sink``; size and digest are right when this returns.

        ``sink.reset`` is called when what was written turned out to be wrong and another try begins at 0.
        """
        with self._watched(f"pull {descriptor.digest} from {reference.familiar()}"):
            transfer.fetch(self._session, self._endpoints(reference), _checked(descriptor), sink, self._progress)

    def open_stream(self, reference: Reference, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob of ``descriptor`` in chunks; that they were the right ones is known when the iteration has ended."""
        return transfer.stream(self._session, self._endpoints(reference), _checked(descriptor), self._progress)

    def read_blob(self, reference: Reference, descriptor: Descriptor, limit: int = SMALL_BLOB) -> bytes:
        """The whole blob of ``descriptor``, which may have at most ``limit`` bytes."""
        if descriptor.size > limit:
            raise RegistryError(
                f"cannot pull {descriptor.digest} from {reference.familiar()}",
                why=f"it claims {descriptor.size} bytes; {limit} are allowed for a {descriptor.media_type}",
            )
        with self._watched(f"pull {descriptor.digest} from {reference.familiar()}"):
            return b"".join(self.open_stream(reference, descriptor))

    # -- writing

    def check_push(self, reference: Reference) -> None:
        """Ask whether this user may push into the repository, as a push would begin; nothing is left of it.

        Raises ``RegistryError`` when that is refused, or the registry is not there. A registry that only cannot just
        now is given the benefit of the doubt.
        """
        endpoint = origin_endpoint(reference)
        what = f"cannot push to {reference.registry}/{reference.repository}"
        scopes = merged(scope(endpoint.repository, "pull", "push"))
        call = Call(what, "POST", "blobs/uploads/", scopes, accept=upload.OPENED | RETRYABLE_STATUSES)
        with self._watched(what):
            reply = self._session.call(endpoint, call)
        if reply.status in upload.OPENED:
            self._session.abandon(endpoint, absolute(reply, what, endpoint.registry), scopes)

    def push(
        self,
        reference: Reference,
        descriptor: Descriptor,
        open_content: Callable[[], BinaryIO],
        *,
        mount_from: Iterable[str] = (),
    ) -> Outcome:
        """See that the blob of ``descriptor`` is in the repository, with as few bytes sent as can be.

        (1) It may be there. (2) It may be in one of the repositories ``mount_from`` of the same registry. (3) It is
        sent: ``open_content`` opens a seekable binary file of it, more than once when a connection breaks.
        """
        with self._watched(f"push {descriptor.digest} to {reference.registry}/{reference.repository}"):
            return self._push(origin_endpoint(reference), _checked(descriptor), open_content, mount_from)

    def _push(
        self,
        endpoint: Endpoint,
        descriptor: Descriptor,
        open_content: Callable[[], BinaryIO],
        mount_from: Iterable[str],
    ) -> Outcome:
        if upload.present(self._session, endpoint, descriptor):  # (1)
            return "present"
        sources = [each for each in dict.fromkeys(mount_from) if each != endpoint.repository][: upload.MOUNT_TRIES]
        location = ""
        for source in sources:  # (2)
            if (endpoint, source) in self._forbidden:
                continue
            if location:
                self._session.abandon(endpoint, location, merged(scope(endpoint.repository, "pull", "push")))
            mount = upload.mount(self._session, endpoint, descriptor.digest, source)
            if mount.done:
                return "mounted"
            if mount.forbidden:
                self._forbidden.add((endpoint, source))
            location = mount.location
        upload.upload(  # (3)
            self._session, endpoint, descriptor, open_content, progress=self._progress, location=location
        )
        return "uploaded"

    def send(self, reference: Reference, descriptor: Descriptor, open_content: Callable[[], BinaryIO]) -> None:
        """Put the blob of ``descriptor`` into the repository without asking whether it is there."""
        endpoint = origin_endpoint(reference)
        with self._watched(f"push {descriptor.digest} to {reference.registry}/{reference.repository}"):
            upload.upload(self._session, endpoint, _checked(descriptor), open_content, progress=self._progress)

    def put_manifest(self, reference: Reference, data: bytes, media_type: str) -> Descriptor:
        """Store ``data`` under the tag of ``reference`` or, when it has none, under its digest; its descriptor.

        A name that the registry does not let us write, and that means ``data`` already, is no failure: tags may be
        immutable, and some stores take nothing twice.
        """
        endpoint = origin_endpoint(reference)
        algorithm = reference.digest.partition(":")[0] or "sha256"
        digest = _digest_of(algorithm, data)
        what = f"cannot push {reference.familiar()}"
        if reference.digest not in ("", digest):
            raise RegistryError(what, why=f"the document's digest is {digest}")
        call = Call(
            what,
            "PUT",
            f"manifests/{reference.tag or digest}",
            merged(scope(endpoint.repository, "pull", "push")),
            headers=(("Content-Type", media_type),),
            content=lambda: iter((data,)),
            length=len(data),
            accept=_STORED | _REFUSED,
        )
        with self._watched(what):
            reply = self._until_known(endpoint, call)
        stored = Descriptor(media_type, digest, len(data))
        if reply.status in _REFUSED:
            there = self._standing(reference if reference.tag else reference.with_digest(digest))
            if there != digest:
                raise self._not_stored(endpoint, call, reply, media_type, there)
            return stored
        said = reply.header("docker-content-digest")
        if said.startswith(algorithm + ":") and said != digest:
            raise RegistryError(what, why=f"the registry stored something else: {printable(said, 100)} for {digest}")
        return stored

    # -- inside

    def _watched(self, what: str) -> AbstractContextManager[None]:
        """Tell of a wait for ``what``, said as an error would be or without its "cannot"."""
        return self._session.watch.over(what.removeprefix("cannot "))

    def _progress(self, action: Direction, name: str, done: int, total: int) -> None:
        self._session.watch.moved()
        if self._told is not None:
            self._told(action, name, done, total)

    def _until_known(self, endpoint: Endpoint, call: Call) -> Reply:
        """The answer to a manifest whose blobs, or an index whose manifests, are all there.

        Docker's registry may miss one for a moment while somebody else uploads it too: it writes the file by which a
        repository knows a blob anew, in place. Registries that are spread over machines may take a moment as well.
        """
        policy = replace(self._session.options.retry, attempts=_MANIFEST_ATTEMPTS)
        attempts = Attempts(policy, self._session.transport.pause)
        try:
            while True:
                with attempts:
                    reply = self._session.call(endpoint, call)
                    if reply.status in _REFUSED and _NOT_YET & codes(reply.body):
                        raise TransientStatus(reply)
                    return reply
        except TransientStatus as error:
            return error.reply

    def _standing(self, reference: Reference) -> str | None:
        """The digest that the tag of ``reference`` means now, None when that is not known."""
        try:
            found = self.has_manifest(reference)
        except RegistryError:
            return None
        return None if found is None else found.digest

    def _not_stored(
        self, endpoint: Endpoint, call: Call, reply: Reply, media_type: str, there: str | None
    ) -> RegistryError:
        """The error for a document that was refused; ``there`` is what its tag means instead, if anything."""
        error = self._session.refused(endpoint, call.what, reply)
        if there is not None:
            remedy = f"the tag is {there} already: where tags cannot be moved, choose another one, or remove it first"
        elif media_type in (mediatypes.OCI_INDEX, mediatypes.OCI_MANIFEST) and reply.status in _UNKNOWN_TYPE:
            kind = "indexes" if media_type == mediatypes.OCI_INDEX else "manifests"
            remedy = f"if the registry does not know OCI {kind}: -o type=registry,oci-mediatypes=false"
            if reply.status == 404 and error.problem.remedy:
                remedy = f"{remedy}; else {error.problem.remedy}"
        else:
            return error
        error.problem = replace(error.problem, remedy=remedy)
        return error

    def _endpoints(self, reference: Reference) -> tuple[Endpoint, ...]:
        return (*self._session.mirrors(reference), origin_endpoint(reference))

    def _first(self, reference: Reference, attempt: Callable[[Endpoint], _T]) -> _T:
        """``attempt`` at the mirrors, then at the registry. Its error tells of the mirrors' as well."""
        notes: list[str] = []
        for endpoint in self._session.mirrors(reference):
            try:
                return attempt(endpoint)
            except RegistryError as error:
                notes.append(f"mirror {endpoint.registry}: {error.problem.why}")
        try:
            return attempt(origin_endpoint(reference))
        except RegistryError as error:
            if notes:
                error.problem = replace(error.problem, why="; ".join((error.problem.why, *notes)))
            raise

    def _resolve(self, endpoint: Endpoint, reference: Reference, what: str) -> Descriptor:
        # Any refusal is asked again with GET, whose answer has room for an explanation; 429 is not made worse by that.
        call = _manifest_call(endpoint, reference, what=what, method="HEAD", accept=_ANSWERED)
        reply = self._session.call(endpoint, call)
        found = _described(reply, reference) if reply.status == 200 else None
        return found or self._manifest(endpoint, reference, what)[2]

    def _manifest(
        self, endpoint: Endpoint, reference: Reference, what: str
    ) -> tuple[Manifest | Index, bytes, Descriptor]:
        call = _manifest_call(endpoint, reference, what=what, method="GET", accept=frozenset({200}))
        return self._read(endpoint, reference, what, self._session.call(endpoint, call))

    def _found(
        self, endpoint: Endpoint, reference: Reference, what: str
    ) -> tuple[Manifest | Index, bytes, Descriptor] | None:
        call = _manifest_call(endpoint, reference, what=what, method="GET", accept=frozenset({200, 404}))
        reply = self._session.call(endpoint, call)
        return None if reply.status == 404 else self._read(endpoint, reference, what, reply)

    def _read(
        self, endpoint: Endpoint, reference: Reference, what: str, reply: Reply
    ) -> tuple[Manifest | Index, bytes, Descriptor]:
        """The document in ``reply``, verified, and its descriptor."""
        said = reference.digest or reply.header("docker-content-digest")
        try:
            wanted = check_digest(said) if said else ""
            media_type = _media_type(reply)
            document = parse(reply.body, media_type)
        except ArchiveError as error:
            raise RegistryError(
                what,
                why=f"{endpoint.registry}: {error}",
                remedy="the registry holds an image in a form that cannot be used",
            ) from error
        digest = _digest_of(wanted.partition(":")[0] or "sha256", reply.body)
        if wanted and digest != wanted:
            raise RegistryError(
                what,
                why=f"{endpoint.registry} sent {digest} for {wanted}",
                remedy="the registry's copy is damaged, or someone altered it on the way",
            )
        return document, reply.body, Descriptor(document.media_type, digest, len(reply.body))


def _manifest_call(endpoint: Endpoint, reference: Reference, *, what: str, method: str, accept: frozenset[int]) -> Call:
    return Call(
        what,
        method,
        f"manifests/{reference.target}",
        merged(scope(endpoint.repository, "pull")),
        headers=(("Accept", mediatypes.ACCEPT),),
        limit=MANIFEST_LIMIT,
        accept=accept,
    )


def _described(reply: Reply, reference: Reference) -> Descriptor | None:
    """The descriptor in the headers of a HEAD answer; None when they do not hold a usable one."""
    length, media_type = reply.header("content-length"), _media_type(reply)
    try:
        digest = check_digest(reply.header("docker-content-digest"))
    except ArchiveError:
        return None
    if media_type not in _KNOWN or reference.digest not in ("", digest):
        return None
    if not length.isascii() or not length.isdecimal() or not 0 < int(length[:12]) <= MANIFEST_LIMIT:
        return None
    return Descriptor(media_type, digest, int(length[:12]))


def _media_type(reply: Reply) -> str:
    """The ``Content-Type`` without its parameters (distribution-spec: clients ignore them)."""
    return reply.header("content-type").partition(";")[0].strip().lower()


def _digest_of(algorithm: str, data: bytes) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}"


def _digest(text: str) -> str:
    """``text`` when it is a digest: it becomes part of a URL that may carry credentials."""
    try:
        return check_digest(text)
    except ArchiveError as error:
        raise RegistryError("cannot ask a registry for this", why=str(error)) from error


def _checked(descriptor: Descriptor) -> Descriptor:
    _digest(descriptor.digest)
    if descriptor.size < 0:
        raise RegistryError(f"cannot transfer {descriptor.digest}", why=f"its size is {descriptor.size}")
    return descriptor
