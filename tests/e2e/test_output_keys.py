"""Keys of ``--output`` that buildx users write: what each has for effect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Kanifold, Reader

EPOCH = 1_000_000_000


@pytest.fixture
def folder(kanifold: Kanifold) -> Path:
    made = kanifold.folder("context")
    (made / "Dockerfile").write_text("FROM scratch\nCOPY f /f\n")
    (made / "f").write_text("")
    return made


@pytest.mark.parametrize(
    ("key", "epoch", "bounded"),
    [
        ("", True, True),
        (",rewrite-timestamp=true", True, True),
        (",rewrite-timestamp=false", True, False),
        (",rewrite-timestamp=true", False, False),
    ],
)
def test_times_of_files_are_bounded(
    kanifold: Kanifold, folder: Path, read: Reader, key: str, epoch: bool, bounded: bool
) -> None:
    given = ("--build-arg", f"SOURCE_DATE_EPOCH={EPOCH}") if epoch else ()
    # Another build of the same, which must not lend its layer.
    kanifold("build", folder, *given, "-o", "type=oci,dest=first")
    done = kanifold("build", folder, *given, "-o", f"type=oci,dest=out{key}")
    seen = read(kanifold.home / "out").tree["f"]
    assert (seen.mtime == EPOCH) == bounded
    assert ("no SOURCE_DATE_EPOCH" in done.err) == (bool(key) and not epoch)


def test_a_pushed_image_output_is_pushed_once(kanifold: Kanifold, folder: Path, registry: str) -> None:
    done = kanifold("build", folder, "-o", f"type=image,name={registry}/keys/named:1", "--push")
    assert done.err.count(f"{registry}/keys/named:1@") + done.err.count(f"published {registry}/keys/named:1") == 1


def test_a_dangling_name_is_the_digest_alone(
    kanifold: Kanifold, folder: Path, registry: str, inspect_raw: Callable[[str], dict[str, object]]
) -> None:
    for tags in ((), ("-t", f"{registry}/keys/tagged:1")):
        output = f"type=registry,dangling-name-prefix={registry}/keys/dangling{len(tags)}"
        done = kanifold("build", folder, *tags, "-o", output, "--metadata-file", "said.json")
        digest = json.loads((kanifold.home / "said.json").read_text())["containerimage.digest"]
        assert done.out.strip() == digest
        assert inspect_raw(f"{registry}/keys/dangling{len(tags)}@{digest}")


def test_what_goes_nowhere_is_built_and_said_nowhere(kanifold: Kanifold, folder: Path) -> None:
    done = kanifold("build", folder, "-o", "type=cacheonly")
    assert done.out == ""
    assert not (kanifold.home / "oci-layout").exists()
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY missing /\n")
    assert kanifold.run("build", folder, "-o", "type=cacheonly").code == 1


def test_annotations_of_descriptors(kanifold: Kanifold, folder: Path) -> None:
    kanifold(
        "build", folder, "--platform", "linux/amd64,linux/arm64", "-t", "app:1",
        "--annotation", "manifest-descriptor[linux/amd64]:a.b=1", "--annotation", "index-descriptor,index:c=2",
        "-o", "type=oci,dest=out,annotation-manifest-descriptor.d=3",
    )  # fmt: skip
    (root,) = json.loads((kanifold.home / "out" / "index.json").read_text())["manifests"]
    assert root["annotations"]["c"] == "2"
    assert root["annotations"]["org.opencontainers.image.ref.name"] == "1"
    index = json.loads((kanifold.home / "out/blobs/sha256" / root["digest"].partition(":")[2]).read_text())
    assert index["annotations"] == {"c": "2"}
    assert [each.get("annotations") for each in index["manifests"]] == [{"a.b": "1", "d": "3"}, {"d": "3"}]
