"""COPY and ADD as plans: the entries that they add to a file system, before anything is written.

The rules are those of BuildKit's file operations (solver/llbsolver/file and fsutil's copier), applied to two ``Tree``s:
the source, and the stage. The plan is the layer as data: it can be packed without being written to a directory, and two
platforms with equal plans share one layer.

Where BuildKit uses the time of the build (for created parent directories), a plan has a constant one
(``rootfs.moment``).
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.dockerfile import ignore
from executor.dockerfile.modes import Change
from executor.rootfs import moment
from executor.rootfs.entry import Entry, Kind, hard_link
from executor.rootfs.tree import Tree
from executor.solver.external_sort import ExternalSort
from executor.store.spool import SpooledList
from platforms.errors import BuildError, ContextError
from platforms.pathwalk import TooManyLinks, resolve

_PATH_LIMIT: Final = 4095
_NAME_LIMIT: Final = 255
"""Maximum length of a component, after that of a path, in bytes (linux/limits.h)."""


class CopyOptions(msgspec.Struct, frozen=True):
    """Options for every copied file: owner, mode, excluded names."""

    owner: tuple[int, int] | None = None
    mode: Change | None = None
    parents_mode: int = 0o755
    """Mode of created parent directories of the destination: that of an octal ``--chmod``."""
    exclude: tuple[str, ...] = ()


class CopySource(msgspec.Struct, frozen=True):
    """A source argument. ``pattern`` is absolute and may contain wildcards if ``wildcards``."""

    tree: Tree
    pattern: str
    wildcards: bool = True
    contents: bool = True
    """Copy the content of a directory rather than the directory."""
    include: tuple[str, ...] = ()
    """With ``--parents``: only paths that match, with their parent directories."""
    required: bool = False
    """With ``--parents``: the included path must exist."""
    context: bool = False
    """Whether the tree is a build context, whose root has no meaningful timestamp (that of the checkout) and no
    attributes."""


class Match(msgspec.Struct, frozen=True):
    """A path that an argument matched: ``path`` in the source tree, ``name`` at the target."""

    path: bytes
    name: bytes


def normal_path(directory: str, path: str) -> str:
    """Return ``path``, relative to ``directory``, as a clean absolute path, as Go's ``path.Join`` does."""
    cleaned = posixpath.normpath(posixpath.join("/", directory, path))
    return "/" + cleaned.lstrip("/")


def matches(source: CopySource) -> tuple[Match, ...]:
    """Return the paths that ``source`` matches. Empty for a wildcard without a match; ``ContextError`` for a missing
    path.

    The part before the first wildcard must exist.
    """
    literal, pattern = _split_wildcards(source.pattern) if source.wildcards else (source.pattern, "")
    base = source.tree.resolve(literal.encode("utf-8", "surrogateescape"))
    if source.tree.lstat(base) is None:
        raise _missing(source, literal)
    if not pattern:
        return (Match(base, _base(literal)),)
    if not all(ignore.is_pattern(part) for part in pattern.split("/")):
        raise ContextError(
            f'"{source.pattern}" is no pattern', why="syntax error in pattern", remedy="write \\[ for a ["
        )
    found: list[Match] = []
    for path in _glob(source.tree, base, pattern):
        found.append(Match(source.tree.resolve(path), path.rpartition(b"/")[2]))
    return tuple(found)


def _missing(source: CopySource, path: str) -> ContextError:
    """Return the error for a ``path`` that is not in ``source``."""
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
    """Yield the paths below ``base`` that match, in the order of a walk; not those below a match.

    A wildcard never matches a slash, so the tree is matched a component at a time, without walking what cannot match.
    """
    return _descend(tree, base, pattern.split("/"))


def _descend(tree: Tree, directory: bytes, parts: Sequence[str]) -> Iterator[bytes]:
    """Yield the paths below ``directory`` whose components match ``parts``."""
    found = tree.lstat(directory)
    if found is None or not stat.S_ISDIR(found.st_mode):
        return
    for name in tree.names(directory):
        if not ignore.match(parts[0], name.decode("utf-8", "surrogateescape")):
            continue
        path = directory + b"/" + name if directory else name
        if len(parts) == 1:
            yield path
        else:
            yield from _descend(tree, path, parts[1:])


