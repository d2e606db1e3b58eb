"""``kanifold convert`` writes release files with the same plan; ``kanifold release`` takes bake files as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bake_inputs import NO_ENVIRONMENT, PLANS, RECORDED, comparable
from click.testing import CliRunner

from orchestrator.cli import cli
from orchestrator.release import release_file
from orchestrator.release.bake import bake_file, bake_json

LOST = ("attest", "call", "entitlements", "resources")
"""Keys of a bake file that a release file does not have."""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(NO_ENVIRONMENT, "1")


def run(*words: str) -> str:
    """What ``kanifold`` with ``words`` prints."""
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", ["expressions", "keys", "files", "compose", "compose-override", "compose-hcl"])
def test_the_converted_file_has_the_same_plan(name: str) -> None:
    plan = PLANS[name]
    for file, text in plan.files.items():
        Path(file).write_text(text)
    run("convert", *plan.read())
    one, other = bake_file.read(plan.read(), {}, ()), release_file.read("kanifold.yaml", {}, {})
    for image in one.images:
        wanted, found = (bake_json.target(each.image(image.name)) for each in (one, other))  # type: ignore[arg-type]
        assert found == {key: value for key, value in wanted.items() if key not in LOST}
    assert {each.name: each.members for each in other.groups}.items() >= {
        each.name: each.members for each in one.groups
    }.items()


def test_the_command_prints_the_plan_that_buildx_prints() -> None:
    plan = PLANS["expressions"]
    Path("docker-bake.hcl").write_text(plan.files["docker-bake.hcl"])
    found = comparable(json.loads(run("release", "--print", *plan.names))["target"])
    wanted: dict[str, Any] = json.loads(RECORDED.read_text())["expressions"]
    assert found == wanted


def test_overrides_reach_what_others_inherit() -> None:
    Path("docker-bake.hcl").write_text('target "a" {}\ntarget "b" { \n inherits = ["a"]\n}')
    found = json.loads(run("release", "--print", "--file", "docker-bake.hcl", "--set", "a.args.X=1", "b"))
    assert found["target"]["b"]["args"] == {"X": "1"}


def test_a_file_that_is_there_is_not_replaced_unasked() -> None:
    Path("docker-bake.hcl").write_text('target "a" {}')
    Path("kanifold.yaml").write_text("mine")
    done = CliRunner().invoke(cli, ["convert"])
    assert "is there already" in str(done.exception)
    assert Path("kanifold.yaml").read_text() == "mine"
    run("convert", "--force")
    assert "dockerfile: Dockerfile" in Path("kanifold.yaml").read_text()
    assert "    dockerfile: Dockerfile" in run("convert", "--output", "-").splitlines()


def test_what_a_release_file_has_no_keys_for_is_said() -> None:
    Path("docker-bake.hcl").write_text('target "a" {\n call = "check"\n}\ngroup "g" {\n targets = ["a", "b"]\n}')
    done = CliRunner().invoke(cli, ["convert", "-o", "-"])
    assert "a: call cannot be in a release file" in done.stderr
    assert "g: b cannot be in a release file" in done.stderr
