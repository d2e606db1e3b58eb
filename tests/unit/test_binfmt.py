"""binfmt_misc entries: what is written, what is read, what matches what."""

from __future__ import annotations

import glob
import re
import shutil

import pytest

from platforms import binfmt, elf
from platforms.binfmt import Handler

AARCH64 = """enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""


def matching(handler):
    return {architecture for architecture in elf.MACHINES if handler.matches(elf.program(architecture))}


def test_an_entry_reads_as_the_kernel_writes_it():
    handler = binfmt.parse_handler("qemu-aarch64", AARCH64)
    assert handler.enabled
    assert handler.interpreter == "/usr/libexec/qemu-binfmt/aarch64-binfmt-P"
    assert handler.flags == "POF"
    assert handler.works_in_a_chroot
    assert matching(handler) == {"arm64"}


def test_a_handler_is_told_by_what_it_matches_and_not_by_its_name():
    assert matching(binfmt.parse_handler("qemu-arm", AARCH64)) == {"arm64"}


def test_a_handler_that_is_switched_off_matches_nothing():
    assert matching(binfmt.parse_handler("off", AARCH64.replace("enabled", "disabled"))) == set()


def test_a_handler_by_extension_matches_no_program():
    assert (
        matching(binfmt.parse_handler("jar", "enabled\ninterpreter /usr/bin/jexec\nflags: \nextension .jar\n")) == set()
    )


def test_magic_may_stand_elsewhere_and_need_no_mask():
    handler = Handler("machine", True, "/x", "", offset=18, magic=b"\xb7\x00")
    assert matching(handler) == {"arm64"}
    assert not handler.matches(b"\x7fELF"), "a file shorter than the magic's end"


@pytest.mark.parametrize("architecture", elf.MACHINES)
def test_each_magic_matches_its_own_architecture_alone(architecture):
    magic, mask = binfmt.magic(architecture)
    assert matching(Handler("x", True, "/x", "F", 0, magic, mask)) == {architecture}


def test_position_independent_programs_and_gnu_extensions_match_too():
    for architecture, machine in elf.MACHINES.items():
        magic, mask = binfmt.magic(architecture)
        program = bytearray(elf.program(architecture))
        program[7:9] = b"\x03\x01"  # EI_OSABI GNU, as static glibc programs have; EI_ABIVERSION
        program[16:18] = (3).to_bytes(2, "little" if machine.little else "big")
        assert Handler("x", True, "/x", "F", 0, magic, mask).matches(bytes(program))
        program[16:18] = (1).to_bytes(2, "little" if machine.little else "big")
        assert not Handler("x", True, "/x", "F", 0, magic, mask).matches(bytes(program)), "an object file"


@pytest.mark.skipif(not glob.glob("/usr/lib/binfmt.d/qemu-*.conf"), reason="needs the tables of qemu-user-static")
def test_qemus_own_table_agrees():
    seen = set()
    for path in glob.glob("/usr/lib/binfmt.d/qemu-*.conf"):
        with open(path, encoding="ascii") as file:
            _, name, _, _, magic, mask, _, _ = file.read().strip().split(":")
        raw = [part.encode().decode("unicode_escape").encode("latin-1") for part in (magic, mask)]
        theirs = Handler(name, True, "/x", "F", 0, *raw)
        for architecture in matching(theirs):
            if binfmt.QEMU[architecture] == name.removeprefix("qemu-"):
                own, own_mask = binfmt.magic(architecture)
                assert own == raw[0]
                assert all(ours & other == ours for ours, other in zip(own_mask[9:], raw[1][9:], strict=True)) or (
                    architecture
                    in ("ppc64le", "mips64le", "mips64")  # theirs look at less of the machine, of the version
                )
                seen.add(architecture)
    assert {"arm64", "arm", "riscv64", "ppc64le", "s390x"} <= seen


def test_a_registration_is_one_line_with_everything_escaped():
    line = binfmt.registration("arm64", "/opt/qemu/qemu-aarch64")
    fields = line.split(b":")
    assert fields[:4] == [b"", b"kanifold-aarch64", b"M", b""]
    assert fields[6:] == [b"/opt/qemu/qemu-aarch64", b"OCPF"]
    assert re.fullmatch(rb"(\\x[0-9a-f]{2}){20}", fields[4])
    assert re.fullmatch(rb"(\\x[0-9a-f]{2}){20}", fields[5])
    assert binfmt.registration("s390x", "/q", binfmt.HOST_FLAGS).endswith(b":/q:OPF")


@pytest.mark.parametrize("path", ["qemu-arm", "/with:colon", "/" + "x" * 127, "/new\nline", ""])
def test_a_path_that_the_kernel_would_misread_is_refused(path):
    with pytest.raises(ValueError, match="binfmt_misc takes no interpreter"):
        binfmt.registration("arm", path)


def test_a_directory_of_handlers(tmp_path):
    (tmp_path / "register").write_text("")
    (tmp_path / "status").write_text("enabled\n")
    (tmp_path / "no-f").write_text(AARCH64.replace("POF", "PO"))
    assert not binfmt.handler("arm64", str(tmp_path)).works_in_a_chroot
    (tmp_path / "a-qemu").write_text(AARCH64)
    assert binfmt.handler("arm64", str(tmp_path)).name == "a-qemu"
    assert [each.name for each in binfmt.handlers(str(tmp_path))] == ["a-qemu", "no-f"]
    assert binfmt.handler("arm", str(tmp_path)) is None
    (tmp_path / "status").write_text("disabled\n")
    assert binfmt.handlers(str(tmp_path)) == ()
    assert binfmt.handlers(str(tmp_path / "not-mounted")) == ()


def test_qemu_is_found_in_the_directory_that_the_environment_names_before_path(tmp_path, monkeypatch):
    named, path = tmp_path / "named", tmp_path / "path"
    for directory in (named, path):
        directory.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/none:{path}")
    monkeypatch.delenv("KANIFOLD_QEMU_DIR", raising=False)
    assert binfmt.find_qemu("arm64") is None
    assert binfmt.qemus("arm64") == ()
    program(path / "qemu-aarch64-static")
    assert binfmt.find_qemu("arm64") == str(path / "qemu-aarch64-static")
    monkeypatch.setenv("KANIFOLD_QEMU_DIR", str(named))
    assert binfmt.find_qemu("arm64") == str(path / "qemu-aarch64-static")
    program(named / "qemu-aarch64")
    assert binfmt.find_qemu("arm64") == str(named / "qemu-aarch64")
    assert binfmt.find_qemu("arm") is None


def test_a_qemu_that_needs_libraries_or_cannot_be_run_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KANIFOLD_QEMU_DIR", raising=False)
    shutil.copy("/bin/sh", tmp_path / "qemu-arm")
    assert binfmt.find_qemu("arm") is None
    assert binfmt.qemus("arm") == (str(tmp_path / "qemu-arm"),)
    (tmp_path / "qemu-s390x").write_bytes(elf.program("amd64"))
    assert binfmt.qemus("s390x") == ()


def program(path):
    path.write_bytes(elf.program("amd64"))
    path.chmod(0o755)
