"""Taking an emulator out of an image: ``/usr/bin/qemu-ARCH``, or Debian's ``/usr/bin/qemu-ARCH-static``.

The image is untrusted. No layer is unpacked: its archive is read, and of all entries only the content of these two is
written, to files of names that are not from the image. What is taken is one regular file, a statically linked ELF
program of this host's architecture, of at most ``SIZE_LIMIT`` bytes, out of layers that were verified by their digests
to the end. It is not executed here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from executor.image import selection
from executor.image.manifest import Descriptor, Index, Manifest
from executor.rootfs import tarreader
from executor.rootfs.compress import Decompressed
from executor.rootfs.entry import Kind
from executor.store import emulators, snapshots
from executor.store.emulators import KeptEmulator
from executor.store.faults import translated
from executor.store.store import Store
from platforms import binfmt, elf, host
from platforms.descriptors import write_all
from platforms.errors import ArchiveError, EnvironmentUnfit
from platforms.paths import below

SIZE_LIMIT: Final = 256 << 20
"""Maximum size in bytes of an emulator; qemu's have some 17 MB."""
LAYERS_LIMIT: Final = 1 << 30
"""Maximum size in bytes of all layers, compressed."""
_UNPACKED_LIMIT: Final = 4 << 30
"""Maximum size in bytes of a layer's archive."""
CONFIG_LIMIT: Final = 4 << 20
"""Maximum size in bytes of an image's configuration."""
_DIRECTORY: Final = b"usr/bin"
_HEAD: Final = 4096


Opener = Callable[[Descriptor], Iterator[bytes]]
"""Yields a layer in chunks. It is verified when the iteration has ended, which raises if it is wrong."""


class EmulatorImage(msgspec.Struct, frozen=True):
    """The image of this host's platform, with access to its layers."""

    name: str
    """As the user wrote it, with its digest."""
    digest: str
    """The digest in ``name``."""
    layers: tuple[Descriptor, ...]
    """The lowest first."""
    open: Opener


def select(name: str, digest: str, root: Manifest | Index, read: selection.Read, opener: Opener) -> EmulatorImage:
    """Return the image of this host's platform in ``root``, the document of ``digest``. Raises ``KanifoldError``."""
    manifest = root if isinstance(root, Manifest) else selection.find(name, root, host.host(), read)[1]
    return EmulatorImage(name, digest, manifest.layers, opener)


def take(store: Store, image: EmulatorImage, architecture: str) -> KeptEmulator:
    """Return the emulator of programs of ``architecture``; it is taken out of ``image`` if the store does not have it.

    Raises ``EnvironmentUnfit`` if the image has none that can be used, ``ArchiveError`` for an image that is damaged or
    too large, and what reading its layers raises.
    """
    if (found := emulators.find(store, image.digest, architecture)) is not None:
        return found
    total = sum(each.size for each in image.layers)
    if total > LAYERS_LIMIT:
        raise ArchiveError(f"{image.name} is too large", why=f"{total} bytes; {LAYERS_LIMIT} are allowed here")
    draft = snapshots.prepare(store)
    try:
        with translated(store.root, "cannot keep the emulator in the store"):
            kept = _extract(image, architecture, draft.work, draft.fs)
            emulators.commit(store, draft, kept, image.digest)
    except BaseException:
        snapshots.discard(store, draft)
        raise
    return kept


def _extract(image: EmulatorImage, architecture: str, work: str, directory: str) -> KeptEmulator:
    program = f"qemu-{binfmt.QEMU[architecture]}"
    search = _Search((program, f"{program}-static"), work)
    for layer in reversed(image.layers):
        search.read(image.open(layer))
        for name in search.found():
            refused = _refusal(below(work, name))
            if not refused:
                os.rename(below(work, name), below(directory, program))
                return _sealed(below(directory, program), program, architecture, image.name)
            search.refuse(name, refused)
        if search.settled:
            break
    raise EnvironmentUnfit(
        f"{image.name} has no emulator of {architecture} programs that can be used here",
        why="; ".join(f"/usr/bin/{name}: {why}" for name, why in search.reasons()),
        remedy="name an image with qemu's static user emulators for this host, by digest",
    )


