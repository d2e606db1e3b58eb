"""The messages between an orchestrator and an executor: lines of JSON (``platforms.framing``), versioned.

The executor writes a ``Handshake`` when it starts. The orchestrator reads it, writes a ``Job``, and, while the build
runs, an ``Answer`` (followed by its raw bytes) to every ``Ask``. The executor writes any number of events and exactly
one ``Result`` or ``Failed``, which may replace the ``Handshake``. A line that is none of these messages, or another
version, is a ``ProtocolError``. Closing the executor's stdin cancels the job.

The orchestrator of an executor that was started as a command sends a ``Ping`` every few seconds from the greeting on.
The executor returns it, also while a message takes long to arrive. Each end gives the other up that it has not heard
for a while, as a connection that is cut need not end. Any bytes are a sign of life.

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

VERSION: Final = 15
PATIENCE: Final = 60.0
"""Seconds that the orchestrator of an executor elsewhere may be silent until it says another number (``Ping``)."""


class Message(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """The base class of messages; the JSON field ``type`` is the tag."""


Tell = Callable[[Message], None]
"""Sends a message to the other end. Safe for threads."""


# -- both ways ------------------------------------------------------------------------------------------------------


class Ping(Message, frozen=True, tag="ping"):
    """Shows that the orchestrator is there, and asks whether the executor is, which returns it unless it is sending
    something else."""

    patience: float = PATIENCE
    """Seconds of silence of the orchestrator after which the executor ends."""


# -- executor -> orchestrator ---------------------------------------------------------------------------------------


class Resources(msgspec.Struct, frozen=True):
    """What the machine of an executor has to spare. Numbers are 0 where they are unknown."""

    load: float = 0.0
    """The average number of runnable processes during the last minute."""
    memory: decoding.Int64 = 0
    """Bytes of memory that new processes can have without swapping."""
    disk: decoding.Int64 = 0
    """Free bytes of the file system of the store."""
    clock: float = 0.0
    """The time there, in seconds since 1970."""


class Handshake(Message, frozen=True, tag="hello"):
    """The first line: a description of the executor, as far as it is known without running anything. Written before the
    job is read, so that the orchestrator can select the job by it."""

    version: decoding.Int64
    kanifold: str
    """The version of kanifold, for display."""
    host: str = ""
    """The platform of the node, formatted."""
    isolation: str = ""
    """The name of the isolation mode; "" when the host allows none, which is then the response to the job."""
    processors: decoding.Int64 = 0
    """Number of processors that the executor may use; 0 if unknown."""
    emulators: tuple[str, ...] = ()
    """Architectures for which the node has an emulator, not verified. Empty from a forked executor, whose orchestrator
    is on the same machine and verifies emulators itself."""
    resources: Resources | None = None
    """None from a forked executor."""


class StepInfo(msgspec.Struct, frozen=True):
    """A vertex of the build graph, for display."""

    id: decoding.Int64
    stage: str
    """The name of the stage, or its number if it has none; "" for the only stage, and for work outside of stages."""
    name: str
    """The instruction as written, without the bodies of here-documents: ``RUN apt-get update``."""
    line: decoding.Int64 = 0
    number: decoding.Int64 = 0
    """Position among the stage's steps, from 1; 0 if not counted."""
    of: decoding.Int64 = 0


class StageInfo(msgspec.Struct, frozen=True):
    """A stage of the build graph, for display."""

    label: str
    """Its name, or its number if it has none."""
    needs: tuple[str, ...] = ()
    """The labels of the stages whose files it uses, each once."""
    bases: tuple[str, ...] = ()
    """The images whose files it uses, as written."""


class Planned(Message, frozen=True, tag="planned"):
    """The steps of this job; sent once, before the first step starts (ONBUILD may add more)."""

    steps: tuple[StepInfo, ...]
    emulation: str = ""
    """How steps run: ``native``, or the name of the emulator."""
    stages: tuple[StageInfo, ...] = ()
    """The stages that are needed; () in what ONBUILD adds."""


class Started(Message, frozen=True, tag="started"):
    """A step has started."""

    step: decoding.Int64


