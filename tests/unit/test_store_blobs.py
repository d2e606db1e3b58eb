"""Blobs: whole or absent, verified on the way in and on the way out."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.store import blobs
from executor.store.store import Store, open_store
from platforms.errors import ArchiveError, StoreError

DATA = bytes(range(256)) * 20_000
"""5,120,000 bytes: more than one piece of any buffer."""


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path)) as opened:
        yield opened


def add(store: Store, data: bytes) -> str:
    with blobs.ingest(store) as ingest:
        ingest.write(data)
        return ingest.commit().digest


def flip(path: str, at: int) -> None:
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def leftovers(store: Store) -> list[str]:
    return [name for _, _, names in os.walk(os.path.join(store.root, "tmp")) for name in names]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("data", [b"", b"small", DATA])
def test_what_was_committed_can_be_read(store: Store, data: bytes, algorithm: str) -> None:
    name = digest(data, algorithm)
    assert not blobs.has(store, name)
    with blobs.ingest(store, name) as ingest:
        ingest.write(data)
        assert not blobs.has(store, name)
        assert ingest.commit() == blobs.StoredBlob(name, len(data))
    assert blobs.has(store, name)
    assert blobs.size(store, name) == len(data)
    assert blobs.read(store, name, len(data)) == data
    with blobs.open(store, name) as file:
        assert file.read() == data
    assert leftovers(store) == []


def test_without_a_digest_it_is_computed(store: Store) -> None:
    assert add(store, DATA) == digest(DATA)


def test_what_is_written_past_the_ingest_is_hashed_too(store: Store) -> None:
    with blobs.ingest(store) as ingest:
        ingest.write(b"head ")
        os.write(ingest.fileno(), b"and tail")
        assert ingest.commit() == blobs.StoredBlob(digest(b"head and tail"), 13)


def test_without_commit_nothing_appears(store: Store) -> None:
    with blobs.ingest(store) as ingest:
        ingest.write(DATA)
    assert not blobs.has(store, digest(DATA))
    assert leftovers(store) == []


def test_content_that_is_not_what_its_digest_says_is_refused_and_deleted(store: Store) -> None:
    with blobs.ingest(store, digest(b"this")) as ingest, pytest.raises(ArchiveError) as caught:
        ingest.write(b"that")
        ingest.commit()
    assert digest(b"this") in str(caught.value)
    assert digest(b"that") in str(caught.value)
    assert caught.value.problem.remedy
    assert not blobs.has(store, digest(b"this"))
    assert not blobs.has(store, digest(b"that"))
    assert leftovers(store) == []


@pytest.mark.parametrize("name", ["", "sha256:", "sha256:../../etc/passwd", "md5:" + "0" * 32, "sha256:" + "A" * 64])
def test_what_is_not_a_digest_never_becomes_a_path(store: Store, name: str) -> None:
    with pytest.raises(ArchiveError):
        blobs.path(store, name)
    with pytest.raises(ArchiveError):
        blobs.ingest(store, name)


def test_an_interrupted_download_is_resumed(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), blobs.ingest(store, digest(DATA)) as ingest:
        assert ingest.resume_offset == 0
        ingest.write(DATA[:1000])
        raise ConnectionError
    with open_store(str(tmp_path)) as other, blobs.resume(other, digest(DATA)) as ingest:
        assert ingest.resume_offset == 1000
        ingest.write(DATA[1000:])
        ingest.commit()
    assert blobs.read(store, digest(DATA), len(DATA)) == DATA


def test_a_download_that_cannot_be_resumed_is_restarted(store: Store) -> None:
    with blobs.ingest(store, digest(DATA)) as ingest:
        ingest.write(b"what an earlier attempt has got")
    with blobs.resume(store, digest(DATA)) as ingest:
        assert ingest.resume_offset > 0
        ingest.restart()
        assert ingest.size == 0
        ingest.write(DATA)
        ingest.commit()
    assert blobs.has(store, digest(DATA))


def test_a_damaged_part_is_not_resumed_twice(store: Store) -> None:
    with blobs.ingest(store, digest(DATA)) as ingest:
        ingest.write(b"wrong")
    with blobs.resume(store, digest(DATA)) as ingest, pytest.raises(ArchiveError):
        ingest.write(DATA[ingest.resume_offset :])
        ingest.commit()
    with blobs.resume(store, digest(DATA)) as ingest:
        assert ingest.resume_offset == 0


def test_who_does_not_resume_begins_at_the_beginning(store: Store) -> None:
    with blobs.ingest(store, digest(DATA)) as ingest:
        ingest.write(b"what an interrupted attempt has left")
    with blobs.ingest(store, digest(DATA)) as ingest:
        ingest.write(DATA)
        ingest.commit()
    assert blobs.read(store, digest(DATA), len(DATA)) == DATA


def test_two_downloads_of_one_blob_do_not_mix(store: Store) -> None:
    with blobs.ingest(store, digest(DATA)) as first, blobs.ingest(store, digest(DATA)) as second:
        assert first.path != second.path
        first.write(DATA[:7])
        second.write(DATA)
        second.commit()
        first.write(DATA[7:])
        first.commit()
    assert blobs.read(store, digest(DATA), len(DATA)) == DATA
    assert leftovers(store) == []


def test_a_blob_that_is_here_stays_as_it_is(store: Store) -> None:
    name = add(store, DATA)
    before = os.stat(blobs.path(store, name)).st_ino
    assert add(store, DATA) == name
    assert os.stat(blobs.path(store, name)).st_ino == before
    assert leftovers(store) == []


def test_a_file_made_elsewhere_is_adopted(store: Store) -> None:
    temporary = store.session.temporary()
    Path(temporary).write_bytes(DATA)
    assert blobs.adopt(store, temporary, digest(DATA), len(DATA)) == blobs.StoredBlob(digest(DATA), len(DATA))
    assert not os.path.exists(temporary)
    assert blobs.read(store, digest(DATA), len(DATA)) == DATA


def test_a_file_of_another_size_is_not_adopted(store: Store) -> None:
    temporary = store.session.temporary()
    Path(temporary).write_bytes(DATA[:-1])
    with pytest.raises(StoreError):
        blobs.adopt(store, temporary, digest(DATA), len(DATA))
    assert not blobs.has(store, digest(DATA))


@pytest.mark.parametrize("at", [0, 1, len(DATA) // 2, len(DATA) - 1])
def test_a_flipped_bit_is_found_before_the_last_byte_is_handed_out(store: Store, at: int) -> None:
    name = add(store, DATA)
    flip(blobs.path(store, name), at)
    received = io.BytesIO()
    with blobs.open(store, name) as file, pytest.raises(StoreError) as caught:
        while piece := file.read(1 << 16):
            received.write(piece)
    assert received.tell() < len(DATA)
    assert "damaged" in caught.value.problem.what
    assert caught.value.problem.remedy
    assert not blobs.has(store, name)
    assert add(store, DATA) == name
    assert blobs.read(store, name, len(DATA)) == DATA


def test_read_finds_a_flipped_bit(store: Store) -> None:
    name = add(store, b"small")
    flip(blobs.path(store, name), 2)
    with pytest.raises(StoreError):
        blobs.read(store, name, 100)
    assert not blobs.has(store, name)


def test_reading_can_begin_anew_and_still_verifies(store: Store) -> None:
    name = add(store, DATA)
    with blobs.open(store, name) as file:
        assert file.read(10) == DATA[:10]
        assert file.seek(1000) == 1000
        assert file.read(10) == DATA[1000:1010]
        file.seek(0)
        assert file.read() == DATA
    flip(blobs.path(store, name), 5000)
    with blobs.open(store, name) as file, pytest.raises(StoreError):
        file.read(10)
        file.seek(0)
        file.read()


@pytest.mark.parametrize("change", [b"", DATA[:-1], DATA + b"x"])
def test_a_file_of_the_wrong_length_is_no_blob(store: Store, change: bytes) -> None:
    name = add(store, DATA)
    os.chmod(blobs.path(store, name), 0o600)
    Path(blobs.path(store, name)).write_bytes(change)
    assert not blobs.has(store, name)


def test_a_file_without_a_row_is_no_blob(store: Store) -> None:
    Path(blobs.path(store, digest(DATA))).write_bytes(DATA)
    assert not blobs.has(store, digest(DATA))
    assert add(store, DATA) == digest(DATA)


def test_a_blob_that_is_not_here_is_one_clear_error(store: Store) -> None:
    for use in (blobs.size, blobs.open, lambda *both: blobs.read(*both, 1)):
        with pytest.raises(StoreError) as caught:
            use(store, digest(DATA))
        assert digest(DATA) in str(caught.value)


def test_more_than_the_limit_is_not_read(store: Store) -> None:
    with pytest.raises(StoreError, match="too large"):
        blobs.read(store, add(store, b"12345"), 4)
