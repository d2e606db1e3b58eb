"""The messages between an orchestrator and an executor: lines of JSON (``platforms.framing``), versioned.

The executor writes a ``Handshake`` as soon as it runs. The orchestrator reads that before it writes a ``Job``, and
then, while the build runs, an ``Answer`` (followed by its raw bytes) to every ``Ask``. The executor writes any number
of events and exactly one ``Result`` or ``Failed``, which may take the place of the ``Handshake``. A line that is not
one of these messages, or a version that is not ours, ends the conversation with ``ProtocolError``. Closing the
executor's stdin cancels the job.

A message whose ``size`` is not zero is followed by exactly that many raw bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from executor.image.manifest import Descriptor
from executor.registry.registry_settings import RegistrySettings
from executor.step_options import StepOptions
from platforms import decoding
from platforms.emulation import Emulation
from platforms.errors import Problem, ProtocolError

VERSION: Final = 10


class Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """The root of all messages; the JSON field ``type`` names the kind."""


Tell = Callable[[Message], None]
"""Sends a message to the other end. Safe for threads."""


# -- executor -> orchestrator ---------------------------------------------------------------------------------------


class Handshake(Message, frozen=True, tag="hello"):
    """First line: what the executor is, as far as that is known without running anything. Written before the job is
    read, so that the orchestrator can decide by it which job the executor gets."""

    version: int
    kanifold: str
    """The version of kanifold, for people."""
    host: str = ""
    """The node's own platform, formatted."""
    isolation: str = ""
    """The isolation mode in use, by name; "" when this host allows none, as the answer to the job will say."""
    processors: int = 0
    """How many the executor may use; 0 when unknown."""
    emulators: tuple[str, ...] = ()
    """Architectures that the node has an emulator for. Whether it works is found out by trying it. Empty from an
    executor that was forked: its orchestrator is on the same machine and tries emulators itself."""


class StepInfo(msgspec.Struct, frozen=True):
    """One vertex of the build graph as it is shown to people."""

    id: int
    stage: str
    """The stage's name, or its number as text when it has none; "" for the only one, and for work outside of stages."""
    name: str
    """The instruction as written, heads of here-documents only: ``RUN apt-get update``."""
    line: int = 0
    number: int = 0
    """Position among the stage's steps, from 1; 0 when not counted."""
    of: int = 0


class Planned(Message, frozen=True, tag="planned"):
    """The steps this job will go through; sent once, before the first step starts (more may be added by ONBUILD)."""

    steps: tuple[StepInfo, ...]
    emulation: str = ""
    """How steps run here: ``native``, or the emulator's name."""


class Started(Message, frozen=True, tag="started"):
    """A step has begun."""

    step: int


Awaited = Literal["unpack", "turn"]


class Held(Message, frozen=True, tag="held"):
    """A step that has begun waits for ``what``: ``unpack`` (of base layers) or ``turn`` (other steps run); "": goes on.

    For the stages that it takes files from a step waits before it begins.
    """

    step: int
    what: Awaited | Literal[""] = ""


class Finished(Message, frozen=True, tag="finished"):
    """A step is done, in ``seconds`` without what it waited; ``cached`` when it was found rather than made.

    What is given up because another step failed never finishes.
    """

    step: int
    seconds: float = 0.0
    cached: bool = False
    error: str = ""
    """Why it failed; "" when it did not."""


class Log(Message, frozen=True, tag="log"):
    """Lines of a step's output, with newlines between them. ``stream`` 1 is stdout, 2 stderr."""

    step: int
    text: str
    stream: int = 1


class Action(enum.StrEnum):
    """What moves bytes."""

    PULL = "pull"
    PUSH = "push"
    UNPACK = "unpack"
    WRITE = "write"
    """Of a layer's directory, from entries."""
    COMPRESS = "compress"
    CONTEXT = "context"