Awaited = Literal["unpack", "turn"]


class Held(Message, frozen=True, tag="held"):
    """A started step waits for ``what``: ``unpack`` (of base layers) or ``turn`` (other steps are running); "": it
    continues.

    The wait for stages that a step copies from comes before its start.
    """

    step: decoding.Int64
    what: Awaited | Literal[""] = ""


class Finished(Message, frozen=True, tag="finished"):
    """A step has ended, after ``seconds`` without waits; ``cached`` if its result was found in a cache.

    Not sent for a step that was cancelled because another one failed.
    """

    step: decoding.Int64
    seconds: float = 0.0
    cached: bool = False
    error: str = ""
    """Why it failed; "" if it succeeded."""
    missed: str = ""
    """Why no result of it was found in a cache; "" if one was, or if that is not known."""


class Log(Message, frozen=True, tag="log"):
    """Lines of a step's output, separated by newlines. ``stream`` 1 is stdout, 2 stderr."""

    step: decoding.Int64
    text: str
    stream: decoding.Int64 = 1


class Action(enum.StrEnum):
    """Kinds of transfers."""

    PULL = "pull"
    PUSH = "push"
    UNPACK = "unpack"
    WRITE = "write"
    """Writing the directory of a layer."""
    COMPRESS = "compress"
    CONTEXT = "context"


class Transfer(Message, frozen=True, tag="moved"):
    """Progress of a transfer: ``done`` of ``total`` bytes (0 if unknown) of ``name``."""

    action: Action
    name: str
    """A digest, a result or a path: identifies the transfer within its action."""
    done: decoding.Int64
    total: decoding.Int64 = 0


class Waiting(Message, frozen=True, tag="waiting"):
    """A registry has not responded for ``seconds``, or (``over``) has now. See ``executor.registry.notices``."""

    registry: str
    what: str
    seconds: float = 0.0
    why: str = ""
    over: bool = False


class BuildWarning(Message, frozen=True, tag="warned"):
    """A warning; the build continues."""

    problem: Problem
    rule: str = ""
    """The name of the build check that raised it, if any."""


class _Question(msgspec.Struct, frozen=True, tag_field="what", omit_defaults=True):
    """What an executor may request from the orchestrator."""

    name: str

    @property
    def kind(self) -> str:
        """The kind, for display: ``secret``, …."""
        return str(self.__struct_config__.tag)


class AskCredential(_Question, frozen=True, tag="credential"):
    """The credential for ``repository`` of the registry (host) ``name``: a ``Credential`` as JSON."""

    repository: str


class AskToken(_Question, frozen=True, tag="token"):
    """A ``Loan`` (``executor.registry.auth``), as JSON, for ``repository`` of the registry (host) ``name``. Answered
    if the job says that the orchestrator lends."""

    repository: str
    scopes: tuple[str, ...]
    fresh: bool = False
    """Whether the token that was lent before was refused."""


class AskCacheAccount(_Question, frozen=True, tag="cache account"):
    """The account for the remote cache ``name``, a ``CacheInObjects``: a ``CacheAccount`` as JSON."""


class AskCacheEntry(_Question, frozen=True, tag="cache entry"):
    """The record of the step ``key`` in the remote cache ``name``, a ``CacheAtOrchestrator``."""

    key: str


class AskCacheBlob(_Question, frozen=True, tag="cache blob"):
    """The layer ``digest`` of an entry of the remote cache ``name``, a ``CacheAtOrchestrator``."""

    digest: str


class AskCacheExport(_Question, frozen=True, tag="cache export"):
    """Adding ``record``, that of the step ``key``, to the remote cache ``name``, a ``CacheAtOrchestrator``.

    The answer is empty when that is done; ``blob`` if the layer has to be sent first (``CacheBlob``).
    """

    key: str
    record: bytes


class AskSecret(_Question, frozen=True, tag="secret"):
    """The value of the secret with the id ``name``."""


