"""Resolving users and groups by a stage's own /etc/passwd and /etc/group, never the host's.

The rules are BuildKit's: ``--chown`` as in solver/llbsolver/ops/user_linux.go, ``USER`` as in executor/oci/user.go and
moby/sys/user. The files are untrusted: only regular files of at most 10 MiB are read (CVE-2024-9676), and a number that
does not fit an id is an error, never zero (CVE-2024-40635).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from executor.rootfs.tree import Tree
from platforms.errors import BuildError

_FILE_LIMIT: Final = 10 << 20
_ID_LIMIT: Final = (1 << 31) - 1
"""The largest user or group id (runc and moby/sys/user reject larger ones)."""


class Identity(msgspec.Struct, frozen=True):
    """The user and groups of a step."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = (0,)
    """Supplementary groups, including ``gid`` (BuildKit, executor/oci/user.go)."""
    home: str = "/"


def owner(tree: Tree | None, text: str) -> tuple[int, int]:
    """Return the (uid, gid) of ``--chown=text``: ``user``, ``user:group``, each a name or a number.

    An unknown user is root, an unknown group the user's own, and ``root`` is always 0, as in BuildKit. ``tree`` is None
    for a stage without files.
    """
    user, colon, group = ("0" if part == "root" else part for part in text.partition(":"))
    uid = gid = 0
    number = _number(user)
    if number is not None:
        uid = gid = number
    elif user:
        for fields in _lines(tree, b"etc/passwd", 4):
            if fields[0] == user:
                uid, gid = _id(fields[2], "passwd"), _id(fields[3], "passwd")
                break
    if colon and group:
        number = _number(group)
        if number is not None:
            gid = number
        else:
            gid = next((_id(fields[2], "group") for fields in _lines(tree, b"etc/group", 3) if fields[0] == group), gid)
    return uid, gid


def identity(tree: Tree | None, text: str) -> Identity:
    """Return the identity of ``USER text`` when a step starts. Raises ``BuildError`` for an unknown name."""
    if not text:
        text = "0"
    user, colon, group = text.partition(":")
    if colon and _number(user) is not None and _number(group) is not None:
        uid, gid = _number(user) or 0, _number(group) or 0
        return Identity(uid, gid, (gid,), _home(tree, uid))
    number = _number(user)
    row = next(
        (
            fields
            for fields in _lines(tree, b"etc/passwd", 4)
            if fields[0] == user or (number is not None and fields[2] == str(number))
        ),
        None,
    )
    if row is None and number is None:
        raise BuildError(f"unable to find user {user}", why="no matching entries in passwd file")
    uid = number if row is None and number is not None else _id(row[2] if row else "0", "passwd")
    gid = _id(row[3], "passwd") if row else 0
    name = row[0] if row else ""
    groups: tuple[int, ...] = ()
    if colon and group:
        found = _number(group)
        if found is None:
            found = next(
                (_id(fields[2], "group") for fields in _lines(tree, b"etc/group", 3) if fields[0] == group), None
            )
            if found is None:
                raise BuildError(f"unable to find group {group}", why="no matching entries in group file")
        gid = found
    elif name:
        groups = tuple(
            _id(fields[2], "group") for fields in _lines(tree, b"etc/group", 4) if name in fields[3].split(",")
        )
    return Identity(uid, gid, tuple(dict.fromkeys((gid, *groups))), (row[5] if row and len(row) > 5 else "/"))


def _home(tree: Tree | None, uid: int) -> str:
    for fields in _lines(tree, b"etc/passwd", 6):
        if fields[2] == str(uid):
            return fields[5]
    return "/"


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    number = int(text) if len(text) <= 10 else _ID_LIMIT + 1
    if number > _ID_LIMIT:
        raise BuildError(f"uids and gids must be in range 0-{_ID_LIMIT}", why=f"{text[:40]} is not")
    return number


def _id(text: str, file: str) -> int:
    number = _number(text)
    if number is None:
        raise BuildError(f"/etc/{file} of the image is broken", why=f"{text[:40]!r} is not an id")
    return number


def _lines(tree: Tree | None, path: bytes, fields: int) -> Iterator[list[str]]:
    if tree is None:
        return
    data = tree.read(path, _FILE_LIMIT)
    for line in (data or b"").decode("utf-8", "replace").splitlines():
        parts = line.strip().split(":")
        if len(parts) >= fields and not line.startswith("#"):
            yield parts
