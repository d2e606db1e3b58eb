"""Caches beyond the machine: a machine with an empty store that is given one does again what nobody has done."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold, Reader
from object_services import CacheService, served, workflow
from remote_builds import PLATFORMS, RANDOM, Machine

Context = Callable[[Mapping[str, str | bytes]], Path]


@pytest.fixture
def machine(kanifold: Kanifold) -> Callable[[str], Machine]:
    return lambda name: Machine(kanifold, name)


@pytest.fixture
def job() -> Iterator[dict[str, str]]:
    """The environment of a job of a workflow, which has a cache service."""
    with served(service := CacheService()):
        yield workflow(service)


@pytest.fixture
def stages(busybox: Base, context: Context) -> Path:
    """A context whose image comes out different whenever any of its steps is done again."""
    return context(
        {
            "Dockerfile": f"FROM {busybox.ref} AS made\nRUN {RANDOM} > /made\nFROM {busybox.ref}\n"
            f"COPY file /\nRUN {RANDOM} > /first\nCOPY --from=made /made /copied\nRUN cat /copied /first > /second\n",
            "file": "content",
        }
    )


@pytest.fixture
def line(busybox: Base, context: Context) -> Path:
    """The same in one stage, all of whose steps are the image's own."""
    return context(
        {"Dockerfile": f"FROM {busybox.ref}\nCOPY file /\nRUN {RANDOM} > /first\nRUN cat /first > /b\n", "file": "x"}
    )


@pytest.mark.parametrize("kind", ["registry", "local", "cache-repo"])
def test_a_second_machine_with_the_whole_cache_rebuilds_nothing(
    machine: Callable[[str], Machine], stages: Path, registry: str, tmp_path: Path, kind: str
) -> None:
    ref, folder = f"{registry}/remote-cache/{kind}:it", tmp_path / "cache"
    given, taken = {
        "registry": (("--cache-to", f"type=registry,ref={ref},mode=max"), ("--cache-from", f"type=registry,ref={ref}")),
        "local": (("--cache-to", f"type=local,dest={folder},mode=max"), ("--cache-from", f"type=local,src={folder}")),
        "cache-repo": (("--cache-repo", ref), ("--cache-repo", ref)),
    }[kind]
    first = machine("first").build(stages, *given)
    assert {cached for _, _, cached in first.steps()} == {False}
    second = machine("second").build(stages, *taken)
    assert len(list(second.steps())) == 10
    assert second.ran() == set()
    assert second.digest == first.digest
    assert second.warnings == []


@pytest.mark.parametrize("kind", ["registry", "local", "inline", "gha"])
def test_a_cache_of_the_images_own_layers_is_enough_to_rebuild_nothing(
    machine: Callable[[str], Machine], stages: Path, registry: str, tmp_path: Path, job: dict[str, str], kind: str
) -> None:
    ref, image, folder = f"{registry}/remote-cache/min-{kind}", f"{registry}/remote-cache/image", tmp_path / "cache"
    given, taken = {
        "registry": (f"type=registry,ref={ref}", ref),
        "local": (f"type=local,dest={folder}", f"type=local,src={folder}"),
        "inline": ("type=inline", image),
        "gha": ("type=gha", "type=gha"),
    }[kind]
    first = machine("first").build(stages, "--cache-to", given, "-t", image, "--push", **job)
    for name in ("second", "third"):  # the third is given what the second has told of things that it never had
        again = machine(name).build(stages, "--cache-from", taken, "--cache-to", given, "-t", image, "--push", **job)
        assert len(list(again.steps())) == 10
        assert again.ran() == set()
        assert (again.digest, again.warnings) == (first.digest, [])


@pytest.mark.parametrize("kind", ["registry", "local", "inline", "gha"])
def test_a_step_whose_layer_is_in_no_cache_is_done_again_when_it_is_needed(
    machine: Callable[[str], Machine],
    stages: Path,
    registry: str,
    tmp_path: Path,
    job: dict[str, str],
    read: Reader,
    kind: str,
) -> None:
    ref, image, folder = f"{registry}/remote-cache/need-{kind}", f"{registry}/remote-cache/need", tmp_path / "cache"
    given, taken = {
        "registry": (f"type=registry,ref={ref}", ref),
        "local": (f"type=local,dest={folder}", f"type=local,src={folder}"),
        "inline": ("type=inline", image),
        "gha": ("type=gha", "type=gha"),
    }[kind]
    machine("first").build(stages, "--cache-to", given, "-t", image, "--push", **job)
    recipe = (stages / "Dockerfile").read_text()
    (stages / "Dockerfile").write_text(recipe.replace("/copied", "/elsewhere"))
    second = machine("second").build(stages, "--cache-from", taken, "-t", image, "--push", **job)
    assert f"RUN {RANDOM} > /made" in second.ran()
    assert f"RUN {RANDOM} > /first" not in second.ran()
    for platform in PLATFORMS:
        seen = read(image, platform)
        assert seen.text("/second") == seen.text("/elsewhere") + seen.text("/first")


