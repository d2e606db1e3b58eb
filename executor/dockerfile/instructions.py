"""The instructions of a Dockerfile as data, one class each, values as written (``expansion.expand`` fills them in).

``msgspec.structs.replace`` makes changed copies.

Source: Dockerfile reference, one section an instruction.
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
    """What all instructions have."""

    location: Location
    original: str
    """The logical line: as written, continuations joined, without the bodies of here-documents."""
    keyword: str
    """The instruction's name as written; upper or lower case makes no difference."""
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
    """One ``RUN --mount``. Before it is expanded only ``text`` and ``from_`` mean anything."""

    text: str
    """The flag's value as written."""
    type: Literal["bind", "cache", "tmpfs", "secret", "ssh"] = "bind"
    target: str = ""
    """As written: may be relative to the working directory, or "" where the type has a default."""
    source: str = ""
    from_: str = ""
    """A stage, an image or a named context; never has variables."""
    id: str = ""
    sharing: Literal["", "shared", "private", "locked"] = ""
    """"" means shared; for cache mounts only."""
    readonly: bool = True
    required: bool = False
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    size: int = 0
    """Bytes a tmpfs may hold, 0 for no limit."""
    env: str | None = None
    """The variable that shall hold a secret. Only with ``target`` is there a file too."""


class Run(Instruction, frozen=True, kw_only=True):
    """``RUN [flags] command`` or ``RUN [flags] ["program", …]``"""

    command: tuple[str, ...]
    """The words of the JSON form; or the shell form's text, alone (``()`` when empty)."""
    shell: bool
    """Whether a shell runs it."""
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[Mount, ...] = ()
    network: Literal["default", "none", "host"] = "default"
    security: Literal["sandbox", "insecure"] = "sandbox"
    devices: tuple[Device, ...] = ()


class Copy(Instruction, frozen=True, kw_only=True):
    """``COPY [flags] source … destination``; here-documents are sources whose ``name`` is the file's."""

    sources: tuple[str, ...]
    destination: str
    heredocs: tuple[Heredoc, ...] = ()
    """Inline files, leading tabs already removed where ``<<-`` asks for it. They come after all other sources."""
    from_: str = ""
    """A stage's name or number, an image or a named context; never has variables."""
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
    """The words of the JSON form (kind ``cmd``), or the shell form's text, alone."""
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Maintainer(Instruction, frozen=True, kw_only=True):
    """``MAINTAINER name``: long deprecated, still built."""

    name: str


class Onbuild(Instruction, frozen=True, kw_only=True):
    """``ONBUILD instruction``: ``stages.trigger`` reads it when an image is built on this one, and no sooner."""

    expression: str
    """The instruction as the image's config holds it: here-documents included."""


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
    """The here-document that *is* the program of ``run``: alone on the line and starting with ``#!``.

    It is run as the file ``/dev/pipes/NAME``, by the shell's ``-c`` like any other command. Leading tabs are gone.
    """
    lone = _lone(run)
    return lone if lone is not None and lone.content.startswith("#!") else None


def shell_text(run: Run) -> str:
    """What the shell is given for ``run`` in shell form: a lone here-document's content, else text and bodies.

    Raises ``DockerfileError`` when a script's name is none of a file.
    """
    lone = _lone(run)
    if lone is not None:
        return f"/dev/pipes/{lone.file()}" if lone.content.startswith("#!") else lone.content
    bodies = "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in run.heredocs)
    return " ".join(run.command) + bodies


def _lone(run: Run) -> Heredoc | None:
    """The first here-document, leading tabs removed, when the command is nothing but its mark."""
    if not run.heredocs or heredoc_mark(run.command[0]) is None:
        return None
    first = run.heredocs[0]
    return Heredoc(first.name, first.chomped(), first.expand, first.chomp)
