"""OCI layouts: directories that grow atomically, archives that are the same for the same image."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest
from registry_server import digest_of

from executor.image import mediatypes
from executor.image.manifest import Descriptor, Manifest, describe
from executor.registry.layout import REF_NAME, BlobSource, DigestCache, read_layout, write_layout
from executor.registry.oci_archive import archive_file, read_archive, write_archive, write_docker_archive
from platforms.errors import ArchiveError, Interrupted, StoreError


def source(data: bytes) -> BlobSource:
    return BlobSource(digest_of(data), len(data), lambda: io.BytesIO(data))


def image(text: str, name: str = "") -> tuple[Descriptor, Manifest, list[BlobSource]]:
    """A tiny image that differs by ``text``: its root descriptor (named if ``name``), manifest and blobs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(text))
    data = out.getvalue()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(data)]},
            "history": [{"created_by": text}],
        }
    ).encode()
    manifest = Manifest(
        mediatypes.OCI_MANIFEST,
        Descriptor(mediatypes.OCI_CONFIG, digest_of(config), len(config)),
        (Descriptor(mediatypes.OCI_LAYER, digest_of(data), len(data)),),
    )
    descriptor, encoded = describe(manifest)
    annotations = ((REF_NAME, name),) if name else ()
    root = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, annotations=annotations)
    return root, manifest, [source(data), source(config), source(encoded)]


def test_a_layout_comes_back_as_it_was_written(tmp_path: Path) -> None:
    root, manifest, blobs = image("a", "1.0")
    write_layout(str(tmp_path / "out"), [root], blobs)
    layout = read_layout(str(tmp_path / "out"))
    assert layout.roots == (root,)
    assert layout.find() == layout.find("1.0") == layout.find(root.digest) == root
    assert layout.manifest(root) == manifest
    assert layout.read(manifest.layers[0]) == blobs[0].open().read()
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".")]


def test_a_layout_is_extended_and_a_name_is_taken_over(tmp_path: Path) -> None:
    one, two, three = image("a", "1"), image("b", "2"), image("c", "1")
    for root, _, blobs in (one, two, three):
        write_layout(str(tmp_path), [root], blobs)
    assert read_layout(str(tmp_path)).roots == (two[0], three[0])


def test_a_nameless_root_is_there_once(tmp_path: Path) -> None:
    root, _, blobs = image("a")
    for _ in range(2):
        write_layout(str(tmp_path), [root], blobs)
    assert read_layout(str(tmp_path)).roots == (root,)


def test_what_others_wrote_into_the_index_stays(tmp_path: Path) -> None:
    one, two = image("a", "1"), image("b", "2")
    write_layout(str(tmp_path), [one[0]], one[2])
    index = json.loads((tmp_path / "index.json").read_bytes())
    index["manifests"][0]["data"] = "e30="
    index["annotations"] = {"who": "they"}
    (tmp_path / "index.json").write_text(json.dumps(index))
    write_layout(str(tmp_path), [two[0]], two[2])
    again = json.loads((tmp_path / "index.json").read_bytes())
    assert again["manifests"][0]["data"] == "e30="
    assert again["annotations"] == {"who": "they"}
    assert len(again["manifests"]) == 2


def test_a_damaged_blob_is_written_anew(tmp_path: Path) -> None:
    root, manifest, blobs = image("a", "1")
    write_layout(str(tmp_path), [root], blobs)
    path = tmp_path / "blobs" / blobs[0].digest.replace(":", "/")
    path.write_bytes(bytes(blobs[0].size))
    write_layout(str(tmp_path), [root], blobs)
    assert read_layout(str(tmp_path)).read(manifest.layers[0]) == blobs[0].open().read()


