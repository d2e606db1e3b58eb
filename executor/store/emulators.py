"""Emulators out of images, kept in the store (``executor.emulator_image`` takes them out of their images).

Each is a snapshot: the emulator, its description, and a stand-in for trying out how it can be registered
(``platforms.probe``). It is found by the digest of its image, and pruned as any other snapshot is; one that a user has
added is also found by its architecture, and stays until it is removed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final

import msgspec

from executor.store import snapshots
from platforms import decoding, elf, host
from platforms.emulation import ImageEmulator
from platforms.errors import StoreError
from platforms.paths import below

if TYPE_CHECKING:
    from executor.store.snapshots import ActiveSnapshot
    from executor.store.store import Store

_DESCRIPTION: Final = "emulator.json"
_STAND_IN: Final = "stand-in"
_LIMIT: Final = 64 << 10


class KeptEmulator(msgspec.Struct, frozen=True):
    """An emulator in the store."""

    architecture: str
    """Of the programs that it runs."""
    image: str
    """The name of its image, with the digest."""
    file: str
    """The name of its file."""
    digest: str
    """The SHA-256 of the file: ``sha256:`` and hexadecimal digits."""
    size: int
    """In bytes."""


_KEPT: Final[msgspec.json.Decoder[KeptEmulator]] = msgspec.json.Decoder(KeptEmulator)


def commit(store: Store, draft: ActiveSnapshot, kept: KeptEmulator, image_digest: str) -> None:
    """Commit ``draft``, whose directory has the file of ``kept``, so that ``find`` finds it by ``image_digest``."""
    _write(below(draft.fs, _STAND_IN), elf.program(host.host().architecture), 0o555)
    _write(below(draft.fs, _DESCRIPTION), msgspec.json.encode(kept), 0o444)
    snapshots.commit(
        store,
        draft,
        diff_id=None,
        size=kept.size,
        keys=(_image_key(image_digest, kept.architecture),),
        description=f"{kept.file} of {kept.image}",
    )


def find(store: Store, image_digest: str, architecture: str) -> KeptEmulator | None:
    """Return the emulator of ``architecture`` out of the image with this digest; None if the store has none."""
    found = snapshots.find(store, _image_key(image_digest, architecture))
    return None if found is None else _described(found.fs)


def add(store: Store, image_digest: str, architecture: str) -> None:
    """Keep the emulator that ``find`` finds until it is removed, in place of another for ``architecture``.

    Raises ``StoreError`` if it is gone.
    """
    found = snapshots.find(store, _image_key(image_digest, architecture))
    if found is None:
        raise StoreError(f"the emulator of {architecture} is gone", why="it was pruned", remedy="add it again")
    remove(store, architecture)
    snapshots.name(store, found, _added_key(architecture))


def added(store: Store) -> tuple[KeptEmulator, ...]:
    """Return the emulators that were added for this host, by architecture."""
    known = ((each, snapshots.find(store, _added_key(each))) for each in sorted(elf.MACHINES))
    described = (_described(found.fs) for _, found in known if found is not None)
    return tuple(each for each in described if each is not None)


def remove(store: Store, architecture: str) -> bool:
    """End the keeping of the emulator that was added for ``architecture``; False if there is none.

    Its files are removed when the store is pruned.
    """
    return snapshots.forget(store, _added_key(architecture))


class StoreEmulators:
    """The emulators in the store at ``root`` ("": the default one), as ``platforms.emulation`` wants them.

    Those of the image ``required``, a name with a digest, if there is one, else those that were added. They are not
    pruned until this is closed. The store is opened by the first use, and not made. Safe for threads.
    """

    def __init__(self, root: str, required: str = "") -> None:
        self.required = required
        self._root = root
        self._store: Store | None = None
        self._mutex = threading.Lock()

    def find(self, architecture: str) -> ImageEmulator | None:
        """Return the emulator of programs of ``architecture``; None if there is none, or no store."""
        from executor.store.store import default_root, open_store

        root = self._root or default_root()
        if not os.path.lexists(os.path.join(root, "index.db")):
            return None
        digest = self.required.rpartition("@")[2]
        key = _image_key(digest, architecture) if digest else _added_key(architecture)
        try:
            with self._mutex:
                self._store = self._store or open_store(root)
                found = snapshots.find(self._store, key)
        except StoreError:  # whoever needs the store will report it
            return None
        kept = None if found is None else _described(found.fs)
        if found is None or kept is None:
            return None
        return ImageEmulator(below(found.fs, kept.file), kept.image, below(found.fs, _STAND_IN))

    def close(self) -> None:
        """Release the emulators that were found."""
        with self._mutex, contextlib.suppress(StoreError):
            store, self._store = self._store, None
            if store is not None:
                store.close()


def _image_key(image_digest: str, architecture: str) -> str:
    return f"emulator {architecture} for {host.host().architecture} of {image_digest}"


def _added_key(architecture: str) -> str:
    return f"{snapshots.KEPT}emulator {architecture} for {host.host().architecture}"


def _described(directory: str) -> KeptEmulator | None:
    try:
        with open(below(directory, _DESCRIPTION), "rb") as file:
            kept = decoding.decode(_KEPT, file.read(_LIMIT))
        return kept if os.stat(below(directory, kept.file)).st_size == kept.size else None
    except (OSError, msgspec.DecodeError):  # damaged: as if it was not there
        return None


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, mode)
