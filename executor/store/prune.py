"""Listing the resources of a store, and removing them.

``usage`` lists; ``prune`` removes garbage, and the least recently used resources that match the request. What a living
process uses is never removed. Resources are selected under the lease lock and in one transaction, and renamed before
the lock is released; they are deleted after.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from executor.store import cache_records, cachemounts, leases, moved_directories, snapshots
from executor.store.faults import translated
from executor.store.leases import flocked, flocked_if_free, lease_lock
from executor.store.ownership import is_plain
from executor.store.removal import disk_usage, remove_tree
from executor.store.store import release_reserve, reserve_space
from platforms import durations
from platforms.errors import UsageError
from platforms.paths import below

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator

    from executor.store.store import Store

    Matcher = Callable[["UsageInfo", float], bool]

_DAY: Final = 86400.0
_PARTIAL_SECONDS: Final = _DAY
"""Seconds for which an interrupted download is kept to be resumed, and a damaged index for inspection."""
FORGET_SECONDS: Final = 60 * _DAY
"""Seconds after which entries of the stat cache and metadata are removed; they are cheap to recompute."""
_KINDS: Final = ("blob", "snapshot", "record", "cache-mount", "partial")
_BUILDKIT_KINDS: Final = {"regular": ("blob", "snapshot", "record"), "exec.cachemount": ("cache-mount",)}
"""BuildKit's names of kinds (client/diskusage.go)."""


class UsageInfo(msgspec.Struct, frozen=True):
    """One resource of the store. Sizes in bytes, times in seconds since the epoch."""

    kind: str
    """``blob``, ``snapshot``, ``record``, ``cache-mount``, or ``partial``: temporary, or garbage."""
    id: str
    """Digest, snapshot number, cache key or cache id; for a ``partial``, its path in the store."""
    size: int
    created: float
    last_used: float
    in_use: bool
    """Whether a living process leases it, or it is kept until a user removes it (``snapshots.KEPT``)."""
    shared: bool
    """Whether more than one cache record refers to it."""
    description: str


class Pruned(msgspec.Struct, frozen=True):
    """What ``prune`` removed; ``freed`` is the sum of the sizes in bytes."""

    freed: int
    removed: tuple[UsageInfo, ...]


class _Orphan(msgspec.Struct, frozen=True):
    """A path in the store without a row in the index."""

    path: str
    in_use: bool
    kept_until: float
    changed: float


def usage(store: Store, filters: Iterable[str] = ()) -> tuple[UsageInfo, ...]:
    """Return all resources that match all of ``filters`` (see ``parse_filter``), least recently used first."""
    matchers, now = tuple(parse_filter(each) for each in filters), store.clock()
    with translated(store.root, f"cannot list the store {store.root}"):
        with flocked(lease_lock(store.root), exclusive=True):
            tokens, resources = leases.live(store.root)
            rows = store.index.read(lambda db: _indexed(db, resources))
            orphans = tuple(_orphans(store, tokens, resources))
        rows += [replace(row, in_use=_lease_name(row) in resources) for row in _cache_mounts(store)]
        rows += [_usage_of(store, each, _path(store, each.path)) for each in orphans]
    return tuple(sorted((row for row in rows if _all_match(matchers, row, now)), key=_by_use))


def prune(
    store: Store,
    *,
    keep_storage: int | None = None,
    older_than: float | None = None,
    filters: Iterable[str] = (),
    all: bool = False,  # noqa: A002
) -> Pruned:
    """Remove garbage, and resources that are not in use.

    Selected are those last used more than ``older_than`` seconds ago that match all of ``filters`` (see
    ``parse_filter``); of these, the least recently used ones until the store has at most ``keep_storage`` bytes. When
    none of the three is given, ``all`` selects every resource, and without it none; with ``all``, metadata and the stat
    cache are cleared too. Cache records that need a removed snapshot or blob are removed with it.

    Raises ``UsageError`` for an invalid filter, ``StoreError`` when something could not be removed.
    """
    matchers = tuple(parse_filter(each) for each in filters)
    only_garbage = not (all or matchers) and keep_storage is None and older_than is None
    now = store.clock()

    def choose(rows: list[UsageInfo]) -> Iterator[UsageInfo]:
        total = sum(row.size for row in rows)
        for row in sorted(rows, key=_by_use):
            if only_garbage or (keep_storage is not None and total <= keep_storage):
                return
            if row.in_use or (older_than is not None and now - row.last_used <= older_than):
                continue
            if _all_match(matchers, row, now):
                total -= row.size
                yield row

    return sweep(store, choose, now if all else now - FORGET_SECONDS)


