"""Binary wheels for nodes: ``wheels.txt`` has the names and the digests of those that may be sent, pip fetches them.

A wheel that was fetched is kept by its digest, so that pip and the network are needed once for a kind of machine. There
are wheels for x86_64 and aarch64, with glibc or musl (PEP 600, PEP 656). Nothing in pure Python could take the place of
those that are missing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Final

import msgspec

from platforms.errors import EnvironmentUnfit, printable
from platforms.paths import below

BINARY: Final = ("isal", "msgspec", "zlib_ng", "zstandard")
"""Packages with binaries that an executor imports; each is a distribution of the same name."""
OPTIONAL: Final = ("obstore",)
"""As ``BINARY``, but of an extra of kanifold: sent if it is installed here, and there are binaries for the node."""
_SUFFIX: Final = re.compile(r"\.cpython-3([0-9]{1,3})(t?)-([a-z0-9_]{1,20})-linux-(gnu|musl)[a-z0-9]{0,8}\.so")
"""The suffix of a binary module: Python 3.minor, processor and C library (PEP 3149)."""
_GLIBC: Final = re.compile(r"(?:glibc )?([0-9]{1,3})\.([0-9]{1,3})")
_WHEEL: Final = re.compile(r"([a-z0-9_]+)-([0-9a-z.]+)-cp3([0-9]+)-(cp[0-9]+t?|abi3)-([a-z0-9_.]+)\.whl")
"""A wheel's name (PEP 427): distribution, version, and tags of Python, ABI and platforms."""
_MANYLINUX: Final = re.compile(r"manylinux_([0-9]+)_([0-9]+)_([a-z0-9_]+)")
_MUSLLINUX: Final = re.compile(r"musllinux_[0-9]+_[0-9]+_([a-z0-9_]+)")
_TIMEOUT: Final = 300
"""Seconds for pip."""


class PythonTarget(msgspec.Struct, frozen=True):
    """The Python of a machine, as far as binaries depend on it."""

    suffix: str
    """Of binary modules: ``.cpython-311-x86_64-linux-gnu.so``."""
    minor: int
    """Of Python 3."""
    threading: str
    """``t`` for a Python without the global interpreter lock, else ""."""
    machine: str
    """The processor, as in tags of wheels: ``aarch64``."""
    libc: tuple[int, int]
    """The version of glibc; (0, 0) for musl, and if it is unknown."""

    @property
    def musl(self) -> bool:
        """Whether the C library is musl."""
        return "-linux-musl" in self.suffix

    def __str__(self) -> str:
        libc = "musl" if self.musl else f"glibc {self.libc[0]}.{self.libc[1]}"
        return f"Python 3.{self.minor}{self.threading} on {self.machine} with {libc}"

    def takes(self, tag: str) -> bool:
        """Whether a wheel with the platform ``tag`` runs there."""
        if match := _MUSLLINUX.fullmatch(tag):
            return self.musl and match[1] == self.machine
        match = _MANYLINUX.fullmatch(tag.replace("manylinux2014_", "manylinux_2_17_"))
        return (
            match is not None
            and not self.musl
            and match[3] == self.machine
            and (int(match[1]), int(match[2])) <= self.libc
        )


class _Wheel(msgspec.Struct, frozen=True):
    name: str
    digest: str
    distribution: str
    version: str
    minor: int
    """Of Python 3: of this one alone, or with ``abi`` ``abi3`` of this one and later ones."""
    abi: str
    platforms: tuple[str, ...]


def target(suffix: str, libc: str) -> PythonTarget | None:
    """Return the target with binary modules of ``suffix``; ``libc`` is ``glibc 2.36``, or "". None if it is unknown."""
    match = _SUFFIX.fullmatch(suffix)
    if match is None:
        return None
    version = _GLIBC.fullmatch(libc) if match[4] == "gnu" else None
    return PythonTarget(
        suffix, int(match[1]), match[2], match[3], (int(version[1]), int(version[2])) if version is not None else (0, 0)
    )


def here() -> PythonTarget | None:
    """Return this machine's target; None if it is not Linux, or unknown."""
    if sys.platform != "linux":
        return None
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        libc = ""
    return target(EXTENSION_SUFFIXES[0], libc)