class ContextPattern(msgspec.Struct, frozen=True, omit_defaults=True):
    """Paths of a context that a step looks up (``executor.solver.copying.CopySource``). Names are bytes."""

    path: bytes
    """Absolute; it may contain wildcards if ``wildcards``."""
    wildcards: bool = True
    include: tuple[bytes, ...] = ()
    """With ``COPY --parents``: only paths below that match."""
    exclude: tuple[bytes, ...] = ()
    """``COPY --exclude``."""


class AskContext(_Question, frozen=True, tag="context"):
    """The listing of all that ``patterns`` match in the context ``name``, a ``SentContext``.

    The answer has the SHA-256 of each of its parts (``executor.context.listing``), 32 bytes each. The hexadecimal
    SHA-256 of the answer names the listing in further requests.
    """

    patterns: tuple[ContextPattern, ...]


class AskContextParts(_Question, frozen=True, tag="context-parts"):
    """Parts of the listing ``listing`` of the context ``name``, as a bundle (``executor.context.bundle``)."""

    listing: str
    parts: tuple[decoding.Int64, ...]


class PickedFiles(msgspec.Struct, frozen=True, array_like=True):
    """Files of a part of a listing: bit ``i % 8`` of byte ``i // 8`` of ``which`` stands for its entry ``i``."""

    part: decoding.Int64
    which: bytes


class AskContextFiles(_Question, frozen=True, tag="context-files"):
    """The content of files of the listing ``listing`` of the context ``name``, in order, as a bundle."""

    listing: str
    picked: tuple[PickedFiles, ...]


class AskContextArtifact(_Question, frozen=True, tag="context-artifact"):
    """Where a registry has what ``AskContextFiles`` would be answered with: a ``ContextArtifact`` as JSON.

    Without an answer, that has to be asked for.
    """

    listing: str
    picked: tuple[PickedFiles, ...]


class ContextArtifact(msgspec.Struct, frozen=True):
    """Content of files of a context, as a bundle, in the repository ``repository`` of a registry."""

    repository: str
    bundle: Descriptor


class AskLayout(_Question, frozen=True, tag="layout"):
    """A file of the OCI layout that is the context ``name``, a ``SentLayoutContext``."""

    file: str
    """Its path in the layout: ``oci-layout``, ``index.json``, or that of a blob."""


class AskAgent(_Question, frozen=True, tag="ssh"):
    """The reply of the SSH agent ``name`` to ``message``; without a message, whether there is such an agent."""

    message: bytes = b""


class AskManifest(_Question, frozen=True, tag="manifest"):
    """Whether the registry has the manifest of the reference ``name``."""


Question = (
    AskCredential
    | AskToken
    | AskCacheAccount
    | AskCacheEntry
    | AskCacheBlob
    | AskCacheExport
    | AskSecret
    | AskContext
    | AskContextParts
    | AskContextFiles
    | AskContextArtifact
    | AskLayout
    | AskAgent
    | AskManifest
)


class Ask(Message, frozen=True, tag="ask"):
    """A request that only the orchestrator can answer; the executor waits for the ``Answer`` with the same id."""

    id: decoding.Int64
    question: Question


class Finding(msgspec.Struct, frozen=True):
    """An ELF file for another machine than the platform's."""

    layer: str
    """The digest of the layer."""
    path: str
    machine: str
    """The architecture of the file, as in platforms where possible: ``amd64``, ``EM_AVR (83)``."""


class FoundStep(msgspec.Struct, frozen=True, array_like=True):
    """A cache hit: the ``result`` that was recorded under ``key``, and its creation time."""

    key: str
    result: str
    created: str


class StatSignature(msgspec.Struct, frozen=True, array_like=True):
    """The stat signature of a source in a context: ``digest`` is the SHA-256 (hex) of the signatures of its files.

    "" where signatures do not tell whether the files are unchanged.
    """

    context: str
    pattern: str
    parents: bool
    exclude: tuple[str, ...]
    digest: str


class DependencyRecord(msgspec.Struct, frozen=True):
    """Everything that a result depends on besides the job and its pins: while it is unchanged, the result is."""

    steps: tuple[FoundStep, ...] = ()
    signatures: tuple[StatSignature, ...] = ()


