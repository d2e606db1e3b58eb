"""The pieces for GitLab, run by gitlab-ci-local as a repository has them: nothing of them is changed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import documented
import judges
import pytest
import yaml
from conftest import Base, Kanifold, Reader
from programs import program

PIECES = Path(__file__).resolve().parents[2] / "ci" / "gitlab"
EPOCH = "1700000000"
MATRIX = "{PLATFORM: linux/arm64, RUNNER: arm}, {PLATFORM: linux/amd64, RUNNER: amd}"


class Repository:
    """A checked-out repository whose pipeline is run by gitlab-ci-local.

    Jobs share no files but artifacts, and each has a store of its own, as on a runner of its own.
    """

    def __init__(self, folder: Path, kanifold: Kanifold, dockerfile: str) -> None:
        self._folder, self._kanifold = folder, kanifold
        self.path = folder / "repository"
        self.path.mkdir()
        (self.path / "Dockerfile").write_text(dockerfile)
        (self.path / "greeting").write_text("hello")
        words = " ".join(f"'{each}'" for each in kanifold.command)
        program(folder / "bin", "kanifold", f'KANIFOLD_ROOT="$(mktemp -d {folder}/store-XXXXXX)" exec {words} "$@"')

    def pipeline(self, text: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the pipeline ``text``."""
        (self.path / ".gitlab-ci.yml").write_text(text)
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]
        if not (self.path / ".git").exists():
            subprocess.run([*git, "init", "-q"], cwd=self.path, check=True)
            origin = ["remote", "add", "origin", "git@git.invalid:org/app.git"]
            subprocess.run([*git, *origin], cwd=self.path, check=True)
        subprocess.run([*git, "add", "-A"], cwd=self.path, check=True)
        subprocess.run([*git, "commit", "-qm", "Change"], cwd=self.path, check=True)
        words = ["--force-shell-executor", "--shell-isolation", "--no-artifacts-to-source"]
        for name, value in variables.items():
            words += ["--variable", f"{name}={value}"]
        environment = self._kanifold.environment(
            PATH=f"{self._folder / 'bin'}:{os.environ['PATH']}", SOURCE_DATE_EPOCH=EPOCH, LANG="C.UTF-8"
        )
        return subprocess.run(
            [judges.find("gitlab-ci-local"), *words], cwd=self.path, env=environment, text=True, timeout=300,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path, kanifold: Kanifold, busybox: Base) -> Repository:
    dockerfile = f"FROM {busybox.ref} as base\nCOPY greeting /\nRUN cat /greeting && arch > /arch\n"
    return Repository(tmp_path, kanifold, dockerfile)


def check(repository: Repository, name: str, platforms: str, kanifold: Kanifold, read: Reader) -> None:
    """The index ``name`` is that of one build, byte by byte."""
    whole = kanifold(
        "build", repository.path, "--platform", platforms, "-t", f"{name}-whole", "--push",
        SOURCE_DATE_EPOCH=EPOCH,
    )  # fmt: skip
    assert kanifold("index", "inspect", "--raw", name).out == kanifold("index", "inspect", "--raw", f"{name}-whole").out
    assert whole.out.strip() in kanifold("index", "inspect", name).out
    assert read(name, "linux/arm64").text("greeting") == "hello"


@judges.needs("gitlab-ci-local")
def test_the_template_makes_the_index_of_one_build(
    repository: Repository, registry: str, kanifold: Kanifold, read: Reader
) -> None:
    name = f"{registry}/e2e/gitlab:template"
    (repository.path / "kanifold.yml").write_text((PIECES / "kanifold.yml").read_text())
    (_, text), _ = documented.files("ci.md", "GitLab", name)
    text = text.replace("$CI_REGISTRY_IMAGE:1", name)
    text += "after:\n  stage: .post\n  needs: [index]\n  script: ['echo \"joined $KANIFOLD_DIGEST\"']\n"
    done = repository.pipeline(text)
    assert done.returncode == 0, done.stdout
    check(repository, name, "linux/amd64,linux/arm64", kanifold, read)
    assert re.search(r"joined sha256:[0-9a-f]{64}", done.stdout)


@pytest.mark.slow
@judges.needs("gitlab-ci-local")
def test_the_component_makes_the_index_of_one_build(
    repository: Repository, registry: str, kanifold: Kanifold, read: Reader
) -> None:
    name = f"{registry}/e2e/gitlab:component"
    (repository.path / "component.yml").write_text((PIECES / "component.yml").read_text())
    text = (
        f"include:\n  - local: component.yml\n    inputs:\n      tag: {name}\n      matrix: [{MATRIX}]\n"
        "      platforms: linux/arm64,linux/amd64\n      args: --label=a=b --jobs=1\n"
    )
    done = repository.pipeline(text)
    assert done.returncode == 0, done.stdout
    text = kanifold("index", "inspect", name).out
    assert text.index("linux/arm64") < text.index("linux/amd64")


@pytest.mark.slow
@judges.needs("gitlab-ci-local")
def test_the_jobs_that_matrix_prints_are_run_as_they_are(
    repository: Repository, registry: str, kanifold: Kanifold, read: Reader
) -> None:
    name = f"{registry}/e2e/gitlab:child"
    (repository.path / "kanifold.yml").write_text((PIECES / "kanifold.yml").read_text())
    _, (_, text) = documented.files("ci.md", "GitLab", name)
    parent = yaml.safe_load(text.replace("$CI_REGISTRY_IMAGE:1", name))
    included = parent.pop("image")["trigger"]["include"]  # what starts the child pipeline: gitlab-ci-local has none
    assert included == [{"local": "kanifold.yml"}, {"artifact": "jobs.yml", "job": "matrix"}]
    done = repository.pipeline(yaml.safe_dump(parent))
    assert done.returncode == 0, done.stdout
    (printed,) = (repository.path / ".gitlab-ci-local" / "artifacts").rglob("jobs.yml")
    done = repository.pipeline(f"include:\n  - local: kanifold.yml\n{printed.read_text()}")
    assert done.returncode == 0, done.stdout
    check(repository, name, "linux/amd64,linux/arm64", kanifold, read)


def test_template_and_component_do_the_same() -> None:
    template = yaml.safe_load((PIECES / "kanifold.yml").read_text())
    _, component = yaml.safe_load_all((PIECES / "component.yml").read_text())
    jobs = {key.partition("]] ")[2] or key: value for key, value in component.items()}
    for name in ("build", "index"):
        for key in ("script", "artifacts"):
            assert jobs[name][key] == template[f".kanifold-{name}"][key]
    assert jobs[".$[[ inputs.name ]]-kanifold"]["before_script"] == template[".kanifold"]["before_script"]
