"""Which architecture a binary in a layer is for, and which of them do not belong there."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from executor.rootfs import elf_audit
from executor.rootfs.entry import Entry, Kind


def head(machine: int, *, wide: bool = True, little: bool = True, kind: int = 2, flags: int = 0) -> bytes:
    """An ELF header."""
    order = "<" if little else ">"
    start = b"\x7fELF" + bytes([2 if wide else 1, 1 if little else 2, 1]) + bytes(9)
    address = "Q" if wide else "I"
    rest = struct.pack(
        f"{order}HHI{address * 3}I6H", kind, machine, 1, 0, 0, 0, flags, 64 if wide else 52, 0, 0, 0, 0, 0
    )
    return start + rest


def found(machine: int, **fields: object) -> str | None:
    return elf_audit.machine(head(machine, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("machine", "wide", "little", "name"),
    [
        (62, True, True, "amd64"),
        (62, False, True, "amd64p32"),
        (3, False, True, "386"),
        (183, True, True, "arm64"),
        (183, True, False, "arm64be"),
        (40, False, True, "arm"),
        (40, False, False, "armbe"),
        (243, True, True, "riscv64"),
        (21, True, True, "ppc64le"),
        (21, True, False, "ppc64"),
        (22, True, False, "s390x"),
        (8, True, True, "mips64le"),
        (8, False, False, "mips"),
        (258, True, True, "loong64"),
        (83, False, True, "EM_83"),
        (62, True, False, "EM_62"),
    ],
)
def test_class_byte_order_and_machine_make_an_architecture(machine: int, wide: bool, little: bool, name: str) -> None:
    for kind in (2, 3):
        assert found(machine, wide=wide, little=little, kind=kind) == name


def test_mips_says_its_interface_in_its_flags() -> None:
    assert found(8, wide=False, little=True, flags=0x20) == "mips64p32le"
    assert found(8, wide=False, little=False, flags=0x20) == "mips64p32"
    assert found(8, wide=False, little=True, flags=0x1000) == "mipsle"


def test_what_nothing_executes_has_no_machine() -> None:
    for kind in (0, 1, 4, 0xFE00):
        assert found(183, kind=kind) is None, "relocatable objects and core files"
    assert found(247, kind=2) is None, "eBPF"
    assert found(0, kind=2) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fELF", b"#!/bin/sh\n" * 10, b"MZ" + bytes(100), head(62)[:51], b"\x7fELF\x03" + head(62)[5:],
     b"\x7fELF\x02\x00" + head(62)[6:], b"!<arch>\n" + bytes(60)],
)  # fmt: skip
def test_other_files_have_no_machine(data: bytes) -> None:
    assert elf_audit.machine(data) is None


def test_this_python_is_for_this_machine() -> None:
    names = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}
    found = elf_audit.machine_of_file(os.fsencode(Path(sys.executable).resolve()))
    assert found == names.get(os.uname().machine, found)
    assert found is not None


def test_what_is_no_regular_file_has_no_machine(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(sys.executable)
    for name in ("fifo", "link", "missing", "."):
        assert elf_audit.machine_of_file(os.fsencode(tmp_path / name)) is None


@pytest.mark.parametrize(
    ("machine", "architecture", "expected"),
    [
        ("amd64", "amd64", False),
        ("386", "amd64", False),
        ("amd64p32", "amd64", False),
        ("amd64", "386", True),
        ("amd64", "arm64", True),
        ("arm", "arm64", True),
        ("arm64", "arm", True),
        ("ppc64", "ppc64le", True),
        ("EM_83", "arm64", False),
    ],
)
def test_foreign(machine: str, architecture: str, expected: bool) -> None:
    assert elf_audit.foreign(machine, architecture) is expected


def test_an_audit_names_path_and_machine(tmp_path: Path) -> None:
    files = {
        b"usr/bin/good": head(183),
        b"usr/bin/bad": head(62),
        b"opt/tool/bin/helper": head(3, wide=False),
        b"opt/tool/lib.so": head(62, kind=3),
        b"usr/lib/firmware/card.elf": head(40, wide=False),
        b"usr/lib/crt1.o": head(62, kind=1),
        b"etc/text": b"x" * 100,
        b"tiny": b"\x7fELF",
    }
    entries = [Entry(b"usr/bin", Kind.DIRECTORY), Entry(b"usr/bin/link", Kind.SYMLINK, link=b"bad")]
    for number, (path, content) in enumerate(files.items()):
        source = tmp_path / str(number)
        source.write_bytes(content)
        entries.append(Entry(path, Kind.FILE, size=len(content), source=os.fsencode(source)))
    everything = ((b"usr/bin/bad", "amd64"), (b"opt/tool/bin/helper", "386"), (b"opt/tool/lib.so", "amd64"))
    assert elf_audit.audit(entries, "arm64") == everything
    assert elf_audit.audit(entries, "arm64", ["/opt/tool"]) == everything[:1]
    assert elf_audit.audit(entries, "arm64", ["opt/*.so", "usr/bin/ba?"]) == everything[1:2]
    assert elf_audit.audit(entries, "arm64", ["opt/too"]) == everything
    assert elf_audit.audit(entries, "amd64") == ((b"usr/bin/good", "arm64"),)
