"""The registers of traced threads, for each architecture, as sets of PTRACE_GETREGSET."""

from __future__ import annotations

import errno
import struct

import pytest

from executor.supervised.registers import LAYOUTS, RegisterLayout, Registers

LAYOUT = [
    pytest.param(machine, each, id=f"{machine}-{each.word}") for machine, several in LAYOUTS.items() for each in several
]
NUMBERED = 1000


def read(machine: str, layout: RegisterLayout, **replaced: int) -> Registers:
    """Registers that contain 1000, 1001, …, but for some, by their names in the layout."""
    values = list(range(NUMBERED, NUMBERED + layout.count))
    for name, value in replaced.items():
        values[getattr(layout, name)] = value
    return Registers.unpack(struct.pack(f"={layout.count}{layout.word}", *values), machine)


@pytest.mark.parametrize(("machine", "layout"), LAYOUT)
def test_a_call_and_its_arguments_are_read(machine: str, layout: RegisterLayout) -> None:
    registers = read(machine, layout, number=layout.calls["execveat"])
    assert registers.layout is layout
    assert registers.call == "execveat"
    assert registers.arguments == tuple(NUMBERED + each for each in layout.arguments)
    assert read(machine, layout, number=9999).call == ""
    assert registers.pack() == struct.pack(f"={layout.count}{layout.word}", *registers.values)


@pytest.mark.parametrize(("machine", "layout"), LAYOUT)
def test_results_are_signed(machine: str, layout: RegisterLayout) -> None:
    assert read(machine, layout, result=7).result == 7
    assert read(machine, layout, result=layout.mask - errno.E2BIG + 1).result == -errno.E2BIG


@pytest.mark.parametrize(("machine", "layout"), LAYOUT)
def test_a_replaced_call_keeps_what_it_does_not_replace(machine: str, layout: RegisterLayout) -> None:
    before = read(machine, layout, number=layout.calls["execveat"])
    after = before.replaced("execve", (1, 2, 3))
    assert (after.call, after.arguments[:3]) == ("execve", (1, 2, 3))
    assert after.arguments[3:] == before.arguments[3:]
    untouched = set(range(layout.count)) - set(layout.arguments[:3]) - {layout.number}
    assert all(after.values[each] == before.values[each] for each in untouched)


@pytest.mark.parametrize(("machine", "layout"), LAYOUT)
def test_a_failed_call_changes_nothing_but_its_result(machine: str, layout: RegisterLayout) -> None:
    """Programs rely on it: what a call got in registers is there afterwards."""
    before = read(machine, layout, number=layout.calls["execve"])
    after = before.failed(errno.ENOENT)
    assert after.number == layout.mask
    assert after.result == -errno.ENOENT
    assert [index for index in range(layout.count) if after.values[index] != before.values[index]] == [layout.result]


@pytest.mark.parametrize(("machine", "layout"), LAYOUT)
def test_after_another_call_the_own_one_is_made(machine: str, layout: RegisterLayout) -> None:
    before = read(machine, layout, number=layout.calls["execve"])
    again = before.again()
    assert again.values[layout.instruction] == before.values[layout.instruction] - layout.length
    assert again.values[layout.restart] == layout.calls["execve"]
    assert again.values[layout.arguments[1]] == before.values[layout.arguments[1]]


@pytest.mark.parametrize(("machine", "layout"), LAYOUT)
def test_a_changed_call_that_fails_leaves_the_arguments_of_the_own_one(machine: str, layout: RegisterLayout) -> None:
    before = read(machine, layout, number=layout.calls["execve"])
    failed = Registers(layout, [0] * layout.count)
    failed.values[layout.result] = layout.mask - errno.ENOMEM + 1
    after = before.ended(failed)
    assert after.result == -errno.ENOMEM
    assert [index for index in range(layout.count) if after.values[index] != before.values[index]] == [layout.result]


def test_other_sets_are_unknown() -> None:
    for data, machine in ((bytes(100), "x86_64"), (bytes(216), "aarch64"), (bytes(272), "vax")):
        with pytest.raises(OSError, match="unknown registers"):
            Registers.unpack(data, machine)
