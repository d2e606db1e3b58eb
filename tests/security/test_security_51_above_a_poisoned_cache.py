"""Attack 51 (review; CVE-2025-36852 once more): what rests on a poisoned cache reaches builds that do not ask it.

Attack 30 is what a cache says. This is what is done on top of it, and found again by another build of the same machine:
the steps above an imported layer, of its stage or of one that copies from it or mounts it; cache mounts that they write
to; and what the store knows of a layer. A build that asks the same cache again finds all of it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest
from conftest import Base, Kanifold, Reader
from oci_layout import Image, Layer, pack, read_image, write_layout

Context = Callable[[Mapping[str, str | bytes]], Path]

GOOD, EVIL = b"good\n", b"evil\n"
RECIPES = {
    "above": "FROM {busybox}\nCOPY f /f\nRUN cat /f > /seen\n",
    "two above": "FROM {busybox}\nCOPY f /f\nRUN true > /between\nRUN cat /f > /seen\n",
    "a stage on it": "FROM {busybox} AS one\nCOPY f /f\nFROM one\nRUN cat /f > /seen\n",
    "a working directory": "FROM {busybox}\nCOPY f /f\nWORKDIR /w\nRUN cat /f > /seen\n",
    "copied": "FROM {busybox} AS one\nCOPY f /f\nFROM {busybox}\nCOPY --from=one /f /seen\n",
    "copied with --link": "FROM {busybox} AS one\nCOPY f /f\nFROM {busybox}\nCOPY --link --from=one /f /seen\n",
    "made and copied": "FROM {busybox} AS one\nCOPY f /f\nRUN cat /f > /g\nFROM {busybox}\nCOPY --from=one /g /seen\n",
    "mounted": "FROM {busybox} AS one\nCOPY f /f\nFROM {busybox}\nRUN --mount=from=one,target=/m cat /m/f > /seen\n",
    "made and mounted": "FROM {busybox} AS one\nCOPY f /f\nRUN cat /f > /g\n"
    "FROM {busybox}\nRUN --mount=from=one,target=/m cat /m/g > /seen\n",
    "what fills a cache mount": "FROM {busybox} AS one\nCOPY f /f\nFROM {busybox}\n"
    "RUN --mount=type=cache,from=one,target=/m cat /m/f > /seen\n",
    "a cache mount": "FROM {busybox}\nCOPY f /f\n"
    "RUN --mount=type=cache,id=it,target=/m cat /f >> /m/g && cat /m/g > /seen\n",
    "a cache mount behind a copy": "FROM {busybox} AS one\nCOPY f /f\n"
    "RUN --mount=type=cache,id=it,target=/m cat /f >> /m/g && echo same > /same\n"
    "FROM {busybox}\nCOPY --from=one /same /same\nRUN --mount=type=cache,id=it,target=/m cat /m/g > /seen\n",
    "an owner by name": "FROM {busybox}\nCOPY f /f\nCOPY passwd /etc/passwd\nCOPY --chown=app f /seen\n",
}


@pytest.fixture(params=RECIPES)
def project(context: Context, busybox: Base, request: pytest.FixtureRequest) -> Path:
    recipe = RECIPES[request.param].format(busybox=busybox.ref)
    return context({"Dockerfile": recipe, "f": GOOD, "passwd": "app:x:7:7::/:\n"})


def layer(cache: Path, name: str, data: bytes) -> dict[str, object]:
    """Puts a layer whose only file is ``name`` into the cache; how an entry describes it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    packed = gzip.compress(archive.getvalue())
    digest = hashlib.sha256(packed).hexdigest()
    (cache / "blobs" / "sha256" / digest).write_bytes(packed)
    return {
        "diff_id": f"sha256:{hashlib.sha256(archive.getvalue()).hexdigest()}",
        "blob": {"kind": "gzip-ng", "digest": f"sha256:{digest}", "size": len(packed)},
    }


def poison(cache: Path) -> None:
    """Have the entries of layers with ``/f`` or ``/etc/passwd`` alone name evil ones, and leave no other."""
    evil = {"f": layer(cache, "f", EVIL), "etc/passwd": layer(cache, "etc/passwd", b"app:x:0:0::/:\n")}
    found = set()
    for path in (cache / "steps").iterdir():
        entry = json.loads(path.read_text())
        names = files(cache / "blobs" / entry["blob"]["digest"].replace(":", "/")) if "blob" in entry else ()
        if len(names) == 1 and names[0] in evil:
            found.add(names[0])
            path.write_text(json.dumps(entry | evil[names[0]]))
        else:
            path.unlink()
    assert "f" in found


def files(blob: Path) -> list[str]:
    with tarfile.open(blob) as archive:
        return [each.name for each in archive.getmembers() if not each.isdir()]


