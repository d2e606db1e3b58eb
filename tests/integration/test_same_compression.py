"""Layers of the same archive are the same bytes on every processor: on each, the digests recorded here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import bases
import pytest

from orchestrator.nodes import wheels

ROOT = Path(__file__).resolve().parents[2]
RECORDED = {
    "gzip": "sha256:c802609ebba42436900d124a6e6dcc68f6c1dc62f0a6b631fc22fb0714fffdef",
    "gzip 1": "sha256:d611a2a8df9c97f459daef2a2ffd652b509eaeab9b60f3ba2555a42e3446a6b5",
    "gzip 6": "sha256:b26d8cbcff968eb9f08269623b81f6a45f82b026438706ddc07c0c21f44cedbc",
    "gzip 9": "sha256:ad2b3fca2bbb61cf23aa64018bbdf9bcc0c328da2a8bda2ea1ac1acfc7dbd76b",
    "zstd": "sha256:bf0e222914d75baddeb0c079f949fecece5e8504cbd00f74734d227b379101f7",
}
"""What the compressors are known to make of ``SCRIPT``'s archive. Others than these mean that a version of zlib-ng or
zstd makes other layers than the one before it: say so in the changelog."""
SCRIPT = """
import io, json, os, random, sys
from executor.rootfs.compress import recompress

numbers = random.Random(1)
words = [bytes(numbers.choices(b"abcdefghijklmnopqrstuvwxyz_", k=numbers.randint(2, 9))) for _ in range(500)]
text = b"".join(b" ".join(numbers.choices(words, k=12)) + b"\\n" for _ in range(12_000))
binary = b"".join(numbers.choice(words) + numbers.randbytes(3) + bytes(numbers.randint(0, 9)) for _ in range(40_000))
archive = text + numbers.randbytes(600_000) + binary + bytes(700_000) + text
found = {}
for compression, level in (("gzip", None), ("gzip", 1), ("gzip", 6), ("gzip", 9), ("zstd", None)):
    name = compression if level is None else f"{compression} {level}"
    found[name] = recompress(io.BytesIO(archive), sys.argv[1], compression, level).digest
print(json.dumps(found))
"""


def digests(program: tuple[str, ...], blob: Path, environment: dict[str, str]) -> dict[str, str]:
    """What the Python that ``program`` starts makes."""
    done = subprocess.run(
        (*program, "-c", SCRIPT, str(blob)), env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def emulator(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"no {name}: install qemu-user-static")


def test_this_processor_makes_what_was_recorded(tmp_path: Path) -> None:
    assert digests((sys.executable,), tmp_path / "blob", {}) == RECORDED


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="for x86-64")
@pytest.mark.parametrize(
    "features", [pytest.param("Haswell", marks=pytest.mark.slow), "qemu64,-sse4.1,-sse4.2,-ssse3,-pclmulqdq"]
)
def test_older_processors_make_the_same(tmp_path: Path, features: str) -> None:
    python = os.path.realpath(sys.executable)
    path = os.pathsep.join(each for each in sys.path if each)
    program = (emulator("qemu-x86_64-static"), "-cpu", features, python)
    assert digests(program, tmp_path / "blob", {"PYTHONPATH": path}) == RECORDED


def test_arm_makes_the_same(tmp_path: Path) -> None:
    qemu = emulator("qemu-aarch64-static")
    try:
        root = bases.machine_root("linux/arm64")
    except bases.UnavailableError as problem:
        pytest.skip(str(problem))
    python = next((root / "usr/bin").glob("python3.[0-9]*"))
    target = wheels.target(f".cpython-3{python.name.partition('.')[2]}-aarch64-linux-gnu.so", "glibc 2.36")
    assert target is not None
    for wheel in wheels.fetch(("msgspec", "zlib_ng", "zstandard"), target, str(tmp_path)):
        zipfile.ZipFile(wheel).extractall(tmp_path / "packages")
    environment = {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": f"{tmp_path / 'packages'}:{ROOT}"}
    assert digests((qemu, "-L", str(root), str(python), "-S"), tmp_path / "blob", environment) == RECORDED