class Result(Message, frozen=True, tag="result"):
    """The image was built and is where the job requested it (pushed by digest, or in the executor's store)."""

    manifest: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]
    size: decoding.Int64
    """Compressed bytes of all layers and the config."""
    findings: tuple[Finding, ...] = ()
    cached: decoding.Int64 = 0
    ran: decoding.Int64 = 0
    seconds: float = 0.0
    contexts: tuple[str, ...] = ()
    """Named contexts that were used."""
    dependencies: DependencyRecord | None = None
    """None if the result is not cacheable."""


class Failed(Message, frozen=True, tag="failed"):
    """The job failed."""

    problem: Problem


class BlobContent(Message, frozen=True, tag="blob"):
    """The response to ``Fetch``: ``size`` raw bytes follow."""

    digest: str
    size: decoding.Int64


class CacheBlob(Message, frozen=True, tag="cache-blob"):
    """The layer of an entry for the remote cache ``name`` (``AskCacheExport``): ``size`` raw bytes follow."""

    name: str
    digest: str
    size: decoding.Int64


class Piece(Message, frozen=True, tag="piece"):
    """The next ``size`` bytes, which follow, of the archive requested by ``FilesRequest``; 0 at its end."""

    size: decoding.Int64 = 0


# -- orchestrator -> executor ---------------------------------------------------------------------------------------


class Pin(msgspec.Struct, frozen=True):
    """An external image as named in the Dockerfile, and the digest that all platforms use."""

    name: str
    """The reference as written, after expansion: ``debian:12``."""
    digest: str
    """The digest of the index or manifest."""


class _Context(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True):
    """A build context by its canonical name (``executor.solver.named``); that of the main context is ""."""

    name: str


class GitOrigin(msgspec.Struct, frozen=True):
    """The commit of a git repository that the files of a context are of (``executor.context.git.ResolvedRef``)."""

    address: str
    """As in ``executor.context.gitreference``; without a password."""
    ref: str
    target: str
    commit: str


class DirectoryContext(_Context, frozen=True, tag="directory"):
    """The directory ``path`` on the executor's disk."""

    path: str
    ignore: str = ""
    """The text of the ignore file."""
    owners: bool = False
    """Whether files keep their owners; otherwise all belong to root."""
    git: GitOrigin | None = None
    """Where others can get the files from, too."""


class SentContext(_Context, frozen=True, tag="sent"):
    """Files that the orchestrator sends on request (``AskContext``), without those that the ignore file excludes."""

    large: decoding.Int64 = 0
    """Bytes of content that is lacking from which on it is first looked for elsewhere; 0: never."""
    git: GitOrigin | None = None
    """Where it is then looked for first."""
    artifacts: bool = False
    """Whether the rest of it, if that is as large, is asked for as an artifact (``AskContextArtifact``)."""


class ImageContext(_Context, frozen=True, tag="image"):
    """The image ``image``, which replaces what the Dockerfile refers to by the name of the context."""

    image: str


class LayoutContext(_Context, frozen=True, tag="layout"):
    """The image in the OCI layout ``path`` (``DIR[:TAG|@DIGEST]``) on the executor's own disk."""

    path: str


class SentLayoutContext(_Context, frozen=True, tag="sent-layout"):
    """The image in an OCI layout of the orchestrator, whose files are sent on request (``AskLayout``)."""

    image: str = ""
    """Its tag or digest; "" for the only one, or ``latest``."""


class ScratchContext(_Context, frozen=True, tag="scratch"):
    """No files."""


FilesContext = DirectoryContext | SentContext
Context = FilesContext | ImageContext | LayoutContext | SentLayoutContext | ScratchContext


class CompressionKind(enum.StrEnum):
    """Compressions of layers."""

    GZIP = "gzip"
    ZSTD = "zstd"
    UNCOMPRESSED = "uncompressed"


class Compression(msgspec.Struct, frozen=True):
    """How new layers are compressed; ``level`` None is the default of the kind."""

    kind: CompressionKind = CompressionKind.GZIP
    level: decoding.Int64 | None = None
    force: bool = False
    """Whether layers of a base with another compression are compressed again."""


