"""Contexts that are sent, from both sides: what an executor can ask for, and what it accepts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor import protocol
from executor.context import bundle, listing
from executor.protocol import ContextPattern, DirectoryContext, PickedFiles
from executor.registry.client import Client
from executor.rootfs.entry import Entry, Kind
from executor.solver.context_content import ContextSender
from executor.solver.lazy import Lazy
from executor.solver.lifetime import Cancellation, ScratchSpace
from executor.solver.sent_context import SentTree
from executor.store import blobs, stat_cache
from executor.store.store import Store, open_store
from orchestrator.sent_contexts import SentContexts
from platforms.errors import ContextError, ProtocolError

EVERYTHING = ContextPattern(b"/", wildcards=False)


class Items:
    """A receiver that keeps what it receives."""

    def __init__(self) -> None:
        self.found: list[bytes] = []

    def begin(self, size: int) -> None:
        self.found.append(b"")

    def write(self, data: memoryview) -> None:
        self.found[-1] += data

    def end(self) -> None:
        pass


def unpacked(data: bytes, step: int = 1 << 20) -> list[bytes]:
    items = Items()
    unpacker = bundle.BundleReader(items)
    for at in range(0, len(data), step):
        unpacker.feed(data[at : at + step])
    unpacker.finish()
    return items.found


def packed(items: list[bytes]) -> bytes:
    out = bytearray()
    packer = bundle.BundleWriter(out.extend)
    for each in items:
        packer.begin(len(each))
        packer.write(each)
    packer.finish()
    return bytes(out)


@given(st.lists(st.binary(max_size=50) | st.integers(0, 2_000_000).map(bytes), max_size=6), st.integers(1, 100_000))
def test_a_bundle_has_what_was_put_in(items: list[bytes], step: int) -> None:
    assert unpacked(packed(items), step) == items


@pytest.mark.parametrize(
    "damaged",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\xff" * 4 + data,
        lambda data: data[:4] + b"\0" + data[5:],
        lambda data: b"\0\0\0\x11" + bytes.fromhex("28b52ffd a4 00000000 00000001 0000 0000"),
    ],
    ids=["cut short", "longer", "a frame too large", "no frame", "a piece of 4 GiB"],
)
def test_a_bundle_that_is_malformed_is_refused(damaged: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ProtocolError):
        unpacked(damaged(packed([b"content"])))


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"../up", Kind.FILE), Entry(b"/root", Kind.FILE), Entry(b"a//b", Kind.FILE), Entry(b"a/.", Kind.FILE),
        Entry(b"a", Kind.WHITEOUT), Entry(b"a", Kind.HARDLINK, link=b"b"), Entry(b"a", Kind.FILE, size=-1),
        Entry(b"a", Kind.FILE, source=b"/etc/shadow"), Entry(b"a", Kind.FILE, digest="../../index.db"),
        Entry(b"a", Kind.DIRECTORY, digest="0" * 64), Entry(b"a", Kind.FILE, mode=0o10000),
    ],
)  # fmt: skip
def test_an_entry_that_no_context_has_is_refused(entry: Entry) -> None:
    with pytest.raises(ProtocolError):
        listing.decode(msgspec.msgpack.encode([entry]))


def test_a_file_more_changes_one_part_of_a_listing() -> None:
    def parts(names: list[int]) -> set[bytes]:
        entries = [Entry(b"%05d" % each, Kind.FILE) for each in names]
        return {hashlib.sha256(listing.encode(each)).digest() for each in listing.cut(entries)}

    before, after = parts([each for each in range(10_000) if each != 5000]), parts([*range(10_000)])
    assert len(before) > 10
    assert len(after - before) == 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def sent(store: Store) -> Iterator[SentContexts]:
    made = SentContexts(store)
    yield made
    made.close()


@pytest.fixture
def context(tmp_path: Path) -> DirectoryContext:
    path = tmp_path / "context"
    path.mkdir()
    (path / "file").write_text("content")
    (path / "ignored").write_text("ignored")
    (path / "out").symlink_to("../outside")
    (path / "absolute").symlink_to(tmp_path / "outside")
    (path / "hidden").symlink_to("ignored")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return DirectoryContext("", str(path), "ignored")


def listed(sent: SentContexts, context: DirectoryContext, *patterns: ContextPattern) -> tuple[str, list[Entry]]:
    """The name and the entries of a listing."""
    digests = sent.listing(context, patterns)
    name, out = hashlib.sha256(digests).hexdigest(), bytearray()
    sent.parts(context, name, range(len(digests) // 32), out.extend)
    data = unpacked(bytes(out))
    assert b"".join(hashlib.sha256(each).digest() for each in data) == digests
    return name, [entry for each in data for entry in listing.decode(each)]


@pytest.mark.parametrize(
    "path",
    [
        b"/../outside/secret", b"/out/secret", b"/absolute/secret", b"/absolute/*", b"/ignored", b"/ign*", b"/hidden",
        b"/./../../../etc/passwd", b"/file/../../outside", b"/out/../../outside/s*", b"/\0", b"/none",
    ],
)  # fmt: skip
def test_an_executor_is_told_of_nothing_outside_of_its_context(
    sent: SentContexts, context: DirectoryContext, path: bytes
) -> None:
    for pattern in (ContextPattern(path), ContextPattern(path, False), ContextPattern(b"/", True, (path[1:],))):
        try:
            _, entries = listed(sent, context, pattern)
        except ProtocolError:
            assert b".." in path or b"\0" in path or b"/./" in path
            continue
        assert {each.path for each in entries} <= {b"", b"file", b"out", b"absolute", b"hidden"}
        assert not any(each.digest for each in entries if each.path != b"file")


@pytest.mark.parametrize(
    "picked",
    [
        PickedFiles(1, b"\1"), PickedFiles(-1, b"\1"), PickedFiles(0, b"\1"), PickedFiles(0, b"\xff"),
        PickedFiles(1 << 62, b"\1"),
    ],
    ids=["no such part", "a part before the first", "a directory", "links", "far off"],
)  # fmt: skip
def test_content_is_sent_of_files_alone(sent: SentContexts, context: DirectoryContext, picked: PickedFiles) -> None:
    name, _ = listed(sent, context, EVERYTHING)
    with pytest.raises(ProtocolError):
        sent.files(context, name, (picked,), lambda _: None)


def test_a_listing_that_was_not_made_for_this_context_is_unknown(
    sent: SentContexts, context: DirectoryContext, tmp_path: Path
) -> None:
    name, _ = listed(sent, context, EVERYTHING)
    other = DirectoryContext("other", str(tmp_path / "outside"))
    assert sent.has(context, name)
    assert not sent.has(other, name)
    assert not sent.has(context, "0" * 64)


@pytest.mark.parametrize("change", ["content", "longer", "gone", "a link"])
def test_a_file_that_changes_before_it_is_sent_fails_the_build(
    sent: SentContexts, context: DirectoryContext, change: str
) -> None:
    file = Path(context.path) / "file"
    os.utime(file, (1, 1))
    os.link(file, file.with_name("second"))  # so that it is not copied, as one that was just written would be
    name, entries = listed(sent, context, EVERYTHING)
    index = [each.path for each in entries].index(b"file")
    match change:
        case "content":
            file.write_text("CONTENT")
        case "longer":
            file.write_text("content and more")
        case "gone":
            file.unlink()
        case _:
            file.unlink()
            file.symlink_to("/etc/passwd")
    with pytest.raises(ContextError, match="file"):
        sent.files(context, name, (PickedFiles(0, (1 << index).to_bytes(1, "little")),), lambda _: None)


class Pipe:
    """A conversation with an orchestrator whose answers ``change`` may falsify."""

    def __init__(self, sent: SentContexts, context: DirectoryContext) -> None:
        self._sent = sent
        self._context = context
        self.asked: list[protocol.Question] = []
        self.change: Callable[[bytes], bytes] = bytes

    def send(self, message: protocol.Message) -> None:
        pass

    def ask(self, question: protocol.AskContext) -> bytes:
        self.asked.append(question)
        return self._sent.listing(self._context, question.patterns)

    def ask_into(self, sink: Callable[[bytes], object], question: protocol.Question) -> bool:
        self.asked.append(question)
        out = bytearray()
        match question:
            case protocol.AskContextParts(_, name, parts):
                self._sent.parts(self._context, name, parts, out.extend)
            case protocol.AskContextFiles(_, name, picked):
                self._sent.files(self._context, name, picked, out.extend)
            case _:
                raise AssertionError(question)
        sink(self.change(bytes(out)))
        return True


@pytest.fixture
def pipe(sent: SentContexts, context: DirectoryContext) -> Pipe:
    return Pipe(sent, context)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "far")) as opened:
        yield opened


def no_client() -> Client:
    raise AssertionError


def tree(pipe: Pipe, far: Store) -> SentTree:
    return SentTree(
        ContextSender(
            protocol.SentContext(""),
            "build",
            cast("Any", pipe),
            far,
            Cancellation(),
            Lazy(no_client),
            ScratchSpace(far.session.temporary()),
        ),
        lambda: (),
    )


def test_a_tree_that_is_sent_looks_like_the_directory(
    pipe: Pipe, far: Store, context: DirectoryContext, tmp_path: Path
) -> None:
    for number in range(700):
        place = Path(context.path) / f"d{number % 7}" / f"e{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / str(number)).write_text(str(number))
    (Path(context.path) / "d1.file").write_text("between d1 and what is in it")
    here, there = tmp_path / "context", tree(pipe, far)
    there.expect(ContextPattern(b"/d1/e1", wildcards=False))
    there.expect(EVERYTHING)
    waiting, seen = [b""], 0
    while waiting:
        directory = waiting.pop()
        expected = sorted(os.fsencode(each) for each in os.listdir(here / os.fsdecode(directory)) if each != "ignored")
        assert there.names(directory) == expected
        for entry in there.entries(directory):
            found = (here / os.fsdecode(entry.path)).lstat()
            told = there.lstat(entry.path)
            assert told is not None
            assert (told.st_mode, entry.mtime_ns) == (found.st_mode, found.st_mtime_ns)
            assert entry == there.entry(entry.path)
            seen += 1
            if entry.kind is Kind.DIRECTORY:
                waiting.append(entry.path)
    assert seen > 700
    assert there.lstat(b"ignored") is None
    assert there.resolve(b"hidden") == b"ignored"
    files = [*there.entries(b"d1/e1")]
    there.fetch(iter(files))
    assert [Path(os.fsdecode(each.source)).read_text() for each in files] == [each.path.decode()[6:] for each in files]


def test_what_the_store_has_is_not_asked_for(pipe: Pipe, far: Store) -> None:
    for _ in range(2):
        made = tree(pipe, far)
        made.expect(EVERYTHING)
        made.fetch(made.entries(b""))
    kinds = [each.kind for each in pipe.asked]
    assert kinds == ["context", "context-parts", "context-files", "context"]


def same_size(data: bytes) -> bytes:
    """A bundle of items of the same size as in ``data`` with other content."""
    return packed([bytes(len(each)) for each in unpacked(data)])


@pytest.mark.parametrize(
    "change",
    [
        same_size,
        lambda data: packed(unpacked(data) * 2),
        lambda _: packed([]),
        lambda data: data[:-1],
        lambda data: packed([each + b"." for each in unpacked(data)]),
    ],
    ids=["another content", "more", "nothing", "cut short", "longer"],
)
@pytest.mark.parametrize("stage", ["listing", "files"])
def test_what_was_not_asked_for_is_not_kept(
    pipe: Pipe, far: Store, stage: str, change: Callable[[bytes], bytes]
) -> None:
    made = tree(pipe, far)
    if stage == "files":
        made.expect(EVERYTHING)
    pipe.change = change
    before = sorted(os.listdir(os.path.join(far.root, "blobs/sha256")))
    with pytest.raises(ProtocolError):
        if stage == "files":
            made.fetch(made.entries(b""))
        else:
            made.expect(EVERYTHING)
    for name in set(os.listdir(os.path.join(far.root, "blobs/sha256"))) - set(before):
        blobs.verify(far, f"sha256:{name}")


def test_blobs_are_found_and_added_together(far: Store) -> None:
    def put(data: bytes) -> tuple[str, blobs.StoredBlob]:
        path = far.session.temporary()
        Path(path).write_bytes(data)
        return path, blobs.StoredBlob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))

    many = [b"%d" % each for each in range(1200)]
    made = [put(each) for each in many]
    blobs.adopt_all(far, made)
    blobs.adopt_all(far, [put(many[0])])
    digests = [blob.digest for _, blob in made]
    os.truncate(blobs.path(far, digests[3]), 0)
    os.unlink(blobs.path(far, digests[4]))
    found = blobs.find_all(far, [*digests, "sha256:" + "0" * 64])
    assert found == set(digests) - {digests[3], digests[4]}
    assert blobs.read(far, digests[700], 10) == b"700"
    assert blobs.find(far, digests[3]) is None


def test_a_listing_of_unchanged_files_is_known_without_looking_them_up(
    store: Store, context: DirectoryContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = stat_cache.now() + 10_000_000_000  # so that no file has just been written
    monkeypatch.setattr(stat_cache, "now", lambda: now)
    filled: list[object] = []
    fill = SentContexts._fill
    monkeypatch.setattr(SentContexts, "_fill", lambda *given: filled.append(given) or fill(*given))

    def digests(change: str = "") -> bytes:
        if change:
            (Path(context.path) / "file").write_text(change)
        made = SentContexts(store)
        try:
            return made.listing(context, (EVERYTHING,))
        finally:
            made.close()

    first = digests()
    assert (digests(), len(filled)) == (first, 1)
    assert digests("another content") != first
    assert len(filled) == 2


def test_files_that_change_after_their_listing_was_known_fail_the_build(
    store: Store, context: DirectoryContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = stat_cache.now() + 10_000_000_000
    monkeypatch.setattr(stat_cache, "now", lambda: now)
    for change in ("", "another content"):
        made = SentContexts(store)
        try:
            name = hashlib.sha256(made.listing(context, (EVERYTHING,))).hexdigest()
            if change:
                (Path(context.path) / "file").write_text(change)
                with pytest.raises(ContextError, match="changed"):
                    made.parts(context, name, (0,), lambda _: None)
        finally:
            made.close()
