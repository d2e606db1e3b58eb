"""The pieces for GitHub Actions, run by act as a repository has them: nothing of them is changed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import documented
import judges
import pytest
import yaml
from conftest import Base, Kanifold, Reader
from programs import program
from workflow_runner import WorkflowRunner

ROOT = Path(__file__).resolve().parents[2]
PIECES = ROOT / "ci" / "github"
EPOCH = "1700000000"


@pytest.fixture
def runner(tmp_path: Path, kanifold: Kanifold) -> WorkflowRunner:
    return WorkflowRunner(tmp_path / "runner", kanifold.command, {"SOURCE_DATE_EPOCH": EPOCH, **kanifold.extra})


ACTIONS = ("checkout", "upload-artifact", "download-artifact", "github-script")


@judges.needs("act")
@judges.needs_actions(*ACTIONS)
def test_a_matrix_in_separate_jobs_makes_the_index_of_one_build(
    runner: WorkflowRunner, registry: str, busybox: Base, kanifold: Kanifold, read: Reader
) -> None:
    name = f"{registry}/e2e/act"
    (settings, (_, caller), *_) = documented.files("ci.md", "GitHub", f"{name}:1")
    runner.write(
        {
            "Dockerfile": f"FROM {busybox.ref} as base\nCOPY greeting /\nRUN cat /greeting && arch > /arch\n",
            "greeting": "hello",
            settings[0]: settings[1],
            ".github/workflows/push.yml": caller + "  after:\n    needs: image\n    runs-on: ubuntu-24.04\n    steps:\n"
            "      - run: echo \"joined $DIGEST\"\n        env: {DIGEST: '${{ needs.image.outputs.digest }}'}\n",
            ".github/workflows/image.yml": PIECES / "image.yml",
        }
    )
    runner.commit()
    done = runner.run("push.yml")
    assert done.returncode == 0, done.stdout
    whole = kanifold(
        "build", runner.repository, "--platform", "linux/amd64,linux/arm64", "-t", f"{name}:whole", "--push",
        SOURCE_DATE_EPOCH=EPOCH,
    )  # fmt: skip
    raw = [kanifold("index", "inspect", "--raw", f"{name}:{tag}").out for tag in ("1", "whole")]
    assert raw[0] == raw[1], "byte by byte"
    assert f"joined {whole.out.strip()}" in done.stdout
    assert read(f"{name}:1", "linux/arm64").text("greeting") == "hello"
    assert len(re.findall(r"\[linux/a\w+ 3/3\] DONE", done.stdout)) == 2, "each is built in a store of its own"
    assert len(re.findall("WARNING: .*casing", done.stdout)) == 2, "the log of each job has the warning"
    assert len(re.findall("::warning.*FROM and AS", done.stdout)) == 1, "and one job annotates the line"


@pytest.mark.slow
@judges.needs("act")
@judges.needs_actions(*ACTIONS)
def test_two_images_of_one_run_are_kept_apart(
    runner: WorkflowRunner, registry: str, busybox: Base, read: Reader
) -> None:
    (settings, (path, caller), *_) = documented.files("ci.md", "GitHub", f"{registry}/e2e/first:1")
    _, jobs = caller.split("jobs:\n")
    second = jobs.replace("e2e/first", "e2e/second").replace("  image:\n", "  other:\n")
    second = second.replace("    with:\n", "    with:\n      context: other\n")
    runner.write(
        {
            "Dockerfile": f"FROM {busybox.ref}\nCOPY kanifold.yaml /first\n",
            "other/Dockerfile": f"FROM {busybox.ref}\nCOPY Dockerfile /second\n",
            settings[0]: settings[1],
            path: f"{caller}{second}",
            ".github/workflows/image.yml": PIECES / "image.yml",
        }
    )
    runner.commit()
    done = runner.run("push.yml")
    assert done.returncode == 0, done.stdout
    for name in ("first", "second"):
        for platform in ("linux/amd64", "linux/arm64"):
            assert read(f"{registry}/e2e/{name}:1", platform).text(name)


@pytest.mark.slow
@judges.needs("act")
@judges.needs_actions(*ACTIONS)
@pytest.mark.parametrize("subcommand", ["matrix", "build", "index"])
def test_the_workflow_fails_with_each_of_its_commands(
    runner: WorkflowRunner, registry: str, busybox: Base, subcommand: str
) -> None:
    (settings, (path, caller), *_) = documented.files("ci.md", "GitHub", f"{registry}/e2e/failing:1")
    runner.write(
        {
            "Dockerfile": f"FROM {busybox.ref}\nLABEL a=b\n",
            settings[0]: settings[1],
            path: caller,
            ".github/workflows/image.yml": PIECES / "image.yml",
        }
    )
    runner.commit()
    runner.fail(subcommand)
    done = runner.run("push.yml")
    assert done.returncode != 0, done.stdout
    job = {"matrix": "plan", "build": "build", "index": "index"}[subcommand]
    assert f"Job '{job}' failed" in done.stdout


@pytest.mark.slow
@judges.needs("act")
@judges.needs_actions(*ACTIONS)
def test_a_second_run_hits_the_cache_service(
    runner: WorkflowRunner, registry: str, busybox: Base, kanifold: Kanifold
) -> None:
    name = f"{registry}/e2e/cached"
    (settings, _, (path, caller), _) = documented.files("ci.md", "GitHub", f"{name}:1")
    runner.write(
        {
            "Dockerfile": f"FROM {busybox.ref}\nCOPY greeting /\nRUN arch > /arch\nRUN cat /arch > /again\n",
            "greeting": "hello",
            settings[0]: settings[1],
            path: caller,
            ".github/workflows/image.yml": PIECES / "image.yml",
        }
    )
    runner.commit()
    raw = []
    for wanted in ("DONE", "CACHED"):
        done = runner.run("push.yml")
        assert done.returncode == 0, done.stdout
        for step in ("3/4", "4/4"):
            assert len(re.findall(rf"\[linux/a\w+ {step}\] {wanted}", done.stdout)) == 2, done.stdout
        raw.append(kanifold("index", "inspect", "--raw", f"{name}:1").out)
    words = ("build", runner.repository, "--platform", "linux/amd64,linux/arm64", "-t", f"{name}:whole", "--push")
    kanifold(*words, SOURCE_DATE_EPOCH=EPOCH)
    raw.append(kanifold("index", "inspect", "--raw", f"{name}:whole").out)
    assert raw[0] == raw[1] == raw[2], "byte by byte, with the cache and without"


@judges.needs("act")
@judges.needs_actions(*ACTIONS)
def test_the_action_has_the_inputs_and_outputs_of_build_push_action(
    runner: WorkflowRunner, registry: str, busybox: Base, kanifold: Kanifold, read: Reader
) -> None:
    name = f"{registry}/e2e/action"
    workflow = f"""\
