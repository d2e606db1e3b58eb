"""``kanifold.yaml``: what it may say, and the place of everything that is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import project_file, yaml_settings
from orchestrator.cli import cli
from orchestrator.project_file import ProjectFile, ProposedNode
from platforms.errors import UsageError
from platforms.parsing import parse

GOOD = """\
platforms: [linux/amd64, linux/aarch64]
runners:
  linux/amd64: ubuntu-24.04
  linux/arm64: [self-hosted, arm64]
emulate-on: 22.04
"""


def load(folder: Path, text: str) -> ProjectFile:
    (folder / project_file.NAME).write_text(text)
    return project_file.load(str(folder))


def test_it_names_platforms_and_runners(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    assert list(map(str, found.platforms)) == ["linux/amd64", "linux/arm64"]
    assert {str(platform): labels for platform, labels in found.runners} == {
        "linux/amd64": ("ubuntu-24.04",),
        "linux/arm64": ("self-hosted", "arm64"),
    }
    assert found.emulate_on == ("22.04",), "a text as it is written, no number"


def test_platforms_may_be_a_list_with_commas(tmp_path: Path) -> None:
    assert list(map(str, load(tmp_path, "platforms: linux/amd64,linux/arm64").platforms)) == [
        "linux/amd64",
        "linux/arm64",
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_says_nothing(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).platforms == ()
    assert project_file.load(str(tmp_path / "elsewhere")) == ProjectFile()


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("platform: [linux/amd64]", "1:1: platform", "unknown key (did you mean platforms?)"),
        ("platforms:\n- linux/amd46", "1:1: platforms", "amd46"),
        ("platforms: {a: b}", "1:1: platforms", "a list is expected"),
        ("platforms:", "1:1: platforms", "no platform is named"),
        ("runners:\n  linux/amd64:", "2:3: runners.linux/amd64", "a label is expected"),
        ("runners:\n  linux/amd64: [a, [b]]", "2:20: runners.linux/amd64[1]", "a text is expected"),
        ("runners: [a]", "1:1: runners", "a mapping is expected"),
        ("- a", "1:1", "a mapping is expected"),
        ("emulate-on: a\nemulate-on: b", "2:1: emulate-on", "twice"),
        ("runners: &x\n  linux/amd64: a\nplatforms: *x", "1:10: platforms", "aliases"),
        ("platforms: !!python/object:os.system x", "1:12: platforms", "tags"),
        ("runners:\n\tlinux/amd64: a", "2:1: it is not YAML", "cannot start any token"),
        ("platforms: [", "1:13: it is not YAML", "expected"),
        ("? [a]\n: b", "1:1", "a key is not a text"),
    ],
)
def test_an_error_names_its_line_and_column(tmp_path: Path, text: str, place: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    problem = caught.value.problem
    assert problem.what == f"{tmp_path / project_file.NAME}:{place}"
    assert why in problem.why
    assert problem.where is not None
    assert problem.where.line == int(place.partition(":")[0])


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe", b"a: \x00", b"[" * 5000, b"a: &b [x]\nc: [*b, *b]", b"x: " + b"y" * (yaml_settings.FILE_LIMIT)],
)
def test_hostile_bytes_are_an_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / project_file.NAME).write_bytes(data)
    with pytest.raises(UsageError):
        project_file.load(str(tmp_path))


def test_the_matrix_has_platforms_and_runners_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / project_file.NAME).write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KANIFOLD_RUNNERS", raising=False)
    cli.main(["matrix", "app", "--format", "github", "--runner", "linux/amd64=mine"], standalone_mode=False)
    out = capsys.readouterr().out
    assert '"runner":"mine","platform":"linux/amd64"' in out
    assert '"runner":["self-hosted","arm64"],"platform":"linux/arm64"' in out
    (tmp_path / project_file.NAME).unlink()
    with pytest.raises(UsageError, match="which platforms"):
        cli.main(["matrix", "app"], standalone_mode=False)


def test_it_names_nodes(tmp_path: Path) -> None:
    found = load(tmp_path, "nodes: [arm, big]").nodes
    assert found == (ProposedNode("arm"), ProposedNode("big"))
    text = "nodes:\n  arm:\n    url: ssh://a\n    platforms: linux/arm64\n    max-jobs: 2\n  big:\n"
    assert load(tmp_path, text).nodes == (
        ProposedNode("arm", "ssh://a", (parse("linux/arm64"),), 2),
        ProposedNode("big"),
    )
    assert load(tmp_path, "platforms: linux/amd64").nodes is None


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("nodes: [Arm]", "1:1: nodes", "cannot be called"),
        ("nodes:\n  arm:\n    url: ssh://-oProxyCommand=x", "3:5: nodes.arm.url", "no name of a host"),
        ("nodes:\n  arm:\n    python: /tmp/x", "3:5: nodes.arm.python", "unknown key"),
        ("nodes:\n  arm:\n    bootstrap: true", "3:5: nodes.arm.bootstrap", "unknown key"),
    ],
)
def test_an_error_about_a_node_has_its_place(tmp_path: Path, text: str, place: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert f":{place}" in caught.value.problem.what
    assert why in caught.value.problem.why
