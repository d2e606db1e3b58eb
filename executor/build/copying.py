"""What COPY and ADD do to a file system, worked out as a list of entries before anything is written.

The rules are those of BuildKit's file operations (solver/llbsolver/file and fsutil's copier), applied to two ``Tree``s:
what is copied, and the stage it goes to. The outcome is the layer, as data: it can be packed without ever being
unpacked, and two platforms whose plans are equal share one layer.

Where BuildKit would note the time of the build (a created parent directory), a plan
says 0: no clock but the files' own.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from executor.dockerfile import ignore
from executor.dockerfile.modes import Change
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import Tree
from platforms.errors import BuildError, ContextError


class Treatment(msgspec.Struct, frozen=True):
    """What is done to every copied file: a new owner, a new mode, names left out."""

    owner: tuple[int, int] | None = None
    mode: Change | None = None
    parents_mode: int = 0o755
    """Mode of directories made on the way to the destination: an octal ``--chmod`` counts for them too."""
    exclude: tuple[str, ...] = ()
    replace_existing: bool = False
    """Whether a directory may take the place of a file or link in the stage."""


class Source(msgspec.Struct, frozen=True):
    """One source argument. ``pattern`` is absolute and may hold wildcards where ``wildcards`` says so."""

    tree: Tree
    pattern: str
    wildcards: bool = True
    contents: bool = True
    """Copy what is in a directory rather than the directory."""
    include: tuple[str, ...] = ()
    """With ``--parents``: only paths that match, together with the directories above them."""
    required: bool = False
    """With ``--parents``: the included path has to exist."""
    context: bool = False
    """Whether the tree is a build context: its root's time (the checkout's) says nothing, and it has no attributes."""


class Match(msgspec.Struct, frozen=True):
    """A path of a source tree that an argument named: ``path`` is real, ``name`` what it is called at the target."""

    path: bytes
    name: bytes


def matches(source: Source) -> tuple[Match, ...]:
    """What ``source`` names. Nothing for a wildcard that matches nothing; ``ContextError`` for a missing path."""
    literal, pattern = _split_wildcards(source.pattern) if source.wildcards else (source.pattern, "")
    base = source.tree.resolve(literal.encode("utf-8", "surrogateescape"))
    if not pattern:
        if source.tree.lstat(base) is None:
            raise _missing(source, source.pattern)
        return (Match(base, _base(literal)),)
    if not all(ignore.is_pattern(part) for part in pattern.split("/")):
        raise ContextError(
            f'"{source.pattern}" is no pattern', why="syntax error in pattern", remedy="write \\[ for a ["
        )
    found: list[Match] = []
    for path in _glob(source.tree, base, pattern):
        found.append(Match(source.tree.resolve(path), path.rpartition(b"/")[2]))
    return tuple(found)


def _missing(source: Source, path: str) -> ContextError:
    """``path`` is not in ``source``."""
    remedy = "what lies outside of the build context, or is left out by its .dockerignore, cannot be copied"
    return ContextError(f'"{path}": not found', remedy=remedy if source.context else "")


def _base(path: str) -> bytes:
    return path.rstrip("/").rpartition("/")[2].encode("utf-8", "surrogateescape")


def _split_wildcards(path: str) -> tuple[str, str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for index, part in enumerate(parts):
        if has_wildcards(part):
            return "/" + "/".join(parts[:index]), "/".join(parts[index:])
    return "/" + "/".join(parts), ""


def has_wildcards(name: str) -> bool:
    """Whether ``name`` has an unescaped ``*``, ``?`` or ``[``."""
    escaped = False
    for letter in name:
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter in "*?[":
            return True
    return False


def _glob(tree: Tree, base: bytes, pattern: str) -> Iterator[bytes]:
    """The paths below ``base`` that match, in the order of a walk; what is below a match is not looked at.

    A wildcard never matches a slash, so a component at a time is enough: no walk of what cannot match.
    """
    parts = pattern.split("/")

    def descend(directory: bytes, depth: int) -> Iterator[bytes]:
        found = tree.lstat(directory)
        if found is None or not stat.S_ISDIR(found.st_mode):
            return
        for name in tree.names(directory):
            if not ignore.match(parts[depth], name.decode("utf-8", "surrogateescape")):
                continue
            path = directory + b"/" + name if directory else name
            if depth == len(parts) - 1:
                yield path
            else:
                yield from descend(path, depth + 1)

    return descend(base, 0)


class Plan(msgspec.Struct):
    """A layer being worked out on top of ``stage`` (None: an empty one, as for ``--link``)."""

    stage: Tree | None
    entries: dict[bytes, Entry] = msgspec.field(default_factory=dict)

    def lookup(self, path: bytes) -> Entry | None:
        """What is at ``path`` so far."""
        planned = self.entries.get(path)
        if planned is not None:
            return planned
        if self.stage is None or self._replaced(path):
            return None if path else Entry(b"", Kind.DIRECTORY, mode=0o755)
        return self.stage.entry(path)

    def _replaced(self, path: bytes) -> bool:
        """Whether something that is no directory took the place of a directory above ``path``."""
        parent = path.rpartition(b"/")[0]
        while parent:
            planned = self.entries.get(parent)
            if planned is not None:
                return planned.kind is not Kind.DIRECTORY
            parent = parent.rpartition(b"/")[0]
        return False

    def resolve(self, path: bytes) -> bytes:
        """``path`` with the links of the stage and of the plan followed."""
        done: list[bytes] = []
        todo = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
        followed = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                del done[-1:]
                continue
            found = self.lookup(b"/".join((*done, part)))
            if found is not None and found.kind is Kind.SYMLINK:
                followed += 1
                if followed > 255:
                    raise BuildError(f"too many symbolic links in /{path.decode('utf-8', 'replace')}")
                if found.link.startswith(b"/"):
                    done.clear()
                todo += [each for each in reversed(found.link.split(b"/")) if each not in (b"", b".")]
                continue
            done.append(part)
        return b"/".join(done)

    def make_directories(self, path: bytes, mode: int, owner: tuple[int, int] | None) -> None:
        """Make ``path`` (resolved) and what is missing above it."""
        if not path:
            return
        found = self.lookup(path)
        if found is not None:
            if found.kind is not Kind.DIRECTORY:
                raise BuildError(f"mkdir /{path.decode('utf-8', 'replace')}: not a directory")
            return
        above = path.rpartition(b"/")[0]
        self.make_directories(above, mode, owner)
        uid, gid = owner or (0, 0)
        parent = self.lookup(above)
        if parent is not None and parent.mode & stat.S_ISGID:  # as mkdir(2) does it
            mode |= stat.S_ISGID
            gid = gid if owner else parent.gid
        self.entries[path] = Entry(path, Kind.DIRECTORY, mode=mode, uid=uid, gid=gid, mtime_ns=0)

    def put(self, entry: Entry) -> None:
        """Place ``entry``; what is in the way, unless both are directories, goes."""
        existing = self.lookup(entry.path)
        if existing is not None and existing.kind is Kind.DIRECTORY and entry.kind is not Kind.DIRECTORY:
            for below in [each for each in self.entries if each.startswith(entry.path + b"/")]:
                del self.entries[below]
        self.entries[entry.path] = entry

    def finish(self) -> tuple[Entry, ...]:
        """The entries with the directories above them as the stage has them, parents first."""
        for path in list(self.entries):
            parent = path.rpartition(b"/")[0]
            while parent and parent not in self.entries:
                found = self.lookup(parent)
                if found is None or found.kind is not Kind.DIRECTORY:
                    break
                self.entries[parent] = found
                parent = parent.rpartition(b"/")[0]
        return tuple(self.entries[path] for path in sorted(self.entries, key=lambda each: each.split(b"/")))


def make_directory(stage: Tree | None, path: str, owner: tuple[int, int] | None) -> tuple[Entry, ...]:
    """What ``WORKDIR path`` adds: the directories that are missing, mode 0755, of ``owner``."""
    plan = Plan(stage)
    plan.make_directories(plan.resolve(path.encode("utf-8", "surrogateescape")), 0o755, owner)
    return plan.finish()


def copy(plan: Plan, source: Source, destination: str, treatment: Treatment) -> int:
    """Add what ``source`` names to ``plan``; returns how many paths matched.

    ``destination`` is absolute; a trailing slash (or ``/.``) says that it is a directory.
    """
    found = matches(source)
    if source.required:
        whole = f"{source.pattern.rstrip('/')}/{source.include[0]}"
        if source.tree.lstat(source.tree.resolve(whole.encode("utf-8", "surrogateescape"))) is None:
            raise _missing(source, whole)
    for match in found:
        copy_match(plan, source, match, destination, treatment)
    return len(found)


def unpack_into(
    plan: Plan,
    tree: Tree,
    implicit: frozenset[bytes],
    owners: Mapping[bytes, tuple[int, int]],
    destination: str,
    owner: tuple[int, int] | None,
) -> None:
    """Add an archive's content, unpacked in ``tree``, as docker's untar does it: what is in the way is replaced.

    Only a directory stays where the archive has a directory too, and takes on its metadata; one that the archive does
    not describe (``implicit``) keeps its own, and a link in its place is followed. ``owners`` knows better than
    the tree whose some entries are; with ``owner`` everything is that user's.
    """
    top = plan.resolve(destination.encode("utf-8", "surrogateescape"))
    plan.make_directories(top, 0o755, owner)

    links: dict[tuple[int, int], bytes] = {}

    def add(path: bytes, target: bytes) -> None:
        for entry in tree.entries(path):
            below = entry.path
            name = below.rpartition(b"/")[2]
            uid, gid = owner or owners.get(below, (entry.uid, entry.gid))
            place = target + b"/" + name if target else name
            if entry.kind is Kind.DIRECTORY and below in implicit:
                place = plan.resolve(place)
                plan.make_directories(place, 0o755, owner)
            else:
                plan.put(_linked(plan, tree, below, replace(entry, path=place, uid=uid, gid=gid), links))
            if entry.kind is Kind.DIRECTORY:
                add(below, place)

    add(b"", top)


def copy_match(plan: Plan, source: Source, match: Match, destination: str, treatment: Treatment) -> None:
    """Add one path that ``source`` named."""
    where = destination.encode("utf-8", "surrogateescape")
    head, _, tail = where.rpartition(b"/")
    ensure = where if tail in (b"", b".") else head
    plan.make_directories(plan.resolve(ensure), treatment.parents_mode, treatment.owner)
    target = plan.resolve(where)

    top = source.tree.entry(match.path)
    if top is None:
        raise _missing(source, source.pattern)
    existing = plan.lookup(target)
    if existing is not None:
        into = existing.kind is Kind.DIRECTORY if top.kind is not Kind.DIRECTORY else not source.contents
        if into and match.name:
            target = target + b"/" + match.name if target else match.name
    if source.contents and top.kind is Kind.DIRECTORY and existing is None:
        plan.make_directories(target, treatment.parents_mode, treatment.owner)
    else:
        plan.make_directories(target.rpartition(b"/")[0], treatment.parents_mode, treatment.owner)
    times = not source.context or match.path != b""
    _Copier(plan, source, treatment, times).copy(top, target)


def _linked(plan: Plan, tree: Tree, path: bytes, entry: Entry, links: dict[tuple[int, int], bytes]) -> Entry:
    """``entry``, or a hard link when ``path`` of ``tree`` is a file that is in ``plan`` already, by ``links``."""
    if entry.kind is not Kind.FILE:
        return entry
    found = tree.lstat(path)
    if found is None or found.st_nlink < 2:
        return entry
    first = links.setdefault((found.st_dev, found.st_ino), entry.path)
    if first == entry.path or first not in plan.entries:
        return entry
    return replace(entry, kind=Kind.HARDLINK, link=first, source=b"", size=0)


class Reached(msgspec.Struct, frozen=True):
    """An entry that a walk comes to: ``name`` is its path below the top, "" for the top itself."""

    entry: Entry
    name: bytes
    leads: bool = False
    """Whether it is a directory that was not asked for, on the way to something that was."""


def reached(source: Source, top: Entry, exclude: tuple[str, ...]) -> Iterator[Reached]:
    """``top``, an entry of ``source``, and what is copied of what is below it, parents first.

    Directories that only lead to included paths come when the first such path does.
    """
    only = ignore.compile_patterns(source.include) if source.include else None
    without = ignore.compile_patterns(exclude) if exclude else None
    waiting: list[Reached] = []

    def walk(entry: Entry, name: bytes) -> Iterator[Reached]:
        directory = entry.kind is Kind.DIRECTORY
        included = True
        if name and (only is not None or without is not None):
            text = name.decode("utf-8", "surrogateescape")
            if only is not None and not only.excludes(text, directory):
                included = False
            if without is not None and without.excludes(text, directory):
                if not directory or not without.may_contain_included(text):
                    return
                included = False
        if included:
            yield from waiting
            waiting.clear()
            yield Reached(entry, name)
        elif directory:
            waiting.append(Reached(entry, name, leads=True))
        if not directory:
            return
        for below in source.tree.entries(entry.path):
            child = below.path.rpartition(b"/")[2]
            yield from walk(below, name + b"/" + child if name else child)
        if waiting and waiting[-1].name == name:
            waiting.pop()

    return walk(top, b"")


class _Copier:
    """Where one match of a source goes."""

    def __init__(self, plan: Plan, source: Source, treatment: Treatment, times: bool) -> None:
        self._plan = plan
        self._times = times
        self._source = source
        self._treatment = treatment
        self._links: dict[tuple[int, int], bytes] = {}

    def copy(self, top: Entry, target: bytes) -> None:
        """Copy ``top`` and what is below it to ``target``."""
        for each in reached(self._source, top, self._treatment.exclude):
            place = target + b"/" + each.name if target and each.name else target or each.name
            if each.leads:
                self._lead(each.entry, place)
            elif each.entry.kind is Kind.DIRECTORY:
                self._directory(each.entry, place, overwrite=bool(each.name))
            else:
                self._place(each.entry, each.entry.path, place)

    def _lead(self, entry: Entry, target: bytes) -> None:
        existing = self._plan.lookup(target)
        if existing is not None and existing.kind is Kind.DIRECTORY:
            self._plan.entries[target] = replace(existing, mode=entry.mode)
        else:
            self._directory(entry, target, overwrite=True)

    def _directory(self, entry: Entry, target: bytes, overwrite: bool) -> None:
        if not target:
            return
        existing = self._plan.lookup(target)
        if existing is not None and existing.kind is not Kind.DIRECTORY:
            if not self._treatment.replace_existing:
                raise BuildError(f"cannot copy to non-directory: /{target.decode('utf-8', 'replace')}")
            existing = None
        if existing is None or overwrite:
            self._plan.entries[target] = replace(self._treated(entry), path=target)
        elif self._times:
            self._plan.entries[target] = replace(existing, mtime_ns=entry.mtime_ns)
        else:
            self._plan.entries.setdefault(target, existing)

    def _place(self, entry: Entry, path: bytes, target: bytes) -> None:
        existing = self._plan.lookup(target)
        if existing is not None and existing.kind is Kind.DIRECTORY and not self._treatment.replace_existing:
            raise BuildError(f"cannot replace to directory /{target.decode('utf-8', 'replace')} with file")
        placed = replace(self._treated(entry), path=target)
        self._plan.put(_linked(self._plan, self._source.tree, path, placed, self._links))

    def _treated(self, entry: Entry) -> Entry:
        treatment = self._treatment
        if self._source.context and entry.xattrs:
            entry = replace(entry, xattrs=())
        if treatment.owner is not None:
            entry = replace(entry, uid=treatment.owner[0], gid=treatment.owner[1])
        if treatment.mode is not None and entry.kind is not Kind.SYMLINK:
            entry = replace(entry, mode=treatment.mode(entry.mode, entry.kind is Kind.DIRECTORY))
        return entry
