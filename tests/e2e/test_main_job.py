"""The main job: one Dockerfile becomes a published image for several platforms, judged by other people's tools."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from oci_layout import INDEX, read_json
from running import run_image

if TYPE_CHECKING:
    from conftest import Base, Kanifold, Reader

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Context = Callable[[Mapping[str, str | bytes]], Path]

THREE = ("linux/amd64", "linux/arm64", "linux/arm/v7")
MACHINE = {
    "linux/amd64": "x86_64",
    "linux/arm64": "aarch64",
    "linux/arm/v7": "armv7l",
    "linux/386": ("i686", "x86_64"),
    "linux/riscv64": "riscv64",
    "linux/ppc64le": "ppc64le",
    "linux/s390x": "s390x",
}
"""What ``uname -m`` says there. 32-bit x86 is run by a 64-bit kernel, which may say so."""


def test_hello_becomes_a_two_platform_layout(kanifold: Kanifold, busybox: Base, read: Reader, tmp_path: Path) -> None:
    dest = tmp_path / "hello"
    kanifold(
        "build", EXAMPLES / "hello", "--platform", "linux/amd64,linux/arm64",
        "--build-context", f"busybox=oci-layout://{busybox.layout}", "-o", f"type=oci,dest={dest}",
    )  # fmt: skip
    assert read.platforms(dest) == ["linux/amd64", "linux/arm64"]
    for platform in ("linux/amd64", "linux/arm64"):
        seen = read(dest, platform)
        expected = f"Hello from {platform}, built on a machine that says {MACHINE[platform]}\n"
        assert seen.text("/srv/index.txt") == (
            expected + "  and hello to earth\n  and hello to moon\n  and hello to world\n"
        )
        page, program = seen.tree["srv/index.txt"], seen.tree["bin/hello"]
        assert (page.uid, page.gid) == (1000, 1000)
        assert program.mode == 0o755
        assert seen.config["config"]["Cmd"] == ["/bin/hello"]
        assert seen.config["config"]["User"] == "1000"
        assert seen.config["config"]["Labels"]["org.opencontainers.image.title"] == "hello"
        assert run_image(dest, platform, scratch=tmp_path).startswith(expected)


def test_every_platform_runs_a_step(kanifold: Kanifold, busybox: Base, read: Reader, context: Context) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nARG TARGETPLATFORM\nRUN uname -m > /machine"})
    dest = kanifold.home / "out"
    kanifold("build", folder, "--platform", ",".join(busybox.platforms), "-o", f"type=oci,dest={dest}")
    assert read.platforms(dest) == list(busybox.platforms)
    for platform in busybox.platforms:
        assert read(dest, platform).text("/machine").strip() in MACHINE[platform]


def test_debian_app_is_built_pushed_and_runs(
    kanifold: Kanifold, debian: Base, registry: str, read: Reader, tmp_path: Path
) -> None:
    """apt-get and pip in RUN, three platforms, one of them run by runc and the others by qemu, from the registry."""
    ref = f"{registry}/team/app:1"
    kanifold(
        "build", EXAMPLES / "debian-app", "--platform", ",".join(THREE), "-t", ref, "--push",
        "--build-context", f"debian:bookworm=docker-image://{debian.ref}",
    )  # fmt: skip

    inspect = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{ref}"]
    index = json.loads(subprocess.run(inspect, check=True, capture_output=True).stdout)
    assert index["mediaType"] == INDEX
    assert [entry["platform"] for entry in index["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux"},
        {"architecture": "arm", "os": "linux", "variant": "v7"},
    ]

    layout = read.layout(ref)
    for platform in THREE:
        said = run_image(layout, platform, scratch=tmp_path)
        assert said.startswith("hello world from"), said
        assert "iniconfig" in said


def test_what_is_written_is_what_the_image_spec_says(
    kanifold: Kanifold, busybox: Base, read: Reader, context: Context
) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo one > /one\nENV A=b\nCOPY file /\n", "file": "x"})
    dest = kanifold.home / "out"
    kanifold("build", folder, "--platform", "linux/amd64,linux/arm64", "-o", f"type=oci,dest={dest}")

    assert json.loads((dest / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    top = json.loads((dest / "index.json").read_text())
    assert top["schemaVersion"] == 2
    assert len(top["manifests"]) == 1
    index = read_json(dest, top["manifests"][0]["digest"])
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == INDEX
    for entry in index["manifests"]:
        manifest = read_json(dest, entry["digest"])
        assert manifest["schemaVersion"] == 2
        assert manifest["mediaType"] == entry["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        config = read_json(dest, manifest["config"]["digest"])
        assert (config["os"], config["architecture"]) == (entry["platform"]["os"], entry["platform"]["architecture"])
        assert config["rootfs"]["type"] == "layers"
        made = [step for step in config["history"] if not step.get("empty_layer")]
        assert len(made) == len(config["rootfs"]["diff_ids"]) == len(manifest["layers"]) == 3
        for layer in manifest["layers"]:
            blob = dest / "blobs" / "sha256" / layer["digest"].removeprefix("sha256:")
            assert blob.stat().st_size == layer["size"]
    named = {path.name for path in (dest / "blobs" / "sha256").iterdir()}
    assert named == _reachable(dest, top), "a layout holds what its index reaches, and nothing else"


def _reachable(layout: Path, document: Any) -> set[str]:
    found: set[str] = set()
    for entry in (*document.get("manifests", ()), *document.get("layers", ()), document.get("config", {})):
        if digest := entry.get("digest"):
            found.add(digest.removeprefix("sha256:"))
            if entry["mediaType"].endswith(("index.v1+json", "manifest.v1+json")):
                found |= _reachable(layout, read_json(layout, digest))
    return found


def test_skopeo_and_umoci_accept_a_layout(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo one > /one\n"})
    dest, copy = kanifold.home / "out", kanifold.home / "copy"
    kanifold("build", folder, "--platform", "linux/amd64,linux/arm64", "-t", "app:1", "-o", f"type=oci,dest={dest}")
    subprocess.run(["skopeo", "copy", "-q", "--all", f"oci:{dest}:1", f"oci:{copy}:again"], check=True)
    assert (copy / "index.json").exists()


@pytest.mark.parametrize("kind", ["zstd", "uncompressed", "gzip"])
def test_layers_of_a_base_are_compressed_anew_when_that_is_forced_and_not_else(
    kanifold: Kanifold, busybox: Base, context: Context, registry: str, read: Reader, kind: str
) -> None:
    """To a layout and to a registry, whose copies skopeo reads; the same files, and the same image every time."""
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo one > /one\n"})
    tag = f"{registry}/forced/{kind}:1"

    def layers(where: Path | str) -> list[str]:
        seen = read(where)
        assert seen.text("one") == "one\n"
        return [each["mediaType"].rpartition(".")[2] for each in seen.manifest["layers"]]

    def built(more: str, *outputs: str) -> str:
        given = f"compression={kind}{more}"
        return kanifold("build", folder, *(word for each in outputs for word in ("-o", f"{each},{given}"))).out

    plain, forced = kanifold.home / "plain", kanifold.home / "forced"
    built("", f"type=oci,dest={plain}")
    built(",force-compression=true", f"type=oci,dest={forced}", f"type=registry,name={tag}")
    new = {"zstd": "tar+zstd", "gzip": "tar+gzip", "uncompressed": "tar"}[kind]
    assert layers(plain) == ["tar+gzip", new]
    assert layers(forced) == layers(tag) == [new, new]
    assert read(forced).config["rootfs"] == read(plain).config["rootfs"]
    again = kanifold.home / "again"
    built(",force-compression=true", f"type=oci,dest={again}")
    assert read(again).manifest == read(forced).manifest


@pytest.mark.parametrize("given", ["cached", "again", "other store"])
def test_the_same_inputs_have_the_same_digest(kanifold: Kanifold, busybox: Base, context: Context, given: str) -> None:
    text = f"FROM {busybox.ref} AS a\nRUN echo one > /one\nFROM {busybox.ref}\nCOPY --from=a /one /\nCOPY f /d/\n"
    folder = context({"Dockerfile": text, "f": "x"})

    def digest(name: str, *more: str, **environment: str) -> str:
        file = kanifold.home / name
        out = f"type=oci,dest={kanifold.home / name}.oci"
        platforms = "linux/amd64,linux/arm64"
        kanifold(
            "build", folder, "--platform", platforms, "-o", out, "--iidfile", file, *more,
            SOURCE_DATE_EPOCH="1700000000", **environment,
        )  # fmt: skip
        return file.read_text()

    first = digest("first")
    assert first.startswith("sha256:")
    if given == "cached":
        assert digest("second") == first
    elif given == "again":
        assert digest("second", "--no-cache") == first
    else:
        assert digest("second", KANIFOLD_ROOT=str(kanifold.home / "another")) == first


@pytest.mark.parametrize("more", [(), ("--no-cache",), ("--no-cache-filter", "tools")], ids=["", "fresh", "filtered"])
def test_a_stage_for_the_build_platform_runs_once_for_all(
    kanifold: Kanifold, busybox: Base, context: Context, more: tuple[str, ...]
) -> None:
    text = f"""\