class Transfer(Message, frozen=True, tag="moved"):
    """Progress of bytes: ``done`` of ``total`` (0 when unknown) of the thing named ``name``, so far."""

    action: Action
    name: str
    """A digest, a result or a path: the identity of the transfer within its action."""
    done: int
    total: int = 0


class Waiting(Message, frozen=True, tag="waiting"):
    """A registry has not answered for ``seconds``, or (``over``) has at last. See ``executor.registry.notices``."""

    registry: str
    what: str
    seconds: float = 0.0
    why: str = ""
    over: bool = False


class BuildWarning(Message, frozen=True, tag="warned"):
    """Something the user should know; the build goes on."""

    problem: Problem
    rule: str = ""
    """The build check's name when a check found it."""


class _Question(msgspec.Struct, frozen=True, tag_field="what", omit_defaults=True):
    """What an executor may ask the orchestrator."""

    name: str

    @property
    def kind(self) -> str:
        """For people: ``secret``, …."""
        return str(self.__struct_config__.tag)


class AskCredential(_Question, frozen=True, tag="credential"):
    """The credential for ``repository`` of the registry (host) ``name``: a ``Credential`` as JSON."""

    repository: str


class AskSecret(_Question, frozen=True, tag="secret"):
    """The value of the secret with the id ``name``."""


class AskContext(_Question, frozen=True, tag="context"):
    """The files of the context ``name``, a ``SentContext``, as a tar archive."""


class AskLayout(_Question, frozen=True, tag="layout"):
    """A file of the OCI layout that is the context ``name``, a ``SentLayoutContext``."""

    file: str
    """Its path in the layout: ``oci-layout``, ``index.json``, or that of a blob."""


class AskAgent(_Question, frozen=True, tag="ssh"):
    """What the SSH agent ``name`` answers to ``message``; with none, whether there is such an agent."""

    message: bytes = b""


class AskManifest(_Question, frozen=True, tag="manifest"):
    """Whether the registry has the manifest that the reference ``name`` is of."""


Question = AskCredential | AskSecret | AskContext | AskLayout | AskAgent | AskManifest


class Ask(Message, frozen=True, tag="ask"):
    """The executor needs something that only the orchestrator has; it waits for the ``Answer`` with the same id."""

    id: int
    question: Question


class Finding(msgspec.Struct, frozen=True):
    """An ELF file whose machine is not the platform's."""

    layer: str
    """The layer's digest."""
    path: str
    machine: str
    """The file's own architecture, as ``kanifold`` names platforms where it can: ``amd64``, ``EM_AVR (83)``."""


class FoundStep(msgspec.Struct, frozen=True, array_like=True):
    """What the cache said of a step: the ``result`` that was recorded under its ``key``, and when that was made."""

    key: str
    result: str
    created: str


class StatSignature(msgspec.Struct, frozen=True, array_like=True):
    """What a source argument named in a context: ``digest`` is the SHA-256 (hex) of what lstat(2) said of all of it.

    It is "" where that does not tell whether the files are the same.
    """

    context: str
    pattern: str
    parents: bool
    exclude: tuple[str, ...]
    digest: str


class DependencyRecord(msgspec.Struct, frozen=True):
    """All that a result rests on besides the job and its pins: while it holds, the same job has the same result."""

    steps: tuple[FoundStep, ...] = ()
    signatures: tuple[StatSignature, ...] = ()


class Result(Message, frozen=True, tag="result"):
    """The image is made and stands where the job wanted it (pushed by digest, or in the executor's store)."""

    manifest: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]
    size: int
    """Compressed bytes of all layers and the config."""
    findings: tuple[Finding, ...] = ()
    cached: int = 0
    ran: int = 0
    seconds: float = 0.0
    contexts: tuple[str, ...] = ()
    """Named contexts that something was taken from."""
    dependencies: DependencyRecord | None = None
    """None when the result is not cacheable: it rests on something that can only be asked for again."""


