"""Cases of the conformance suite: a folder each, read and laid out on disk for a builder to build.

    cases/NAME/Dockerfile    ``{{http}}`` and ``{{git}}`` stand for the case's own web files and git repository
    cases/NAME/context/      plain files, when git can hold them
    cases/NAME/case.yaml     everything else; every key is optional (``Case`` lists them)
    cases/NAME/golden.json   what BuildKit made of it (``record.py``)

Files that git cannot hold are listed in case.yaml, one mapping each: ``path`` and at most one of ``text``, ``hex``,
``dir``, ``fifo``, ``socket``, ``symlink`` (its target), ``hardlink`` (to which path), ``zeros`` (a size), ``tar`` (a
list of such files; ``compress`` gz, bz2, xz or zst); further ``mode`` (octal text), ``mtime`` (seconds since 1970),
``xattrs``, and in archives ``uid`` and ``gid``. A path may be written with ``\\xNN`` for bytes that are not UTF-8.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CASES = Path(__file__).with_name("cases")
MTIME = 1_614_834_367
"""The modification time of every file unless the case sets another: 2021-03-04T05:06:07Z, and ``FRACTION``."""
FRACTION = 987_654_321
"""Nanoseconds beyond the second of every time, which an image does not show."""


@dataclass(frozen=True)
class Case:
    """A Dockerfile with its files. Fields after ``folder`` are keys of case.yaml."""

    name: str
    folder: Path
    about: str = ""
    """The purpose of the case, if its name does not tell."""
    platform: str = "linux/amd64"
    args: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    file: str = "Dockerfile"
    """The Dockerfile's path in the context."""
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    network: str = ""
    files: tuple[Mapping[str, Any], ...] = ()
    contexts: Mapping[str, str | list[Mapping[str, Any]]] = field(default_factory=dict)
    """Named contexts: a list of files, or a text such as ``docker-image://NAME``."""
    images: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Base images of the case: busybox (or ``scratch``), a layer of ``files``, and ``config``."""
    http: tuple[Mapping[str, Any], ...] = ()
    """Files on a web server: as ``files``, with ``headers``."""
    git: tuple[Mapping[str, Any], ...] = ()
    """Commits of a git repository: ``files``, ``tag``, ``branch``."""
    needs: tuple[str, ...] = ()
    """Requirements on the isolation mode: ``ids`` (more than one user id), ``root`` (privileges outside of any
    namespace)."""
    says: str = ""
    """For a case that fails: what kanifold's message has to contain."""
    differs: str = ""
    """Why kanifold's result is intended to differ; such a case must differ."""

    @property
    def golden(self) -> Path:
        return self.folder / "golden.json"


def all_cases() -> tuple[Case, ...]:
    """Every case, by name."""
    return tuple(read_case(folder) for folder in sorted(CASES.iterdir()) if (folder / "Dockerfile").exists())


def read_case(folder: Path) -> Case:
    """The case in ``folder``; TypeError for a key that no case has."""
    described = folder / "case.yaml"
    keys = (yaml.safe_load(described.read_text()) or {}) if described.exists() else {}
    return Case(folder.name, folder, **keys)


def lay_out(case: Case, dest: Path, owner: tuple[int, int], places: Mapping[str, str]) -> Path:
    """Write the main context of the case below ``dest``, owned by ``owner`` (uid, gid); returns its directory.

    ``places`` replaces ``{{NAME}}`` in the Dockerfile.
    """
    main = dest / "context"
    write_files(main, [], owner)
    plain = case.folder / "context"
    for path in sorted(plain.rglob("*")) if plain.exists() else ():
        executable = path.stat().st_mode & 0o100
        described: dict[str, Any] = {"path": str(path.relative_to(plain)), "mode": "755" if executable else "644"}
        described |= {"dir": True} if path.is_dir() else {"hex": path.read_bytes().hex()}
        write_files(main, [described], owner)
    text = (case.folder / "Dockerfile").read_bytes()
    for name, value in places.items():
        text = text.replace(b"{{%s}}" % name.encode(), value.encode())
    write_files(main, [{"path": case.file, "hex": text.hex()}, *case.files], owner)
    for name, content in case.contexts.items():
        if not isinstance(content, str):
            write_files(dest / "contexts" / name, content, owner)
    return main