def test_platforms_of_one_cache_do_not_see_each_others_steps(
    machine: Callable[[str], Machine], line: Path, tmp_path: Path
) -> None:
    cache = f"{tmp_path / 'cache'}"
    machine("first").build(line, "--cache-to", f"type=local,dest={cache}", platforms=PLATFORMS[:1])
    second = machine("second").build(line, "--cache-from", f"type=local,src={cache}")
    assert {(platform, name.split()[0], cached) for platform, name, cached in second.steps() if "RUN" in name} == {
        ("linux/amd64", "RUN", True),
        ("linux/arm64", "RUN", False),
    }


def test_what_changed_is_done_again_and_what_follows_too(
    machine: Callable[[str], Machine], stages: Path, tmp_path: Path
) -> None:
    cache = f"{tmp_path / 'cache'}"
    machine("first").build(stages, "--cache-to", f"type=local,dest={cache},mode=max")
    (stages / "file").write_text("changed")
    second = machine("second").build(stages, "--cache-from", f"type=local,src={cache}")
    assert {name.split()[0] for name in second.ran()} == {"COPY", "RUN"}
    assert f"RUN {RANDOM} > /made" not in second.ran()


@pytest.mark.parametrize("kind", ["directory that is not there", "registry out of reach"])
def test_a_cache_that_is_not_there_is_a_warning(
    machine: Callable[[str], Machine], line: Path, tmp_path: Path, kind: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    missing = tmp_path / "nowhere"
    place = f"type=local,src={missing}" if kind.startswith("directory") else f"127.0.0.1:{port}/cache"
    built = machine("one").build(line, "--cache-from", place, platforms=PLATFORMS[:1])
    (warning,) = built.warnings
    assert "cannot be used" in warning
    assert (str(missing) if kind.startswith("directory") else str(port)) in warning


def test_caches_with_long_tags_that_begin_alike_are_kept_apart(
    machine: Callable[[str], Machine], line: Path, registry: str
) -> None:
    tag = f"{registry}/remote-cache/long:{'release-' * 14}"
    first = machine("first").build(line, "--cache-to", f"{tag}1", platforms=PLATFORMS[:1])
    other = machine("other").build(line, "--cache-from", f"{tag}2", platforms=PLATFORMS[:1])
    assert len(other.ran()) == 3
    same = machine("same").build(line, "--cache-from", f"{tag}1", platforms=PLATFORMS[:1])
    assert (same.ran(), same.digest) == (set(), first.digest)


def test_a_cache_without_anything_for_a_build_is_a_warning_unless_the_build_fills_it(
    machine: Callable[[str], Machine], line: Path, registry: str
) -> None:
    place = f"type=registry,ref={registry}/remote-cache/mistyped:it"
    read, filled = ("--cache-from", place), ("--cache-from", place, "--cache-to", place)
    (warning,) = machine("one").build(line, *read, platforms=PLATFORMS[:1]).warnings
    assert f"{registry}/remote-cache/mistyped:it has nothing for this build" in warning
    assert machine("two").build(line, *filled, platforms=PLATFORMS[:1]).warnings == []
    assert machine("three").build(line, *read, platforms=PLATFORMS[:1]).warnings == []
    (line / "file").write_text("changed")
    (warning,) = machine("four").build(line, *read, platforms=PLATFORMS[:1]).warnings
    assert "nothing for this build" in warning


def test_a_cache_that_cannot_be_written_is_a_warning(
    machine: Callable[[str], Machine], line: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    built = machine("one").build(
        line, "--cache-to", f"type=local,dest={tmp_path / 'file' / 'below'}", platforms=PLATFORMS[:1]
    )
    assert [each for each in built.warnings if "is not written" in each]


@pytest.mark.parametrize("damage", ["record", "layer", "no layer"])
def test_a_damaged_cache_is_a_warning_and_a_build_without_it(
    machine: Callable[[str], Machine], line: Path, tmp_path: Path, read: Reader, damage: str
) -> None:
    cache = tmp_path / "cache"
    machine("first").build(line, "--cache-to", f"type=local,dest={cache}", platforms=PLATFORMS[:1])
    for each in (cache / ("steps" if damage == "record" else "blobs/sha256")).iterdir():
        if damage == "no layer":
            each.unlink()
        else:
            each.write_bytes(each.read_bytes()[:-10] + b"0123456789")
    second = machine("second")
    built = second.build(line, "--cache-from", f"type=local,src={cache}", platforms=PLATFORMS[:1])
    assert [each for each in built.warnings if str(cache) in each]
    assert read(tmp_path / "home" / "second.oci").text("/b")
    again = second.build(line, platforms=PLATFORMS[:1])
    assert (again.ran(), again.digest) == (set(), built.digest)


def test_entries_that_are_too_old_are_not_used(machine: Callable[[str], Machine], line: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    machine("first").build(line, "--cache-to", f"type=local,dest={cache}", platforms=PLATFORMS[:1])
    records = list((cache / "steps").iterdir())
    assert len(records) == 3
    for each in records:
        record = json.loads(each.read_text())
        each.write_text(json.dumps(record | {"created": record["created"].replace("20", "19", 1)}))
    source = ("--cache-from", f"type=local,src={cache}", "--cache-ttl")
    old = machine("second").build(line, *source, "2w", platforms=PLATFORMS[:1])
    assert len(old.ran()) == 3
    assert old.warnings == []
    young = machine("third").build(line, *source, "6000w", platforms=PLATFORMS[:1])
    assert young.ran() == set()
