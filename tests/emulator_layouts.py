"""Images of emulators, as OCI layouts, and programs that stand for an emulator.

They are made with the standard library (``oci_layout``), except for the bytes of the smallest programs
(``platforms.elf``).
"""

from __future__ import annotations

import io
import os
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path

from oci_layout import Image, Layer, pack, write_layout

from platforms import elf

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "")
"""The architecture of this host; "" for one that tests of emulators do not know."""
FOREIGN = "arm64" if MACHINE == "amd64" else "amd64"
QEMU = {"arm64": "qemu-aarch64", "amd64": "qemu-x86_64"}[FOREIGN]
"""The emulator of ``FOREIGN`` programs, as images have it in ``/usr/bin``."""
_STOPS = {"amd64": bytes.fromhex("bf2a000000 b83c000000 0f05"), "arm64": bytes.fromhex("400580d2 a80b80d2 010000d4")}
_HANGS = {"amd64": bytes.fromhex("ebfe"), "arm64": bytes.fromhex("00000014")}

Entry = tuple[tarfile.TarInfo, bytes]


def stopping() -> bytes:
    """A program of this host that does nothing but end with the status 42."""
    return elf.program(MACHINE, _STOPS[MACHINE])


def hanging() -> bytes:
    """A program of this host that never ends."""
    return elf.program(MACHINE, _HANGS[MACHINE])


def dynamic() -> bytes:
    """The head of a program of this host that asks for a dynamic loader: the type of a segment is PT_INTERP (3)."""
    raw = bytearray(stopping())
    raw[64:68] = (3).to_bytes(4, "little")
    return bytes(raw)


def file(path: str, content: bytes) -> Entry:
    """A regular file of mode 0755."""
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(content), 0o755
    return entry, content


def link(path: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Entry:
    """A symbolic or hard link."""
    entry = tarfile.TarInfo(path)
    entry.type, entry.linkname = kind, target
    return entry, b""


def layer(place: Path, entries: Sequence[Entry]) -> Layer:
    """Pack ``entries`` as a layer below ``place``."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry, content in entries:
            archive.addfile(entry, io.BytesIO(content))
    raw.seek(0)
    place.mkdir(parents=True, exist_ok=True)
    return pack(raw, place / f"layer-{len(os.listdir(place))}")


def layout(place: Path, *layers: Sequence[Entry], architecture: str = MACHINE) -> str:
    """Write an image with ``layers``, the lowest first, to a new layout at ``place``; return its name with the
    digest."""
    made = tuple(layer(place.with_name(f"{place.name}-layers"), each) for each in layers)
    digest = write_layout(place, "latest", [Image({"os": "linux", "architecture": architecture}, made)])
    return f"oci-layout://{place}@{digest}"
