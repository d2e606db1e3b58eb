"""The jobs that ``kanifold matrix`` prints."""

from __future__ import annotations

import json
import shlex

import pytest
import yaml

from orchestrator.index import matrix
from orchestrator.index.matrix import Matrix
from platforms import parsing
from platforms.errors import UsageError
from platforms.platform import Platform

RUNNERS = matrix.runners(["linux/amd64=amd", "linux/arm64=arm"], "")


def platforms(text: str) -> tuple[Platform, ...]:
    return parsing.parse_list([text])


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("linux/amd64", [("linux-amd64", "amd", "linux/amd64", False)]),
        (
            "linux/arm64,linux/amd64",
            [("linux-arm64", "arm", "linux/arm64", False), ("linux-amd64", "amd", "linux/amd64", False)],
        ),
        (
            "linux/386,linux/amd64/v3",
            [("linux-386", "amd", "linux/386", False), ("linux-amd64-v3", "amd", "linux/amd64/v3", False)],
        ),
        (
            "linux/s390x,linux/arm64,linux/arm/v7",
            [("linux-arm64", "arm", "linux/arm64", False), ("emulated", "amd", "linux/s390x,linux/arm/v7", True)],
        ),
        ("linux/s390x", [("linux-s390x", "amd", "linux/s390x", True)]),
    ],
)
def test_platforms_are_native_where_a_runner_is_and_else_one_emulated_job(
    wanted: str, meant: list[tuple[str, str, str, bool]]
) -> None:
    found = matrix.jobs(platforms(wanted), RUNNERS)
    shown = [(each.name, *each.runner, ",".join(map(str, each.platforms)), each.emulated) for each in found]
    assert shown == meant
    assert len({each.metadata for each in found}) == len(found)


def test_a_runner_to_emulate_on_can_be_named() -> None:
    assert matrix.jobs(platforms("linux/s390x"), RUNNERS, ("big",))[0].runner == ("big",)
    assert matrix.jobs(platforms("linux/s390x"), {}, ("big",))[0].runner == ("big",)
    assert matrix.jobs(platforms("linux/s390x"), matrix.runners(["linux/arm64=arm"], ""))[0].runner == ("arm",)
    with pytest.raises(UsageError, match="no runner for linux/s390x"):
        matrix.jobs(platforms("linux/s390x"), {})


def test_runners_come_from_flags_before_the_variable() -> None:
    found = matrix.runners(["linux/amd64=mine"], "linux/amd64=theirs, linux/aarch64=arm\nlinux/s390x=z\n")
    assert {str(each): label for each, (label,) in found.items()} == {
        "linux/amd64": "mine",
        "linux/arm64": "arm",
        "linux/s390x": "z",
    }


@pytest.mark.parametrize("text", ["linux/amd64", "linux/amd64=", "=label", "nothing/nowhere=label"])
def test_runners_that_are_none(text: str) -> None:
    for flags, variable in (([text], ""), ([], text)):
        with pytest.raises(UsageError):
            matrix.runners(flags, variable)


def made(*tags: str) -> Matrix:
    wanted = platforms("linux/arm64,linux/s390x,linux/amd64")
    return Matrix(matrix.jobs(wanted, RUNNERS), wanted, "a b", tags, ("--target=x y",))


def test_github_gets_one_line_for_strategy_matrix() -> None:
    text = matrix.github(made())
    assert "\n" not in text
    found = json.loads(text)["include"]
    assert found[0] == {
        "name": "linux-arm64",
        "runner": "arm",
        "platform": "linux/arm64",
        "metadata": "linux-arm64.json",
        "emulated": False,
        "annotations": "all",
    }
    assert [(each["emulated"], each["annotations"]) for each in found[1:]] == [(False, "errors"), (True, "errors")]


@pytest.mark.parametrize(
    ("context", "said"), [("--push", "./--push"), ("-o", "./-o"), ("-", "-"), (".", "."), ("https://git.example/a", "")]
)
def test_a_context_is_never_an_option_of_the_printed_command(context: str, said: str) -> None:
    found = Matrix(matrix.jobs(platforms("linux/amd64"), RUNNERS), platforms("linux/amd64"), context, ())
    assert found.build(found.jobs[0])[2] == (said or context)


def test_gitlab_gets_jobs_whose_words_are_quoted() -> None:
    found = yaml.safe_load(matrix.gitlab(made("reg.example/app:1")))
    job = found["build linux-s390x"]
    assert (job["extends"], job["tags"]) == (".kanifold", ["amd"])
    words = shlex.split(job["script"][-1])
    assert words[:5] == ["kanifold", "build", "a b", "--platform", "linux/s390x"]
    assert "--target=x y" in words
    assert words[-1] == f"--report=codequality={matrix.REPORTS}/linux-s390x.json"
    assert job["artifacts"]["reports"]["codequality"] == f"{matrix.REPORTS}/*.json"
    assert f"--metadata-file {matrix.FOLDER}/linux-s390x.json" in job["script"][-1]
    (join,) = found["create index"]["script"]
    assert "--platform linux/arm64,linux/s390x,linux/amd64" in join
    with pytest.raises(UsageError, match="which push"):
        matrix.gitlab(made())


def test_runners_of_the_project_are_used_where_nothing_else_names_one() -> None:
    arm, amd = platforms("linux/arm64,linux/amd64")
    found = matrix.runners(["linux/amd64=mine"], "", ((amd, ("theirs",)), (arm, ("self-hosted", "arm64"))))
    assert found == {amd: ("mine",), arm: ("self-hosted", "arm64")}
    made = Matrix(matrix.jobs((arm, amd), found), (arm, amd), ".", ("reg.example/app:1",))
    assert [each["runner"] for each in json.loads(matrix.github(made))["include"]] == [["self-hosted", "arm64"], "mine"]
    assert yaml.safe_load(matrix.gitlab(made))["build linux-arm64"]["tags"] == ["self-hosted", "arm64"]


def test_programs_get_the_commands() -> None:
    found = matrix.document(made("reg.example/app:1"))
    assert found["schemaVersion"] == 1
    assert found["platforms"] == ["linux/arm64", "linux/s390x", "linux/amd64"]
    assert all(each["command"][:2] == ["kanifold", "build"] for each in found["jobs"])
    assert found["join"][:3] == ["kanifold", "index", "create"]
