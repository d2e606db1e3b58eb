"""ELF files: which architecture they are for, and the smallest programs."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from platforms import elf

NAMES = {
    "amd64": ("ELF64", "little", "X86-64"), "386": ("ELF32", "little", "80386"),
    "arm64": ("ELF64", "little", "AArch64"), "arm": ("ELF32", "little", "ARM"),
    "riscv64": ("ELF64", "little", "RISC-V"), "ppc64le": ("ELF64", "little", "PowerPC64"),
    "ppc64": ("ELF64", "big", "PowerPC64"), "s390x": ("ELF64", "big", "S/390"),
    "mips64le": ("ELF64", "little", "MIPS"), "mips64": ("ELF64", "big", "MIPS"),
    "loong64": ("ELF64", "little", "LoongArch"),
}  # fmt: skip


def test_every_machine_is_named_here():
    assert set(NAMES) == set(elf.MACHINES)


@pytest.mark.parametrize("architecture", elf.MACHINES)
def test_a_program_says_its_architecture(architecture):
    program = elf.program(architecture)
    assert elf.architecture(program) == architecture
    assert elf.architecture(program[: elf.HEADER]) == architecture
    assert elf.is_static(program)


@pytest.mark.skipif(not shutil.which("readelf"), reason="needs binutils")
@pytest.mark.parametrize("architecture", elf.MACHINES)
def test_binutils_reads_the_programs_the_same_way(architecture, tmp_path):
    (tmp_path / "program").write_bytes(elf.program(architecture))
    read = subprocess.run(
        ["readelf", "-W", "-h", "-l", tmp_path / "program"], capture_output=True, text=True, check=True
    )
    assert not read.stderr
    bits, order, machine = NAMES[architecture]
    for wanted in (f"Class:                             {bits}", f"{order} endian", machine, "LOAD"):
        assert wanted in read.stdout


@pytest.mark.parametrize("head", [b"", b"\x7fELF", b"#!/bin/sh\n" + bytes(64), bytes(64), elf.program("arm64")[:19]])
def test_what_is_no_elf_file_has_no_architecture(head):
    assert elf.architecture(head) is None
    assert not elf.is_static(head)


def test_an_unknown_machine_has_no_architecture():
    avr = bytearray(elf.program("386"))
    avr[18:20] = (83).to_bytes(2, "little")
    assert elf.architecture(bytes(avr)) is None
    big_endian_amd64 = bytearray(elf.program("amd64"))
    big_endian_amd64[5] = 2
    assert elf.architecture(bytes(big_endian_amd64)) is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs ELF programs")
def test_a_program_that_asks_for_a_loader_is_not_static():
    with open("/bin/sh", "rb") as file:
        shell = file.read(4096)
    assert elf.architecture(shell) is not None
    assert not elf.is_static(shell)
    assert not elf.is_static(shell[: elf.HEADER]), "the program headers are not all there"
