"""Attack 38 (CVE-2025-62518): where two readers disagree on a size, an archive can hide another one inside of a file.

What we accept is what GNU tar and Go's archive/tar read, where they accept it too; the rest is refused.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest
import raw_tar as raw
import tar_oracles

from executor.rootfs import tarreader
from executor.rootfs.entry import Kind
from executor.snapshotter.unpack import UnpackLimits, extract
from platforms.errors import ArchiveError

SMUGGLED = raw.file(b"smuggled", b"evil") + raw.END
"""An archive that a reader with the wrong size would take for entries of the outer one."""

CASES: dict[str, tuple[bytes, ...]] = {
    "pax size, header size 0": (raw.pax((b"size", b"%d" % len(SMUGGLED))), raw.header(b"f"), SMUGGLED),
    "pax size 0, header size": (raw.pax((b"size", b"0")), raw.header(b"f", size=len(SMUGGLED)), SMUGGLED),
    "pax size smaller": (raw.pax((b"size", b"5")), raw.header(b"f", size=len(SMUGGLED)), raw.padded(b"hello")),
    "pax size twice": (raw.pax((b"size", b"0"), (b"size", b"%d" % len(SMUGGLED))), raw.header(b"f"), SMUGGLED),
    "pax size empty": (raw.pax((b"size", b"")), raw.header(b"f", size=5), raw.padded(b"hello")),
    "pax size over a gnu name": (
        raw.pax((b"size", b"%d" % len(SMUGGLED))),
        raw.long_name(b"n" * 200),
        raw.header(b"f"),
        SMUGGLED,
    ),
    "global size": (raw.pax((b"size", b"%d" % len(SMUGGLED)), kind=b"g"), raw.header(b"f"), SMUGGLED),
    "directory with data": (raw.header(b"d/", raw.DIRECTORY, size=len(SMUGGLED)), SMUGGLED),
    "directory with pax data": (
        raw.pax((b"size", b"%d" % len(SMUGGLED))),
        raw.header(b"d/", raw.DIRECTORY),
        SMUGGLED,
    ),
    "symbolic link with data": (raw.header(b"l", raw.SYMLINK, link=b"x", size=len(SMUGGLED)), SMUGGLED),
    "hard link with data": (raw.file(b"f"), raw.header(b"h", raw.HARDLINK, link=b"f", size=len(SMUGGLED)), SMUGGLED),
    "hard link with pax data": (
        raw.file(b"f"),
        raw.pax((b"size", b"%d" % len(SMUGGLED))),
        raw.header(b"h", raw.HARDLINK, link=b"f"),
        SMUGGLED,
    ),
    "fifo with data": (raw.header(b"p", raw.FIFO, size=len(SMUGGLED)), SMUGGLED),
    "file with a slash": (raw.header(b"f/", size=len(SMUGGLED)), SMUGGLED),
    "old file with a slash": (raw.header(b"f/", b"\0", size=len(SMUGGLED), magic=b""), SMUGGLED),
    "base 256 size": (raw.header(b"f", size=b"\x80" + len(SMUGGLED).to_bytes(11, "big")), SMUGGLED),
    "negative size": (raw.header(b"f", size=b"\xff" * 11 + b"\0"), SMUGGLED),
    "blanks around the size": (raw.header(b"f", size=b"  12  "), raw.padded(b"ten bytes!")),
    "size with a nul inside": (raw.header(b"f", size=b"12\x00777"), raw.padded(b"ten bytes!")),
    "two names": (raw.long_name(b"one"), raw.pax((b"path", b"two")), raw.file(b"three", b"x")),
    "a name with a nul": (raw.pax((b"path", b"one\0two")), raw.file(b"three", b"x")),
    "prefix in a gnu archive": (raw.header(b"f", magic=b"ustar  \0", prefix=b"dir"),),
    "sparse file": (
        raw.pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")),
        raw.file(b"f", raw.padded(b"1\n4\n5\n") + b"hello"),
    ),
    "sparse map longer than the data": (
        raw.pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")),
        raw.file(b"f", raw.padded(b"1\n0\n9\n") + b"hello"),
        raw.file(b"next", b"x"),
    ),
    "lone zero block": (raw.file(b"f", b"x"), bytes(512), raw.file(b"hidden", b"x")),
    "behind the end": (raw.file(b"f", b"x"), raw.END, raw.file(b"hidden", b"x")),
    "global comment": (raw.pax((b"comment", b"x"), kind=b"g"), raw.file(b"f", b"x")),
    "volume label": (raw.header(b"label", b"V"), raw.file(b"f", b"x")),
    "contiguous file": (raw.header(b"f", b"7", size=5), raw.padded(b"hello")),
}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    return tar_oracles.build_go(tmp_path_factory.mktemp("oracle"))


def ours(data: bytes) -> tar_oracles.Listing | None:
    """What we find; None when we refuse."""
    names = {Kind.FILE: "file", Kind.DIRECTORY: "dir", Kind.SYMLINK: "sym", Kind.HARDLINK: "hard"}
    found: tar_oracles.Listing = []
    try:
        for member in tarreader.read(raw.stream(data, end=b"")):
            entry = member.entry
            detail = entry.link.decode("latin-1")
            if entry.kind is Kind.FILE:
                hash_ = hashlib.sha256()
                member.copy(hash_.update)
                detail = hash_.hexdigest()
            found.append((names.get(entry.kind, "other"), entry.path, detail))
    except ArchiveError:
        return None
    return found


def normal(listing: tar_oracles.Listing) -> tar_oracles.Listing:
    """``listing`` with names and hard links' targets cleaned, as we clean them."""
    return [
        (kind, tarreader.clean(path), tarreader.clean(detail.encode("latin-1")).decode("latin-1"))
        if kind == "hard"
        else (kind, tarreader.clean(path), detail)
        for kind, path, detail in listing
        if kind != "other" or path != b"label"
    ]


