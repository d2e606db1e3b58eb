"""``kanifold pin``: digests of indexes in Dockerfiles, against a real registry."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Base, Kanifold


def _digests(base: Base) -> tuple[str, str]:
    """The digests of the index and of one manifest in it."""
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{base.ref}"], check=True, capture_output=True
    ).stdout
    return base.digest, json.loads(raw)["manifests"][0]["digest"]


@pytest.fixture
def moving(busybox: Base, registry: str, request: pytest.FixtureRequest) -> str:
    """A reference of our own to the index of ``busybox``, which a test may move."""
    ref = f"{registry}/pin/{request.node.name.lower().replace('[', '-').rstrip(']')}:1"
    _copy(f"docker://{busybox.ref}", ref, "--all")
    return ref


def _copy(source: str, ref: str, *flags: str) -> None:
    subprocess.run(
        ["skopeo", "copy", "--quiet", *flags, "--src-tls-verify=false", "--dest-tls-verify=false", source, f"docker://{ref}"],
        check=True, capture_output=True,
    )  # fmt: skip


def test_pins_the_index_and_keeps_everything_else(
    kanifold: Kanifold, moving: str, busybox: Base, tmp_path: Path
) -> None:
    file = tmp_path / "Dockerfile"
    text = f"# a comment\nFROM {moving} AS one  \n\nFROM one\nCOPY --from={moving} /bin/busybox /b\n"
    file.write_text(text)
    file.chmod(0o640)

    checked = kanifold.run("pin", "--check", file)
    assert checked.code == 1
    assert f"{file}:2: {moving}: not pinned" in checked.out
    dry = kanifold("pin", "--dry-run", file)
    assert f"+FROM {moving}@{busybox.digest} AS one" in dry.out
    assert file.read_text() == text

    done = kanifold("pin", cwd=tmp_path)
    assert f"Dockerfile:2: {moving}: pinned to {busybox.digest}" in done.out
    assert file.read_text() == text.replace(moving, f"{moving}@{busybox.digest}")
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(each.name for each in tmp_path.iterdir() if each.is_file()) == ["Dockerfile"]
    assert "current" in kanifold("pin", "--check", file).out
    kanifold("build", tmp_path, "--platform", "linux/amd64,linux/arm64", "-o", f"type=oci,dest={tmp_path / 'out'}")


def test_a_tag_that_moved_on_is_found_and_renewed_when_asked(
    kanifold: Kanifold, moving: str, busybox: Base, debian: Base, tmp_path: Path
) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(f"FROM {moving}@{busybox.digest}\n")
    _copy(f"docker://{debian.ref}", moving, "--all")
    before = file.read_text()
    assert "moved on" in kanifold("pin", file).out
    assert file.read_text() == before
    checked = kanifold.run("pin", "--check", file)
    assert (checked.code, "moved on" in checked.out, debian.digest in checked.out) == (1, True, True)
    assert "renewed to" in kanifold("pin", "--update", file).out
    assert file.read_text() == f"FROM {moving}@{debian.digest}\n"


def test_a_manifest_of_one_platform_is_found_and_explained(
    kanifold: Kanifold, moving: str, busybox: Base, tmp_path: Path
) -> None:
    index, single = _digests(busybox)
    file = tmp_path / "Dockerfile"
    file.write_text(f"FROM {moving}@{single}\n")
    checked = kanifold.run("pin", "--check", file)
    assert checked.code == 1
    assert "pinned to one platform" in checked.out
    assert "other platforms cannot be built from it" in checked.out
    kanifold("pin", "--update", file)
    assert file.read_text() == f"FROM {moving}@{index}\n"


def test_nothing_is_written_when_one_image_cannot_be_resolved(
    kanifold: Kanifold, moving: str, registry: str, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(f"FROM {moving}\n")
    bad.write_text(f"FROM scratch\nCOPY --from={registry}/pin/nothing:1 / /\n")
    failed = kanifold.run("pin", good, bad)
    assert failed.code == 1
    assert "bad:2" in failed.err
    assert good.read_text() == f"FROM {moving}\n"


def test_a_name_with_variables_is_left_alone_and_said(kanifold: Kanifold, tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("ARG BASE=debian:12\nFROM $BASE\n")
    assert "left alone (its name depends on build arguments)" in kanifold("pin", file).out
    assert kanifold.run("pin", "--check", file).code == 0
    assert file.read_text() == "ARG BASE=debian:12\nFROM $BASE\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "empty"), ("RUN x\n", "no build stage"), ("FROM Not/A/Name\n", "invalid image reference")],
)
def test_what_is_no_dockerfile(kanifold: Kanifold, tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(text)
    failed = kanifold.run("pin", file)
    assert (failed.code in (1, 2), why in failed.err) == (True, True), failed.said
    assert "Traceback" not in failed.err


def test_flags_that_contradict_each_other(kanifold: Kanifold) -> None:
    assert kanifold.run("pin", "--check", "--update").code == 2


def test_a_lock_keeps_builds_on_the_images_of_its_day(
    kanifold: Kanifold, moving: str, busybox: Base, debian: Base, tmp_path: Path
) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(f"ARG OTHER=scratch\nFROM $OTHER AS other\nFROM {moving}\nLABEL a=b\n")
    locked = kanifold("pin", "--lock", tmp_path / "lock.json", file)
    assert f"{moving}: locked to {busybox.digest}" in locked.out
    assert "left alone" in locked.out
    assert file.read_text().count("@") == 0
    _copy(f"docker://{debian.ref}", moving, "--all")

    def built(*words: str | Path) -> dict[str, str]:
        metadata = tmp_path / "metadata.json"
        out = f"type=oci,dest={tmp_path / 'out'}"
        kanifold("build", tmp_path, "--platform", "linux/amd64", "-o", out, "--metadata-file", metadata, *words)
        found: dict[str, str] = json.loads(metadata.read_text())["kanifold.pins"]
        return found

    assert built() == {moving: debian.digest}
    assert built("--pins", tmp_path / "lock.json") == {moving: busybox.digest}
    (tmp_path / "metadata.json").rename(tmp_path / "first.json")
    assert built("--pins", tmp_path / "first.json") == {moving: busybox.digest}, "the first job's are as good"
    for lacking in ("{}", json.dumps({f"{moving}-too": busybox.digest})):
        (tmp_path / "lacking.json").write_text(f'{{"kanifold.pins": {lacking}}}')
        refused = kanifold.run("build", tmp_path, "-o", "type=cacheonly", "--pins", tmp_path / "lacking.json")
        assert refused.code == 2
        assert f"the file has no digest of {moving}" in refused.err
        assert "Dockerfile:3" in refused.err
    (tmp_path / "by-digest").write_text(f"FROM {moving}@{busybox.digest}\n")
    words = ("-f", tmp_path / "by-digest", "-o", "type=cacheonly", "--pins", tmp_path / "lacking.json")
    assert kanifold.run("build", tmp_path, *words).code == 0, "what is named by digest needs no lock"
    for wrong in (("--lock", "x", "--check"), ("--lock", "x", "--update")):
        assert kanifold.run("pin", *wrong, file).code == 2
    assert kanifold.run("build", tmp_path, "--pins", tmp_path / "nothing").code == 2
