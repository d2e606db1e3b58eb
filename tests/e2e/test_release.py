"""``kanifold release``: several images by one command, tested on each platform, published together or not at all."""

from __future__ import annotations

import io
import json
import re
import signal
import tarfile
from pathlib import Path

import pytest
from conftest import Kanifold, Outcome
from registry_server import Asked, MemoryRegistry, Said, Served, error
from registry_server import served as serving

PLATFORMS = ["linux/amd64", "linux/arm64"]
FILE = """\
variables: {REGISTRY: , FAIL: "no"}
platforms: [linux/amd64, linux/arm64]
images:
  base:
    context: base
    args: {REGISTRY: "${REGISTRY}"}
    tags: "${REGISTRY}/base:1"
  web:
    context: web
    matrix: {python: ["3.12", "3.13"]}
    depends-on: base
    args: {PYTHON: "${python}"}
    tags: ["${REGISTRY}/web:${python}", "${REGISTRY}/web:latest-${python}"]
    annotations: ["index:org.opencontainers.image.title=web ${python}"]
    test:
      - name: runs
        run: |
          echo "on $(uname -m) as $(id -u) in $(pwd) with $GREETING"
          test "$(cat /python)" = ${python}
          test "${FAIL}" != "$(uname -m)-${python}"
      - command: [cat, /base]
"""
BASE = "ARG REGISTRY\nFROM $REGISTRY/busybox\nRUN echo base > /base\n"
WEB = "FROM base\nARG PYTHON\nRUN echo $PYTHON > /python\nENV GREETING=hello\nUSER 1000\nWORKDIR /srv\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The directory of a release: a base, and two images on it."""
    folder = tmp_path / "project"
    for name, dockerfile in (("base", BASE), ("web", WEB)):
        (folder / name).mkdir(parents=True)
        (folder / name / "Dockerfile").write_text(dockerfile)
    (folder / "kanifold.yaml").write_text(FILE)
    return folder


def release(kanifold: Kanifold, project: Path, served: Served, *arguments: str, **environment: str) -> Outcome:
    return kanifold.run("release", *arguments, cwd=project, REGISTRY=served.host, SOURCE_DATE_EPOCH="0", **environment)


def tags(registry: MemoryRegistry) -> set[str]:
    """The tags that there are, apart from that of the base image."""
    return {f"{name}:{tag}" for name, tag in registry.manifests if ":" not in tag and name != "busybox"}


ALL = {"base:1", "web:3.12", "web:3.13", "web:latest-3.12", "web:latest-3.13"}


