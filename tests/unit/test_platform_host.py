"""This host's own platform and the ones it runs besides."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from platforms import candidates
from platforms.emulation import _choose, emulation
from platforms.errors import EnvironmentUnfit
from platforms.host import amd64_level, default_platform, host
from platforms.platform import ARCHITECTURES

V2 = "fpu sse sse2 cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"
V3 = f"{V2} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("", ""),
        ("fpu sse sse2", ""),
        (V2, "v2"),
        (V2.replace(" pni", ""), ""),
        (V3, "v3"),
        (V3.replace(" movbe", ""), "v2"),
        (V4, "v4"),
        (V4.replace(" avx512vl", ""), "v3"),
        (V4.replace(" avx2", ""), "v2"),
        (V4.replace(" ssse3", ""), ""),
    ],
)
def test_a_level_is_reached_by_all_flags_of_it_and_of_those_below(flags, level):
    assert amd64_level(flags) == level


def test_the_host_is_a_linux_platform_with_a_known_architecture():
    assert host().os == "linux"
    assert host().architecture in ARCHITECTURES


@pytest.fixture
def told(monkeypatch):
    """``told(machine, system)``: uname(2) and Python say so; what was found out before is forgotten."""

    def tell(machine, system="linux"):
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
        monkeypatch.setattr(sys, "platform", system)
        host.cache_clear()

    _choose.cache_clear()
    yield tell
    monkeypatch.undo()
    host.cache_clear()


@pytest.mark.parametrize(
    ("machine", "shown"),
    [
        ("aarch64", "linux/arm64"),
        ("armv8l", "linux/arm/v8"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("armv5tel", "linux/arm/v5"),
        ("i686", "linux/386"),
        ("ppc64le", "linux/ppc64le"),
        ("s390x", "linux/s390x"),
        ("riscv64", "linux/riscv64"),
        ("loongarch64", "linux/loong64"),
    ],
)
def test_the_kernels_name_becomes_a_platform(machine, shown, told):
    told(machine)
    assert str(host()) == str(default_platform()) == shown


@pytest.mark.parametrize(("machine", "shown"), [("arm64", "linux/arm64"), ("x86_64", "linux/amd64")])
def test_a_mac_builds_for_linux_on_its_processor_and_runs_none_of_it(machine, shown, told):
    told(machine, "darwin")
    assert str(host()) == str(default_platform()) == shown
    with pytest.raises(EnvironmentUnfit, match="steps run on Linux") as caught:
        emulation(host())
    assert shown in caught.value.problem.remedy


def test_a_build_targets_any_machine_of_this_architecture():
    assert default_platform() in candidates(host())
    assert default_platform().variant == (host().variant if host().architecture == "arm" else "")


@pytest.mark.skipif(sys.platform != "linux" or not os.path.exists("/lib64/ld-linux-x86-64.so.2"), reason="needs glibc")
def test_the_level_is_the_one_that_the_dynamic_linker_sees():
    told = subprocess.run(["/lib64/ld-linux-x86-64.so.2", "--help"], capture_output=True, text=True, check=False).stdout
    levels = [
        line.split()[0].removeprefix("x86-64-") for line in told.splitlines() if "(supported" in line and "-v" in line
    ]
    if "x86-64-v2" not in told:
        pytest.skip("this glibc does not tell levels")
    assert host().variant == max(levels, default="")
