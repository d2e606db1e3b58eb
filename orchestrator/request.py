"""What a user asks for: every flag of ``kanifold build``, checked and as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from executor.protocol import BuildOptions, Pin
from executor.registry import reference
from executor.registry.reference import Reference
from orchestrator.outputs import Output, Push
from platforms import host
from platforms.platform import Platform

if TYPE_CHECKING:
    from orchestrator.cache_accounts import AccountSource
    from orchestrator.nodes.node_selection import NodeSelection


class SecretSource(msgspec.Struct, frozen=True):
    """``--secret id=…,src=…|env=…``: read when a step asks for it, never before."""

    id: str
    file: str = ""
    variable: str = ""


class Annotation(msgspec.Struct, frozen=True):
    """``--annotation [level:]key=value``.

    ``level`` is where it stands: in the ``manifest`` of an image, in the ``index``, or in the descriptor that points to
    one of them (``manifest-descriptor``, ``index-descriptor``). ``platform`` "" means every one.
    """

    level: str
    platform: str
    key: str
    value: str


class Allowed(msgspec.Struct, frozen=True):
    """``--audit-allow [platform:]pattern``: paths whose foreign binaries are intended."""

    pattern: str
    platform: str = ""


ReportKind = Literal["junit", "dotenv", "codequality", "markdown", "step-summary", "html"]
"""The format of a report; a step summary is Markdown that is appended to the file of a CI system."""


class Report(msgspec.Struct, frozen=True):
    """``--report KIND=FILE``: written when the build ends."""

    kind: ReportKind
    path: str


class BuildRequest(msgspec.Struct, frozen=True):
    """One build."""

    context: str
    """A directory, a git repository, a URL, or ``-`` for stdin."""
    dockerfile: str = ""
    """A path, ``-`` for stdin, "" for the context's own."""
    platforms: tuple[Platform, ...] = ()
    builder: Platform | None = None
    """BUILDPLATFORM; None for the platform of this machine."""
    tags: tuple[Reference, ...] = ()
    outputs: tuple[Output, ...] = ()
    build_args: tuple[tuple[str, str], ...] = ()
    build_contexts: tuple[tuple[str, str], ...] = ()
    """By canonical name."""
    annotations: tuple[Annotation, ...] = ()
    secrets: tuple[SecretSource, ...] = ()
    cache_accounts: tuple[AccountSource, ...] = ()
    """Where the accounts of remote caches come from."""
    ssh: tuple[tuple[str, str], ...] = ()
    """Names of SSH agents, and where they are: a socket, keys with commas between them, "" for SSH_AUTH_SOCK."""
    agents: Mapping[str, str] = msgspec.field(default_factory=dict)
    """The sockets of ``ssh``, while the build runs."""
    pins: tuple[Pin, ...] | None = None
    """The digests of all external images that are not named by digest; None to ask for them."""
    load_to: str = ""
    """The program whose image store an ``ImageStore`` is; "" for the one that there is."""
    progress: str = "auto"
    metadata_file: str = ""
    iid_file: str = ""
    trace: str = ""
    """The file for a trace of the build; "" for none."""
    reports: tuple[Report, ...] = ()
    jobs: int = 0
    keep_going: bool = False
    audit: str = "warn"
    audit_allow: tuple[Allowed, ...] = ()
    retry: int = 1
    """How often the job of a platform is tried again whose node has failed."""
    nodes: NodeSelection | None = None
    """The nodes that may be used; None for this machine alone."""
    dry_run: bool = False
    staged: str = ""
    """The OCI layout that the images are written to before all outputs, for other builds of the session; "" for
    none."""
    options: BuildOptions = BuildOptions()

    @property
    def build_platform(self) -> Platform:
        """BUILDPLATFORM: ``builder``, or the platform of this machine."""
        return self.builder or host.default_platform()

    @property
    def check_options(self) -> str | None:
        """What stands in place of the Dockerfile's ``# check=``, as a build arg."""
        return dict(self.build_args).get("BUILDKIT_DOCKERFILE_CHECK")

    @property
    def repositories(self) -> tuple[Reference, ...]:
        """Where images are pushed to: the repositories of the tags, each once."""
        found: dict[str, Reference] = {}
        for output in self.outputs:
            if isinstance(output, Push):
                dangling = (output.dangling,) if output.dangling else ()
                for each in (*self.tags, *(reference.parse(name) for name in (*output.image.names, *dangling))):
                    repository = each.repository_only()
                    found[str(repository)] = repository
        return tuple(found.values())

    def annotated(self, level: str, platform: str = "") -> tuple[tuple[str, str], ...]:
        """The annotations of ``level``: those for ``platform`` before those for all, later ones before earlier."""
        found: dict[str, str] = {}
        for wanted in ("", platform):
            for each in self.annotations:
                if each.level == level and (each.platform == wanted or level.startswith("index")):
                    found[each.key] = each.value
        return tuple(found.items())