def built(kanifold: Kanifold, context: Path, *arguments: str | Path) -> dict[str, tuple[str, int]]:
    """What is in the image's /f and /seen, and whose they are."""
    out = Path(tempfile.mkdtemp(dir=kanifold.home)) / "out"
    kanifold("build", context, "-o", f"type=oci,tar=false,dest={out}", *arguments)
    image = read_image(out, "linux/amd64")
    return {name: (image.text(name), image.tree[name].uid) for name in ("f", "seen") if name in image.tree}


def test_nothing_that_rests_on_a_poisoned_cache_is_found_by_a_build_without_it(
    kanifold: Kanifold, project: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    honest = built(
        kanifold, project, "--root", tmp_path / "elsewhere", "--cache-to", f"type=local,dest={cache},mode=max"
    )
    poison(cache)
    asked = ("--cache-from", f"type=local,src={cache}")
    poisoned = built(kanifold, project, *asked)
    assert poisoned != honest, "the poison is none"
    assert built(kanifold, project) == honest
    # The other way round: a store that has honest steps asks nobody.
    assert built(kanifold, project, *asked) == honest


@pytest.mark.parametrize("project", ["above", "made and copied", "made and mounted", "a cache mount"], indirect=True)
def test_a_build_that_asks_the_same_cache_again_finds_its_own_steps(
    kanifold: Kanifold, project: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    kanifold("build", project, "--root", tmp_path / "elsewhere", "--cache-to", f"type=local,dest={cache},mode=max")
    poison(cache)  # and so leave something to do

    def ran(*more: str | Path) -> int:
        said = kanifold(
            "build", project, "--cache-from", f"type=local,src={cache}", "--progress", "rawjson", *more,
            "-o", f"type=oci,dest={tmp_path / 'out.oci'}",
        )  # fmt: skip
        events = [json.loads(each) for each in said.err.splitlines()]
        names = {step["id"]: step["name"] for each in events if each["type"] == "planned" for step in each["steps"]}
        ended = [each for each in events if each["type"] == "step_finished"]
        return sum(not each["cached"] and not names[each["step"]].startswith("FROM") for each in ended)

    full = tmp_path / "full"
    assert ran("--cache-to", f"type=local,dest={full},mode=max") > 0
    assert ran() == 0
    assert ran("--root", tmp_path / "second machine", "--cache-from", f"type=local,src={full}") == 0


@pytest.mark.parametrize("first", ["the honest build", "the poisoned build"])
def test_neither_other_platforms_nor_cached_results_are_reached(
    kanifold: Kanifold, context: Context, busybox: Base, registry: str, read: Reader, tmp_path: Path, first: str
) -> None:
    """Platforms share what COPY makes; a build that is pushed again is answered without an executor."""
    recipe = RECIPES["copied"].format(busybox=busybox.ref)
    project, cache = context({"Dockerfile": recipe, "f": GOOD}), tmp_path / "cache"
    both = ("--platform", "linux/amd64,linux/arm64")
    elsewhere = ("--root", tmp_path / "elsewhere", "--cache-to", f"type=local,dest={cache},mode=max")
    kanifold("build", project, *both, *elsewhere)
    poison(cache)

    def pushed(*arguments: str) -> set[str]:
        image = f"{registry}/image-51-shared:{first.split()[1]}"
        kanifold("build", project, *both, "-t", image, "--push", *arguments)
        return {read(image, platform).text("seen") for platform in ("linux/amd64", "linux/arm64")}

    if first == "the honest build":
        assert pushed() == {GOOD.decode()}
        assert pushed("--cache-from", f"type=local,src={cache}") == {GOOD.decode()}, "what is here is asked first"
    else:
        assert pushed("--cache-from", f"type=local,src={cache}") == {EVIL.decode()}, "the poison is none"
    assert pushed() == {GOOD.decode()}
    assert pushed() == {GOOD.decode()}, "a cached result"


def test_nothing_that_rests_on_a_poisoned_image_is_found_by_a_build_without_it(
    kanifold: Kanifold, context: Context, busybox: Base, registry: str
) -> None:
    """The same with a cache that is an image, whose config has the steps."""
    recipe = f"FROM {busybox.ref}\nCOPY f /f\n"
    project, image = context({"Dockerfile": recipe, "f": GOOD}), f"{registry}/image-51:1"
    kanifold(
        "build", project, "--root", kanifold.home / "elsewhere", "--cache-to", "type=inline", "-t", image, "--push"
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        (cache / "blobs" / "sha256").mkdir(parents=True)
        evil = layer(cache, "f", EVIL)
        (blob,) = (cache / "blobs" / "sha256").iterdir()
        repoint(f"http://{registry}/v2/image-51", evil, blob.read_bytes())
    (project / "Dockerfile").write_text(f"{recipe}RUN cat /f > /seen\n")
    assert built(kanifold, project, "--cache-from", image)["seen"][0] == EVIL.decode(), "the poison is none"
    assert built(kanifold, project)["seen"][0] == GOOD.decode()
    assert built(kanifold, project, "--cache-from", image)["seen"][0] == GOOD.decode()


def repoint(repository: str, evil: dict[str, object], blob: bytes) -> None:
    """Have the steps that the image ``1`` remembers name the evil layer ``blob``."""
    accept = {"Accept": "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"}
    manifest = httpx.get(f"{repository}/manifests/1", headers=accept).json()
    if "manifests" in manifest:
        digest = manifest["manifests"][0]["digest"]
        manifest = httpx.get(f"{repository}/manifests/{digest}", headers=accept).json()
    config = httpx.get(f"{repository}/blobs/{manifest['config']['digest']}", follow_redirects=True).json()
    config["kanifold.cache.v1"] = [each | evil for each in config["kanifold.cache.v1"]]
    data = json.dumps(config).encode()
    for each in (blob, data):
        upload = httpx.post(f"{repository}/blobs/uploads/")
        place = httpx.URL(repository).join(upload.headers["location"])
        done = httpx.put(
            place.copy_merge_params({"digest": f"sha256:{hashlib.sha256(each).hexdigest()}"}), content=each
        )
        assert done.status_code == 201
    manifest["config"] |= {"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}
    kind = {"Content-Type": manifest["mediaType"]}
    assert httpx.put(f"{repository}/manifests/1", content=json.dumps(manifest), headers=kind).status_code == 201


def test_what_one_cache_says_of_a_layer_is_not_believed_of_anothers(
    kanifold: Kanifold, context: Context, busybox: Base, tmp_path: Path
) -> None:
    """Two caches with the same layer, of which one says that its gzip is zstd."""
    project = context({"Dockerfile": f"FROM {busybox.ref}\nCOPY f /f\n", "f": GOOD})
    caches = true, false = tmp_path / "true", tmp_path / "false"
    for each in caches:
        root = tmp_path / f"{each.name} store"
        kanifold("build", project, "--root", root, "--cache-to", f"type=local,dest={each}")
    (record,) = (false / "steps").iterdir()
    entry = json.loads(record.read_text())
    record.write_text(json.dumps(entry | {"blob": entry["blob"] | {"kind": "zstd"}}))

    def packed(cache: Path) -> bool:
        """Whether the image's last layer is what it is to be."""
        out = tmp_path / f"{cache.name} image"
        target = f"type=oci,tar=false,dest={out},compression=zstd"
        kanifold("build", project, "--cache-from", f"type=local,src={cache}", "-o", target)
        descriptor = read_image(out, "linux/amd64").manifest["layers"][-1]
        return (out / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()[:4] == b"\x28\xb5\x2f\xfd"

    assert not packed(false), "the lie is none"
    assert packed(true)


def test_a_layer_that_needs_those_below_is_not_a_bases_for_a_cache_having_told_of_it(
    kanifold: Kanifold, context: Context, busybox: Base, tmp_path: Path
) -> None:
    """The cache names a layer of an honest base, which is another thing when it is unpacked without those below it."""
    folder, file = tarfile.TarInfo("d"), tarfile.TarInfo("d/b")
    folder.type, folder.mode, folder.uid, file.size = tarfile.DIRTYPE, 0o700, 7, len(GOOD)
    lower, upper = archive(tmp_path / "lower", folder), archive(tmp_path / "upper", file)
    platform = {"os": "linux", "architecture": "amd64"}
    write_layout(tmp_path / "base", "1", [Image(platform, (lower, upper))])

    project, cache = (
        context({"Dockerfile": f"FROM {busybox.ref}\nCOPY f /f\nRUN true\n", "f": GOOD}),
        tmp_path / "cache",
    )
    kanifold("build", project, "--root", tmp_path / "elsewhere", "--cache-to", f"type=local,dest={cache}")
    shutil.copyfile(upper.path, cache / "blobs" / upper.digest.replace(":", "/"))
    blob = {"kind": "gzip-ng", "digest": upper.digest, "size": upper.size}
    for path in (cache / "steps").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"diff_id": upper.diff_id, "blob": blob}))
    (project / "Dockerfile").write_text(f"FROM {busybox.ref}\nCOPY f /f\nRUN cat /d/b\n")
    kanifold("build", project, "--cache-from", f"type=local,src={cache}")

    (project / "Dockerfile").write_text(
        f"FROM base AS base\nFROM {busybox.ref}\nRUN --mount=from=base,target=/m stat -c '%a %u' /m/d > /seen\n"
    )
    assert built(kanifold, project, "--build-context", f"base=oci-layout://{tmp_path / 'base'}")["seen"][0] == "700 7\n"


def archive(path: Path, member: tarfile.TarInfo) -> Layer:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.addfile(member, io.BytesIO(GOOD))
    made.seek(0)
    return pack(made, path)
