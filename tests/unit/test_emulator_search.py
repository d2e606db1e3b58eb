"""Looking for a file in layers from the uppermost down finds what merging all of them would have."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from oci_layout import merge

from executor.emulator_image import _Search

NAME = "qemu-test"
PATH = f"usr/bin/{NAME}"
DIRECTORIES = ("usr", "usr/bin")
HIDING = (f"usr/bin/.wh.{NAME}", "usr/bin/.wh..wh..opq", "usr/.wh..wh..opq", "usr/.wh.bin", ".wh.usr", ".wh..wh..opq")
IRRELEVANT = ("usr/.wh.lib", ".wh.bin", f"usr/.wh.{NAME}", f"bin/{NAME}", f"usr/bin/{NAME}-static", "usr/lib/x")

Layer = tuple[str, bytes]
"""What a layer has: a path, and the content of a file that is there."""

layers = some.lists(
    some.one_of(
        some.tuples(some.just(PATH), some.binary(max_size=8)),
        some.tuples(some.sampled_from(HIDING), some.just(b"")),
        some.tuples(some.sampled_from(IRRELEVANT), some.just(b"x")),
        some.tuples(some.just("usr/bin"), some.just(b"a file")),
    ),
    min_size=1,
    max_size=5,
)


def tar(path: str, content: bytes) -> bytes:
    """Pack a file with the directories that it is in, which are made anew if something had deleted them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for directory in DIRECTORIES:
            if path.startswith(f"{directory}/") and ".wh." not in path:
                entry = tarfile.TarInfo(directory)
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
        entry = tarfile.TarInfo(path)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def searched(archives: Sequence[bytes], directory: Path) -> bytes | None:
    """Return the content that is found; None if there is none."""
    search = _Search((NAME,), str(directory))
    for each in reversed(archives):
        search.read(iter((each[:700], each[700:])))
        if search.found():
            return (directory / NAME).read_bytes()
        if search.settled:
            break
    return None


@given(layers)
def test_it_is_what_the_merged_layers_have(chosen: list[Layer]) -> None:
    archives = [tar("usr/bin/first", b""), *(tar(*each) for each in chosen)]
    tree = {}  # type: ignore[var-annotated]
    for each in archives:
        merge(tree, each)
    with tempfile.TemporaryDirectory() as directory:
        found = searched(archives, Path(directory))
    assert found == (tree[PATH].content if PATH in tree else None)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_file_beside_its_own_whiteout_is_there(order: tuple[int, int], tmp_path: Path) -> None:
    """A whiteout hides what lower layers have (image-spec layer.md), whatever comes first in the archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path in [(PATH, HIDING[0])[each] for each in order]:
            entry = tarfile.TarInfo(path)
            entry.size = 4 if path == PATH else 0
            archive.addfile(entry, io.BytesIO(b"here"[: entry.size]))
    assert searched([tar(PATH, b"lower"), out.getvalue()], tmp_path) == b"here"
