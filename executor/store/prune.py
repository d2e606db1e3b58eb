"""What the store holds, and making it hold less.

``usage`` lists; ``prune`` removes garbage always, and beyond that the least recently used rows that were asked for.
What a living process uses is never touched. The decision falls under the gate and in one transaction; what was
condemned is renamed away before the gate opens again, and deleted after.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from executor.store import cachemounts, leases, records, snapshots
from executor.store.faults import translated
from executor.store.leases import flocked, gate
from executor.store.ownership import is_plain
from executor.store.removal import disk_usage, remove_tree
from executor.store.store import put_by, spend
from platforms import durations
from platforms.errors import UsageError
from platforms.paths import below

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator

    from executor.store.store import Store

    Matcher = Callable[["Row", float], bool]

_DAY: Final = 86400.0
_PARTIAL_SECONDS: Final = _DAY
"""How long an interrupted download is kept to be resumed, and a damaged index to be looked at."""
FORGET_SECONDS: Final = 60 * _DAY
"""Known files and facts are forgotten this long after they were learnt; learning them again is cheap."""
_KINDS: Final = ("blob", "snapshot", "record", "cache-mount", "partial")
_FOREIGN_KINDS: Final = {"regular": ("blob", "snapshot", "record"), "exec.cachemount": ("cache-mount",)}
"""What BuildKit calls these (client/diskusage.go)."""


class Row(msgspec.Struct, frozen=True):
    """One thing in the store. Sizes in bytes, times in seconds since the epoch."""

    kind: str
    """``blob``, ``snapshot``, ``record``, ``cache-mount``, or ``partial``: in the making, or garbage."""
    id: str
    """Digest, snapshot number, record key, cache id; of a ``partial`` the path below the store's root."""
    size: int
    created: float
    last_used: float
    in_use: bool
    """Whether a living process has leased it."""
    shared: bool
    """Whether more than one cache record refers to it."""
    description: str


class Pruned(msgspec.Struct, frozen=True):
    """What ``prune`` has removed: ``freed`` is the sum of the sizes of ``removed``, in bytes."""

    freed: int
    removed: tuple[Row, ...]


class _Stray(msgspec.Struct, frozen=True):
    """A path of the store that no row tells of."""

    path: str
    in_use: bool
    kept_until: float
    changed: float


def usage(store: Store, filters: Iterable[str] = ()) -> tuple[Row, ...]:
    """Everything that takes space and matches all of ``filters`` (see ``parse_filter``), least recently used first."""
    matchers, now = tuple(parse_filter(each) for each in filters), store.clock()
    with translated(store.root, f"cannot list the store {store.root}"):
        with flocked(gate(store.root), exclusive=True):
            tokens, things = leases.live(store.root)
            rows = store.index.read(lambda db: _indexed(db, things))
            strays = tuple(_strays(store, tokens, things))
        rows += [replace(row, in_use=_thing(row) in things) for row in _cache_mounts(store)]
        rows += [_measured(store, each, _of(store, each.path)) for each in strays]
    return tuple(sorted((row for row in rows if _all_match(matchers, row, now)), key=_by_use))


def prune(
    store: Store,
    *,
    keep_storage: int | None = None,
    older_than: float | None = None,
    filters: Iterable[str] = (),
    all: bool = False,  # noqa: A002
) -> Pruned:
    """Remove garbage, and rows that are not in use.

    Which rows: those last used more than ``older_than`` seconds ago that match all of ``filters`` (see
    ``parse_filter``); of these, the least recently used ones until the store holds at most ``keep_storage`` bytes.
    When none of the three is given, ``all`` says whether that means every row or none; with ``all``, remembered
    facts and known files go, too. Together with a snapshot or blob go the cache records that need it.

    Raises ``UsageError`` for a filter that makes no sense, ``StoreError`` when something could not be removed.
    """
    matchers = tuple(parse_filter(each) for each in filters)
    only_garbage = not (all or matchers) and keep_storage is None and older_than is None
    now = store.clock()

    def choose(rows: list[Row]) -> Iterator[Row]:
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


