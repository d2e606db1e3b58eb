"""The base images that everything else is tested on are what they claim to be."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from oci_layout import merge, read_image

if TYPE_CHECKING:
    from conftest import Base, Reader

E_MACHINE = {
    "linux/amd64": 62,
    "linux/arm64": 183,
    "linux/arm/v7": 40,
    "linux/386": 3,
    "linux/riscv64": 243,
    "linux/ppc64le": 21,
    "linux/s390x": 22,
}
"""ELF machine numbers (gABI, e_machine)."""


def test_busybox_has_every_platform_and_each_its_own_binary(busybox: Base, read: Reader) -> None:
    layout = read.layout(busybox.ref)
    assert set(read.platforms(layout)) == set(E_MACHINE)
    for platform, machine in E_MACHINE.items():
        blob = layout / "blobs" / "sha256" / read(layout, platform).manifest["layers"][0]["digest"][7:]
        head = subprocess.run(["tar", "-xzOf", str(blob), "bin/busybox"], check=True, capture_output=True).stdout[:20]
        assert int.from_bytes(head[18:20], "big" if head[5] == 2 else "little") == machine, platform


def test_busybox_is_a_usable_root(busybox: Base) -> None:
    seen = read_image(busybox.layout, "linux/arm64")
    assert seen.tree["bin/sh"].target == "busybox"
    assert seen.tree["tmp"].mode == 0o1777
    assert "root:x:0:0" in seen.text("/etc/passwd")
    assert seen.config["architecture"] == "arm64"


def test_debian_has_apt_with_this_machines_sources(debian: Base) -> None:
    seen = read_image(debian.layout, "linux/amd64")
    assert seen.tree["usr/bin/apt-get"].mode & 0o111
    assert seen.text("/etc/apt/sources.list").startswith("deb ")
    assert len(seen.manifest["layers"]) == 2


def test_skopeo_agrees_with_the_written_index(busybox: Base) -> None:
    command = ["skopeo", "inspect", "--raw", f"oci:{busybox.layout}:latest"]
    index = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert [entry["platform"]["architecture"] for entry in index["manifests"]][:2] == ["amd64", "arm64"]


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        ({"a/.wh.x": b""}, {"a": "dir", "a/y": "file"}),
        ({"a/.wh..wh..opq": b"", "a/z": b"z"}, {"a": "dir", "a/z": "file"}),
        ({"a": b"now a file"}, {"a": "file"}),
        ({"a/": b""}, {"a": "dir", "a/x": "file", "a/y": "file"}),
        ({".wh.a": b""}, {}),
    ],
    ids=["whiteout", "opaque", "file over directory", "directory again", "directory gone"],
)
def test_the_reader_merges_layers_as_the_image_spec_says(
    tmp_path: Path, upper: dict[str, bytes], left: dict[str, str]
) -> None:
    import io
    import tarfile

    def tar(files: dict[str, bytes]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name.rstrip("/"))
                entry.size = len(content)
                if name.endswith("/"):
                    entry.type = tarfile.DIRTYPE
                archive.addfile(entry, io.BytesIO(content))
        return out.getvalue()

    tree: dict = {}  # type: ignore[type-arg]
    merge(tree, tar({"a/": b"", "a/x": b"x", "a/y": b"y"}))
    merge(tree, tar(upper))
    assert {path: entry.kind for path, entry in tree.items()} == left