class CopyPlan:
    """A layer that is being planned on ``stage`` (None: empty, as for ``--link``).

    Every entry comes with its parent directories as the stage has them. What does not fit in memory is written to a
    file in ``directory`` (default: the system's for temporary files). Directories that the plan creates have the time
    ``made``.
    """

    def __init__(self, stage: Tree | None, directory: str | None = None, made: int = moment.NANOSECONDS) -> None:
        self.stage = stage
        self.made = made
        self._entries = ExternalSort(directory)
        self._placed: bytes | None = None
        """The directory of the last entry: it is planned already."""
        self._parent: bytes | None = None
        self._fresh = False
        """Whether the directory ``_parent``, the last that was looked up, contains only planned entries."""
        self._linked: dict[bytes, list[bytes]] = {}
        """The hard links to each file that has some."""

    def planned(self, path: bytes) -> Entry | None:
        """Return the planned entry at ``path``."""
        return self._entries.get(path)

    def lookup(self, path: bytes) -> Entry | None:
        """Return the entry at ``path``, planned or of the stage."""
        planned = self._entries.get(path)
        if planned is not None:
            return planned
        if not path:
            return self.stage.entry(path) if self.stage is not None else Entry(b"", Kind.DIRECTORY, mode=0o755)
        if self.stage is None:
            return None
        parent = path.rpartition(b"/")[0]
        if parent != self._parent:
            self._parent, self._fresh = parent, self._is_fresh(parent)
        return None if self._fresh else self.stage.entry(path)

    def _is_fresh(self, parent: bytes) -> bool:
        """Whether the stage has nothing in ``parent``, or a parent directory was replaced by something else."""
        assert self.stage is not None
        below = parent
        while below:
            planned = self._entries.get(below)
            if planned is not None:
                if planned.kind is not Kind.DIRECTORY:
                    return True
                break
            below = below.rpartition(b"/")[0]
        found = self.stage.lstat(parent)
        return found is None or not stat.S_ISDIR(found.st_mode)

    def resolve(self, path: bytes) -> bytes:
        """Return ``path`` with the links of the stage and of the plan resolved. Raises ``BuildError``."""
        if len(path) > _PATH_LIMIT or any(len(part) > _NAME_LIMIT for part in path.split(b"/")):
            raise BuildError(f"/{path[:64].decode('utf-8', 'replace').lstrip('/')}…: file name too long")
        try:
            return resolve(path, self._link_at)
        except TooManyLinks as error:
            raise BuildError(f"too many symbolic links in /{path.decode('utf-8', 'replace')}") from error

    def _link_at(self, path: bytes) -> bytes | None:
        found = self.lookup(path)
        return found.link if found is not None and found.kind is Kind.SYMLINK else None

    def make_directories(self, path: bytes, mode: int, owner: tuple[int, int] | None) -> None:
        """Make ``path`` (resolved) and its missing parents."""
        missing: list[bytes] = []
        while path:
            found = self.lookup(path)
            if found is not None:
                if found.kind is not Kind.DIRECTORY:
                    raise BuildError(f"mkdir /{path.decode('utf-8', 'replace')}: not a directory")
                break
            missing.append(path)
            path = path.rpartition(b"/")[0]
        for below in reversed(missing):
            self._make_directory(below, mode, owner)

    def _make_directory(self, path: bytes, mode: int, owner: tuple[int, int] | None) -> None:
        uid, gid = owner or (0, 0)
        parent = self.lookup(path.rpartition(b"/")[0])
        if parent is not None and parent.mode & stat.S_ISGID:  # as mkdir(2)
            mode |= stat.S_ISGID
            gid = gid if owner else parent.gid
        self.set(Entry(path, Kind.DIRECTORY, mode=mode, uid=uid, gid=gid, mtime_ns=self.made))

    def set(self, entry: Entry) -> None:
        """Plan ``entry`` at its path, where there is nothing or an entry of the same kind."""
        path = entry.path
        parent = path.rpartition(b"/")[0]
        if parent != self._placed:
            self._above(parent)
            self._placed = parent
        if entry.kind is Kind.DIRECTORY:
            self._parent = None
        if path in self._linked:
            self._bequeath(path)
        if entry.kind is Kind.HARDLINK:
            self._linked.setdefault(entry.link, []).append(path)
        self._entries.put(entry)

    def _bequeath(self, path: bytes) -> None:
        """Keep the file at ``path``, which is replaced, under the names that are hard links to it."""
        file = self._entries.get(path)
        links = [each for each in self._linked.pop(path) if self._is_link(each, path)]
        if file is None or not links:
            return
        first, *others = links
        self._entries.put(replace(file, path=first))
        for each in others:
            self._entries.put(hard_link(file, each, first))
        self._linked[first] = others

    def _is_link(self, path: bytes, target: bytes) -> bool:
        entry = self._entries.get(path)
        return entry is not None and entry.kind is Kind.HARDLINK and entry.link == target

    def _above(self, path: bytes) -> None:
        """Plan the directory ``path`` and its parents, as the stage has them, if they are not planned."""
        while path and self._entries.get(path) is None:
            found = self.lookup(path)
            if found is None or found.kind is not Kind.DIRECTORY:
                return
            self._entries.put(found)
            path = path.rpartition(b"/")[0]

    def put(self, entry: Entry) -> None:
        """Plan ``entry``; what is at its path is replaced, unless both are directories."""
        existing = self.lookup(entry.path)
        if existing is not None and existing.kind is Kind.DIRECTORY and entry.kind is not Kind.DIRECTORY:
            self._entries.remove_below(entry.path)
            self._parent = self._placed = None
        self.set(entry)

    def finish(self) -> SpooledList[Entry]:
        """Return the entries, parents first. To be called last."""
        return self._entries.finish()