class Remembering:
    """A memory, and how often it knew."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}
        self.recalled = 0

    def memory(self) -> DigestCache:
        return DigestCache(self._recall, self._note)

    def _note(self, seen: Sequence[tuple[os.stat_result, str]]) -> None:
        self._known.update((self._mark(found), digest) for found, digest in seen)

    def _mark(self, found: os.stat_result) -> tuple[int, ...]:
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _recall(self, found: os.stat_result) -> str:
        digest = self._known.get(self._mark(found), "")
        self.recalled += bool(digest)
        return digest


def test_a_blob_that_is_remembered_to_be_there_is_not_read(tmp_path: Path) -> None:
    root, _, blobs = image("a", "1")
    known = Remembering()
    write_layout(str(tmp_path), [root], blobs, known.memory())
    assert known.recalled == 0
    before = {path: path.stat().st_atime_ns for path in (tmp_path / "blobs" / "sha256").iterdir()}

    def unopened() -> BinaryIO:
        raise AssertionError("it was opened")

    write_layout(
        str(tmp_path), [root], [BlobSource(each.digest, each.size, unopened) for each in blobs], known.memory()
    )
    assert known.recalled == len(blobs)
    assert {path: path.stat().st_atime_ns for path in (tmp_path / "blobs" / "sha256").iterdir()} == before


@pytest.mark.parametrize("damage", ["edited", "shorter", "replaced", "a link", "gone", "a FIFO"])
def test_a_blob_that_is_another_than_what_is_remembered_is_written_anew(tmp_path: Path, damage: str) -> None:
    root, manifest, blobs = image("a", "1")
    known = Remembering()
    write_layout(str(tmp_path / "out"), [root], blobs, known.memory())
    path = tmp_path / "out" / "blobs" / blobs[0].digest.replace(":", "/")
    match damage:
        case "edited":
            with path.open("r+b") as file:
                file.write(b"other")
        case "shorter":
            os.truncate(path, 5)
        case "replaced":
            (tmp_path / "other").write_bytes(bytes(blobs[0].size))
            os.replace(tmp_path / "other", path)
        case "a link":
            (tmp_path / "other").write_bytes(bytes(blobs[0].size))
            path.unlink()
            path.symlink_to(tmp_path / "other")
        case "gone":
            path.unlink()
        case _:
            path.unlink()
            os.mkfifo(path)
    write_layout(str(tmp_path / "out"), [root], blobs, known.memory())
    assert read_layout(str(tmp_path / "out")).read(manifest.layers[0]) == blobs[0].open().read()
    assert not path.is_symlink()


def test_files_of_a_layout_are_not_those_that_they_were_written_from(tmp_path: Path) -> None:
    """Whoever edits a layout edits no store."""
    data = os.urandom(100_000)
    (tmp_path / "blob").write_bytes(data)
    write_layout(
        str(tmp_path / "out"), [], [BlobSource(digest_of(data), len(data), lambda: (tmp_path / "blob").open("rb"))]
    )
    (made,) = (tmp_path / "out" / "blobs" / "sha256").iterdir()
    assert (made.read_bytes(), made.stat().st_nlink) == (data, 1)
    with made.open("r+b") as file:
        file.write(b"edited")
    assert (tmp_path / "blob").read_bytes() == data


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Path]:
    """A file system whose files can share blocks."""
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        pytest.skip("needs root, and mkfs.xfs (Debian package xfsprogs)")
    image, place = tmp_path / "image", tmp_path / "xfs"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a loop device cannot be mounted here: {mounted.stderr}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_where_files_can_share_their_blocks_a_layout_takes_no_space(sharing: Path) -> None:
    data = os.urandom(16 << 20)
    (sharing / "blob").write_bytes(data)
    os.sync()
    before = os.statvfs(sharing).f_bfree
    write_layout(
        str(sharing / "out"), [], [BlobSource(digest_of(data), len(data), lambda: (sharing / "blob").open("rb"))]
    )
    os.sync()
    assert (before - os.statvfs(sharing).f_bfree) * os.statvfs(sharing).f_frsize < 1 << 20
    (made,) = (sharing / "out" / "blobs" / "sha256").iterdir()
    with made.open("r+b") as file:
        file.write(b"edited")
    assert (sharing / "blob").read_bytes() == data


@pytest.mark.parametrize("change", ["longer", "shorter", "other"])
def test_a_file_that_is_not_what_its_digest_says_is_not_copied(tmp_path: Path, change: str) -> None:
    data = os.urandom(100_000)
    wrong = {"longer": data + b"x", "shorter": data[:-1], "other": bytes(len(data))}[change]
    (tmp_path / "blob").write_bytes(wrong)
    source = BlobSource(digest_of(data), len(data), lambda: (tmp_path / "blob").open("rb"))
    with pytest.raises(StoreError, match="damaged"):
        write_layout(str(tmp_path / "out"), [], [source])
    assert not (tmp_path / "out").exists()


def test_a_copy_can_be_cancelled(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x")

    def check() -> None:
        raise Interrupted("the build was cancelled")

    source = BlobSource(digest_of(b"x"), 1, lambda: (tmp_path / "blob").open("rb"), check)
    with pytest.raises(Interrupted):
        write_layout(str(tmp_path / "out"), [], [source])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: bytes(len(data))],
    ids=["short", "long", "other"],
)
def test_a_blob_that_is_not_what_it_should_be_leaves_the_layout_as_it_was(tmp_path: Path, wrong: object) -> None:
    one, (root, _, blobs) = image("a", "1"), image("b", "2")
    write_layout(str(tmp_path), [one[0]], one[2])
    before = (tmp_path / "index.json").read_bytes()
    bad = wrong(blobs[0].open().read())  # type: ignore[operator]
    with pytest.raises(StoreError, match="damaged"):
        write_layout(str(tmp_path), [root], [BlobSource(blobs[0].digest, blobs[0].size, lambda: io.BytesIO(bad))])
    assert (tmp_path / "index.json").read_bytes() == before
    assert len(list((tmp_path / "blobs/sha256").iterdir())) == 3


def test_a_new_layout_that_cannot_be_finished_is_gone(tmp_path: Path) -> None:
    root, _, blobs = image("a", "1")
    with pytest.raises(StoreError, match="damaged"):
        write_layout(str(tmp_path / "new"), [root], [*blobs, BlobSource("sha256:" + "0" * 64, 1, io.BytesIO)])
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_writer_left_is_swept_up(tmp_path: Path) -> None:
    root, _, blobs = image("a", "1")
    write_layout(str(tmp_path), [root], blobs)
    (tmp_path / "blobs/sha256/.incoming-dead").write_text("half")
    write_layout(str(tmp_path), [root], blobs)
    assert not list((tmp_path / "blobs/sha256").glob(".incoming*"))


def _write_many(path: str, start: int) -> None:
    for number in range(start, start + 5):
        root, _, blobs = image(f"image {number}", str(number))
        write_layout(path, [root], blobs)


def test_writers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(tmp_path), start)) for start in (0, 5, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    layout = read_layout(str(tmp_path))
    assert sorted(int(dict(root.annotations)[REF_NAME]) for root in layout.roots) == list(range(15))
    for root in layout.roots:
        layout.manifest(root)


def test_a_writer_killed_while_it_copies_leaves_a_layout_that_is_read_and_extended(tmp_path: Path) -> None:
    root, manifest, blobs = image("a", "1")
    write_layout(str(tmp_path), [root], blobs)
    program = f"""
