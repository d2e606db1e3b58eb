"""One step as data: the root file system it sees, what it runs as whom, and how it ended."""

from __future__ import annotations

from typing import Final

import msgspec

from executor.snapshotter import rootfs
from executor.snapshotter.rootfs import Rootfs
from executor.step_options import Network, StepOptions
from platforms import decoding


class Bind(msgspec.Struct, frozen=True):
    """The directory or file ``source``, an absolute path of this host, shown at ``target``.

    The path is opened in the namespace that the launcher had when it was started: what was mounted later is not seen.
    Its last component is not followed when it is a symbolic link. For a source that strangers can change, or one on a
    later mount, resolve it yourself and pass a ``BindFd``.
    """

    source: str
    target: str
    readonly: bool = False
    owner: tuple[int, int] = (0, 0)
    """Whose it is to the step, where it has one id and nobody else could own it."""


class BindFd(msgspec.Struct, frozen=True):
    """A mount that is attached nowhere, made by ``open_tree(…, OPEN_TREE_CLONE)`` or ``fsmount``, moved to ``target``.

    ``fd`` stays the caller's to close; the mount itself is used up by the step. With ``inside``, only that file or
    directory of it is shown: symbolic links lead nowhere outside of the mount. (Before Linux 6.15 nobody can take a
    part of a mount that is attached nowhere; the step can, because it attaches it first.) ``layers`` are the
    directories, top first, whose union it is, if it is one: what is recorded of them is told to a step of one id.
    """

    fd: int
    target: str
    readonly: bool = False
    inside: str = ""
    layers: tuple[str, ...] = ()


class Tmpfs(msgspec.Struct, frozen=True):
    """An empty file system in memory; ``size`` in bytes, 0 for the kernel's default (half of the memory).

    ``mode`` is None for that of the directory it covers, or 1777 where there is none (as runc does it).
    """

    target: str
    size: int = 0
    mode: int | None = None


class SecretFile(msgspec.Struct, frozen=True):
    """A read-only file in memory, which only this step sees and which never is on a disk."""

    target: str
    data: bytes
    uid: int = 0
    gid: int = 0
    mode: int = 0o400


Mount = Bind | BindFd | Tmpfs | SecretFile


class Spec(msgspec.Struct, frozen=True):
    """All that a step can observe. Paths of this host are absolute; paths of the step are resolved inside its root."""

    rootfs: Rootfs
    """The root file system. When the step has ended it holds what was changed, with the metadata that the kernel
    refused to set recorded beside it (``executor.snapshotter.records``)."""
    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    """``NAME=VALUE``, exact and complete. ``argv[0]`` without a slash is looked up on its PATH."""
    cwd: str = "/"
    """Made when it is missing, as runc does."""
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    """The supplementary groups, exactly."""
    hostname: str = "buildkitsandbox"
    mounts: tuple[Mount, ...] = ()
    """Parents are mounted before what lies in them. Of two for one target the last counts."""
    network: Network = "host"
    """``isolated`` is the host's where no other can be had: ``Ended.shared`` then says why."""
    insecure: bool = False
    """All capabilities that we have ourselves, and nothing masked (``RUN --security=insecure``)."""
    stdin: bytes = b""
    options: StepOptions = StepOptions()
    """Those of the build; ``network`` is what they, and the step's own, come to."""
    cgroup: str = ""
    """The directory of the control group that the step is in; "" for ours."""


class Ended(msgspec.Struct, frozen=True):
    """How a step ended. ``code`` is 0 to 255; 128 and more for a ``signal``, as shells count."""

    code: int
    signal: int = 0
    oom: bool = False
    """Killed, while the kernel killed something for want of memory."""
    error: str = ""
    """Why the step could not be started (code 126 or 127), or that it was cancelled; "" when it ran to its end."""
    shared: str = ""
    """Why the step had the host's network, though it was to be isolated; "" when it was, or was not to be."""


_KINDS = (Bind, BindFd, Tmpfs, SecretFile)
# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_OPTIONS: Final[msgspec.msgpack.Decoder[StepOptions]] = msgspec.msgpack.Decoder(StepOptions)


def pack(spec: Spec) -> tuple[bytes, list[int]]:
    """``spec`` for another process: bytes, and the descriptors to send along. Costs no import: it is marshal's form."""
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
    """What ``pack`` has packed, with the descriptors as they arrived."""
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