def make_directory(
    stage: Tree | None, path: str, owner: tuple[int, int] | None, made: int = moment.NANOSECONDS
) -> SpooledList[Entry]:
    """Return the entries of ``WORKDIR path``: missing directories, with mode 0755, ``owner``, and the time ``made``."""
    plan = CopyPlan(stage, made=made)
    plan.make_directories(plan.resolve(path.encode("utf-8", "surrogateescape")), 0o755, owner)
    return plan.finish()


def copy(plan: CopyPlan, source: CopySource, destination: str, treatment: CopyOptions) -> int:
    """Add the files that ``source`` matches to ``plan``; returns the number of matches.

    ``destination`` is absolute; with a trailing slash (or ``/.``) it is a directory.
    """
    found = matches(source)
    require(source, treatment.exclude)
    for match in found:
        top = top_of(source, match)
        matched = Matched(match, top, walk_entries(source, top, treatment.exclude))
        copy_match(plan, source, matched, destination, treatment)
    return len(found)


def copy_file(plan: CopyPlan, tree: Tree, own: str, name: str, destination: str, treatment: CopyOptions) -> None:
    """Add the file ``own`` of ``tree``, an internal name, as ``name``, its name in the Dockerfile."""
    source = CopySource(tree, f"/{own}", wildcards=False, contents=False)
    match = Match(own.encode(), name.encode("utf-8", "surrogateescape"))
    top = top_of(source, match)
    copy_match(plan, source, Matched(match, top, walk_entries(source, top, ())), destination, treatment)


def top_of(source: CopySource, match: Match) -> Entry:
    """Return the entry at the path of ``match``. Raises ``ContextError`` if it does not exist (a dangling link)."""
    top = source.tree.entry(match.path)
    if top is None:
        raise _missing(source, source.pattern)
    return top


def require(source: CopySource, exclude: tuple[str, ...]) -> None:
    """Raise ``ContextError`` if the path to copy does not exist, or is excluded by ``exclude``.

    Links are not followed.
    """
    if not source.required:
        return
    whole = f"{source.pattern.rstrip('/')}/{source.include[0]}"
    names = [name for name in whole.encode("utf-8", "surrogateescape").split(b"/") if name]
    for count in range(1, len(names) + 1):
        found = source.tree.lstat(b"/".join(names[:count]))
        if found is None or (count < len(names) and not stat.S_ISDIR(found.st_mode)):
            raise _missing(source, whole)
    if ignore.compile_patterns(exclude).excludes(source.include[0]):
        raise _missing(source, whole)