on: push
jobs:
  image:
    runs-on: ubuntu-24.04
    steps:
      - uses: actions/checkout@v6
      - id: build
        uses: ./.github/actions/kanifold
        with:
          context: app
          platforms: linux/amd64,linux/arm64
          tags: |
            {name}:1
            {name}:2
          push: true
          build-args: |
            WORDS=one, two $(touch evil) "three"
            OTHER=`touch evil`
          labels: a=b
          secrets: |
            token=it's a secret
          reports: junit=junit.xml
      - run: |
          echo "digest=$DIGEST"
          echo "image=$IMAGE"
          python3 -c 'import json, os; print("named", json.loads(os.environ["METADATA"])["image.name"])'
          test -s junit.xml && test ! -e evil
        env:
          DIGEST: ${{{{ steps.build.outputs.digest }}}}
          IMAGE: ${{{{ steps.build.outputs.image }}}}
          METADATA: ${{{{ steps.build.outputs.metadata }}}}
"""
    dockerfile = (
        f'FROM {busybox.ref} as base\nARG WORDS OTHER\nRUN echo "$WORDS|$OTHER" > /words\n'
        'RUN --mount=type=secret,id=token,required test "$(wc -c < /run/secrets/token)" = 13\n'
    )
    runner.write(
        {
            "app/Dockerfile": dockerfile,
            ".github/workflows/push.yml": workflow,
            ".github/actions/kanifold": PIECES,
        }
    )
    runner.commit()
    done = runner.run("push.yml")
    assert done.returncode == 0, done.stdout
    digest = json.loads(kanifold("index", "inspect", "--format", "json", f"{name}:2").out)["digest"]
    assert f"digest={digest}" in done.stdout
    assert f"image={name}@{digest}" in done.stdout
    assert f"named {name}:1,{name}:2" in done.stdout
    assert read(f"{name}:1", "linux/arm64").text("words") == 'one, two $(touch evil) "three"|`touch evil`\n'
    assert "it's a secret" not in done.stdout
    annotations = re.findall(r"::warning (.*?)::|warning.*file=([^,]+),line=1", done.stdout)
    assert len([each for each in annotations if "app/Dockerfile" in "".join(each)]) <= 1, "each is shown once"


@pytest.mark.slow
@judges.needs("act")
@judges.needs_actions(*ACTIONS)
def test_one_job_builds_all_platforms(runner: WorkflowRunner, registry: str, busybox: Base, read: Reader) -> None:
    name = f"{registry}/e2e/action:1"
    (*_, (path, workflow)) = documented.files("ci.md", "GitHub", name)
    runner.write({"Dockerfile": f"FROM {busybox.ref}\nLABEL a=b\n", path: workflow, ".github/actions/kanifold": PIECES})
    runner.commit()
    done = runner.run("push.yml")
    assert done.returncode == 0, done.stdout
    assert read.platforms(name) == ["linux/amd64", "linux/arm64"]


def lint(files: dict[str, Path], folder: Path) -> str:
    """What actionlint says of workflows by name."""
    place = folder / ".github" / "workflows"
    place.mkdir(parents=True)
    for name, source in files.items():
        shutil.copy(source, place / name)
    done = subprocess.run(
        [judges.find("actionlint"), "-no-color", *map(str, place.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@judges.needs("actionlint")
def test_the_workflows_are_what_github_reads(tmp_path: Path) -> None:
    callers = [text for path, text in documented.files("ci.md", "GitHub", documented.NAME) if path.endswith("push.yml")]
    files = {"image.yml": PIECES / "image.yml"}
    for number, text in enumerate(callers):
        files[f"push-{number}.yml"] = tmp_path / f"{number}"
        files[f"push-{number}.yml"].write_text(text)
    shutil.copytree(PIECES, tmp_path / ".github" / "actions" / "kanifold")
    (tmp_path / ".git").mkdir()
    assert lint(files, tmp_path) == ""


# -- the script of the action


def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("action_build", PIECES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = build_script()
INPUTS = tuple(yaml.safe_load((PIECES / "action.yml").read_text())["inputs"])
BUILD_PUSH_ACTION = {
    "add-hosts", "allow", "annotations", "attests", "build-args", "build-contexts", "builder", "cache-from", "cache-to",
    "call", "cgroup-parent", "context", "file", "labels", "load", "network", "no-cache", "no-cache-filters", "outputs",
    "platforms", "provenance", "pull", "push", "sbom", "secrets", "secret-envs", "secret-files", "shm-size", "ssh",
    "tags", "target", "ulimit", "github-token",
}  # fmt: skip


def test_the_inputs_are_those_of_build_push_action_and_our_own() -> None:
    assert set(INPUTS) - BUILD_PUSH_ACTION == {
        "args", "metadata-file", "pins", "push-by-digest", "reports", "version"
    }  # fmt: skip
    assert set(INPUTS) >= BUILD_PUSH_ACTION


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"tags": "a:1,b:2\nc:3\n"}, ["--tag=a:1", "--tag=b:2", "--tag=c:3"]),
        ({"platforms": " linux/amd64, linux/arm64 "}, ["--platform=linux/amd64", "--platform=linux/arm64"]),
        ({"build-args": "A=1,2\n\nB=x y\n"}, ["--build-arg=A=1,2", "--build-arg=B=x y"]),
        ({"build-args": '"A=first\nsecond"'}, ["--build-arg=A=first\nsecond"]),
        ({"cache-from": "type=gha,scope=a\ntype=registry,ref=b"},
         ["--cache-from=type=gha,scope=a", "--cache-from=type=registry,ref=b"]),
        ({"outputs": "type=local,dest=out"}, ["--output=type=local,dest=out"]),
        ({"push": "true", "load": "False"}, ["--push"]),
        ({"file": "a b/Dockerfile", "target": "--push"}, ["--file=a b/Dockerfile", "--target=--push"]),
        ({"secret-envs": "A=ENV,B=OTHER"}, ["--secret=id=A,env=ENV", "--secret=id=B,env=OTHER"]),
        ({"secret-files": "A=./x,y"}, ["--secret=id=A,src=./x,y"]),
        ({"provenance": "false", "sbom": ""}, []),
        ({"args": "--jobs=2\n--keep-going"}, ["--jobs=2", "--keep-going"]),
    ],
)  # fmt: skip
def test_inputs_become_flags(inputs: dict[str, str], words: list[str], tmp_path: Path) -> None:
    made = BUILD.arguments(inputs, tmp_path / "m", tmp_path)
    assert made == ["kanifold", "build", f"--metadata-file={tmp_path / 'm'}", *words, "--", "."]


def test_a_context_is_no_option_and_a_token_is_for_its_host_alone(tmp_path: Path) -> None:
    assert BUILD.arguments({"context": "--push"}, tmp_path / "m", tmp_path)[-2:] == ["--", "--push"]
    for context, given in (("https://github.com/a/b.git", True), ("https://github.com.evil.example/a.git", False)):
        words = BUILD.arguments({"context": context, "github-token": "t"}, tmp_path / "m", tmp_path)
        assert any("GIT_AUTH_TOKEN.github.com" in each for each in words) == given
        assert not any(each.endswith("=t") for each in words), "no argument has it"


@pytest.mark.parametrize("inputs", [{"sbom": "true"}, {"provenance": "mode=max"}, {"push": "yes"}])
def test_inputs_that_cannot_be_are_errors(inputs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^::error::"):
        BUILD.arguments(inputs, tmp_path / "m", tmp_path)


def test_the_log_has_the_command_and_no_order_to_the_runner() -> None:
    assert BUILD.shown(["kanifold", "--label=a\n::error::x", "##[add-mask]y"]) == (
        "kanifold --label=a ::error::x # #[add-mask]y"
    )


def test_secrets_are_in_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(
        tmp_path / "bin", "kanifold", f'env > "{tmp_path}/seen"; for each; do echo "$each" >> "{tmp_path}/seen"; done'
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("RUNNER_TEMP", str(tmp_path))
    monkeypatch.setenv("INPUTS", json.dumps({"secrets": "key=very-secret", "github-token": "hush", "target": "here"}))
    assert BUILD.main() == 0
    seen = (tmp_path / "seen").read_text()
    assert "--target=here" in seen
    assert not re.search("very-secret|hush", seen)


def test_the_workflow_passes_a_context_as_no_option() -> None:
    steps = [
        each for job in yaml.safe_load((PIECES / "image.yml").read_text())["jobs"].values() for each in job["steps"]
    ]
    scripts = [each["run"] for each in steps if "CONTEXT" in each.get("env", {})]
    assert len(scripts) == 2
    assert all(re.findall(r"(\S+) \"\$CONTEXT\"", each) == ["--"] for each in scripts)


def test_an_output_ends_only_where_it_ends(tmp_path: Path) -> None:
    BUILD.set_outputs({"digest": "x\nEOF\nother=y", "image": "z"}, str(tmp_path / "out"))
    lines = (tmp_path / "out").read_text().split("\n")
    ends = [lines[0].partition("<<")[2], lines[5].partition("<<")[2]]
    assert ends[0] != ends[1]
    assert lines[1:4] == ["x", "EOF", "other=y"]
    assert lines[4] == ends[0]