def sweep(store: Store, choose: Callable[[list[Row]], Iterable[Row]], learnt_before: float) -> Pruned:
    """Remove garbage, and what ``choose`` takes of all rows, least recently used first; it must take none in use.

    Facts and known files go that were learnt before ``learnt_before`` (seconds since the epoch). Raises ``StoreError``.
    """
    now = store.clock()

    def condemn(db: sqlite3.Connection) -> list[Row]:
        mounts = [replace(row, in_use=_thing(row) in things) for row in measured]
        chosen = [*choose([*_indexed(db, things), *mounts])]
        _delete(db, chosen)
        chosen += _unreachable(db, store.boot, things)
        db.execute("DELETE FROM files WHERE created<=?", (learnt_before,))
        db.execute("DELETE FROM facts WHERE created<=?", (learnt_before,))
        return chosen

    with translated(store.root, f"cannot prune the store {store.root}"):
        spend(store.root)  # on a full disk, removing takes a little space first
        trash = store.session.temporary()
        os.mkdir(trash, 0o700)
        measured = _measured_mounts(store)  # may walk trees, so not under the gate
        with flocked(gate(store.root), exclusive=True):
            tokens, things = leases.live(store.root)
            removed = store.index.write(condemn)
            for number, row in enumerate(removed):
                if place := _place(store, row):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(place, below(trash, str(number)))
            moved: list[tuple[_Stray, str]] = []
            for stray in _strays(store, tokens, things):
                place = below(trash, f"stray-{len(moved)}")
                if not stray.in_use and stray.kept_until < now and _take(store, stray, place):
                    moved.append((stray, place))
            leases.bury(store.root)
        removed += [_measured(store, stray, place) for stray, place in moved]
        remove_tree(trash)
        with contextlib.suppress(OSError):  # the disk may still be full
            put_by(store.root)
    return Pruned(sum(row.size for row in removed), tuple(removed))


def parse_filter(text: str) -> Matcher:
    """A condition on rows, as ``buildx prune --filter`` writes them.

    ``type=blob`` (or ``kind=``; BuildKit's ``regular`` and ``exec.cachemount`` are understood), ``id=…``,
    ``description=…``, ``inuse=true``, ``shared=false``, ``until=24h`` (not used for that long; units s, m, h, d, w).
    For texts there are ``!=`` and, contained in, ``~=``; ``inuse``, ``shared`` and its contrary ``private`` alone mean
    true.
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
    """Seconds in ``text``: numbers with units s, m, h, d, w, as in ``90m``, ``1h30m`` or ``7d``."""
    found = durations.age(text)
    if found is None:
        raise UsageError(
            f"not a duration: {text!r}", why="a number and a unit are expected", remedy="write 90m, 24h or 7d"
        )
    return found


def _kind_filter(operator: str, value: str) -> Matcher:
    kinds = _FOREIGN_KINDS.get(value, (value,))
    if not set(kinds) <= set(_KINDS):
        raise UsageError(
            f"nothing is of the kind {value!r}",
            remedy=f"use {', '.join(_KINDS)}, or BuildKit's {' or '.join(_FOREIGN_KINDS)}",
        )
    return lambda row, _: (row.kind in kinds) is (operator != "!=")


def _text_filter(field: str, operator: str, value: str) -> Matcher:
    if operator == "!=":
        return lambda row, _: getattr(row, field) != value
    if operator == "~=":
        return lambda row, _: value in getattr(row, field)
    return lambda row, _: getattr(row, field) == value


def _all_match(matchers: tuple[Matcher, ...], row: Row, now: float) -> bool:
    return all(each(row, now) for each in matchers)


def _by_use(row: Row) -> tuple[float, float]:
    return row.last_used, row.created


def _thing(row: Row) -> str:
    """What a lease calls the row."""
    match row.kind:
        case "blob":
            return f"b{row.id}"
        case "snapshot":
            return f"s{row.id}"
        case _:
            return cachemounts.lease(row.id)


def _place(store: Store, row: Row) -> str:
    """Where the row's files are; "" for a record, which has none."""
    match row.kind:
        case "blob":
            return below(store.root, "blobs", *row.id.split(":"))
        case "snapshot":
            return below(store.root, "snapshots", row.id)
        case "cache-mount":
            return cachemounts.top(store, row.id)
        case _:
            return ""


def _indexed(db: sqlite3.Connection, things: frozenset[str]) -> list[Row]:
    """The rows of the index."""
    needed_by: dict[str, int] = {}
    in_use: set[str] = set()
    for record, thing in db.execute("SELECT record, thing FROM refs"):
        needed_by[thing] = needed_by.get(thing, 0) + 1
        if thing in things:
            in_use.add(record)
    rows = []
    for digest, size, created, used in db.execute("SELECT digest, size, created, used FROM blobs"):
        thing = f"b{digest}"
        rows.append(Row("blob", digest, size, created, used, thing in things, needed_by.get(thing, 0) > 1, ""))
    query = "SELECT number, size, created, used, description FROM snapshots"
    for number, size, created, used, description in db.execute(query):
        thing = f"s{number}"
        shared = needed_by.get(thing, 0) > 1
        rows.append(Row("snapshot", str(number), size, created, used, thing in things, shared, description))
    query = "SELECT key, length(value), created, used, description FROM records"
    for key, size, created, used, description in db.execute(query):
        rows.append(Row("record", key, size, created, used, key in in_use, False, description))
    return rows


def _cache_mounts(store: Store) -> list[Row]:
    return [
        Row("cache-mount", each.id, disk_usage(each.path), each.created, each.last_used, False, False, "")
        for each in cachemounts.listed(store)
    ]