def test_images_are_built_in_order_tested_and_published_together(
    kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    registry, served = server
    metadata, junit = project / "metadata.json", project / "junit.xml"
    found = release(kanifold, project, served, "--push", "--metadata-file", str(metadata), "--report", f"junit={junit}")
    assert found.code == 0, found.said
    assert tags(registry) == ALL
    digests = dict(line.split() for line in found.out.splitlines())
    assert list(digests) == ["base", "web-3-12", "web-3-13"]
    index = json.loads(registry.manifests["web", "3.13"][1])
    assert [f"{each['platform']['os']}/{each['platform']['architecture']}" for each in index["manifests"]] == PLATFORMS
    assert index["annotations"] == {"org.opencontainers.image.title": "web 3.13"}
    base = json.loads(registry.manifests["base", "1"][1])
    for on, below in zip(index["manifests"], base["manifests"], strict=True):
        layers, of_base = (
            json.loads(registry.manifests[name, each["digest"]][1])["layers"]
            for name, each in (("web", on), ("base", below))
        )
        assert layers[: len(of_base)] == of_base, "each platform is built on the base's own image"
    assert json.loads(metadata.read_text())["web-3-12"]["containerimage.digest"] == digests["web-3-12"]
    assert re.search(r"web-3-12 linux/arm64 test runs 2/2\] .* on aarch64 as 1000 in /srv with hello", found.err)
    assert 'name="[test runs' in junit.read_text()
    assert [each.name for each in kanifold.root.joinpath("tmp").iterdir()] == ["partial"], "nothing is left"

    again = release(kanifold, project, served, "--push")
    assert again.out == found.out, "the same digests"
    assert "on aarch64" not in again.err, "a test that has passed is not repeated for the same image"


def test_a_test_that_fails_on_one_platform_moves_no_tag(
    kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    registry, served = server
    found = release(kanifold, project, served, "--push", FAIL="aarch64-3.13")
    assert found.code == 1
    assert tags(registry) == set()
    assert (
        "ERROR: [web-3-13 linux/arm64]" in found.err
        or "the test runs of web-3-13 has failed on linux/arm64" in found.err
    )
    assert "  | on aarch64 as 1000 in /srv with hello" in found.err, "its output is shown as a failing step's is"
    assert "kanifold.yaml:" in found.err
    assert "no tag was moved" in found.err
    assert found.out == ""


def test_a_publication_that_fails_says_what_moved_and_is_finished_by_the_same_command(
    kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    registry, served = server

    def refused(asked: Asked) -> object:
        is_tag = asked.method == "PUT" and asked.path.endswith("/web/manifests/3.13")
        return error(403, "DENIED", "not today") if is_tag else ...

    registry.fault = refused
    found = release(kanifold, project, served, "--push")
    assert found.code == 1
    assert "3 of 5 tags of the release were set" in found.err
    moved = re.search("has its new digest: (.*)", found.err)
    left = re.search("does not: (.*)", found.err)
    assert moved is not None
    assert left is not None
    assert {each.removeprefix(f"{served.host}/") for each in moved[1].split(", ")} == tags(registry)
    assert tags(registry) | {each.removeprefix(f"{served.host}/") for each in left[1].split(", ")} == ALL
    registry.fault = None
    before = len(served.seen("PUT", "/base/manifests/1"))
    found = release(kanifold, project, served, "--push")
    assert found.code == 0, found.said
    assert tags(registry) == ALL
    assert len(served.seen("PUT", "/base/manifests/1")) == before, "a tag that was set is not set again"


@pytest.mark.slow
def test_an_interrupted_publication_says_what_moved(
    kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    import threading

    registry, served = server
    asked_for, go_on = threading.Event(), threading.Event()

    def slow(asked: Asked) -> object:
        if asked.method == "PUT" and asked.path.endswith("/web/manifests/3.12"):
            asked_for.set()
            go_on.wait(20)
        return ...

    registry.fault = slow
    with kanifold.start("release", "--push", cwd=project, REGISTRY=served.host, SOURCE_DATE_EPOCH="0") as process:
        assert asked_for.wait(60)
        process.send_signal(signal.SIGINT)
        go_on.set()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    moved = re.search("has its new digest: (.*)", err)
    assert moved is not None, err
    assert {each.removeprefix(f"{served.host}/") for each in moved[1].split(", ")} == tags(registry)


def test_a_test_that_hangs_is_stopped(kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served]) -> None:
    registry, served = server
    (project / "kanifold.yaml").write_text(
        "variables: {REGISTRY: }\nimages:\n  base:\n    context: base\n    args: {REGISTRY: '${REGISTRY}'}\n"
        "    tags: '${REGISTRY}/base:1'\n    test: {run: echo waiting; sleep 600, timeout: 1s, name: hangs}\n"
    )
    found = release(kanifold, project, served, "--push")
    assert found.code == 1
    assert "the test hangs of base has failed on linux/amd64: it was stopped after 1 seconds" in found.err
    assert "  | waiting" in found.err
    assert tags(registry) == set()


SCRIPT = """#!/bin/sh
set -e
setsid sleep 600 &
echo $! > left-$(echo $KANIFOLD_PLATFORM | tr / -)
echo "scanning $KANIFOLD_IMAGE $KANIFOLD_PLATFORM $KANIFOLD_DIGEST"
test "$(cat $KANIFOLD_ROOTFS/base)" = base
if touch $KANIFOLD_ROOTFS/x 2>/dev/null; then echo writable; fi
to=scanned-$(echo $KANIFOLD_PLATFORM | tr / -)
rm -rf $to
cp -rL $KANIFOLD_LAYOUT $to
test "$FAIL" != "$KANIFOLD_PLATFORM"
"""


def test_a_script_has_the_files_and_a_layout_of_the_image(
    kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    registry, served = server
    script = project / "scan"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    (project / "kanifold.yaml").write_text(
        "variables: {REGISTRY: }\nplatforms: [linux/amd64, linux/arm64]\nimages:\n  base:\n    context: base\n"
        "    args: {REGISTRY: '${REGISTRY}'}\n    tags: '${REGISTRY}/base:1'\n"
        "    test: {script: ./scan, name: scan, timeout: 1m}\n"
    )
    refused = release(kanifold, project, served, "--push")
    assert refused.code == 2
    assert "--allow test.script" in refused.err
    failed = release(kanifold, project, served, "--push", "--allow", "test.script", FAIL="linux/arm64")
    assert failed.code == 1
    assert "the test scan of base has failed on linux/arm64: ./scan ended with exit status 1" in failed.err
    assert "  | scanning base linux/arm64 sha256:" in failed.err
    assert tags(registry) == set()
    found = release(kanifold, project, served, "--push", "--allow", "test.script")
    assert found.code == 0, found.said
    assert "writable" not in found.err
    for each in ("amd64", "arm64"):
        left = int((project / f"left-linux-{each}").read_text())
        assert not Path(f"/proc/{left}").exists(), "nothing of a script outlives it"
        layout = project / f"scanned-linux-{each}"
        (only,) = json.loads((layout / "index.json").read_text())["manifests"]
        assert only["platform"]["architecture"] == each
        assert (layout / "blobs" / "sha256" / only["digest"].removeprefix("sha256:")).exists()
    assert tags(registry) == {"base:1"}


def test_the_plan_is_a_table_or_json(kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served]) -> None:
    _, served = server
    table = release(kanifold, project, served, "--dry-run", "--push")
    assert table.code == 0, table.said
    heading, *rows = table.out.splitlines()
    assert heading.split() == ["IMAGE", "PLATFORM", "NODE", "RUNS", "WHY", "AFTER", "TESTS"]
    assert [row.split()[:3] for row in rows[:6]] == [
        [image, platform, "local"] for image in ("base", "web-3-12", "web-3-13") for platform in PLATFORMS
    ]
    assert rows[6:] == [
        f"then push {served.host}/base:1",
        f"then push {served.host}/web:3.12, {served.host}/web:latest-3.12",
        f"then push {served.host}/web:3.13, {served.host}/web:latest-3.13",
    ]
    plan = json.loads(
        release(
            kanifold,
            project,
            served,
            "web-3-13",
            "--only",
            "platform=linux/arm64",
            "--dry-run",
            "--progress",
            "rawjson",
        ).out
    )
    base, web = plan["images"]
    assert (base["name"], base["requested"]) == ("base", False)
    assert (web["depends_on"], web["tests"], web["matrix"]) == (["base"], ["runs", "test-2"], {"python": "3.13"})
    assert [each["platform"] for each in web["platforms"]] == ["linux/arm64"]
    bake = json.loads(release(kanifold, project, served, "--print", "--set", "web-*.args.PYTHON=4").out)
    assert bake["target"]["web-3-12"]["args"] == {"PYTHON": "4"}
    assert not served.asked, "nothing was built"


@pytest.mark.parametrize(
    ("old", "new", "arguments", "said"),
    [
        (
            "context: web",
            "contxt: web",
            (),
            "kanifold.yaml:9:5: images.web.contxt: unknown key (did you mean context?)",
        ),
        ("context: base", "context: base\n    depends-on: web-3-12", (), "images depend on each other in a cycle"),
        ("base:1", "web:3.12", (), "two images have the tag"),
        ('${python}"]', '${pyton}"]', (), "there is no variable pyton (did you mean python?)"),
        ("", "", ("--set", "wep-*.target=x"), "no image is called wep-*"),
        ("", "", ("--only", "python=3.11"), "--only python=3.11: no image has it"),
        ("", "", ("--var", "REGISTRI=x"), "--var REGISTRI: the release file has no such variable"),
        ("", "", ("--only", "platform=linux/arm64"), "--push needs all platforms"),
        ("context: web", "context: wep", (), "no build context"),
    ],
)
def test_bad_input_is_one_error_and_publishes_nothing(
    kanifold: Kanifold,
    project: Path,
    server: tuple[MemoryRegistry, Served],
    old: str,
    new: str,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    registry, served = server
    file = project / "kanifold.yaml"
    file.write_text(file.read_text().replace(old, new) if old else file.read_text())
    found = release(kanifold, project, served, "--push", *arguments)
    assert found.code in (1, 2), found.said
    assert said in found.err
    assert found.err.count("ERROR") == 1
    assert tags(registry) == set()


def test_local_outputs_are_written_when_all_images_are_tested(
    kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    _, served = server
    outputs = ("--set", "base.output=type=oci,dest=layout", "--set", "*.platform=linux/amd64")
    assert release(kanifold, project, served, *outputs, FAIL="x86_64-3.12").code == 1
    assert not (project / "layout").exists()
    assert release(kanifold, project, served, *outputs).code == 0
    assert (project / "layout" / "index.json").exists()


def test_a_context_that_images_share_is_fetched_once(
    kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    _, registry = server
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        file.add(project / "base" / "Dockerfile", "Dockerfile")
    (project / "kanifold.yaml").write_text(
        "variables: {REGISTRY: , URL: }\nimages:\n  a:\n    matrix: {v: [x, y, z]}\n    context: '${URL}'\n"
        "    args: {REGISTRY: '${REGISTRY}', V: '${v}'}\n"
    )
    with serving(lambda _: Said(200, {}, archive.getvalue())) as files:
        found = release(kanifold, project, registry, URL=f"{files.url}/context.tar")
        assert found.code == 0, found.said
        assert len(files.seen("GET")) == 1


@pytest.mark.slow
def test_jobs_bounds_all_images_together(
    kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    _, served = server
    found = release(kanifold, project, served, "--jobs", "1", "--progress", "rawjson")
    assert found.code == 0, found.said
    running: set[str] = set()
    most = 0
    for event in map(json.loads, found.err.splitlines()):
        if event["type"] == "platform_started":
            running.add(f"{event.get('image')} {event['platform']}")
        elif event["type"] == "result":
            running.discard(f"{event.get('image')} {event['platform']}")
        most = max(most, len(running))
    assert most == 1


@pytest.mark.slow
def test_the_jobs_of_a_matrix_make_the_same_indexes(
    kanifold: Kanifold, project: Path, server: tuple[MemoryRegistry, Served], tmp_path: Path
) -> None:
    registry, served = server
    whole = release(kanifold, project, served, "--push")
    assert whole.code == 0, whole.said
    registry.manifests = {key: value for key, value in registry.manifests.items() if key[0] == "busybox"}
    runners = ("--runner", "linux/amd64=x", "--runner", "linux/arm64=y")
    plan = json.loads(kanifold("matrix", *runners, cwd=project, REGISTRY=served.host).out)
    assert [(job["name"], job["level"], job["runner"]) for job in plan["jobs"]] == [
        ("base.linux-amd64", 0, "x"),
        ("base.linux-arm64", 0, "y"),
        ("web-3-12.linux-amd64", 1, "x"),
        ("web-3-12.linux-arm64", 1, "y"),
        ("web-3-13.linux-amd64", 1, "x"),
        ("web-3-13.linux-arm64", 1, "y"),
    ]
    missing = release(kanifold, project, served, "--join")
    assert missing.code == 1
    assert "6 of 6 jobs of the release have left nothing" in missing.err
    machines = {"amd64": kanifold.folder("one"), "arm64": kanifold.folder("two")}
    for job in plan["jobs"]:
        assert job["command"][:2] == ["kanifold", "release"]
        root = machines[job["platform"].partition("/")[2]]
        found = release(kanifold, project, served, *job["command"][2:], KANIFOLD_ROOT=str(root))
        assert found.code == 0, found.said
        assert (project / job["metadata"]).exists()
    assert tags(registry) == set(), "a job moves no tag"
    joined = release(kanifold, project, served, *plan["join"][2:], KANIFOLD_ROOT=str(kanifold.folder("three")))
    assert joined.code == 0, joined.said
    assert joined.out == whole.out
    assert tags(registry) == ALL

    file = project / "kanifold-metadata" / "web-3-13.linux-arm64.json"
    document = json.loads(file.read_text())
    document["kanifold.release"]["built_from"]["base"] = "sha256:" + "0" * 64
    file.write_text(json.dumps(document))
    other = release(kanifold, project, served, "--join")
    assert other.code == 1
    assert "web-3-13.linux-arm64 was not built from the base of this release" in other.err
    file.unlink()
    registry.manifests = {key: value for key, value in registry.manifests.items() if ":" in key[1]}
    lacking = release(kanifold, project, served, "--join")
    assert lacking.code == 1
    assert "has no metadata of web-3-13.linux-arm64" in lacking.err
    assert tags(registry) == set()


def test_the_jobs_of_a_release_are_a_child_pipeline_or_a_matrix(kanifold: Kanifold, project: Path) -> None:
    import yaml

    runners = ("--runner", "linux/amd64=x", "--runner", "linux/arm64=y")
    pipeline = yaml.safe_load(kanifold("matrix", *runners, "--format", "gitlab", cwd=project, REGISTRY="r:5").out)
    assert pipeline["stages"] == ["build 0", "build 1", "publish"]
    assert pipeline["build web-3-12.linux-arm64"]["stage"] == "build 1"
    assert pipeline["build web-3-12.linux-arm64"]["script"][1].startswith(
        "kanifold release --job web-3-12.linux-arm64 "
    )
    assert pipeline["publish release"]["script"] == ["kanifold release --join"]
    found = kanifold("matrix", *runners, "--format", "github", "--level", "0", cwd=project, REGISTRY="r:5").out
    assert [each["name"] for each in json.loads(found)["include"]] == ["base.linux-amd64", "base.linux-arm64"]
    refused = kanifold.run("matrix", *runners, "--level", "2", cwd=project, REGISTRY="r:5")
    assert refused.code == 2
    assert "the release has the levels 0 to 1" in refused.err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`"),
        (
            '{"kanifold.release": {"image": "base", "platform": "linux/arm64", "built_from": {}}, '
            '"kanifold.platforms": {}, "image.name": "a", "kanifold.pins": {}}',
            "another job",
        ),
        ("{}", "missing required field"),
        ("[" * 100_000, ""),
    ],
)
def test_metadata_that_is_none_is_refused(kanifold: Kanifold, project: Path, text: str, why: str) -> None:
    (project / "kanifold-metadata").mkdir()
    (project / "kanifold-metadata" / "base.linux-amd64.json").write_text(text)
    found = kanifold.run("release", "--join", cwd=project, REGISTRY="r:5", SOURCE_DATE_EPOCH="0")
    assert found.code == 2
    assert "base.linux-amd64.json is not the metadata of the job base.linux-amd64" in found.err
    assert why in found.err
