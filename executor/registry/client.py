"""The client for the OCI distribution protocol.

    client.resolve(ref)                    tag -> descriptor
    client.manifest(ref)                   the document, its bytes and their descriptor
    client.fetch(ref, descriptor, writer)  a blob, verified, resumed when the connection breaks
    client.check_push(ref)                 whether the user may push
    client.push(ref, descriptor, open)     a blob, unless it is there or can be mounted
    client.put_manifest(ref, data, type)   the document, under a tag or its digest

Reads try the registry's mirrors first. By digest a mirror's content is as good as the registry's own; a tag is what the
first mirror that has it says. Writes go to the registry. A ``Client`` may be used by many threads; httpx is imported on
the first request.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import BinaryIO, Final, Literal, Self, TypeVar

from msgspec.structs import replace

from executor.image import mediatypes
from executor.image.digest import check_digest, sha256
from executor.image.manifest import MANIFEST_LIMIT, Descriptor, Index, Manifest, describe, parse
from executor.registry import transfer, upload
from executor.registry.auth import Keychain, Lend, Loan, anonymous
from executor.registry.failure import codes
from executor.registry.notices import Tell
from executor.registry.reference import Reference, api_host
from executor.registry.registry_session import (
    Endpoint,
    EndpointRequest,
    RegistrySession,
    TransferOptions,
    absolute,
    mirror_endpoints,
    origin_endpoint,
)
from executor.registry.registry_settings import RegistrySettings
from executor.registry.token import merged, scope
from executor.registry.transfer import BlobWriter, Direction
from executor.retry import RETRYABLE_STATUSES, Attempts
from executor.transport import Cancel, HTTPResponse, TransientStatus
from platforms.errors import ArchiveError, RegistryError, printable

SMALL_BLOB: Final = 16 << 20
"""Maximum size in bytes of a blob that is read into memory: image configurations are kilobytes."""
_MANIFEST_ATTEMPTS: Final = 4
_ANSWERED: Final = frozenset({200}) | frozenset(range(400, 500)) - {408, 429}
"""Final answers to HEAD: not tried again."""
_STORED: Final = frozenset({200, 201, 202})
_REFUSED: Final = frozenset(range(400, 500)) - {401, 408, 413, 429}
"""Final answers to the PUT of a manifest: not tried again."""
_DELETED: Final = frozenset({200, 202, 204, 404})
_EMPTY: Final = b"{}"
_NOT_YET: Final = frozenset({"MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"})
"""Error codes for content that a manifest refers to and the registry does not have."""
_UNKNOWN_TYPE: Final = frozenset({400, 404, 405, 406, 409, 415, 422})
"""Statuses by which registries refuse an unknown media type."""
_KNOWN: Final = mediatypes.INDEXES | mediatypes.MANIFESTS

Outcome = Literal["present", "mounted", "uploaded"]
"""How a pushed blob got into its repository."""
_T = TypeVar("_T")


class Client:
    """A client for registries, with one user's credentials. ``progress`` and ``tell`` are called from the threads that
    do the work."""

    def __init__(
        self,
        settings: RegistrySettings | None = None,
        keychain: Keychain = anonymous,
        *,
        cancel: Cancel | None = None,
        tell: Tell | None = None,
        options: TransferOptions | None = None,
    ) -> None:
        self.settings = settings or RegistrySettings()
        self._forbidden: set[tuple[Endpoint, str]] = set()
        """Pairs of target and source repository between which the user may not mount blobs."""
        self._session = RegistrySession(self.settings, keychain, options=options, cancel=cancel, tell=tell)

    def borrow(self, lend: Lend, own: Keychain = anonymous) -> None:
        """Use loans where the keychain ``own`` has no credential. To be called before the first request."""
        self._session.borrow(lend, own)

    def close(self) -> None:
        """Close all connections; transfers in other threads raise ``Interrupted`` at once."""
        self._session.close()

    def probed_settings(self) -> RegistrySettings:
        """Return the settings with what this client has found out about registries, for other clients of the build."""
        return self._session.probed_settings()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading

    def resolve(self, reference: Reference) -> Descriptor:
        """Return the descriptor that ``reference`` points to. Raises ``RegistryError``, also if there is none."""
        what = f"cannot resolve {reference.familiar()}"
        with self._watched(what):
            return self._first(reference, lambda endpoint: self._resolve(endpoint, reference, what))

    def manifest(self, reference: Reference) -> tuple[Manifest | Index, bytes, Descriptor]:
        """Return the manifest or index of ``reference``, parsed strictly, its verified bytes, and their descriptor."""
        what = f"cannot pull {reference.familiar()}"
        with self._watched(what):
            return self._first(reference, lambda endpoint: self._manifest(endpoint, reference, what))

    def read_manifest(self, reference: Reference) -> tuple[bytes, Descriptor]:
        """Return the bytes of ``manifest``, and their descriptor."""
        return self.manifest(reference)[1:]

    def has_manifest(self, reference: Reference) -> Descriptor | None:
        """Return the descriptor that ``reference`` points to in the registry itself (no mirror), or None if there is
        none."""
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
        """As ``manifest``, from the registry itself (no mirror), and None if there is none.

        One GET request, because some registries answer 404 to every HEAD.
        """
        what = f"cannot pull {reference.familiar()}"
        with self._watched(what):
            return self._found(origin_endpoint(reference), reference, what)

    def referrers(self, reference: Reference) -> tuple[Descriptor, ...] | None:
        """Return what the registry itself (no mirror) lists as referrers of the digest of ``reference``; None if it
        does not have the API."""
        from executor.registry import referrers

        what = f"cannot list the referrers of {reference.familiar()}"
        with self._watched(what):
            return referrers.listed(self._session, origin_endpoint(reference), _digest(reference.digest), what)

    def has_mirrors(self, reference: Reference) -> bool:
        """Whether what is read of ``reference`` may come from a mirror: the registry itself need not have it."""
        return bool(mirror_endpoints(reference, self.settings))

    def fetch(self, reference: Reference, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Write the blob of ``descriptor`` to ``writer``; size and digest are verified when this returns.

        ``writer.reset`` is called when what was written is wrong and the next attempt starts at byte 0.
        """
        with self._watched(f"pull {descriptor.digest} from {reference.familiar()}"):
            transfer.fetch(self._session, self._endpoints(reference), _checked(descriptor), writer, self._progress)

    def open_stream(self, reference: Reference, descriptor: Descriptor) -> Iterator[bytes]:
        """Return the blob of ``descriptor`` in chunks. They are verified only when the iteration has ended."""
        return transfer.stream(self._session, self._endpoints(reference), _checked(descriptor), self._progress)

    def read_blob(self, reference: Reference, descriptor: Descriptor, limit: int = SMALL_BLOB) -> bytes:
        """Return the blob of ``descriptor``, which may have at most ``limit`` bytes."""
        if descriptor.size > limit:
            raise RegistryError(
                f"cannot pull {descriptor.digest} from {reference.familiar()}",
                why=f"it claims {descriptor.size} bytes; {limit} are allowed for a {descriptor.media_type}",
            )
        with self._watched(f"pull {descriptor.digest} from {reference.familiar()}"):
            return b"".join(self.open_stream(reference, descriptor))

    # -- writing

    def lend(self, registry: str, repository: str, scopes: tuple[str, ...], fresh: bool) -> Loan | None:
        """Return what a client on another machine needs for ``scopes`` on ``repository`` of ``registry``, which may be
        a mirror; None without a credential. With ``fresh``, it is a new token."""
        plain = any(each.startswith(f"http://{registry}/") or each == f"http://{registry}" for each in self._mirrors())
        endpoint = Endpoint(registry, api_host(registry), repository, plain=plain)
        return self._session.lend(endpoint, merged(*scopes), fresh=fresh)

    def _mirrors(self) -> Iterator[str]:
        for _, mirrors in self.settings.mirrors:
            yield from mirrors

    def check_push(self, reference: Reference) -> None:
        """Check that this user may push to the repository, by starting an upload and cancelling it.

        Raises ``RegistryError`` when that is refused, or the registry cannot be reached. A temporary failure of the
        registry (429, 5xx) does not raise.
        """
        endpoint = origin_endpoint(reference)
        what = f"cannot push to {reference.registry}/{reference.repository}"
        scopes = merged(scope(endpoint.repository, "pull", "push"))
        call = EndpointRequest(what, "POST", "blobs/uploads/", scopes, accept=upload.OPENED | RETRYABLE_STATUSES)
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
        """Get the blob of ``descriptor`` into the repository with as few bytes sent as possible.

        (1) It is there already. (2) It is mounted from one of the repositories ``mount_from`` of the same registry. (3)
            It is uploaded: ``open_content`` opens a seekable binary file of it, again for each attempt.
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
        """Upload the blob of ``descriptor`` to the repository without checking whether it is there."""
        endpoint = origin_endpoint(reference)
        with self._watched(f"push {descriptor.digest} to {reference.registry}/{reference.repository}"):
            upload.upload(self._session, endpoint, _checked(descriptor), open_content, progress=self._progress)

    def put_manifest(self, reference: Reference, data: bytes, media_type: str) -> Descriptor:
        """Store ``data`` under the tag of ``reference`` or, if it has none, under its digest; return its descriptor.

        It is no error if the registry refuses a name that points to ``data`` already: tags may be immutable, and some
        registries accept nothing twice.
        """
        endpoint = origin_endpoint(reference)
        algorithm = reference.digest.partition(":")[0] or "sha256"
        digest = _digest_of(algorithm, data)
        what = f"cannot push {reference.familiar()}"
        if reference.digest not in ("", digest):
            raise RegistryError(what, why=f"the document's digest is {digest}")
        call = EndpointRequest(
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

    def push_artifact(self, reference: Reference, config_type: str, layer: Descriptor, path: str) -> Descriptor:
        """Push an artifact with one layer, the file ``path``, and an empty config of the type ``config_type``; return
        the descriptor of its manifest."""
        config = Descriptor(config_type, sha256(_EMPTY), len(_EMPTY))
        self.push(reference, layer, partial(_open, path))
        self.push(reference, config, partial(io.BytesIO, _EMPTY))
        manifest = Manifest(mediatypes.OCI_MANIFEST, config, (layer,))
        return self.put_manifest(reference.repository_only(), describe(manifest)[1], manifest.media_type)

    def delete_manifest(self, reference: Reference) -> None:
        """Delete the manifest with the digest of ``reference``, which need not be there. Raises ``RegistryError`` if
        the registry does not allow that."""
        endpoint = origin_endpoint(reference)
        what = f"cannot delete {reference.familiar()}"
        scopes = merged(scope(endpoint.repository, "pull", "delete"))
        path = f"manifests/{_digest(reference.digest)}"
        with self._watched(what):
            self._session.call(endpoint, EndpointRequest(what, "DELETE", path, scopes, accept=_DELETED))

    # -- inside

    def _watched(self, what: str) -> AbstractContextManager[None]:
        """Report a long wait for ``what``, given as in an error; a leading "cannot" is left out."""
        return self._session.watch.over(what.removeprefix("cannot "))

    def _progress(self, action: Direction, name: str, done: int, total: int) -> None:
        self._session.watch.progress()
        self.progress(action, name, done, total)

    def progress(self, action: Direction, name: str, done: int, total: int) -> None:
        """Called as bytes of the blob ``name`` are moved (``transfer.Progress``). Does nothing; for subclasses."""

    def _until_known(self, endpoint: Endpoint, call: EndpointRequest) -> HTTPResponse:
        """Return the answer to the PUT of a manifest whose blobs, or an index whose manifests, have been pushed.

        Docker's registry may not find a blob for a moment while another client uploads it too, because it rewrites the
        link file by which the repository has the blob. Distributed registries may need a moment as well.
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
        """Return the digest that ``reference`` points to, None if that cannot be determined."""
        try:
            found = self.has_manifest(reference)
        except RegistryError:
            return None
        return None if found is None else found.digest

    def _not_stored(
        self, endpoint: Endpoint, call: EndpointRequest, reply: HTTPResponse, media_type: str, there: str | None
    ) -> RegistryError:
        """Return the error for a refused document. ``there``: the digest that the tag points to instead, if any."""
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
        """Return the result of ``attempt`` for the first mirror that has one, else for the registry. Its error includes
        those of the mirrors."""
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
        self, endpoint: Endpoint, reference: Reference, what: str, reply: HTTPResponse
    ) -> tuple[Manifest | Index, bytes, Descriptor]:
        """Return the document in ``reply``, verified, and its descriptor."""
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