import io, os, sys, time
sys.path[:0] = {sys.path!r}
from executor.registry.layout import BlobSource, write_layout
class Slow(io.BytesIO):
    def read(self, size=-1):
        print("reading", flush=True)
        time.sleep(60)
write_layout({str(tmp_path)!r}, [], [BlobSource("sha256:" + "0" * 64, 5, lambda: Slow(b"hello"))])
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        process.send_signal(signal.SIGKILL)
    assert read_layout(str(tmp_path)).manifest(root) == manifest
    other = image("b", "2")
    begun = time.monotonic()
    write_layout(str(tmp_path), [other[0]], other[2])
    assert time.monotonic() - begun < 10
    assert len(read_layout(str(tmp_path)).roots) == 2


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the image"):
        write_layout(str(tmp_path / "file" / "out"), [], [])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("oci-layout", "{}", "imageLayoutVersion"),
        ("oci-layout", '{"imageLayoutVersion": "2.0.0"}', "version"),
        ("index.json", "{}", "schemaVersion"),
        ("index.json", '{"schemaVersion": 2, "manifests": 1}', "descriptors"),
        ("index.json", '{"schemaVersion": 2, "manifests": [], "layers": []}', "manifests"),
    ],
)
def test_a_broken_layout_is_refused(tmp_path: Path, name: str, text: str, reason: str) -> None:
    root, _, blobs = image("a", "1")
    write_layout(str(tmp_path), [root], blobs)
    (tmp_path / name).write_text(text)
    with pytest.raises(ArchiveError, match=reason):
        read_layout(str(tmp_path))


def test_a_directory_that_is_no_layout_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="not an OCI image layout"):
        read_layout(str(tmp_path))


def test_a_blob_that_is_no_file_does_not_keep_us_waiting(tmp_path: Path) -> None:
    root, _, blobs = image("a", "1")
    write_layout(str(tmp_path), [root], blobs)
    path = tmp_path / "blobs" / root.digest.replace(":", "/")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ArchiveError):
        read_layout(str(tmp_path)).manifest(root)
    path.unlink()
    with pytest.raises(ArchiveError, match="missing"):
        read_layout(str(tmp_path)).manifest(root)