class CachePace(msgspec.Struct, frozen=True, omit_defaults=True):
    """How long a remote cache may take, in seconds, and how often what is used is marked as used."""

    patience: float = 600.0
    """For an export in all; a request may take as long, and at most 15 s without an answer."""
    refresh: float = 86400.0
    """Age from which an object that is used is marked as used now."""


class CacheInRegistry(msgspec.Struct, frozen=True, tag_field="kind", tag="registry"):
    """A remote cache in the repository of the reference ``name``; its tag is the cache's namespace."""

    name: str


class CacheInDirectory(msgspec.Struct, frozen=True, tag_field="kind", tag="directory"):
    """A remote cache in the directory ``name``, an absolute path on the executor's disk."""

    name: str


class CacheInImage(msgspec.Struct, frozen=True, tag_field="kind", tag="inline"):
    """A cache in the image itself."""


class CacheInBucket(msgspec.Struct, frozen=True, tag_field="kind", tag="s3", omit_defaults=True):
    """A remote cache in a bucket of S3, or of a service that speaks its protocol."""

    name: str
    bucket: str
    region: str
    records: str
    """The directory of records in the bucket."""
    names: tuple[str, ...]
    """The directories in that: all are asked, in order, and written."""
    layers: str
    """The directory of layers in the bucket."""
    endpoint: str = ""
    """The URL of the service; "" for that of AWS."""
    path_style: bool = False
    """Whether requests have the bucket in their path, and not in their host name."""
    pace: CachePace = CachePace()


class CacheInContainer(msgspec.Struct, frozen=True, tag_field="kind", tag="azblob", omit_defaults=True):
    """A remote cache in a container of Azure Blob Storage."""

    name: str
    account: str
    account_url: str
    container: str
    records: str
    names: tuple[str, ...]
    layers: str
    """All as in ``CacheInBucket``."""
    pace: CachePace = CachePace()


class CacheInActions(msgspec.Struct, frozen=True, tag_field="kind", tag="gha", omit_defaults=True):
    """A remote cache in GitHub's cache service for workflows."""

    name: str
    url: str
    """The service's URL; "" outside of a workflow."""
    version: decoding.Int64
    """The version of its protocol, 1 or 2."""
    scope: str
    """The first part of the keys of records, so that several caches can share a repository."""
    list_url: str = ""
    """The URL of the list of the repository's entries in GitHub's REST API, which needs a token of its own: the
    account's ``secret``. "" if entries are asked for one by one."""
    pace: CachePace = CachePace()


class CacheAtOrchestrator(msgspec.Struct, frozen=True, tag_field="kind", tag="orchestrator"):
    """A remote cache that the orchestrator has, for an executor with another disk (``AskCacheEntry``)."""

    name: str
    platform: str = ""
    """Of one that has stages which another executor of this build makes: the platform of these. It is used for them
    only, and also with ``--no-cache``; the answer comes when they are made."""


CacheInObjects = CacheInBucket | CacheInContainer | CacheInActions
"""A remote cache that needs an account, which is asked for by its name (``AskCacheAccount``)."""
CacheLocation = CacheInRegistry | CacheInDirectory | CacheAtOrchestrator | CacheInObjects
"""A remote cache. ``name`` identifies it in messages and in the store's records; it contains no secret."""


