"""Which binaries fit a node's Python, and what is told where there are none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.nodes import executor_zip, wheels
from platforms.errors import EnvironmentUnfit


@pytest.mark.parametrize(
    ("suffix", "libc", "said"),
    [
        (".cpython-311-x86_64-linux-gnu.so", "glibc 2.36", "Python 3.11 on x86_64 with glibc 2.36"),
        (".cpython-313-aarch64-linux-musl.so", "", "Python 3.13 on aarch64 with musl"),
        (".cpython-313t-x86_64-linux-gnu.so", "glibc 2.41", "Python 3.13t on x86_64 with glibc 2.41"),
    ],
)
def test_a_suffix_of_modules_tells_python_processor_and_library(suffix: str, libc: str, said: str) -> None:
    assert str(wheels.target(suffix, libc)) == said


@pytest.mark.parametrize("suffix", ["", ".so", ".pypy310-pp73-x86_64-linux-gnu.so", ".cpython-311-darwin.so", "/../x"])
def test_another_python_is_none_that_is_known(suffix: str) -> None:
    assert wheels.target(suffix, "") is None
    with pytest.raises(EnvironmentUnfit, match="no CPython on Linux") as caught:
        executor_zip.for_python("name", suffix, "")
    assert caught.value.problem.remedy


@pytest.mark.parametrize(
    ("tag", "takes"),
    [
        ("manylinux2014_x86_64", True),
        ("manylinux_2_17_x86_64", True),
        ("manylinux_2_36_x86_64", True),
        ("manylinux_2_37_x86_64", False),
        ("manylinux_2_17_aarch64", False),
        ("musllinux_1_2_x86_64", False),
        ("linux_x86_64", False),
        ("win_amd64", False),
    ],
)
def test_a_wheel_runs_on_a_c_library_that_is_not_older(tag: str, takes: bool) -> None:
    found = wheels.target(".cpython-311-x86_64-linux-gnu.so", "glibc 2.36")
    assert found is not None
    assert found.takes(tag) is takes


def test_every_package_has_a_wheel_for_each_machine_that_is_promised() -> None:
    lines = [line for line in wheels.pinned_text().splitlines() if not line.startswith(wheels.OPTIONAL)]
    pattern = r"(\w+)-[\d.]+-cp(\d+)-\S+?(many|musl)linux\S*?_(x86_64|aarch64)\.whl [0-9a-f]{64}"
    rows = [re.fullmatch(pattern, line) for line in lines]
    found = {row.groups() for row in rows if row}
    assert len(found) == len(rows)
    assert found == {
        (package, python, libc, machine)
        for package in wheels.BINARY
        for python in ("311", "312", "313", "314")
        for libc in ("many", "musl")
        for machine in ("x86_64", "aarch64")
    }


def test_a_machine_without_binaries_is_told_what_to_do(tmp_path: Path) -> None:
    found = wheels.target(".cpython-311-riscv64-linux-gnu.so", "glibc 2.41")
    assert found is not None
    with pytest.raises(EnvironmentUnfit, match=r"riscv64.*: there is no binary of isal for it") as caught:
        wheels.fetch(wheels.BINARY, found, str(tmp_path))
    assert "bootstrap: false" in caught.value.problem.remedy


def test_a_machine_without_the_network_says_what_it_would_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    found = wheels.target(".cpython-311-aarch64-linux-gnu.so", "glibc 2.36")
    assert found is not None
    with pytest.raises(EnvironmentUnfit, match=r"aarch64 with glibc 2\.36: pip: .*No matching distribution") as caught:
        wheels.fetch(("msgspec",), found, str(tmp_path))
    assert "by pip on this machine" in caught.value.problem.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_that_is_kept_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = wheels.target(".cpython-311-aarch64-linux-gnu.so", "glibc 2.36")
    assert found is not None
    first = wheels.fetch(("msgspec",), found, str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert wheels.fetch(("msgspec",), found, str(tmp_path)) == first


def test_a_wheel_of_the_stable_abi_is_for_later_pythons_too() -> None:
    for minor, there in ((10, False), (11, True), (14, True), (99, True)):
        found = wheels.target(f".cpython-3{minor}-aarch64-linux-gnu.so", "glibc 2.36")
        assert found is not None
        assert wheels.is_pinned("obstore", found) is there
    free = wheels.target(".cpython-313t-aarch64-linux-gnu.so", "glibc 2.36")
    assert free is not None
    assert not wheels.is_pinned("obstore", free)


IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
import certifi, executor.worker, httpx, idna, isal.igzip_lib, msgspec, obstore.store, zlib_ng.zlib_ng, zstandard
print({each.__file__.startswith(sys.argv[1]) for each in (executor, httpx, msgspec, obstore, zstandard)})
"""


def test_a_zip_has_all_that_an_executor_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # what is installed here fits here
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = wheels.here()
    if here is None:
        pytest.skip("not Linux")
    left = tmp_path / "kanifold" / "nodes" / "wheels.killed"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    made = executor_zip.make("name", here)
    assert not left.exists()
    assert executor_zip.make("name", here) == made
    with zipfile.ZipFile(made.path) as archive:
        archive.extractall(tmp_path / "unpacked")
    command = [sys.executable, "-I", "-S", "-c", IMPORTS, str(tmp_path / "unpacked")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{True}\n", "")


def test_a_zip_that_many_nodes_lack_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, write = [], executor_zip._write

    def counted(path: str, *rest: Iterable[Any]) -> None:
        made.append(path)
        write(path, *rest)

    monkeypatch.setattr(executor_zip, "_write", counted)
    here = wheels.here()
    assert here is not None
    with ThreadPoolExecutor(8) as pool:
        digests = {each.digest for each in pool.map(lambda _: executor_zip.make("name", here), range(8))}
    assert len(made) == len(digests) == 1
