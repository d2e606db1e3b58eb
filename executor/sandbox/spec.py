"""A step as data: its root file system, its program and user, and its result."""

from __future__ import annotations

from typing import Final

import msgspec

from executor.snapshotter import rootfs
from executor.snapshotter.rootfs import Rootfs
from executor.step_options import Network, StepOptions
from platforms import decoding


class Bind(msgspec.Struct, frozen=True):
    """The directory or file ``source``, an absolute path of the host, mounted at ``target``.

    The path is opened in the namespace that the launcher had when it was started: later mounts are not seen. Its last
    component is not followed if it is a symbolic link. For a source that others can change, or on a later mount,
    resolve it first and use ``BindFd``.
    """

    source: str
    target: str
    readonly: bool = False
    owner: tuple[int, int] = (0, 0)
    """Its owner as seen by a step with a single id."""


class BindFd(msgspec.Struct, frozen=True):
    """A detached mount, made by ``open_tree(…, OPEN_TREE_CLONE)`` or ``fsmount``, moved to ``target``.

    caller; the mount is consumed by the step. With ``inside``, only that file or directory of it is mounted; symbolic
    links do not lead out of the mount. (Before Linux 6.15 a part of a detached mount cannot be
    it is mounted; symbolic links do not lead out of the mount. (Before Linux 6.15 a part of a detached mount cannot be
    cloned; the step attaches it first.) ``layers``: if it is an overlay, its directories, top first, whose ownership
    records a step with a single id sees.
    """

    fd: int
    target: str
    readonly: bool = False
    inside: str = ""
    layers: tuple[str, ...] = ()


class Tmpfs(msgspec.Struct, frozen=True):
    """A tmpfs; ``size`` in bytes, 0 for the kernel's default (half of the memory).

    ``mode`` None: that of the directory it covers, or 1777 where there is none (as in runc).
    """

    target: str
    size: int = 0
    mode: int | None = None


class SecretFile(msgspec.Struct, frozen=True):
    """A read-only file in memory that only this step sees and that is never written to a disk."""

    target: str
    data: bytes
    uid: int = 0
    gid: int = 0
    mode: int = 0o400


class ScriptFile(msgspec.Struct, frozen=True):
    """An executable file with a text of the Dockerfile that only this step sees."""

    target: str
    data: bytes


Mount = Bind | BindFd | Tmpfs | SecretFile | ScriptFile


class Spec(msgspec.Struct, frozen=True):
    """Everything that a step can observe. Paths of the host are absolute; paths of the step are resolved in its
    root."""

    rootfs: Rootfs
    """The root file system. After the step it contains the changes, with metadata that the kernel refused to set
    recorded beside it (``executor.snapshotter.records``)."""
    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    """``NAME=VALUE``, the complete environment. ``argv[0]`` without a slash is looked up on its PATH."""
    cwd: str = "/"
    """Made if missing, as in runc."""
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    """All supplementary groups."""
    hostname: str = "buildkitsandbox"
    mounts: tuple[Mount, ...] = ()
    """Parents are mounted first. Of two for the same target the last is used."""
    network: Network = "host"
    """``isolated`` falls back to the host's where it is not available; ``Ended.shared`` is then the reason."""
    insecure: bool = False
    """All capabilities of the executor, and nothing masked (``RUN --security=insecure``)."""
    stdin: bytes = b""
    options: StepOptions = StepOptions()
    """The options of the build; ``network`` results from them and the step's own."""
    cgroup: str = ""
    """The directory of the step's control group; "" for the executor's."""
    begun: int = 0
    """Files of a ``rootfs.Directory`` that were created later are the step's own; nanoseconds since the epoch."""


class Ended(msgspec.Struct, frozen=True):
    """The result of a step. ``code`` is 0 to 255; 128 and more for a ``signal``, as in shells."""

    code: int
    signal: int = 0
    oom: bool = False
    """Killed while the kernel's OOM killer was active."""
    error: str = ""
    """Why the step could not be started (code 126 or 127), or that it was cancelled; "" if it ran to its end."""
    shared: str = ""
    """Why the step had the host's network although isolation was requested; "" otherwise."""


_KINDS = (Bind, BindFd, Tmpfs, SecretFile, ScriptFile)
# Created at import: two threads that create a decoder of the same type at once crash msgspec.
_OPTIONS: Final[msgspec.msgpack.Decoder[StepOptions]] = msgspec.msgpack.Decoder(StepOptions)


def pack(spec: Spec) -> tuple[bytes, list[int]]:
    """Return ``spec`` as bytes (marshal's format, which needs no import), and the descriptors to send with them."""
    import marshal

    fds: list[int] = []
    mounts: list[tuple[object, ...]] = []
    for mount in spec.mounts:
        values = [getattr(mount, name) for name in mount.__struct_fields__]
        if isinstance(mount, BindFd):
            fds.append(mount.fd)
            values[0] = len(fds) - 1
        mounts.append((_KINDS.index(type(mount)), *values))
    fields = {name: getattr(spec, name) for name in spec.__struct_fields__}
    root = spec.rootfs
    values = [getattr(root, name) for name in root.__struct_fields__]
    packed = {
        "mounts": mounts,
        "rootfs": (rootfs.KINDS.index(type(root)), *values),
        "options": msgspec.msgpack.encode(spec.options),
    }
    return marshal.dumps(fields | packed), fds


def unpack(data: bytes, fds: list[int]) -> Spec:
    """Return the spec of ``pack``, with the received descriptors."""
    import marshal

    fields = marshal.loads(data)
    mounts = []
    for kind, *values in fields["mounts"]:
        if _KINDS[kind] is BindFd:
            values[0] = fds[values[0]]
        mounts.append(_KINDS[kind](*values))
    kind, *values = fields["rootfs"]
    options = decoding.decode(_OPTIONS, fields["options"])
    return Spec(**fields | {"mounts": tuple(mounts), "rootfs": rootfs.KINDS[kind](*values), "options": options})
