"""What is sent to a node that has no kanifold: the code of an executor and the packages that it needs, as one zip.

The code is that of this installation or checkout, file by file. Packages in pure Python are those that are installed
here. Those with binaries are as well if they fit the node; otherwise they come from wheels (``wheels``). A zip that was
made is kept in ``$XDG_CACHE_HOME/kanifold/nodes``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from executor import __version__
from orchestrator.nodes import wheels
from orchestrator.nodes.wheels import PythonTarget
from platforms.errors import EnvironmentUnfit, printable
from platforms.paths import below, cache_directory

VERSION: Final = __version__
_CODE: Final = ("executor", "platforms")
_PURE: Final = ("certifi", "h11", "httpcore", "httpx", "idna")
"""Packages that an executor imports, in pure Python."""
_PURE_OPTIONAL: Final = ("typing_extensions",)
"""As ``_PURE``, of ``wheels.OPTIONAL``; a module."""
_UNUSED: Final = re.compile(r"\.dist-info/|\.py[ci]$|^zstandard/_cffi")
"""Files of packages that an executor does not load; the last is zstandard for Pythons other than CPython."""
_KEPT: Final = 40
"""Zips and wheels that are kept here."""
_UNFINISHED: Final = 86_400
"""Seconds after which what is neither was left by a process that was killed."""
_MAKING: Final[dict[str, threading.Lock]] = {}
"""Held while a zip is made, by its path."""
_MOMENT: Final = (1980, 1, 1, 0, 0, 0)
"""The time of all files: the earliest in a zip."""


class ExecutorZip(msgspec.Struct, frozen=True):
    """A zip on this machine."""

    path: str
    size: int
    digest: str
    """SHA-256, hexadecimal."""


def code_digest() -> str:
    """Return the digest of the code of an executor, as it is installed here: of its files' names and content."""
    digest = hashlib.sha256()
    for name, path in _code():
        content = _read(path)
        digest.update(b"%s %d\n" % (name.encode(), len(content)) + content)
    return digest.hexdigest()


def installation_name(code: str) -> str:
    """Return the name of installations of the code ``code``, a digest: another one if other packages belong to it."""
    versions = "".join(f"{os.path.basename(_metadata(each))}\n" for each in (*_PURE, *wheels.BINARY, *wheels.OPTIONAL))
    return hashlib.sha256(f"{code}\n{versions}{wheels.pinned_text()}".encode()).hexdigest()[:32]


def make(name: str, target: PythonTarget) -> ExecutorZip:
    """Return the zip of the installation ``name`` for ``target``, made unless it is kept.

    Raises ``EnvironmentUnfit`` if there are no binaries for it, or they cannot be had.
    """
    folder = below(cache_directory(), "nodes")
    path = below(folder, f"{name}{target.suffix}.zip")
    with _MAKING.setdefault(path, threading.Lock()):  # once for all nodes that lack it at the same time
        if not os.path.exists(path):
            _make(path, folder, target)
    content = _read(path)
    return ExecutorZip(path, len(content), hashlib.sha256(content).hexdigest())


def _make(path: str, folder: str, target: PythonTarget) -> None:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    optional = [each for each in wheels.OPTIONAL if _metadata(each)]
    installed = [each for each in (*wheels.BINARY, *optional) if _fits(each, target)]
    fetched = [each for each in (*wheels.BINARY, *optional) if each not in installed]
    fetched = [each for each in fetched if each not in optional or wheels.is_pinned(each, target)]
    pure = (*_PURE, *(each for each in _PURE_OPTIONAL if optional and importlib.util.find_spec(each)))
    files = (*_code(), *(each for package in (*pure, *installed) for each in _files(package)))
    _write(path, files, wheels.fetch(fetched, target, folder))
    _prune(folder)