def pinned_text() -> str:
    """Return the content of ``wheels.txt``: a line ``NAME SHA256`` for each wheel."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "wheels.txt"), encoding="ascii") as file:
        return file.read()


def fetch(packages: Sequence[str], wanted: PythonTarget, folder: str) -> tuple[str, ...]:
    """Return the paths of wheels of ``packages`` for ``wanted``, in ``folder``, fetched unless they are there.

    Raises ``EnvironmentUnfit``.
    """
    chosen = tuple(_choose(each, wanted) for each in packages)
    missing = [each for each in chosen if not os.path.exists(_place(folder, each))]
    if missing:
        _download(missing, wanted, folder)
    return tuple(_place(folder, each) for each in chosen)


def _place(folder: str, wheel: _Wheel) -> str:
    return below(folder, f"{wheel.digest}.whl")


def is_pinned(package: str, wanted: PythonTarget) -> bool:
    """Whether there is a wheel of ``package`` for ``wanted``."""
    return _find(package, wanted) is not None


def _choose(package: str, wanted: PythonTarget) -> _Wheel:
    found = _find(package, wanted)
    if found is None:
        raise EnvironmentUnfit(
            f"cannot send kanifold to a machine with {wanted}",
            why=f"there is no binary of {package} for it",
            remedy="install kanifold there, and do not ask to send it (bootstrap: false in the inventory)",
        )
    return found


def _find(package: str, wanted: PythonTarget) -> _Wheel | None:
    own = f"cp3{wanted.minor}{wanted.threading}"
    for each in _pinned():
        stable = each.abi == "abi3" and each.minor <= wanted.minor and not wanted.threading
        if each.distribution == package and (stable or each.abi == own) and any(map(wanted.takes, each.platforms)):
            return each
    return None


def _pinned() -> tuple[_Wheel, ...]:
    found = []
    for line in pinned_text().splitlines():
        name, digest = line.split()
        match = _WHEEL.fullmatch(name)
        assert match is not None, name
        found.append(_Wheel(name, digest, match[1], match[2], int(match[3]), match[4], tuple(match[5].split("."))))
    return tuple(found)


def _download(missing: Sequence[_Wheel], wanted: PythonTarget, folder: str) -> None:
    """Let pip download the wheels ``missing`` to ``folder``."""
    import tempfile  # late, as a node is rarely new

    with tempfile.TemporaryDirectory(prefix="wheels.", dir=folder) as scratch:
        requirements = os.path.join(scratch, "requirements.txt")
        with open(requirements, "w", encoding="ascii") as file:
            file.writelines(f"{each.distribution}=={each.version} --hash=sha256:{each.digest}\n" for each in missing)
        platforms = sorted({tag for each in missing for tag in each.platforms})
        command = [
            *_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
            "--only-binary=:all:", "--require-hashes", "--implementation=cp", f"--python-version=3.{wanted.minor}",
            f"--abi=cp3{wanted.minor}{wanted.threading}", "--abi=abi3", *(f"--platform={each}" for each in platforms),
            f"--dest={scratch}", f"--requirement={requirements}",
        ]  # fmt: skip
        _run(command, wanted)
        for each in missing:
            path = below(scratch, each.name)
            with open(path, "rb") as wheel:
                if hashlib.sha256(wheel.read()).hexdigest() != each.digest:  # pip has seen to it
                    raise _unfetched(wanted, f"{each.name} has another digest")
            os.replace(path, _place(folder, each))


def _run(command: Sequence[str], wanted: PythonTarget) -> None:
    import subprocess

    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _unfetched(wanted, f"pip did not end within {_TIMEOUT} seconds") from error
    except OSError as error:
        raise _unfetched(wanted, f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise _unfetched(wanted, f"pip: {printable((done.stderr or done.stdout).strip(), 1000)}")


def _pip() -> tuple[str, ...]:
    if importlib.util.find_spec("pip") is not None:
        return (sys.executable, "-m", "pip")
    import shutil

    return (shutil.which("pip3") or shutil.which("pip") or "pip3",)


def _unfetched(wanted: PythonTarget, why: str) -> EnvironmentUnfit:
    return EnvironmentUnfit(
        f"cannot fetch what kanifold needs on a machine with {wanted}",
        why=why,
        remedy="it is fetched once, from PyPI or the index of pip's configuration, by pip on this machine; or install "
        "kanifold there, and do not ask to send it (bootstrap: false in the inventory)",
    )