def _open(path: str) -> BinaryIO:
    return open(path, "rb")


def _manifest_call(
    endpoint: Endpoint, reference: Reference, *, what: str, method: str, accept: frozenset[int]
) -> EndpointRequest:
    return EndpointRequest(
        what,
        method,
        f"manifests/{reference.target}",
        merged(scope(endpoint.repository, "pull")),
        headers=(("Accept", mediatypes.ACCEPT),),
        limit=MANIFEST_LIMIT,
        accept=accept,
    )


def _described(reply: HTTPResponse, reference: Reference) -> Descriptor | None:
    """Return the descriptor in the headers of the answer to HEAD; None if they hold no valid one."""
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


def _media_type(reply: HTTPResponse) -> str:
    """Return the ``Content-Type`` without parameters, which clients ignore (distribution-spec)."""
    return reply.header("content-type").partition(";")[0].strip().lower()


def _digest_of(algorithm: str, data: bytes) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}"


def _digest(text: str) -> str:
    """Return ``text`` if it is a digest: it becomes part of a URL that may carry credentials. Raises
    ``RegistryError``."""
    try:
        return check_digest(text)
    except ArchiveError as error:
        raise RegistryError("cannot ask a registry for this", why=str(error)) from error


def _checked(descriptor: Descriptor) -> Descriptor:
    _digest(descriptor.digest)
    if descriptor.size < 0:
        raise RegistryError(f"cannot transfer {descriptor.digest}", why=f"its size is {descriptor.size}")
    return descriptor