def write_files(root: Path, files: Iterable[Mapping[str, Any]], owner: tuple[int, int]) -> None:
    """Make ``files`` below ``root``; they and their parent directories get their times at the end."""
    times: list[tuple[bytes, int]] = []
    _directory(os.fsencode(root), owner)
    for each in files:
        path = os.path.join(os.fsencode(root), _name(each["path"]))
        _parents(path, os.fsencode(root), owner)
        if "hardlink" in each:
            os.link(os.path.join(os.fsencode(root), _name(each["hardlink"])), path)
            continue
        _make(path, each)
        os.chown(path, *owner, follow_symlinks=False)
        if "symlink" not in each:
            os.chmod(path, int(str(each.get("mode", "755" if "dir" in each else "644")), 8))
            for name, value in each.get("xattrs", {}).items():
                os.setxattr(path, name, _name(value))
        times.append((path, each.get("mtime", MTIME)))
    chosen = dict(times)
    for folder, folders, names in os.walk(os.fsencode(root), topdown=False):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            moment = chosen.get(path, MTIME) * 10**9 + FRACTION
            os.utime(path, ns=(moment, moment), follow_symlinks=False)
    os.utime(root, ns=(MTIME * 10**9 + FRACTION,) * 2)


def _name(text: str) -> bytes:
    r"""Bytes of a name in which ``\xNN`` stands for a byte."""
    return text.encode().decode("unicode_escape").encode("latin-1") if "\\x" in text else text.encode()


def _parents(path: bytes, root: bytes, owner: tuple[int, int]) -> None:
    parent = os.path.dirname(path)
    if len(parent) > len(root) and not os.path.lexists(parent):
        _parents(parent, root, owner)
        _directory(parent, owner)


def _directory(path: bytes, owner: tuple[int, int]) -> None:
    if not os.path.isdir(path):
        os.makedirs(path)
        os.chown(path, *owner)
        os.chmod(path, 0o755)


def _make(path: bytes, each: Mapping[str, Any]) -> None:
    if "dir" in each:
        if not os.path.isdir(path):
            os.mkdir(path)
    elif "symlink" in each:
        os.symlink(_name(each["symlink"]), path)
    elif "fifo" in each:
        os.mkfifo(path)
    elif "socket" in each:
        os.mknod(path, stat.S_IFSOCK)
    else:
        with open(path, "wb") as file:
            if "zeros" in each:
                file.truncate(int(each["zeros"]))
            else:
                file.write(content_of(each))


def content_of(each: Mapping[str, Any]) -> bytes:
    """The bytes that ``text``, ``hex`` or ``tar`` describe."""
    if "hex" in each:
        return bytes.fromhex(each["hex"])
    if "tar" in each:
        return _compressed(_archive(each["tar"]), each.get("compress", ""))
    return str(each.get("text", "")).encode()


def _archive(files: Iterable[Mapping[str, Any]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for each in files:
            entry = tarfile.TarInfo(os.fsdecode(_name(each["path"])))
            entry.mtime, entry.uid, entry.gid = each.get("mtime", MTIME), each.get("uid", 0), each.get("gid", 0)
            entry.mode = int(str(each.get("mode", "755" if "dir" in each else "644")), 8)
            xattrs = each.get("xattrs", {})
            entry.pax_headers = {f"SCHILY.xattr.{key}": os.fsdecode(_name(xattrs[key])) for key in xattrs}
            content = b""
            if "dir" in each:
                entry.type = tarfile.DIRTYPE
            elif "symlink" in each:
                entry.type, entry.linkname = tarfile.SYMTYPE, each["symlink"]
            elif "hardlink" in each:
                entry.type, entry.linkname = tarfile.LNKTYPE, each["hardlink"]
            elif "fifo" in each:
                entry.type = tarfile.FIFOTYPE
            elif "char" in each:
                entry.type, (entry.devmajor, entry.devminor) = tarfile.CHRTYPE, each["char"]
            else:
                content = content_of(each)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _compressed(raw: bytes, kind: str) -> bytes:
    if kind == "gz":
        return gzip.compress(raw, mtime=0)
    if kind == "bz2":
        return bz2.compress(raw)
    if kind == "xz":
        return lzma.compress(raw)
    if kind == "zst":
        import zstandard

        return zstandard.ZstdCompressor().compress(raw)
    return raw


def clear(folder: Path) -> None:
    """Remove what ``lay_out`` made."""
    shutil.rmtree(folder, ignore_errors=True)