@pytest.mark.parametrize("at", [0, -1])
def test_a_flipped_byte_is_found(tmp_path: Path, at: int) -> None:
    root, manifest, blobs = image("a", "1")
    write_layout(str(tmp_path), [root], blobs)
    path = tmp_path / "blobs" / blobs[0].digest.replace(":", "/")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="damaged"):
        read_layout(str(tmp_path)).read(manifest.layers[0])


def test_a_name_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    for text in ("a", "b"):
        root, _, blobs = image(text, text)
        write_layout(str(tmp_path), [root], blobs)
    with pytest.raises(ArchiveError, match="a, b") as caught:
        read_layout(str(tmp_path)).find()
    assert "latest" in caught.value.problem.what


# -- archives --------------------------------------------------------------------------------------------------------


def archive(text: str = "a", name: str = "1") -> bytes:
    root, _, blobs = image(text, name)
    out = io.BytesIO()
    write_archive(out, [root], blobs)
    return out.getvalue()


def test_an_archive_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archive())
    root, manifest, blobs = image("a", "1")
    layout = read_archive(str(tmp_path / "a.tar"))
    assert layout.find("1") == root
    assert layout.manifest(root) == manifest
    assert layout.read(manifest.layers[0]) == blobs[0].open().read()


def test_an_archive_is_the_same_for_the_same_image() -> None:
    root, _, blobs = image("a", "1")
    out = io.BytesIO()
    write_archive(out, [root], reversed(blobs))
    assert out.getvalue() == archive()
    with tarfile.open(fileobj=io.BytesIO(archive())) as tar:
        members = tar.getmembers()
    assert {(each.mtime, each.uid, each.gid, each.uname) for each in members} == {(0, 0, 0, "")}
    assert [each.name for each in members][:4] == ["oci-layout", "index.json", "blobs", "blobs/sha256"]
    assert len(archive()) % 10240 == 0


def test_an_archive_of_gnu_tar_is_read(tmp_path: Path) -> None:
    root, manifest, blobs = image("a", "1")
    write_layout(str(tmp_path / "layout"), [root], blobs)
    for form in ("gnu", "pax", "ustar"):
        path = tmp_path / f"{form}.tar"
        subprocess.run(["tar", f"--format={form}", "-C", tmp_path / "layout", "-cf", path, "."], check=True)
        assert read_archive(str(path)).manifest(root) == manifest


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:700],
        lambda data: b"\x1f\x8b" + data[2:],
        lambda data: data[:124] + b"77777777777\0" + data[136:],
        lambda data: data[:124] + b"\x80" + b"\xff" * 11 + data[136:],
        lambda data: data[:124] + b"-1         \0" + data[136:],
        lambda data: os.urandom(4096),
    ],
)
def test_a_broken_archive_is_refused_at_once(tmp_path: Path, damage: object) -> None:
    data = bytearray(damage(archive()))  # type: ignore[operator]
    if len(data) > 512 and data[:2] == b"oc":
        data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 256)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ArchiveError):
        read_archive(str(tmp_path / "a.tar"))


def test_an_archive_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_text("old")
    with pytest.raises(StoreError, match="damaged"), archive_file(str(path)) as out:
        write_archive(out, [], [BlobSource(digest_of(b"x"), 1, lambda: io.BytesIO(b"y"))])
    assert path.read_text() == "old"
    with archive_file(str(path)) as out:
        out.write(archive())
    assert path.read_bytes() == archive()
    assert os.listdir(tmp_path) == ["a.tar"]
    with pytest.raises(StoreError), archive_file(str(tmp_path / "none" / "a.tar")):
        pass


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (Debian package skopeo)")
@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_skopeo_reads_what_we_write(tmp_path: Path, kind: str) -> None:
    root, manifest, blobs = image("a", "1")
    place = tmp_path / "image"
    match kind:
        case "oci":
            write_layout(str(place), [root], blobs)
        case "oci-archive":
            place.write_bytes(archive())
        case _:
            with place.open("wb") as out:
                write_docker_archive(out, ["app:1"], manifest, [root], blobs)
    name = "app:1" if kind == "docker-archive" else "1"
    command = ["skopeo", "--insecure-policy", "copy", f"{kind}:{place}:{name}", f"oci:{tmp_path / 'copy'}:x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    layout = read_layout(str(tmp_path / "copy"))
    copied = layout.manifest(layout.find("x"))
    assert isinstance(copied, Manifest)
    config = json.loads(layout.read(copied.config))
    assert config["rootfs"]["diff_ids"] == [manifest.layers[0].digest]