def _measured_mounts(store: Store) -> list[Row]:
    """The same, by what they had when they were measured, if nobody has used them since."""
    rows = []
    for each in cachemounts.listed(store):
        size = each.size if each.measured > each.last_used else cachemounts.measure(store, each)
        rows.append(Row("cache-mount", each.id, size, each.created, each.last_used, False, False, ""))
    return rows


def _unreachable(db: sqlite3.Connection, boot: str, things: frozenset[str]) -> list[Row]:
    """Delete, and tell, rows that nobody can find any more."""
    garbage = [
        row
        for row in _indexed(db, things)
        if row.kind == "snapshot" and not row.in_use and not _reachable(db, boot, int(row.id))
    ]
    _delete(db, garbage)
    dangling = records.dangling(db, boot)
    lost = [row for row in _indexed(db, things) if row.kind == "record" and row.id in dangling]
    _delete(db, lost)
    return garbage + lost


def _reachable(db: sqlite3.Connection, boot: str, number: int) -> bool:
    """Whether the snapshot ``number`` is valid in this boot, and has a name or a record that leads to it."""
    found = db.execute(
        "SELECT 1 FROM snapshots WHERE number=?1 AND (boot IS NULL OR boot=?2) AND ("
        "EXISTS(SELECT 1 FROM names WHERE snapshot=?1) OR EXISTS(SELECT 1 FROM refs WHERE thing='s' || ?1))",
        (number, boot),
    ).fetchone()
    return found is not None


def _delete(db: sqlite3.Connection, rows: Iterable[Row]) -> None:
    for row in rows:
        match row.kind:
            case "blob":
                db.execute("DELETE FROM blobs WHERE digest=?", (row.id,))
            case "snapshot":
                snapshots.drop_row(db, int(row.id))
            case "record":
                records.drop_row(db, row.id)


def _strays(store: Store, tokens: frozenset[str], things: frozenset[str]) -> Iterator[_Stray]:
    """All paths that no row tells of: drafts, temporary files, downloads, and what the dead have left."""
    known = store.index.read(lambda db: _indexed(db, things))
    digests = {row.id for row in known if row.kind == "blob"}
    numbers = {row.id for row in known if row.kind == "snapshot"}
    for algorithm in _names(store, "blobs"):
        if not is_plain(below(store.root, "blobs"), algorithm):
            yield from _stray(store, f"blobs/{algorithm}", False)
            continue
        for name in _names(store, f"blobs/{algorithm}"):
            digest = f"{algorithm}:{name}"
            if digest not in digests:
                yield from _stray(store, f"blobs/{algorithm}/{name}", f"b{digest}" in things)
    for name in _names(store, "snapshots"):
        if name not in numbers:
            yield from _stray(store, f"snapshots/{name}", f"s{name}" in things)
    mounts = {os.path.basename(each.path) for each in cachemounts.listed(store)}
    for name in _names(store, "cache"):
        if name not in mounts:
            yield from _stray(store, f"cache/{name}", f"c{name}" in things)
    for name in _names(store, "tmp"):
        if name != "partial":
            yield from _stray(store, f"tmp/{name}", name.partition(".")[0] in tokens)
    for name in _names(store, "tmp/partial"):
        yield from _stray(store, f"tmp/partial/{name}", _is_locked(store, name), _PARTIAL_SECONDS)
    index = os.path.basename(os.path.realpath(os.path.join(store.root, "index.db")))
    for name in _names(store):
        if name.startswith(("index.db.corrupt-", "index-")) and not name.startswith(index):
            yield from _stray(store, name, False, _PARTIAL_SECONDS)


def _of(store: Store, path: str) -> str:
    return below(store.root, *path.split("/"))


def _names(store: Store, folder: str = "") -> list[str]:
    return sorted(os.listdir(_of(store, folder) if folder else store.root))


def _stray(store: Store, path: str, in_use: bool, kept: float = 0.0) -> Iterator[_Stray]:
    with contextlib.suppress(FileNotFoundError):
        changed = os.lstat(_of(store, path)).st_mtime
        yield _Stray(path, in_use, changed + kept if kept else 0.0, changed)


def _is_locked(store: Store, name: str) -> bool:
    with _locked(below(store.root, "tmp", "partial", name)) as free:
        return not free


@contextmanager
def _locked(path: str) -> Iterator[bool]:
    """Keep others from taking up the download ``path`` during the block; False when somebody has, or it is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _take(store: Store, stray: _Stray, place: str) -> bool:
    """Move ``stray`` to ``place``; False when it is gone, or a download that has been taken up again."""
    source = _of(store, stray.path)
    with _locked(source) if stray.path.startswith("tmp/partial/") else contextlib.nullcontext(True) as free:
        if not free:
            return False
        try:
            os.rename(source, place)
        except FileNotFoundError:
            return False
        return True


def _measured(store: Store, stray: _Stray, place: str) -> Row:
    return Row("partial", stray.path, disk_usage(place), stray.changed, stray.changed, stray.in_use, False, "")