def sweep(store: Store, choose: Callable[[list[UsageInfo]], Iterable[UsageInfo]], learnt_before: float) -> Pruned:
    """Remove garbage, and what ``choose`` selects of all resources; it must select none that is in use.

    Metadata and stat cache entries from before ``learnt_before`` (seconds since the epoch) are removed. Raises
    ``StoreError``.
    """
    now = store.clock()

    def condemn(db: sqlite3.Connection) -> list[UsageInfo]:
        mounts = [replace(row, in_use=_lease_name(row) in resources) for row in measured]
        chosen = [*choose([*_indexed(db, resources), *mounts])]
        _delete(db, chosen)
        chosen += _unreachable(db, store.boot, resources)
        db.execute("DELETE FROM files WHERE created<=?", (learnt_before,))
        db.execute("DELETE FROM facts WHERE created<=?", (learnt_before,))
        return chosen

    with translated(store.root, f"cannot prune the store {store.root}"):
        release_reserve(store.root)  # on a full disk: removing needs a little space first
        trash = store.session.temporary()
        os.mkdir(trash, 0o700)
        measured = _cached_sizes(store)  # may walk trees, so not under the lease lock
        with flocked(lease_lock(store.root), exclusive=True):
            tokens, resources = leases.live(store.root)
            removed = store.index.write(condemn)
            for number, row in enumerate(removed):
                if place := _path_of(store, row):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(place, below(trash, str(number)))
            moved: list[tuple[_Orphan, str]] = []
            for orphan in _orphans(store, tokens | moved_directories.bring_back_all(store.root), resources):
                place = below(trash, f"orphan-{len(moved)}")
                if not orphan.in_use and orphan.kept_until < now and _move(store, orphan, place):
                    moved.append((orphan, place))
            leases.remove_dead(store.root)
        removed += [_usage_of(store, orphan, place) for orphan, place in moved]
        remove_tree(trash)
        with contextlib.suppress(OSError):  # the disk may still be full
            reserve_space(store.root)
    return Pruned(sum(row.size for row in removed), tuple(removed))


def parse_filter(text: str) -> Matcher:
    """Parse a condition on resources, in the format of ``buildx prune --filter``.

    ``type=blob`` (or ``kind=``; BuildKit's ``regular`` and ``exec.cachemount`` are accepted), ``id=…``,
    ``description=…``, ``inuse=true``, ``shared=false``, ``until=24h`` (not used for that long; units s, m, h, d, w).
    Text fields also support ``!=`` and ``~=`` (contains); ``inuse``, ``shared`` and its opposite ``private`` may stand
    alone. Raises ``UsageError``.
    """
    operator = min((each for each in ("!=", "~=", "==", "=") if each in text), key=text.index, default="")
    field, _, value = text.partition(operator) if operator else (text, "", "true")
    match field.strip().lower().replace("-", ""), operator:
        case "kind" | "type", "!=" | "==" | "=":
            return _kind_filter(operator, value)
        case ("kind" | "type" | "id" | "description") as name, "!=" | "~=" | "==" | "=":
            return _text_filter("kind" if name == "type" else name, operator, value)
        case ("inuse" | "shared" | "private") as name, "==" | "=" | "" if value in ("true", "false"):
            attribute, wanted = "in_use" if name == "inuse" else "shared", (value == "true") is (name != "private")
            return lambda row, _: getattr(row, attribute) is wanted
        case "until", "==" | "=":
            seconds = parse_duration(value)
            return lambda row, now: now - row.last_used > seconds
    raise UsageError(
        f"cannot filter by {text!r}",
        why="a filter is FIELD=VALUE, FIELD!=VALUE or FIELD~=PART",
        remedy="use type, id, description, inuse, shared, private or until=24h",
    )


def parse_duration(text: str) -> float:
    """Return the seconds of ``text``: numbers with units s, m, h, d, w, as in ``90m``, ``1h30m`` or ``7d``."""
    found = durations.age(text)
    if found is None:
        raise UsageError(
            f"not a duration: {text!r}", why="a number and a unit are expected", remedy="write 90m, 24h or 7d"
        )
    return found


