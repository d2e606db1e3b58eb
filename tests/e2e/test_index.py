"""The matrix by hand: platforms built apart and pushed by digest, joined, read by other people's tools."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from conftest import Base, Kanifold, Reader
from registry_server import Asked, MemoryRegistry, served
from small_images import Images

Context = Callable[[Mapping[str, str | bytes]], Path]


def test_platforms_built_apart_are_joined_to_the_index_of_one_build(
    kanifold: Kanifold, registry: str, busybox: Base, context: Context, read: Reader, tmp_path: Path
) -> None:
    where = context({"Dockerfile": f"FROM {busybox.ref}\nCOPY greeting /\n", "greeting": "hello"})
    name = f"{registry}/e2e/index"
    platforms = ("linux/arm64", "linux/amd64")
    environment = {"SOURCE_DATE_EPOCH": "1700000000"}
    (tmp_path / "built").mkdir()
    for number, platform in enumerate(platforms):
        kanifold(
            "build", where, "--platform", platform, "-t", f"{name}:apart", "--push-by-digest",
            "--metadata-file", tmp_path / "built" / f"{number}.json", **environment,
        )  # fmt: skip
        assert kanifold.run("index", "inspect", f"{name}:apart").code == 1, "no tag has moved"
    pins = [json.loads(each.read_text())["kanifold.pins"] for each in (tmp_path / "built").iterdir()]
    assert pins == [{busybox.ref: busybox.digest}] * 2
    lacking = kanifold.run(
        "index", "create", "-t", f"{name}:apart", "--metadata", tmp_path / "built", "-p", "linux/amd64,linux/s390x"
    )
    assert lacking.code == 1
    assert "no manifest for linux/s390x" in lacking.err
    (tmp_path / "kanifold.yaml").write_text("platforms: [linux/arm64, linux/amd64, linux/riscv64]\n")
    lacking = kanifold.run("index", "create", "-t", f"{name}:apart", "--metadata", tmp_path / "built", cwd=tmp_path)
    assert lacking.code == 1, "the plan is that of the project"
    assert "no manifest for linux/riscv64" in lacking.err
    (tmp_path / "kanifold.yaml").write_text("platforms: [linux/arm64, linux/amd64]\n")
    joined = kanifold("index", "create", "-t", f"{name}:apart", "--metadata", tmp_path / "built", cwd=tmp_path)
    one = kanifold("index", "create", "--dry-run", "--metadata", tmp_path / "built", "-p", platforms[0])
    assert "1.json" in one.err, "what is left out is told"
    assert "is left out: it is for linux/amd64" in one.err
    whole = kanifold("build", where, "--platform", ",".join(platforms), "-t", f"{name}:whole", "--push", **environment)
    assert joined.out == whole.out, "byte by byte the index of one command"
    assert read.platforms(f"{name}:apart") == list(platforms)
    assert read(f"{name}:apart", "linux/arm64").text("greeting") == "hello"

    copied = kanifold("copy", f"{name}:apart", f"oci-archive:{tmp_path / 'a.tar'}")
    assert copied.out == joined.out
    raw = ["skopeo", "inspect", "--raw", f"oci-archive:{tmp_path / 'a.tar'}"]
    document: dict[str, Any] = json.loads(subprocess.run(raw, check=True, capture_output=True).stdout)
    shown = json.loads(kanifold("index", "inspect", "--format", "json", f"{name}:apart").out)
    assert [each["digest"] for each in shown["manifests"]] == [each["digest"] for each in document["manifests"]]


def test_the_jobs_of_a_matrix_run_as_printed_make_the_index_of_one_build(
    kanifold: Kanifold, registry: str, busybox: Base, context: Context, tmp_path: Path
) -> None:
    """Each job in a store of its own, as on runners that share nothing but the registry and artefacts."""
    where = context({"Dockerfile": f"FROM {busybox.ref}\nCOPY greeting /\n", "greeting": "hello"})
    name, platforms = f"{registry}/e2e/matrix", "linux/s390x,linux/arm64,linux/riscv64,linux/amd64"
    runners = ("--runner", "linux/amd64=amd", "--runner", "linux/arm64=arm")
    printed = kanifold("matrix", where, "--platform", platforms, "-t", f"{name}:1", *runners, "--format", "gitlab").out
    pipeline = yaml.safe_load(printed)
    jobs = [pipeline[each] for stage in pipeline["stages"] for each in pipeline if _stage(pipeline[each]) == stage]
    assert [job.get("tags") for job in jobs] == [["arm"], ["amd"], ["amd"], None]
    for number, job in enumerate(jobs):
        script = "\n".join(job["script"]).replace("kanifold ", f"{shlex.join(kanifold.command)} ")
        environment = kanifold.environment(
            KANIFOLD_ROOT=str(tmp_path / f"store-{number}"), SOURCE_DATE_EPOCH="1700000000"
        )
        done = subprocess.run(
            ["sh", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    whole = kanifold(
        "build", where, "--platform", platforms, "-t", f"{name}:2", "--push", SOURCE_DATE_EPOCH="1700000000"
    )
    assert done.stdout == whole.out, "byte by byte"


def _stage(job: object) -> str:
    return str(job.get("stage", "")) if isinstance(job, dict) else ""


def test_a_wrong_command_line_is_a_usage_error(kanifold: Kanifold) -> None:
    for words in (("index", "create", "app"), ("index", "nothing"), ("copy", "app"), ("index", "inspect", "a b")):
        outcome = kanifold.run(*words)
        assert outcome.code == 2, outcome.said
        assert "Traceback" not in outcome.said


def test_a_copy_that_is_interrupted_leaves_nothing(kanifold: Kanifold, tmp_path: Path) -> None:
    """Ctrl-C while a blob hangs: it ends at once, with nothing half-written."""
    images = Images()
    root = images.image()
    memory = MemoryRegistry()
    images.put(memory, "app", {"1": root})
    asked, over = os.pipe(), threading.Event()

    def hang(request: Asked) -> object:
        if "/blobs/" in request.path:
            os.write(asked[1], b"x")
            over.wait()
            return None
        return ...

    memory.fault = hang
    with served(memory) as server:
        for target in (f"oci-archive:{tmp_path / 'out.tar'}", f"oci:{tmp_path / 'out'}"):
            with kanifold.start("copy", f"{server.host}/app:1", target) as process:
                os.read(asked[0], 1)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=20)
            assert (process.returncode, out) == (130, ""), err
            assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []
        over.set()
