"""What a node behind SSH runs first: it finds kanifold there, receives it if it is missing, and becomes an executor.

Not imported by the orchestrator, but sent as text to the node's Python (``ssh_node``): standard library only, and
nothing of these packages before they are there. After the text, stdin has a line ``NAME CODE BOOTSTRAP DEBUG``: the
name of the installation (``executor_zip``), the digest of its code, and two digits. Lines on stdout begin with
``MARK``, so that what a login prints before is no answer:

    MARK ready                the executor's own messages follow
    MARK lacking JSON         what the zip has to fit; a line ``SIZE DIGEST`` and as many bytes, a zip, are expected
    MARK absent               it is missing, and may not be sent now
    MARK refused JSON         why there will be no executor: ``what``, ``why`` and ``remedy``

The zip is unpacked once, below the store. An installation is complete if it has its name: it is written to a directory
of another name, verified, synced and renamed. An executor holds a shared lock on the directory that it runs from
(flock(2)), and the directory under construction is locked by its maker, so that what nobody holds can be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import sys
from importlib.machinery import EXTENSION_SUFFIXES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final, NoReturn

MARK: Final = "kanifold-node-1"
_KEPT: Final = 3
"""Installations that are kept, of those that no executor runs from: the last ones used."""
_SILENCE: Final = 60
"""Seconds without a byte after which this process ends: sshd does not notice at once that a network is cut."""
_MAKING: Final = 900
"""As many until the zip begins to arrive, which may have to be made, of wheels that are fetched first."""
_INCOMING: Final = "incoming."
_BLOCK: Final = 1 << 16


class LoadingRefusedError(Exception):
    """Why there will be no executor: what, why, and the remedy."""


def main() -> int:
    """Become an executor. Returns its exit status, or 3 if there is none."""
    try:
        name, code, bootstrap, debug = _line().split()
        if debug == "1":
            os.environ["KANIFOLD_DEBUG"] = "1"
        return _executor(name, code, bootstrap)
    except LoadingRefusedError as refused:
        _say("refused", dict(zip(("what", "why", "remedy"), refused.args, strict=True)))
        return 3


def _executor(name: str, code: str, bootstrap: str) -> int:
    """Become an executor by what ``bootstrap`` allows: ``1`` anything, ``2`` not to be sent one, ``0`` only an
    installed one."""
    if bootstrap == "0":
        found, _ = _installed()
        if not found:
            raise LoadingRefusedError(
                "kanifold is not installed there",
                f"{sys.executable} does not have it, and there is no command kanifold",
                "",
            )
        _become_installed(found)
    home = _home()
    directory = f"{home}/{name}{EXTENSION_SUFFIXES[0]}"
    if not _held(directory):
        found, its = _installed()
        if its == code:
            _become_installed(found)
        if bootstrap == "2":
            _say("absent")
            return 3
        _receive(home, directory)
        if not _held(directory):
            raise LoadingRefusedError("kanifold cannot be kept there", f"{directory} was removed at once", "")
    return _become(directory)


# -- what is there --------------------------------------------------------------------------------------------------


def _home() -> str:
    """Return the directory of installations, in the default store (``executor.store.store.default_root``)."""
    root = os.environ.get("KANIFOLD_ROOT", "")
    if not root:
        data = os.environ.get("XDG_DATA_HOME", "")
        data = data if os.path.isabs(data) else os.path.expanduser("~/.local/share")
        root = f"{data}/kanifold"
    return f"{os.path.abspath(root)}/executors"


def _held(directory: str) -> bool:
    """Whether the installation ``directory`` is there and cannot be removed while this process lives."""
    try:
        _check_places(os.path.dirname(directory))
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(fd, fcntl.LOCK_SH)
        status = os.fstat(fd)
        if os.stat(directory).st_ino != status.st_ino:  # it was removed before it was locked, and is there again
            os.close(fd)
            return False
        _check_owner(directory, status)
        os.utime(fd)  # the time of its last use
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LoadingRefusedError(
            f"cannot use {directory}", error.strerror or str(error), "choose another place there with KANIFOLD_ROOT"
        ) from error
    return True


def _check_places(home: str) -> None:
    """Raise unless the directory of installations, and the store that it is in, are this user's alone to change: who
    can replace one of them decides what is run. The user may have made the store a link, as for executors."""
    root = os.path.dirname(home)
    _check_owner(root, os.stat(root))
    _check_owner(home, os.lstat(home))


def _check_owner(path: str, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise LoadingRefusedError(
            f"cannot run kanifold from {path}",
            "it is a link, or no directory",
            "remove it, or choose another place there with KANIFOLD_ROOT",
        )
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise LoadingRefusedError(
            f"cannot run kanifold from {path}",
            "others could change it: it belongs to another user, or others may write to it",
            "remove it, or choose another place there with KANIFOLD_ROOT",
        )


_CHECK: Final = """
import hashlib, os, executor, platforms
found = {}
for package in (executor, platforms):
    top = os.path.dirname(package.__file__)
    for place, _, files in os.walk(top):
        for each in files:
            if each.endswith(".py"):
                path = os.path.join(place, each)
                found[package.__name__ + "/" + os.path.relpath(path, top)] = path
