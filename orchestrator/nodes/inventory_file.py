"""Changing the inventory: entries are added and removed as lines of text, so that comments and layout stay."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from orchestrator import yaml_settings
from orchestrator.nodes import inventory
from orchestrator.nodes.inventory import NodeEntry
from platforms.errors import UsageError
from platforms.replacing import replacing

_INDENT: Final = 2


def add(path: str, entry: NodeEntry, *, replace: bool = False) -> None:
    """Add ``entry`` to the inventory ``path``, or put it in the place of the one of its name.

    Raises ``UsageError``, also if there is one of its name that is not to be replaced.
    """
    with _locked(path):
        known = inventory.load(path)
        there = any(each.name == entry.name for each in known)
        if there and not replace:
            raise UsageError(
                f"there is a node {entry.name} already",
                why=f"it is {next(each.url for each in known if each.name == entry.name)}",
                remedy=f"kanifold node add --replace {entry.name} …, or choose another name",
            )
        kept = tuple(entry if each.name == entry.name else each for each in known)
        _write(path, kept if there else (*kept, entry), lambda text: _with(text, path, entry))


def remove(path: str, names: Sequence[str]) -> None:
    """Remove the nodes ``names`` from the inventory ``path``: all, or none if one is not there (``UsageError``)."""
    with _locked(path):
        known = inventory.load(path)
        for name in names:
            if inventory.find(name, known) not in known:
                raise UsageError(f"the inventory has no entry {name}", why="it is this machine, which stays")
        wanted = tuple(each for each in known if each.name not in names)
        _write(path, wanted, lambda text: _without(text, path, names))


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold a lock on the directory of ``path``, which is created if there is none."""
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot write {path}", why=error.strerror or str(error)) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(path: str, wanted: tuple[NodeEntry, ...], change: Callable[[str], str]) -> None:
    """Replace the file by what ``change`` makes of its text, if that then reads as ``wanted``."""
    path = os.path.realpath(path)  # of a link, as those who keep their settings elsewhere have it, the target
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
    except FileNotFoundError:
        text = ""
    changed = change(text)
    try:
        made = inventory.entries(yaml_settings.parse(changed.encode(), path))
    except UsageError:
        made = None
    if made != wanted:
        raise UsageError(
            f"cannot change {path}",
            why="it is written in another style than one key a line, below `nodes:`",
            remedy="change it in an editor",
        )
    try:
        with replacing(path) as out:
            os.fchmod(out.fileno(), 0o600)
            out.write(changed.encode())
    except OSError as error:
        raise UsageError(f"cannot write {path}", why=error.strerror or str(error)) from error


def _with(text: str, path: str, entry: NodeEntry) -> str:
    lines = _lines(text)
    found = yaml_settings.parse(text.encode(), path).mapping("nodes").get("nodes")
    if found is None:
        return "".join((*lines, "nodes:\n", *_rendered(entry, _INDENT)))
    others = found.mapping()
    first = next(iter(others.values()), None)
    indent = first.column - 1 if first is not None else _INDENT
    if entry.name in others:
        begin, end = _extent(lines, others[entry.name].line)
    elif others:
        begin = end = max(_extent(lines, each.line)[1] for each in others.values())
    else:
        begin = end = found.line
    return "".join((*lines[:begin], *_rendered(entry, indent), *lines[end:]))


def _without(text: str, path: str, names: Sequence[str]) -> str:
    lines = _lines(text)
    found = yaml_settings.parse(text.encode(), path).mapping("nodes")["nodes"].mapping()
    for begin, end in sorted((_extent(lines, found[name].line) for name in set(names)), reverse=True):
        del lines[begin:end]
    return "".join(lines)


def _lines(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return lines


def _extent(lines: Sequence[str], line: int) -> tuple[int, int]:
    """Return which of ``lines`` are the entry whose key is in ``line``, from 1: first, and first after it.

    Comments and empty lines behind it are not.
    """
    begin = line - 1
    indent = _indent(lines[begin])
    end = begin + 1
    for number in range(begin + 1, len(lines)):
        content = lines[number].strip()
        if content and not content.startswith("#"):
            if _indent(lines[number]) <= indent:
                break
            end = number + 1
    return begin, end


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _rendered(entry: NodeEntry, indent: int) -> list[str]:
    inner = " " * (indent + _INDENT)
    lines = [f"{' ' * indent}{entry.name}:\n", f"{inner}url: {entry.url}\n"]
    if entry.platforms:
        lines.append(f"{inner}platforms: [{', '.join(map(str, entry.platforms))}]\n")
    if entry.max_jobs:
        lines.append(f"{inner}max-jobs: {entry.max_jobs}\n")
    if not entry.bootstrap:
        lines.append(f"{inner}bootstrap: false\n")
    if entry.python:
        lines.append(f"{inner}python: {entry.python}\n")
    return lines