def compare(folder: Path, oracle: Path | None, archives: dict[str, bytes]) -> tuple[int, int]:
    """Ask all readers about ``archives``; how many we took, and how many of those the oracles took too."""
    taken = {name: listing for name, data in archives.items() if (listing := ours(data)) is not None}
    paths = {}
    for number, name in enumerate(taken):
        paths[name] = folder / f"{number}.tar"
        paths[name].write_bytes(archives[name])
    agreed = 0
    theirs = dict(zip(taken, tar_oracles.go(oracle, list(paths.values())), strict=True)) if oracle is not None else {}
    for name, listing in taken.items():
        said = theirs.get(name)
        if said is not None:
            assert normal(said) == listing, f"Go reads {name} otherwise"
            agreed += 1
        if shutil.which("tar") is None:
            continue
        extracted = tar_oracles.gnu(paths[name], folder / f"{name}.gnu")
        mine = folder / f"{name}.ours"
        mine.mkdir()
        try:
            extract(raw.stream(archives[name], end=b""), str(mine), limits=UnpackLimits())
        except ArchiveError:
            continue
        if extracted is not None:
            assert tar_oracles.tree(mine) == extracted, f"GNU tar reads {name} otherwise"
            agreed += 1
    return len(taken), agreed


def test_every_case_is_read_alike_or_refused(tmp_path: Path, oracle: Path | None) -> None:
    if oracle is None and shutil.which("tar") is None:
        pytest.skip("neither GNU tar nor Go is installed")
    archives = {name.replace(" ", "-"): b"".join(parts) + raw.END for name, parts in CASES.items()}
    taken, agreed = compare(tmp_path, oracle, archives)
    assert taken >= 8, "some of them are honest archives"
    assert agreed >= (taken if oracle is not None else 8), "GNU tar alone refuses more than Go does"


@pytest.mark.parametrize("case", ["pax size, header size 0", "base 256 size", "pax size twice"])
def test_a_files_size_is_one_size(case: str) -> None:
    (kind, path, digest), *others = ours(b"".join(CASES[case]) + raw.END) or [("", b"", "")]
    assert (kind, path, others) == ("file", b"f", [])
    assert digest == hashlib.sha256(SMUGGLED).hexdigest()


@pytest.mark.parametrize(
    "case",
    ["directory with data", "directory with pax data", "symbolic link with data", "hard link with pax data",
     "fifo with data", "file with a slash", "global size", "negative size", "two names", "lone zero block",
     "sparse map longer than the data"],
)  # fmt: skip
def test_what_readers_disagree_on_is_refused(case: str) -> None:
    assert ours(b"".join(CASES[case]) + raw.END) is None


def mutated(source: random.Random) -> bytes:
    """An honest archive with a few fields changed and the checksums made good again."""
    size = source.choice([0, 5, 511, 512, 513, 1024])
    headers = []
    for number in range(3):
        name = source.choice([b"f%d", b"d/f%d", b"./f%d", b"f%d/", b"x" * 99 + b"%d", b"a/../f%d"]) % number
        block = bytearray(
            raw.header(
                name,
                source.choice([b"0", b"0", b"0", b"\0", b"5", b"2", b"1", b"7", b"6"]),
                size=source.choice(
                    [size, size, b"%011o " % size, b" %o" % size, b"\x80" + size.to_bytes(11, "big"), 0]
                ),
                link=source.choice([b"", b"f0", b"d/f0", b"elsewhere"]),
                magic=source.choice([b"ustar\x0000", b"ustar\x0000", b"ustar  \0", b"", b"ustar\0  "]),
                prefix=source.choice([b"", b"", b"p", b"p/q/"]),
            )
        )
        records = [
            each
            for each in (
                (b"size", b"%d" % source.choice([size, size + 512, 0])),
                (b"path", source.choice([b"pax%d" % number, b"pax%d/" % number, b"p" * 150, "ü".encode()])),
                (b"linkpath", b"f0"),
                (b"mtime", b"1.5"),
                (b"GNU.sparse.name", b"sparse"),
            )
            if source.random() < 0.15
        ]
        before = raw.pax(*records) if records else b""
        if source.random() < 0.15:
            before = source.choice([raw.long_name(b"gnu%d" % number), raw.long_name(b"f0", b"K"), before + before])
        if source.random() < 0.2:
            block[source.randrange(512)] = source.randrange(128)
        content = source.choice([size, size, 0])
        data = SMUGGLED[:content] if source.random() < 0.3 else b"c" * content
        headers.append(before + raw.sealed(bytes(block)) + raw.padded(data))
    return b"".join(headers) + raw.END


def test_mutations_are_read_alike_or_refused(tmp_path: Path, oracle: Path | None) -> None:
    if oracle is None and shutil.which("tar") is None:
        pytest.skip("neither GNU tar nor Go is installed")
    source = random.Random(62518)
    taken, agreed = compare(tmp_path, oracle, {f"m{number}": mutated(source) for number in range(600)})
    assert taken > 30
    assert agreed > (30 if oracle is not None else 8)