digest = hashlib.sha256()
for name in sorted(found):
    with open(found[name], "rb") as file:
        content = file.read()
    digest.update(b"%s %d\\n" % (name.encode(), len(content)) + content)
print(digest.hexdigest())
"""
"""Prints the digest of the code of the kanifold that is installed, as ``executor_zip.code_digest``."""


def _installed() -> tuple[str, str]:
    """Return a Python that has kanifold, with the digest of that one's code; ("", "") if there is none.

    The Python is this one, or that of the command ``kanifold``: on PATH, or in ~/.local/bin, which logins without a
    terminal often lack.
    """
    import shutil
    import subprocess

    places = f"{os.environ.get('PATH', os.defpath)}:{os.path.expanduser('~/.local/bin')}"
    command = shutil.which("kanifold", path=places)
    beside = [os.path.join(os.path.dirname(os.path.realpath(command)), "python3")] if command else []
    for python in (sys.executable, *beside):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                [python, "-I", "-c", _CHECK], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=True
            )
            return python, done.stdout.decode().strip()
    return "", ""


# -- receiving ------------------------------------------------------------------------------------------------------


def _receive(home: str, directory: str) -> None:
    """Ask for the zip, and unpack it at ``directory``, unless another process has done so meanwhile."""
    try:
        import ctypes  # noqa: F401
        import sqlite3  # noqa: F401
        import ssl  # noqa: F401
        import zipfile  # noqa: F401
    except ImportError as error:
        raise LoadingRefusedError(
            "the Python there lacks a part of the standard library",
            f"{sys.executable}: {error}",
            "install all of it: apt-get install python3 (Debian, Ubuntu), dnf install python3 (Fedora)",
        ) from error
    _say("lacking", _description())
    try:
        _make(home)
        with _incoming(home) as place:
            _unpack(_archive(place), f"{place}/unpacked")
            try:
                os.rename(f"{place}/unpacked", directory)
            except OSError:
                if not os.path.isdir(directory):  # else another process was faster
                    raise
        _prune(home, directory)
    except OSError as error:
        raise LoadingRefusedError(
            f"cannot keep kanifold in {home}",
            error.strerror or str(error),
            "make room there, or choose another place there with KANIFOLD_ROOT",
        ) from error


def _make(home: str) -> None:
    """Make the directory of installations, and the store that it is in, for this user alone."""
    root = os.path.dirname(home)
    os.makedirs(os.path.dirname(root), exist_ok=True)
    for each in (root, home):
        with contextlib.suppress(FileExistsError):
            os.mkdir(each, 0o700)
    _check_places(home)


def _description() -> dict[str, object]:
    """Return what binary wheels depend on."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        libc = ""
    return {"suffix": EXTENSION_SUFFIXES[0], "libc": libc}