FROM --platform=$BUILDPLATFORM {busybox.ref} AS tools
RUN cat /proc/sys/kernel/random/uuid > /id
FROM {busybox.ref}
COPY --from=tools /id /
"""
    folder = context({"Dockerfile": text})

    def ids(out: str) -> list[str]:
        kanifold("build", folder, "--platform", "linux/amd64,linux/arm64", "-o", out, *more)
        return [(kanifold.home / out / f"linux_{each}" / "id").read_text() for each in ("amd64", "arm64")]

    first, again = ids("first"), ids("again")
    assert first[0] == first[1]
    assert again[0] == again[1]
    assert (first == again) is (not more)


@pytest.mark.parametrize("more", [(), ("--no-cache",)], ids=["", "fresh"])
def test_an_equal_copy_is_done_once_for_all_platforms(
    kanifold: Kanifold, read: Reader, context: Context, more: tuple[str, ...]
) -> None:
    folder = context({"Dockerfile": "FROM scratch\nWORKDIR /w\nCOPY . /w/\n", "f": "content\n"})
    for again in (False, True):
        dest = kanifold.home / f"out-{again}"
        told = kanifold(
            "build", folder, "--platform", ",".join(THREE), "--progress", "rawjson", *more,
            "-o", f"type=oci,tar=false,dest={dest}",
        ).err  # fmt: skip
        events = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
        done = [each["step"] for each in events if each["type"] == "step_finished" and not each["cached"]]
        steps = {step["id"]: step["name"] for each in events if each["type"] == "planned" for step in each["steps"]}
        made = sorted(name.split()[0] for name in (steps[each] for each in done) if not name.startswith("FROM"))
        assert made == (["COPY", "WORKDIR"] if more or not again else [])
        layers = [read(dest, platform).manifest["layers"] for platform in THREE]
        assert layers[0] == layers[1] == layers[2]
        assert read(dest, THREE[1]).text("/w/f") == "content\n"
