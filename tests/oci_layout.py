"""Writing and reading OCI image layouts with the standard library alone.

Independent of kanifold's code, so that a mistake in the product cannot be hidden by the same mistake in the test.
Sources: OCI image-spec 1.1 (image-layout.md, manifest.md, config.md, layer.md).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = INDEXES[0]
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
REF_NAME = "org.opencontainers.image.ref.name"
SMALL = 64 << 10
"""Maximum size in bytes of a file whose content ``read_tree`` keeps; of larger ones only the digest is kept."""


# -- writing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A gzipped tar on disk, with its two digests."""

    path: Path
    digest: str
    diff_id: str
    size: int


@dataclass(frozen=True)
class Image:
    """The image of one platform: the platform as in the index, the layers, and the ``config`` object of the config."""

    platform: Mapping[str, str]
    layers: tuple[Layer, ...]
    config: Mapping[str, Any] = field(default_factory=dict)


def pack(tar: IO[bytes], path: Path) -> Layer:
    """Compress a tar stream to ``path``."""
    whole, packed = hashlib.sha256(), hashlib.sha256()
    with path.open("wb") as out, gzip.GzipFile(filename="", fileobj=out, mode="wb", compresslevel=1, mtime=0) as pipe:
        while piece := tar.read(1 << 20):
            whole.update(piece)
            pipe.write(piece)
    with path.open("rb") as back:
        while piece := back.read(1 << 20):
            packed.update(piece)
    return Layer(path, f"sha256:{packed.hexdigest()}", f"sha256:{whole.hexdigest()}", path.stat().st_size)


def write_layout(dest: Path, name: str, images: Sequence[Image]) -> str:
    """Write ``images`` as an index named ``name`` into a new layout at ``dest``; returns the digest of the index."""
    (dest / "blobs" / "sha256").mkdir(parents=True)
    (dest / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    manifests = [_write_image(dest, image) for image in images]
    index = _write_json(dest, INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
    named = index | {"annotations": {REF_NAME: name}}
    (dest / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]}))
    return str(index["digest"])


def _write_image(dest: Path, image: Image) -> dict[str, Any]:
    for layer in image.layers:
        blob = _blob(dest, layer.digest)
        if not blob.exists():
            shutil.copyfile(layer.path, blob)
    config = {
        "created": "2024-01-01T00:00:00Z",
        **image.platform,
        "config": dict(image.config),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in image.layers]},
        "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "base"} for _ in image.layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _write_json(dest, CONFIG, config),
        "layers": [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size} for layer in image.layers],
    }
    return _write_json(dest, MANIFEST, manifest) | {"platform": dict(image.platform)}


def _write_json(dest: Path, media_type: str, document: Mapping[str, Any]) -> dict[str, Any]:
    raw = json.dumps(document, separators=(",", ":")).encode()
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    _blob(dest, digest).write_bytes(raw)
    return {"mediaType": media_type, "digest": digest, "size": len(raw)}


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, value = digest.partition(":")
    return layout / "blobs" / algorithm / value


# -- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One path of an image's merged file tree. ``kind``: file, dir, symlink, fifo, char, block."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: float = 0.0
    target: str = ""
    """Where a symlink points."""
    digest: str = ""
    """``sha256:…`` of a file's content."""
    content: bytes | None = None
    """A file's content when it has at most ``SMALL`` bytes."""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Seen:
    """An image as read: its manifest and config, and every path of its merged tree."""

    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    tree: Mapping[str, Entry]
    """By path without a leading slash; the root itself is not listed."""
    digest: str

    def text(self, path: str) -> str:
        """Return the content of a small file as text; KeyError if there is no such path."""
        content = self.tree[path.lstrip("/")].content
        assert content is not None, f"{path} is not a small regular file"
        return content.decode()


def read_json(layout: Path, digest: str) -> Any:
    """Return the document ``digest`` of a layout, verified."""
    raw = _blob(layout, digest).read_bytes()
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == digest, f"blob {digest} holds something else"
    return json.loads(raw)