def _kind_filter(operator: str, value: str) -> Matcher:
    kinds = _BUILDKIT_KINDS.get(value, (value,))
    if not set(kinds) <= set(_KINDS):
        raise UsageError(
            f"nothing is of the kind {value!r}",
            remedy=f"use {', '.join(_KINDS)}, or BuildKit's {' or '.join(_BUILDKIT_KINDS)}",
        )
    return lambda row, _: (row.kind in kinds) is (operator != "!=")


def _text_filter(field: str, operator: str, value: str) -> Matcher:
    if operator == "!=":
        return lambda row, _: getattr(row, field) != value
    if operator == "~=":
        return lambda row, _: value in getattr(row, field)
    return lambda row, _: getattr(row, field) == value


def _all_match(matchers: tuple[Matcher, ...], row: UsageInfo, now: float) -> bool:
    return all(each(row, now) for each in matchers)


def _by_use(row: UsageInfo) -> tuple[float, float]:
    return row.last_used, row.created


def _lease_name(row: UsageInfo) -> str:
    """Return the name of the resource in leases."""
    match row.kind:
        case "blob":
            return f"b{row.id}"
        case "snapshot":
            return f"s{row.id}"
        case _:
            return cachemounts.lease_name(row.id)


def _path_of(store: Store, row: UsageInfo) -> str:
    """Return the path of the resource; "" for a record, which has none."""
    match row.kind:
        case "blob":
            return below(store.root, "blobs", *row.id.split(":"))
        case "snapshot":
            return below(store.root, "snapshots", row.id)
        case "cache-mount":
            return cachemounts.directory_of(store, row.id)
        case _:
            return ""


def _indexed(db: sqlite3.Connection, resources: frozenset[str]) -> list[UsageInfo]:
    """Return the resources in the index."""
    needed_by: dict[str, int] = {}
    in_use: set[str] = set()
    for record, resource in db.execute("SELECT record, thing FROM refs"):
        needed_by[resource] = needed_by.get(resource, 0) + 1
        if resource in resources:
            in_use.add(record)
    rows = []
    kept = snapshots.kept(db)
    for digest, size, created, used in db.execute("SELECT digest, size, created, used FROM blobs"):
        resource = f"b{digest}"
        rows.append(
            UsageInfo("blob", digest, size, created, used, resource in resources, needed_by.get(resource, 0) > 1, "")
        )
    query = "SELECT number, size, created, used, description FROM snapshots"
    for number, size, created, used, description in db.execute(query):
        resource = f"s{number}"
        shared = needed_by.get(resource, 0) > 1
        held = resource in resources or number in kept
        rows.append(UsageInfo("snapshot", str(number), size, created, used, held, shared, description))
    query = "SELECT key, length(value), created, used, description FROM records"
    for key, size, created, used, description in db.execute(query):
        rows.append(UsageInfo("record", key, size, created, used, key in in_use, False, description))
    return rows


def _cache_mounts(store: Store) -> list[UsageInfo]:
    return [
        UsageInfo("cache-mount", each.id, disk_usage(each.path), each.created, each.last_used, False, False, "")
        for each in cachemounts.list_all(store)
    ]


def _cached_sizes(store: Store) -> list[UsageInfo]:
    """As ``_cache_mounts``, with the last measured size of those that were not used since."""
    rows = []
    for each in cachemounts.list_all(store):
        size = each.size if each.measured > each.last_used else cachemounts.measure(store, each)
        rows.append(UsageInfo("cache-mount", each.id, size, each.created, each.last_used, False, False, ""))
    return rows


def _unreachable(db: sqlite3.Connection, boot: str, resources: frozenset[str]) -> list[UsageInfo]:
    """Delete the rows that cannot be found any more, and return them."""
    garbage = [
        row
        for row in _indexed(db, resources)
        if row.kind == "snapshot" and not row.in_use and not _reachable(db, boot, int(row.id))
    ]
    _delete(db, garbage)
    dangling = cache_records.dangling(db, boot)
    lost = [row for row in _indexed(db, resources) if row.kind == "record" and row.id in dangling]
    _delete(db, lost)
    return garbage + lost