class _Search:
    """The search for the files ``names`` in ``/usr/bin``, from the uppermost layer down."""

    def __init__(self, names: Sequence[str], work: str) -> None:
        self._work = work
        self._pending = {_DIRECTORY + b"/" + name.encode(): name for name in names}
        self._refused: dict[str, str] = {}
        self._found: list[str] = []

    @property
    def settled(self) -> bool:
        """Whether no lower layer can have any of them."""
        return not self._pending

    def found(self) -> tuple[str, ...]:
        """Return the names of those that have been written to the directory, in order."""
        return tuple(self._found)

    def refuse(self, name: str, why: str) -> None:
        """Do not take the file ``name``."""
        self._found.remove(name)
        self._refused[name] = why

    def reasons(self) -> Iterator[tuple[str, str]]:
        """Yield each name, and why it was not taken."""
        yield from self._refused.items()
        for name in self._pending.values():
            yield name, "there is none"

    def read(self, layer: Iterator[bytes]) -> None:
        """Read a layer to its end."""
        here: dict[bytes, str] = {}
        """Of the paths in this layer, why each is none to take; "" for a file. The last entry of a path counts."""
        hidden = False
        for member in tarreader.read(Decompressed(_Chunks(layer), limit=_UNPACKED_LIMIT)):
            path, kind = member.entry.path, member.entry.kind
            if path in self._pending:
                here[path] = "" if kind is Kind.FILE else f"it is a {kind.value}"
                if kind is Kind.FILE:
                    self._write(self._pending[path], member)
            elif _hides(path, kind):
                hidden = True
            elif (deleted := _deleted(path)) in self._pending:
                here.setdefault(deleted, "there is none")
        for _ in layer:  # what follows the archive: there is nothing, or this raises
            raise ArchiveError("damaged archive", why="data follows its end")
        for path in tuple(self._pending):
            why = here.get(path, "there is none" if hidden else None)
            if why is not None:
                name = self._pending.pop(path)
                if why:
                    self._refused[name] = why
                else:
                    self._found.append(name)

    def _write(self, name: str, member: tarreader.Member) -> None:
        if member.entry.size > SIZE_LIMIT:
            raise ArchiveError(
                f"/usr/bin/{name} is too large", why=f"{member.entry.size} bytes; {SIZE_LIMIT} are allowed"
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(below(self._work, name), flags, 0o600)
        try:
            member.copy(lambda view: write_all(fd, view))
        finally:
            os.close(fd)


class _Chunks:
    """An iterator of chunks as a stream."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int, /) -> bytes:
        if not self._left:
            self._left = next((each for each in self._chunks if each), b"")
        data, self._left = self._left[:size], self._left[size:]
        return data


def _hides(path: bytes, kind: Kind) -> bool:
    """Whether an entry hides what lower layers have in /usr/bin (image-spec layer.md, Whiteouts)."""
    if path in (b"usr", _DIRECTORY) and kind is not Kind.DIRECTORY:
        return True
    return path in (
        b".wh.usr", b"usr/.wh.bin", b".wh..wh..opq", b"usr/.wh..wh..opq", b"usr/bin/.wh..wh..opq",
    )  # fmt: skip


def _deleted(path: bytes) -> bytes:
    """Return the path that the whiteout ``path`` deletes; b"" for another entry."""
    parent, _, name = path.rpartition(b"/")
    return parent + b"/" + name[4:] if name.startswith(b".wh.") else b""


def _refusal(path: str) -> str:
    """Return why the file is no emulator for this host; "" if it is one."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    found, own = elf.architecture(head), host.host().architecture
    if found is None:
        return "it is no program"
    if found != own:
        return f"it is a program of {found}, and this host is {own}"
    if not elf.is_static(head):
        return "it is no statically linked program"
    return ""


def _sealed(path: str, name: str, architecture: str, image: str) -> KeptEmulator:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
        os.fchmod(file.fileno(), 0o555)
        size = os.fstat(file.fileno()).st_size
    return KeptEmulator(architecture, image, name, f"sha256:{digest.hexdigest()}", size)
