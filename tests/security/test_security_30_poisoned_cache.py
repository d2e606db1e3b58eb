"""Attack 30 (CVE-2025-36852): whoever can write a shared cache decides what is in the images of trusted builds.

Who may write a cache that a build asks is that build's own matter; but what it says counts for builds that ask it and
for no other, it cannot pass a layer off as another one, and a build that only reads it writes nothing there.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from oci_layout import read_image

Poison = Callable[[Path, dict[str, object]], None]


@pytest.fixture
def context(kanifold: Kanifold, busybox: Base) -> Path:
    made = kanifold.folder("context")
    (made / "f").write_text("good\n")
    (made / "Dockerfile").write_text(f"FROM {busybox.ref}\nCOPY f /f\nRUN cat /f > /seen\n")
    return made


@pytest.fixture
def cache(kanifold: Kanifold, context: Path, tmp_path: Path) -> Path:
    """A directory cache of the build, filled by another machine."""
    made = tmp_path / "cache"
    kanifold("build", context, "--root", tmp_path / "elsewhere", "--cache-to", f"type=local,dest={made},mode=max")
    return made


def layer(cache: Path) -> dict[str, object]:
    """Puts a layer with an evil ``/f`` into the cache; how an entry describes it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("f")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"evil\n"))
    data = gzip.compress(archive.getvalue())
    digest = hashlib.sha256(data).hexdigest()
    (cache / "blobs" / "sha256" / digest).write_bytes(data)
    return {
        "diff_id": f"sha256:{hashlib.sha256(archive.getvalue()).hexdigest()}",
        "blob": {"kind": "gzip-ng", "digest": f"sha256:{digest}", "size": len(data)},
    }


def poison(cache: Path, *fields: str) -> None:
    """Have every entry say of ``fields`` what is true of the evil layer."""
    evil = layer(cache)
    for path in (cache / "steps").iterdir():
        entry = json.loads(path.read_text())
        path.write_text(json.dumps(entry | {name: evil[name] for name in fields}))


def built(kanifold: Kanifold, context: Path, out: Path, *arguments: str) -> dict[str, str]:
    kanifold("build", context, "-o", f"type=oci,tar=false,dest={out}", *arguments)
    image = read_image(out, "linux/amd64")
    return {name: image.text(name) for name in ("f", "seen") if name in image.tree}


def test_a_poisoned_cache_is_forgotten_with_the_build_that_asked_it(
    kanifold: Kanifold, context: Path, cache: Path, tmp_path: Path
) -> None:
    poison(cache, "diff_id", "blob")
    poisoned = built(kanifold, context, tmp_path / "asks", "--cache-from", f"type=local,src={cache}")
    assert poisoned["f"] == "evil\n", "the poison is none"
    assert built(kanifold, context, tmp_path / "asks-not") == {"f": "good\n", "seen": "good\n"}
    (context / "Dockerfile").write_text((context / "Dockerfile").read_text() + "RUN cat /f > /seen\n")
    assert built(kanifold, context, tmp_path / "goes-on") == {"f": "good\n", "seen": "good\n"}


def test_a_layer_is_not_passed_off_as_another(
    kanifold: Kanifold, context: Path, cache: Path, busybox: Base, tmp_path: Path
) -> None:
    """An evil blob with the diff id of the base: else the store would take it for the base from then on."""
    evil = layer(cache)
    (config,) = [
        json.loads(path.read_text())
        for path in (busybox.layout / "blobs" / "sha256").iterdir()
        if path.stat().st_size < 10_000 and b'"amd64"' in path.read_bytes() and b"diff_ids" in path.read_bytes()
    ]
    for path in (cache / "steps").iterdir():
        entry = json.loads(path.read_text())
        path.write_text(json.dumps(entry | {"blob": evil["blob"], "diff_id": config["rootfs"]["diff_ids"][0]}))
    (context / "Dockerfile").write_text((context / "Dockerfile").read_text() + "RUN cat /f > /seen\n")
    assert built(kanifold, context, tmp_path / "asks", "--cache-from", f"type=local,src={cache}")["seen"] == "good\n"
    assert built(kanifold, context, tmp_path / "asks-not")["seen"] == "good\n"


@pytest.mark.parametrize("field", ["key", "result", "diff_id", "blob", "everything"])
def test_a_malformed_entry_is_a_warning(
    kanifold: Kanifold, context: Path, cache: Path, tmp_path: Path, field: str
) -> None:
    for path in (cache / "steps").iterdir():
        entry = json.loads(path.read_text())
        path.write_text("]" if field == "everything" else json.dumps(entry | {field: ["../../x"]}))
    done = kanifold("build", context, "--cache-from", f"type=local,src={cache}")
    assert "cannot be used" in done.said
    assert built(kanifold, context, tmp_path / "out") == {"f": "good\n", "seen": "good\n"}


def test_a_build_that_only_asks_writes_nothing(kanifold: Kanifold, context: Path, cache: Path) -> None:
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in cache.rglob("*") if path.is_file()}

    before = content()
    (context / "f").write_text("other\n")
    kanifold("build", context, "--cache-from", f"type=local,src={cache}")
    assert content() == before