class CacheBounds(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much a remote cache may hold. What was used longest ago is removed."""

    size: decoding.Int64
    """Bytes in all."""
    age: decoding.Int64
    """Seconds since the last use."""


class CacheExport(msgspec.Struct, frozen=True, omit_defaults=True):
    """``--cache-to``: a cache to export to."""

    to: CacheLocation | CacheInImage
    every_stage: bool = False
    """``mode=max``: the steps of all stages, not only of the image."""
    bounds: CacheBounds | None = None
    """None if something else bounds the cache."""
    required: bool = False
    """``ignore-error=false``: whether the build fails if the cache cannot be written."""


SnapshotterKind = Literal["auto", "overlay", "plain"]


class BuildOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Options that are the same for all platforms and are part of each job."""

    target: str = ""
    """The stage to build; "" for the last."""
    labels: tuple[tuple[str, str], ...] = ()
    compression: Compression = Compression()
    rewrite_timestamps: bool = True
    """Whether SOURCE_DATE_EPOCH is the upper bound of timestamps in new layers."""
    no_cache: bool = False
    """Run every step; only results of other jobs of the same build are used."""
    no_cache_stages: tuple[str, ...] = ()
    cache_from: tuple[CacheLocation, ...] = ()
    cache_to: tuple[CacheExport, ...] = ()
    cache_ttl: decoding.Int64 | None = None
    """Maximum age in seconds of entries of a remote cache."""
    registries: RegistrySettings = RegistrySettings()
    root: str = ""
    """The store's directory; "" for the default."""
    emulator_image: str = ""
    """The image that emulators have to be from, a name with a digest; "" if any may be used. An executor elsewhere
    fetches what its store lacks. Results do not depend on it."""
    snapshotter: SnapshotterKind = "auto"
    """The snapshotter; ``auto``: as the file system of the store allows. Images do not depend on it."""
    isolation: str = ""
    """The name of the isolation mode that was requested; "" for any."""
    implicit_platform: bool = False
    """Whether no platform was requested, so that a base image may determine it."""
    steps: StepOptions = StepOptions()


class Job(Message, frozen=True, tag="job"):
    """The build of one platform: everything that an executor needs to know."""

    version: decoding.Int64
    platform: str
    dockerfile: bytes
    build_platform: str = ""
    """BUILDPLATFORM, the same for all jobs of a build; "" for that of the executor's machine."""
    emulation: Emulation | None = None
    """How programs of the platform run on the executor's machine; None to determine it there."""
    dockerfile_name: str = "Dockerfile"
    build_args: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    """Annotations of the manifest."""
    contexts: tuple[Context, ...] = ()
    pins: tuple[Pin, ...] = ()
    build: str = ""
    """An id that all jobs of one build share."""
    push: tuple[str, ...] = ()
    """Repositories to which blobs and the manifest (by digest) are pushed."""
    clock_ahead: float = 0.0
    """Seconds by which the clock of the node is ahead of the orchestrator's, if that is much."""
    lends: bool = False
    """Whether the orchestrator lends tokens (``AskToken``) rather than give credentials (``AskCredential``)."""
    local: bool = False
    """Whether all blobs, also those of the base, must be in the executor's store at the end."""
    oci: bool = True
    """OCI media types; otherwise Docker's."""
    epoch: decoding.Int64 | None = None
    """SOURCE_DATE_EPOCH, seconds."""
    options: BuildOptions = BuildOptions()

    @property
    def latest(self) -> int | None:
        """The upper bound of timestamps in new layers, in seconds; None for none."""
        return self.epoch if self.options.rewrite_timestamps else None


class Answer(Message, frozen=True, tag="answer"):
    """The response to ``Ask`` ``id``: ``size`` raw bytes follow, unless ``error`` is set."""

    id: decoding.Int64
    size: decoding.Int64 = 0
    error: Problem | None = None
    more: bool = False
    """Whether the response continues in another message."""
    missing: bool = False
    """True if what was requested does not exist (as opposed to an error)."""


class Fetch(Message, frozen=True, tag="fetch"):
    """After ``Result``: send the blob ``digest`` from the executor's store."""

    digest: str


class FilesRequest(Message, frozen=True, tag="files"):
    """After ``Result``: send the image's file system as a tar archive, in ``Piece``s.

    The zero blocks at the end of the archive are omitted, so that archives can be concatenated.
    """

    prefix: str = ""
    """The directory in the archive for all files."""


class Done(Message, frozen=True, tag="done"):
    """After ``Result``: the executor may release its resources and exit."""


class _Versioned(msgspec.Struct, frozen=True):
    version: decoding.Int64 | None = None


_VERSIONED: Final[msgspec.json.Decoder[_Versioned]] = msgspec.json.Decoder(_Versioned)


def check_version(line: bytes, who: str) -> None:
    """Raise ``ProtocolError`` if ``line``, the first from ``who``, is of another version of the protocol.

    Only the field ``version`` is read, as other fields may have another format. A line without it passes: decoding it
    as ``Handshake`` or ``Job`` will fail.
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
