"""SOURCE_DATE_EPOCH: where a build's moment comes from, and what stages are told of it."""

from __future__ import annotations

import email.utils
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from git_server import Repository, serving
from registry_server import Asked, Said, served

from orchestrator import plan as planning
from orchestrator.contexts import FetchOptions
from orchestrator.request import BuildRequest
from platforms.errors import DockerfileError, UsageError
from platforms.parsing import parse

OLD, NEW = 1_000_000_000, 1_500_000_000


def archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, time in (("Dockerfile", OLD), ("new", NEW), ("old", OLD)):
            text = b"FROM scratch\n"
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(text), time
            made.addfile(entry, io.BytesIO(text))
        entry = tarfile.TarInfo("directory")  # whose time is not one of a change
        entry.type, entry.mtime = tarfile.DIRTYPE, NEW + 1
        made.addfile(entry)
    return out.getvalue()


@pytest.fixture
def web() -> Iterator[str]:
    """Serves an archive, with a date of its own and without, and something that is none."""

    def answer(asked: Asked) -> Said:
        dated = {"Last-Modified": email.utils.formatdate(OLD, usegmt=True)}
        said = {"/a.tar": Said(200, {}, archive()), "/dated.tar": Said(200, dated, archive())}
        return said.get(asked.path, Said(200, {}, b"text"))

    with served(answer) as server:
        yield server.url


def plan(
    folder: Path, dockerfile: str, value: str | None = None, *, main: str = "", **contexts: str
) -> planning.BuildPlan:
    (folder / "Dockerfile").write_text(dockerfile)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    wanted = (parse("linux/amd64"), parse("linux/arm64"))
    given = () if value is None else (("SOURCE_DATE_EPOCH", value),)
    request = BuildRequest(
        context=main or str(folder), platforms=wanted, build_args=given, build_contexts=tuple(contexts.items())
    )
    return planning.read(request, wanted, FetchOptions(str(scratch)))


@pytest.mark.parametrize(
    ("default", "value", "moment", "told"),
    [
        ("", None, None, None),
        ("", "7", 7, "7"),
        ("", "context", None, None),
        ("ARG SOURCE_DATE_EPOCH=5", None, 5, "5"),
        ("ARG SOURCE_DATE_EPOCH=5", "7", 7, "7"),
        ("ARG SOURCE_DATE_EPOCH=5", "", None, ""),
        ("ARG NOW=5\nARG SOURCE_DATE_EPOCH=$NOW", None, 5, "5"),
        ("ARG SOURCE_DATE_EPOCH", None, None, None),
    ],
)
def test_a_number_is_given_or_the_dockerfiles(
    tmp_path: Path, default: str, value: str | None, moment: int | None, told: str | None
) -> None:
    found = plan(tmp_path, f"{default}\nFROM scratch\n", value)
    assert found.epoch == moment
    assert dict(found.build_args).get("SOURCE_DATE_EPOCH") == told


def test_what_was_fetched_has_the_time_of_its_last_change(tmp_path: Path, web: str) -> None:
    assert plan(tmp_path, "FROM scratch\n", "context", main=f"{web}/a.tar").epoch == NEW
    assert plan(tmp_path, "FROM scratch\n", "context", main=f"{web}/dated.tar").epoch == OLD
    assert plan(tmp_path, "FROM scratch\n", "Src", src=f"{web}/a.tar").epoch == NEW
    assert plan(tmp_path, "FROM scratch\n", "src", src=f"{web}/dated.tar").epoch == OLD
    assert plan(tmp_path, "FROM scratch\n", "src", src=f"{web}/text").epoch is None
    assert plan(tmp_path, "FROM scratch\n", "src", src=str(tmp_path)).epoch is None
    assert plan(tmp_path, "FROM scratch\n", "src", src="docker-image://busybox").epoch is None


def test_a_stage_may_name_what_was_changed_last(tmp_path: Path, web: str) -> None:
    stage = f"ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nARG WHAT=a\nADD {web}/$WHAT.tar /\nFROM scratch\n"
    found = plan(tmp_path, stage)
    assert found.epoch == NEW
    assert dict(found.build_args)["SOURCE_DATE_EPOCH"] == str(NEW)


def test_a_commit_has_a_time(tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "served" / "app.git")
    repository.commit({"Dockerfile": "FROM scratch\n"})
    made = int(repository.git("show", "-s", "--format=%ct"))
    with serving(tmp_path / "served") as server:
        assert plan(tmp_path, "", "context", main=f"{server.url}/app.git").epoch == made


@pytest.mark.parametrize(
    "stage",
    ["FROM busybox AS src\nADD {web}/a /", "FROM scratch AS src\nCOPY a /", "FROM scratch AS src\nADD a /",
     "FROM scratch AS src", "FROM scratch AS src\nADD {web}/a {web}/b /"],
)  # fmt: skip
def test_other_stages_have_no_moment(tmp_path: Path, web: str, stage: str) -> None:
    with pytest.raises(DockerfileError) as raised:
        plan(tmp_path, f"FROM scratch\n{stage.format(web=web)}\n", "src")
    assert raised.value.problem.where is not None
    assert raised.value.problem.where.line == 2


def test_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="invalid SOURCE_DATE_EPOCH: yesterday"):
        plan(tmp_path, "FROM scratch\n", "yesterday")