class Failed(Message, frozen=True, tag="failed"):
    """The job failed."""

    problem: Problem


class BlobContent(Message, frozen=True, tag="blob"):
    """Content sent to the orchestrator on its ``Fetch``: ``size`` raw bytes follow."""

    digest: str
    size: int


class Piece(Message, frozen=True, tag="piece"):
    """The next ``size`` bytes, which follow, of the archive requested by ``FilesRequest``; 0 at its end."""

    size: int = 0


# -- orchestrator -> executor ---------------------------------------------------------------------------------------


class Pin(msgspec.Struct, frozen=True):
    """An external image as the Dockerfile names it, and the digest that the whole build agreed on."""

    name: str
    """The reference as it is written (after expansion): ``debian:12``."""
    digest: str
    """Of the index or manifest that the tag pointed to."""


class _Context(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True):
    """A build context by its canonical name (``executor.solver.named``); the main one's name is ""."""

    name: str


class DirectoryContext(_Context, frozen=True, tag="directory"):
    """The files of the directory ``path`` on the executor's own disk."""

    path: str
    ignore: str = ""
    """The text of the ignore file that applies."""
    owners: bool = False
    """Whether files keep their owners; else all of them are root's."""


class SentContext(_Context, frozen=True, tag="sent"):
    """Files that the orchestrator sends as an archive when it is asked (``AskContext``)."""

    ignore: str = ""
    owners: bool = False
    """Both as in ``DirectoryContext``."""


class ImageContext(_Context, frozen=True, tag="image"):
    """The image with the reference ``image``, in place of what the Dockerfile calls by the context's name."""

    image: str


class LayoutContext(_Context, frozen=True, tag="layout"):
    """The image in the OCI layout ``path`` (``DIR[:TAG|@DIGEST]``) on the executor's own disk."""

    path: str


class SentLayoutContext(_Context, frozen=True, tag="sent-layout"):
    """The image in an OCI layout that the orchestrator has: its files are sent when they are asked for
    (``AskLayout``)."""

    image: str = ""
    """Its tag or digest; "" for the only one, or ``latest``."""


class ScratchContext(_Context, frozen=True, tag="scratch"):
    """No files at all."""


FilesContext = DirectoryContext | SentContext
Context = FilesContext | ImageContext | LayoutContext | SentLayoutContext | ScratchContext


class CompressionKind(enum.StrEnum):
    """The compressions of layers."""

    GZIP = "gzip"
    ZSTD = "zstd"
    UNCOMPRESSED = "uncompressed"


class Compression(msgspec.Struct, frozen=True):
    """How new layers are compressed; ``level`` None is the kind's own default."""

    kind: CompressionKind = CompressionKind.GZIP
    level: int | None = None
    force: bool = False
    """Whether a base's layers of another kind are compressed anew."""


class CacheInRegistry(msgspec.Struct, frozen=True, tag_field="kind", tag="registry"):
    """A remote cache in the repository of the reference ``name``, whose tag is the cache's name space."""

    name: str


class CacheInDirectory(msgspec.Struct, frozen=True, tag_field="kind", tag="directory"):
    """A remote cache in the directory ``name``, an absolute path on the executor's disk."""

    name: str


class CacheInImage(msgspec.Struct, frozen=True, tag_field="kind", tag="inline"):
    """A cache that the image itself carries."""


CacheLocation = CacheInRegistry | CacheInDirectory
"""Where a remote cache is. By its ``name`` users are told of it, and records of this store know whose word they are."""


class CacheExport(msgspec.Struct, frozen=True):
    """``--cache-to``: a cache that is told what was built."""

    to: CacheLocation | CacheInImage
    every_stage: bool = False
    """``mode=max``: the steps of all stages, not of the image's own alone."""


SnapshotterKind = Literal["overlay", "plain"]


class BuildOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a user asks for that is the same for all platforms, and goes as it is into each job."""

    target: str = ""
    """The stage to build; "" for the last."""
    labels: tuple[tuple[str, str], ...] = ()
    compression: Compression = Compression()
    rewrite_timestamps: bool = True
    """Whether SOURCE_DATE_EPOCH bounds the times of files in layers that are made."""
    no_cache: bool = False
    """Do every step; but what another job of the same build has just done is done."""
    no_cache_stages: tuple[str, ...] = ()
    cache_from: tuple[CacheLocation, ...] = ()
    cache_to: tuple[CacheExport, ...] = ()
    cache_ttl: int | None = None
    """Seconds after which an entry of a remote cache is too old."""
    registries: RegistrySettings = RegistrySettings()
    root: str = ""
    """The store's directory; "" for the default."""
    snapshotter: SnapshotterKind = "overlay"
    """How the file systems of steps are made. An image does not depend on it."""
    implicit_platform: bool = False
    """Whether nobody asked for a platform, so that a base image of another one may decide."""
    steps: StepOptions = StepOptions()


class Job(Message, frozen=True, tag="job"):
    """One platform's image, as data: everything an executor has to know."""

    version: int
    platform: str
    dockerfile: bytes
    emulation: Emulation | None = None
    """How programs of the platform run on the executor's machine; None when it has to find out."""
    dockerfile_name: str = "Dockerfile"
    build_args: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    """Of the manifest."""
    contexts: tuple[Context, ...] = ()
    pins: tuple[Pin, ...] = ()
    build: str = ""
    """The same for all jobs of one build, and for no other."""
    push: tuple[str, ...] = ()
    """Repositories that blobs and the manifest (by digest) go to."""
    local: bool = False
    """Whether all blobs, the base's too, have to be in the executor's store in the end."""
    oci: bool = True
    """OCI media types; else Docker's."""
    epoch: int | None = None
    """SOURCE_DATE_EPOCH, seconds."""
    options: BuildOptions = BuildOptions()

    @property
    def latest(self) -> int | None:
        """The time that no file in a layer that is made may exceed, seconds; None for any."""
        return self.epoch if self.options.rewrite_timestamps else None


class Answer(Message, frozen=True, tag="answer"):
    """The reply to ``Ask`` ``id``: ``size`` raw bytes follow, unless ``error`` says why there is nothing."""

    id: int
    size: int = 0
    error: Problem | None = None
    more: bool = False
    """Whether the answer goes on in a further message."""
    missing: bool = False
    """True when the thing asked for does not exist (as opposed to: could not be had)."""


class Fetch(Message, frozen=True, tag="fetch"):
    """After ``Result``: send the blob ``digest`` from the executor's store."""

    digest: str


class FilesRequest(Message, frozen=True, tag="files"):
    """After ``Result``: send the image's file system as a tar archive, in ``Piece``s.

    The blocks of zeros that end an archive are left out, so that archives can follow one another.
    """

    prefix: str = ""
    """The directory in the archive that everything goes into."""


class Done(Message, frozen=True, tag="done"):
    """After ``Result``: nothing more is wanted; the executor may release what it holds and exit."""


class _Versioned(msgspec.Struct, frozen=True):
    version: int | None = None


_VERSIONED: Final[msgspec.json.Decoder[_Versioned]] = msgspec.json.Decoder(_Versioned)


def check_version(line: bytes, who: str) -> None:
    """Raise ``ProtocolError`` if ``line``, the first that ``who`` has sent, is of another version of the protocol.

    Only the field ``version`` is read, because in another version the others may have another form. A line without it
    passes: it is no ``Handshake`` and no ``Job``, as decoding it will tell.
    """
    try:
        version = decoding.decode(_VERSIONED, line).version
    except msgspec.DecodeError:
        return
    if version is not None and version != VERSION:
        raise ProtocolError(
            f"{who} speaks protocol version {version}, not {VERSION}",
            remedy="install the same version of kanifold on every node",
        )