@contextlib.contextmanager
def _incoming(home: str) -> Iterator[str]:
    """Make a directory in ``home``, locked while it is there, and remove it in the end."""
    import shutil
    import tempfile

    while True:
        place = tempfile.mkdtemp(prefix=_INCOMING, dir=home)
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            break
        os.close(fd)  # before it was locked, another process took it for one that was left behind
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(fd)


def _archive(place: str) -> str:
    """Write what is sent to a file in ``place``, and return its path. Raises if it is not what was announced."""
    import hashlib

    size, expected = _line(_MAKING).split()
    path, rest, digest = f"{place}/archive", int(size), hashlib.sha256()
    with open(path, "wb") as file:
        while rest:
            block = _read(min(rest, _BLOCK))
            if not block:
                raise LoadingRefusedError("kanifold did not arrive there", "the connection ended before it had", "")
            rest -= len(block)
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != expected:
        raise LoadingRefusedError("kanifold did not arrive there as it was sent", "its digest is another one", "")
    return path


def _unpack(archive: str, directory: str) -> None:
    import zipfile

    with zipfile.ZipFile(archive) as files:
        files.extractall(directory)
    os.chmod(directory, 0o700)
    _sync(directory)


def _sync(directory: str) -> None:
    """Write the file system of ``directory`` to its disk, so that an installation is complete after a crash, too."""
    import ctypes

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)


def _prune(home: str, current: str) -> None:
    """Remove what is left of interrupted transfers, and installations that have not been used for longest."""
    import shutil

    found = [entry for entry in os.scandir(home) if entry.is_dir(follow_symlinks=False) and entry.path != current]
    unfinished = [entry.path for entry in found if entry.name.startswith(_INCOMING)]
    installations = sorted(
        (entry for entry in found if entry.path not in unfinished), key=lambda entry: -entry.stat().st_mtime
    )
    for path in (*unfinished, *(entry.path for entry in installations[_KEPT - 1 :])):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else somebody holds it
                away = path if path in unfinished else f"{home}/{_INCOMING}{os.path.basename(path)}"
                os.rename(path, away)
                shutil.rmtree(away, ignore_errors=True)
            finally:
                os.close(fd)


# -- becoming an executor -------------------------------------------------------------------------------------------


def _become(directory: str) -> int:
    sys.path.insert(0, directory)
    try:
        from executor import __main__ as program
        from executor import worker  # noqa: F401 - so that what cannot be loaded is told as such
    except ImportError as error:
        raise LoadingRefusedError(
            "kanifold cannot be loaded there",
            f"{sys.executable}: {error}",
            "give the node another Python (python: in the inventory); or another place with KANIFOLD_ROOT, if programs "
            "may not be run from this one (noexec)",
        ) from error
    _say("ready")
    return program.main()


def _become_installed(python: str) -> NoReturn:
    _say("ready")
    os.execv(python, [python, "-I", "-m", "executor"])


def _read(size: int, patience: int = _SILENCE) -> bytes:
    """Return up to ``size`` bytes of stdin; empty at its end. Ends this process after ``patience`` seconds."""
    signal.alarm(patience)
    try:
        return os.read(0, size)
    finally:
        signal.alarm(0)


def _line(patience: int = _SILENCE) -> str:
    line = b""
    while not line.endswith(b"\n"):
        byte = _read(1, patience)  # what follows is not ours
        if not byte:
            raise LoadingRefusedError("nothing was asked for", "the connection ended", "")
        line += byte
    return line.decode()


def _say(state: str, details: dict[str, object] | None = None) -> None:
    text = f"\n{MARK} {state}"
    if details is not None:
        import json

        text += f" {json.dumps(details)}"
    with open(1, "wb", closefd=False) as out:
        out.write(f"{text}\n".encode())