def unpack_into(
    plan: CopyPlan,
    tree: Tree,
    implicit: frozenset[bytes],
    destination: str,
    owner: tuple[int, int] | None,
) -> None:
    """Add the content of an archive, unpacked in ``tree``, as Docker's untar does: existing files are replaced.

    A directory is kept where the archive has a directory, and gets its metadata; one without an entry in the archive
    (``implicit``) keeps its own, or belongs to root, and a link in its place is followed. ``owner``: the owner of
    everything with an entry in the archive.
    """
    top = plan.resolve(destination.encode("utf-8", "surrogateescape"))
    plan.make_directories(top, 0o755, owner)

    links: dict[tuple[int, int], bytes] = {}

    open_directories = [(tree.entries(b""), top)]
    while open_directories:
        entries, target = open_directories[-1]
        entry = next(entries, None)
        if entry is None:
            open_directories.pop()
            continue
        below = entry.path
        name = below.rpartition(b"/")[2]
        uid, gid = owner or (entry.uid, entry.gid)
        place = target + b"/" + name if target else name
        if entry.kind is Kind.DIRECTORY and below in implicit:
            place = plan.resolve(place)
            plan.make_directories(place, 0o755, None)
        else:
            placed = replace(entry, path=place, uid=uid, gid=gid)
            linked = _linked(placed, links)
            there = linked.kind is not Kind.HARDLINK or plan.planned(linked.link) is not None
            plan.put(linked if there else placed)
        if entry.kind is Kind.DIRECTORY:
            open_directories.append((tree.entries(below), place))


class Matched(msgspec.Struct, frozen=True):
    """A path that a source matched, with the entries to copy."""

    match: Match
    top: Entry
    """The entry at the path."""
    entries: Iterable[WalkEntry]
    """See ``walk_entries``."""


def copy_match(plan: CopyPlan, source: CopySource, matched: Matched, destination: str, treatment: CopyOptions) -> None:
    """Add the entries of a match."""
    match, top = matched.match, matched.top
    where = destination.encode("utf-8", "surrogateescape")
    head, _, tail = where.rpartition(b"/")
    ensure = where if tail in (b"", b".") else head
    plan.make_directories(plan.resolve(ensure), treatment.parents_mode, treatment.owner)
    target = plan.resolve(where)

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
    _Copier(plan, source, treatment, times).copy(matched.entries, target)


def _linked(entry: Entry, links: dict[tuple[int, int], bytes]) -> Entry:
    """Return ``entry``, or a hard link if its file was copied before, as recorded in ``links``."""
    if entry.kind is not Kind.FILE or entry.inode == (0, 0):
        return entry
    first = links.setdefault(entry.inode, entry.path)
    if first == entry.path:
        return entry
    return hard_link(entry, entry.path, first)


class WalkEntry(msgspec.Struct, frozen=True, array_like=True):
    """An entry of a walk: ``name`` is its path below the top, "" for the top."""

    entry: Entry
    name: bytes
    leads: bool = False
    """Whether it is a directory that was not matched itself, a parent of a match."""


def walk_entries(source: CopySource, top: Entry, exclude: tuple[str, ...]) -> Iterator[WalkEntry]:
    """Yield ``top``, an entry of ``source``, and what is copied of what is below it, parents first.

    Directories that only lead to included paths come when the first such path does.
    """
    return _Walk(source, exclude).entries(top)