def for_python(name: str, suffix: str, libc: str) -> ExecutorZip:
    """As ``make``, for the Python that says ``suffix`` and ``libc`` (``wheels.target``) of itself."""
    found = wheels.target(suffix, libc)
    if found is None:
        raise EnvironmentUnfit(
            "kanifold cannot be sent to the Python there",
            why=f"it is no CPython on Linux: its modules end in {printable(suffix, 80)!r}",
            remedy="give the node another Python (python: in the inventory)",
        )
    return make(name, found)


def _code() -> list[tuple[str, str]]:
    """Return the files of the code: by name in a zip, and path here; in the order of the names."""
    return sorted(each for package in _CODE for each in _files(package) if each[0].endswith(".py"))


def _files(package: str) -> Iterator[tuple[str, str]]:
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None and spec.origin.endswith(f"/{package}.py"):
        yield f"{package}.py", spec.origin
        return
    top = "" if spec is None or spec.origin is None else os.path.dirname(spec.origin)
    if not os.path.isdir(top):
        raise EnvironmentUnfit(
            "cannot send kanifold to a node",
            why=f"the package {package} is not in a directory of this machine",
            remedy="install kanifold there, and do not ask to send it (--no-bootstrap)",
        )
    for place, folders, files in os.walk(top):
        folders[:] = sorted(each for each in folders if each != "__pycache__")
        for each in files:
            path = below(place, each)
            yield f"{package}/{os.path.relpath(path, top)}", path


def _metadata(package: str) -> str:
    """Return the directory of the metadata of the installed ``package``: ``…/NAME-VERSION.dist-info``; "" if none."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return ""
    beside = os.path.dirname(os.path.dirname(spec.origin))
    wanted = re.compile(rf"{re.escape(package)}-.+\.dist-info", re.IGNORECASE)
    return next((below(beside, each) for each in sorted(os.listdir(beside)) if wanted.fullmatch(each)), "")


def _fits(package: str, target: PythonTarget) -> bool:
    """Whether the binaries of ``package`` that are installed here run there.

    They do on the same Python and processor if the C library there is not older than the one that they were made for:
    that of their wheel's tags, or this machine's.
    """
    here = wheels.here()
    if here is None or here.suffix != target.suffix:
        return False
    if here.libc <= target.libc:
        return True
    metadata = _metadata(package)
    if not metadata:
        return False
    with open(os.path.join(metadata, "WHEEL"), encoding="utf-8", errors="replace") as file:
        tags = [line.strip().rpartition("-")[2] for line in file if line.startswith("Tag: ")]
    return any(map(target.takes, tags))


def _write(path: str, files: Iterable[tuple[str, str]], fetched: Iterable[str]) -> None:
    """Write the zip ``path`` of ``files``, and of what is in the wheels ``fetched``."""
    import tempfile  # late, as they are needed for a new zip alone
    import zipfile

    contents = {name: _read(place) for name, place in files}
    for each in fetched:
        with zipfile.ZipFile(each) as wheel:
            contents |= {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path)) as scratch:
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(contents):
                if not _UNUSED.search(name):
                    archive.writestr(zipfile.ZipInfo(name, _MOMENT), contents[name], zipfile.ZIP_DEFLATED)
        scratch.flush()
        with contextlib.suppress(FileExistsError):  # another build was faster
            os.link(scratch.name, path)


def _prune(folder: str) -> None:
    """Remove the zips and wheels that were made longest ago, and what was left unfinished."""
    import shutil
    import time

    for each in os.scandir(folder):
        if not each.name.endswith((".zip", ".whl")) and each.stat().st_mtime < time.time() - _UNFINISHED:
            with contextlib.suppress(OSError):
                shutil.rmtree(each.path) if each.is_dir(follow_symlinks=False) else os.unlink(each.path)
    found = [each for each in os.scandir(folder) if each.is_file() and each.name.endswith((".zip", ".whl"))]
    for each in sorted(found, key=lambda each: each.stat().st_mtime)[:-_KEPT]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(each.path)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