def read_index(layout: Path) -> dict[str, Any]:
    """Return the image index that ``index.json`` refers to.

    An ``index.json`` that lists the manifests of the platforms is an index itself.
    """
    top: dict[str, Any] = json.loads((layout / "index.json").read_text())
    first = top["manifests"][0]
    # One image under several names is listed once for each.
    if {entry["digest"] for entry in top["manifests"]} == {first["digest"]} and first["mediaType"] in INDEXES:
        inner: dict[str, Any] = read_json(layout, first["digest"])
        return inner
    return top


def image_manifests(layout: Path) -> dict[str, dict[str, Any]]:
    """Return the descriptor of each image by its platform, ``os/arch[/variant]``; without attestations."""
    found = {}
    for descriptor in read_index(layout)["manifests"]:
        platform = descriptor.get("platform")
        if platform is None:
            config = read_json(layout, read_json(layout, descriptor["digest"])["config"]["digest"])
            platform = {key: config[key] for key in ("os", "architecture", "variant") if config.get(key)}
        if platform["os"] != "unknown":
            found[platform_name(platform)] = descriptor
    return found


def platform_name(platform: Mapping[str, str]) -> str:
    """``linux/arm/v7`` for the object form."""
    parts = (platform["os"], platform["architecture"], platform.get("variant", ""))
    return "/".join(part for part in parts if part)


def read_image(layout: Path, platform: str) -> Seen:
    """Return the image for ``platform`` of a layout, its layers merged in order."""
    descriptor = image_manifests(layout)[platform]
    manifest = read_json(layout, descriptor["digest"])
    config = read_json(layout, manifest["config"]["digest"])
    tree: dict[str, Entry] = {}
    layers, diff_ids = manifest["layers"] or (), config["rootfs"]["diff_ids"] or ()  # null: an empty list of Go's
    assert len(layers) == len(diff_ids)
    for layer, diff_id in zip(layers, diff_ids, strict=True):
        raw = _plain(_blob(layout, layer["digest"]))
        assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == diff_id, f"layer {layer['digest']} is not {diff_id}"
        merge(tree, raw)
    return Seen(manifest, config, tree, descriptor["digest"])


def _plain(blob: Path) -> bytes:
    raw = blob.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        return gzip.decompress(raw)
    if raw[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    return raw


def merge(tree: dict[str, Entry], layer: bytes) -> None:
    """Apply a layer to ``tree``: whiteouts first, as they apply to lower layers only (layer.md)."""
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        members = [(_clean(member.name), member) for member in archive]
        for path, _ in members:
            parent, name = os.path.split(path)
            if name == ".wh..wh..opq":
                _remove(tree, parent, itself=False)
            elif name.startswith(".wh."):
                _remove(tree, f"{parent}/{name[4:]}".lstrip("/"), itself=True)
        for path, member in members:
            if not path or os.path.basename(path).startswith(".wh."):
                continue
            if path in tree and not (tree[path].kind == "dir" and member.isdir()):
                _remove(tree, path, itself=True)
            tree[path] = tree[_clean(member.linkname)] if member.islnk() else _entry(archive, member)


def _clean(name: str) -> str:
    return "/".join(part for part in PurePosixPath(name).parts if part not in ("/", "."))


def _remove(tree: dict[str, Entry], path: str, *, itself: bool) -> None:
    below = f"{path}/" if path else ""
    for known in [known for known in tree if known.startswith(below) or (itself and known == path)]:
        del tree[known]


_KINDS = {
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
}


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    content, digest = None, ""
    if member.isreg():
        stream = archive.extractfile(member)
        assert stream is not None
        raw = stream.read()
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        content = raw if len(raw) <= SMALL else None
    xattrs = tuple(
        sorted(
            (key.removeprefix("SCHILY.xattr."), value)
            for key, value in member.pax_headers.items()
            if key.startswith("SCHILY.xattr.")
        )
    )
    return Entry(
        kind=_KINDS.get(member.type, "file"),
        mode=stat.S_IMODE(member.mode),
        uid=member.uid,
        gid=member.gid,
        mtime=float(member.mtime),
        target=member.linkname if member.issym() else "",
        digest=digest,
        content=content,
        device=(member.devmajor, member.devminor) if member.ischr() or member.isblk() else (0, 0),
        xattrs=xattrs,
    )