def _reachable(db: sqlite3.Connection, boot: str, number: int) -> bool:
    """Whether the snapshot ``number`` is valid in this boot and has a name or a record that refers to it."""
    found = db.execute(
        "SELECT 1 FROM snapshots WHERE number=?1 AND (boot IS NULL OR boot=?2) AND ("
        "EXISTS(SELECT 1 FROM names WHERE snapshot=?1) OR EXISTS(SELECT 1 FROM refs WHERE thing='s' || ?1))",
        (number, boot),
    ).fetchone()
    return found is not None


def _delete(db: sqlite3.Connection, rows: Iterable[UsageInfo]) -> None:
    for row in rows:
        match row.kind:
            case "blob":
                db.execute("DELETE FROM blobs WHERE digest=?", (row.id,))
            case "snapshot":
                snapshots.delete_row(db, int(row.id))
            case "record":
                cache_records.delete_row(db, row.id)


def _orphans(store: Store, tokens: frozenset[str], resources: frozenset[str]) -> Iterator[_Orphan]:
    """Yield all paths without a row: active snapshots, temporary files, downloads, and what dead processes have
    left."""
    known = store.index.read(lambda db: _indexed(db, resources))
    digests = {row.id for row in known if row.kind == "blob"}
    numbers = {row.id for row in known if row.kind == "snapshot"}
    for algorithm in _names(store, "blobs"):
        if not is_plain(below(store.root, "blobs"), algorithm):
            yield from _orphan(store, f"blobs/{algorithm}", False)
            continue
        for name in _names(store, f"blobs/{algorithm}"):
            digest = f"{algorithm}:{name}"
            if digest not in digests:
                yield from _orphan(store, f"blobs/{algorithm}/{name}", f"b{digest}" in resources)
    for name in _names(store, "snapshots"):
        if name not in numbers:
            yield from _orphan(store, f"snapshots/{name}", f"s{name}" in resources)
    mounts = {os.path.basename(each.path) for each in cachemounts.list_all(store)}
    for name in _names(store, "cache"):
        if name not in mounts:
            yield from _orphan(store, f"cache/{name}", f"c{name}" in resources)
    for name in _names(store, "tmp"):
        if name != "partial":
            yield from _orphan(store, f"tmp/{name}", not tokens.isdisjoint((name, name.partition(".")[0])))
    for name in _names(store, "tmp/partial"):
        yield from _orphan(store, f"tmp/partial/{name}", _is_locked(store, name), _PARTIAL_SECONDS)
    index = os.path.basename(os.path.realpath(os.path.join(store.root, "index.db")))
    for name in _names(store):
        if name.startswith(("index.db.corrupt-", "index-")) and not name.startswith(index):
            yield from _orphan(store, name, False, _PARTIAL_SECONDS)


def _path(store: Store, path: str) -> str:
    return below(store.root, *path.split("/"))


def _names(store: Store, folder: str = "") -> list[str]:
    return sorted(os.listdir(_path(store, folder) if folder else store.root))


def _orphan(store: Store, path: str, in_use: bool, kept: float = 0.0) -> Iterator[_Orphan]:
    with contextlib.suppress(FileNotFoundError):
        changed = os.lstat(_path(store, path)).st_mtime
        yield _Orphan(path, in_use, changed + kept if kept else 0.0, changed)


def _is_locked(store: Store, name: str) -> bool:
    with _try_flock(below(store.root, "tmp", "partial", name)) as free:
        return not free


@contextmanager
def _try_flock(path: str) -> Iterator[bool]:
    """Lock the download ``path`` for the length of the block; yields False when it is locked or gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    with flocked_if_free(fd) as free:
        yield free


def _move(store: Store, orphan: _Orphan, place: str) -> bool:
    """Rename ``orphan`` to ``place``; False when it is gone, or a download that has been resumed."""
    source = _path(store, orphan.path)
    with _try_flock(source) if orphan.path.startswith("tmp/partial/") else contextlib.nullcontext(True) as free:
        if not free:
            return False
        try:
            os.rename(source, place)
        except FileNotFoundError:
            return False
        return True


def _usage_of(store: Store, orphan: _Orphan, place: str) -> UsageInfo:
    return UsageInfo(
        "partial", orphan.path, disk_usage(place), orphan.changed, orphan.changed, orphan.in_use, False, ""
    )