class _Walk:
    """A walk through ``source``, without what ``exclude`` matches."""

    def __init__(self, source: CopySource, exclude: tuple[str, ...]) -> None:
        self._tree = source.tree
        self._include = ignore.compile_patterns(source.include) if source.include else None
        self._exclude = ignore.compile_patterns(exclude) if exclude else None
        self._everything = self._include is None and self._exclude is None
        self._leading: list[WalkEntry] = []
        """Directories above the current one that are yielded only if something in them is."""

    def entries(self, top: Entry) -> Iterator[WalkEntry]:
        """Yield ``top`` and what is copied of what is below it."""
        found, deeper = self._visit(top, b"")
        yield from found
        # An explicit stack: a tree may be deeper than Python's recursion limit.
        open_directories = [(b"", self._tree.entries(top.path))] if deeper else []
        while open_directories:
            above, entries = open_directories[-1]
            entry = next(entries, None)
            if entry is None:
                open_directories.pop()
                if self._leading and self._leading[-1].name == above:
                    self._leading.pop()
                continue
            name = entry.path.rpartition(b"/")[2]
            if above:
                name = above + b"/" + name
            if self._everything and entry.kind is not Kind.DIRECTORY:
                yield WalkEntry(entry, name)
                continue
            found, deeper = self._visit(entry, name)
            yield from found
            if deeper:
                open_directories.append((name, self._tree.entries(entry.path)))

    def _visit(self, entry: Entry, name: bytes) -> tuple[list[WalkEntry], bool]:
        """Return the entries that are yielded at ``entry``, and whether the walk descends into it."""
        directory = entry.kind is Kind.DIRECTORY
        included = True
        if name and not self._everything:
            text = name.decode("utf-8", "surrogateescape")
            if self._include is not None and not self._include.excludes(text, directory):
                included = False
            if self._exclude is not None and self._exclude.excludes(text, directory):
                if not directory or not self._exclude.may_contain_included(text):
                    return [], False
                included = False
        if included:
            found = [*self._leading, WalkEntry(entry, name)]
            self._leading.clear()
            return found, directory
        if directory:
            self._leading.append(WalkEntry(entry, name, leads=True))
        return [], directory


class _Copier:
    """Copies one match of a source."""

    def __init__(self, plan: CopyPlan, source: CopySource, treatment: CopyOptions, times: bool) -> None:
        self._plan = plan
        self._times = times
        self._source = source
        self._treatment = treatment
        self._links: dict[tuple[int, int], bytes] = {}

    def copy(self, found: Iterable[WalkEntry], target: bytes) -> None:
        """Copy the entries ``found`` to ``target``."""
        for each in found:
            place = target + b"/" + each.name if target and each.name else target or each.name
            if each.leads:
                self._lead(each.entry, place)
            elif each.entry.kind is Kind.DIRECTORY:
                self._directory(each.entry, place, overwrite=bool(each.name))
            else:
                self._place(each.entry, place)

    def _lead(self, entry: Entry, target: bytes) -> None:
        existing = self._plan.lookup(target)
        if existing is not None and existing.kind is Kind.DIRECTORY:
            self._plan.set(replace(existing, mode=entry.mode))
        else:
            self._directory(entry, target, overwrite=True)

    def _directory(self, entry: Entry, target: bytes, overwrite: bool) -> None:
        if not target:
            return
        existing = self._plan.lookup(target)
        if existing is not None and existing.kind is not Kind.DIRECTORY:
            raise BuildError(f"cannot copy to non-directory: /{target.decode('utf-8', 'replace')}")
        if existing is None or overwrite:
            self._plan.set(self._treated(entry, target))
        elif self._times:
            self._plan.set(replace(existing, mtime_ns=entry.mtime_ns))
        else:
            self._plan.set(existing)

    def _place(self, entry: Entry, target: bytes) -> None:
        existing = self._plan.lookup(target)
        if existing is not None and existing.kind is Kind.DIRECTORY:
            raise BuildError(f"cannot replace to directory /{target.decode('utf-8', 'replace')} with file")
        self._plan.put(_linked(self._treated(entry, target), self._links))

    def _treated(self, entry: Entry, target: bytes) -> Entry:
        treatment = self._treatment
        uid, gid = treatment.owner or (entry.uid, entry.gid)
        mode = entry.mode
        if treatment.mode is not None and entry.kind is not Kind.SYMLINK:
            mode = treatment.mode(mode, entry.kind is Kind.DIRECTORY)
        xattrs = () if self._source.context else entry.xattrs
        return replace(entry, path=target, mode=mode, uid=uid, gid=gid, xattrs=xattrs)
