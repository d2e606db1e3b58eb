"""The instructions of a Dockerfile as data, one class each. Values are as written; ``expansion.expand`` replaces
variables.

Source: Dockerfile reference, one section for each instruction.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from executor.dockerfile.lines import Heredoc, heredoc_mark
from platforms.errors import Location

__all__ = [
    "Add",
    "Arg",
    "Cmd",
    "Copy",
    "Device",
    "Entrypoint",
    "Env",
    "Expose",
    "From",
    "Healthcheck",
    "Heredoc",
    "Instruction",
    "Label",
    "Maintainer",
    "Mount",
    "Onbuild",
    "Run",
    "Shell",
    "Stopsignal",
    "User",
    "Volume",
    "Workdir",
]


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that all instructions have."""

    location: Location
    original: str
    """The logical line: as written, continuations joined, without the bodies of here-documents."""
    keyword: str
    """The name of the instruction as written, in any case."""
    comments: tuple[str, ...] = ()
    """The comment lines directly above, without ``#``."""


class Arg(Instruction, frozen=True, kw_only=True):
    """``ARG name[=default] …``"""

    assignments: tuple[tuple[str, str | None], ...]


class From(Instruction, frozen=True, kw_only=True):
    """``FROM [--platform=platform] image [AS name]``"""

    image: str
    """An image reference, an earlier stage's name, or ``scratch``."""
    name: str = ""
    """In lower case; "" when the stage has none."""
    platform: str = ""
    alias: tuple[str, str] = ("", "")
    """The word AS and the name, as written."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """``RUN --device=[name=]name[,required]``"""

    name: str
    required: bool = False


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One ``RUN --mount``. Before expansion only ``text`` and ``from_`` are set."""

    text: str
    """The flag's value as written."""
    type: Literal["bind", "cache", "tmpfs", "secret", "ssh"] = "bind"
    target: str = ""
    """May be relative to the working directory; "" where the type has a default."""
    source: str = ""
    from_: str = ""
    """A stage, an image or a named context; variables are not expanded."""
    id: str = ""
    sharing: Literal["", "shared", "private", "locked"] = ""
    """"" means shared; for cache mounts only."""
    readonly: bool = True
    required: bool = False
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    size: int = 0
    """Size limit of a tmpfs in bytes, 0 for none."""
    env: str | None = None
    """The variable that is set to the secret. A file is made, too, only if ``target`` is given."""


class Run(Instruction, frozen=True, kw_only=True):
    """``RUN [flags] command`` or ``RUN [flags] ["program", …]``"""

    command: tuple[str, ...]
    """The words of the JSON form; or the text of the shell form as the only item (``()`` when empty)."""
    shell: bool
    """Whether it is in shell form."""
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[Mount, ...] = ()
    network: Literal["default", "none", "host"] = "default"
    security: Literal["sandbox", "insecure"] = "sandbox"
    devices: tuple[Device, ...] = ()


class Copy(Instruction, frozen=True, kw_only=True):
    """``COPY [flags] source … destination``"""

    sources: tuple[str, ...]
    destination: str
    heredocs: tuple[Heredoc, ...] = ()
    """Here-documents, which are sources named ``name``; without leading tabs if written ``<<-``. They follow other
    sources."""
    from_: str = ""
    """The name or number of a stage, an image or a named context; variables are not expanded."""
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()


class Add(Instruction, frozen=True, kw_only=True):
    """``ADD [flags] source … destination``"""

    sources: tuple[str, ...]
    destination: str
    heredocs: tuple[Heredoc, ...] = ()
    """As in ``Copy``."""
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()
    checksum: str = ""
    keep_git_dir: bool | None = None
    unpack: bool | None = None


class Env(Instruction, frozen=True, kw_only=True):
    """``ENV name=value …``, or the old ``ENV name value``."""

    pairs: tuple[tuple[str, str], ...]
    legacy: bool = False
    """Whether it was written without ``=``."""


class Label(Instruction, frozen=True, kw_only=True):
    """``LABEL name=value …``, or the old ``LABEL name value``."""

    pairs: tuple[tuple[str, str], ...]
    legacy: bool = False


class Cmd(Instruction, frozen=True, kw_only=True):
    """``CMD ["program", …]`` or ``CMD command``"""

    command: tuple[str, ...]
    shell: bool


class Entrypoint(Instruction, frozen=True, kw_only=True):
    """``ENTRYPOINT ["program", …]`` or ``ENTRYPOINT command``"""

    command: tuple[str, ...]
    shell: bool


class Expose(Instruction, frozen=True, kw_only=True):
    """``EXPOSE port[/protocol] …``, sorted. Once expanded each is ``number/protocol``, ranges written out."""

    ports: tuple[str, ...]


class Volume(Instruction, frozen=True, kw_only=True):
    """``VOLUME path …`` or ``VOLUME ["path", …]``"""

    paths: tuple[str, ...]


class User(Instruction, frozen=True, kw_only=True):
    """``USER name-or-id[:group-or-id]``"""

    user: str


class Workdir(Instruction, frozen=True, kw_only=True):
    """``WORKDIR path``"""

    path: str


class Shell(Instruction, frozen=True, kw_only=True):
    """``SHELL ["program", …]``"""

    command: tuple[str, ...]


class Stopsignal(Instruction, frozen=True, kw_only=True):
    """``STOPSIGNAL name-or-number``"""

    signal: str


class Healthcheck(Instruction, frozen=True, kw_only=True):
    """``HEALTHCHECK NONE`` or ``HEALTHCHECK [flags] CMD command``; times in nanoseconds, 0 for the default."""

    kind: Literal["none", "cmd", "shell"]
    command: tuple[str, ...] = ()
    """The words of the JSON form (kind ``cmd``), or the text of the shell form as the only item."""
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Maintainer(Instruction, frozen=True, kw_only=True):
    """``MAINTAINER name``: deprecated."""

    name: str


class Onbuild(Instruction, frozen=True, kw_only=True):
    """``ONBUILD instruction``: parsed by ``stages.trigger`` when an image is built on this one."""

    expression: str
    """The instruction as stored in the image's config, with its here-documents."""


KEYWORDS: Final = (
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
)


def inline_script(run: Run) -> Heredoc | None:
    """Return the here-document that is the whole program of ``run``: alone on the line and starting with ``#!``.

    It is run as the file ``/dev/pipes/NAME``, by the shell's ``-c`` like any other command. Leading tabs are removed.
    """
    lone = _lone(run)
    return lone if lone is not None and lone.content.startswith("#!") else None


def shell_text(run: Run) -> str:
    """Return what the shell runs for ``run`` in shell form: the content of a lone here-document, or the text and the
    bodies.

    Raises ``DockerfileError`` when the name of an inline script is no file name.
    """
    lone = _lone(run)
    if lone is not None:
        return f"/dev/pipes/{lone.file()}" if lone.content.startswith("#!") else lone.content
    bodies = "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in run.heredocs)
    return " ".join(run.command) + bodies


def _lone(run: Run) -> Heredoc | None:
    """Return the first here-document, without leading tabs, if the command consists of it alone."""
    if not run.heredocs or heredoc_mark(run.command[0]) is None:
        return None
    first = run.heredocs[0]
    return Heredoc(first.name, first.chomped(), first.expand, first.chomp)
