"""Reports for CI systems: what they say, and that nothing in them is anything but text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import view_story as story
from conftest import Kanifold
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from small_images import Images
from view_story import START

from executor import protocol
from orchestrator.cli import cli
from orchestrator.reports import code_quality, dotenv, junit, step_summary
from orchestrator.reports.recording import reported
from orchestrator.request import Report
from orchestrator.view import ci, events
from orchestrator.view.build_state import BuildState, fold
from orchestrator.view.events import Event, FromExecutor
from orchestrator.view.untrusted import clean_line
from platforms.errors import Location, Problem, StoreError, UsageError

EVIL = (
    "a|b", "`rm`", "**bold**", "<script>alert(1)</script>", "[x](https://evil.example)", "![i](https://evil.example/i)",
    "https://evil.example", "www.evil.example", "@octocat", "\n\n# heading\n\n", "</pre></details><b>", "&lt;b&gt;",
    "]]><x/>", '" onload="x', "::error::x", "##[error]x", "\x1b[31m", "\u202e", "a\x00b", "\ud800", "$x^2$", ":smile:",
    "1. a", "- a", "<!-- ", "A=B\nC=D",
)  # fmt: skip


def folded(told: Iterable[Event]) -> BuildState:
    state = BuildState()
    for event in told:
        state = fold(state, event)
    return state


def build_with(text: str) -> BuildState:
    """The state of a failed build in which every text from outside is ``text``."""
    problem = Problem("StepFailed", text, text, text, Location(text, 1, 1, (text,), 1), (text,))
    steps = (protocol.StepInfo(1, text, text, 1, 1, 2), protocol.StepInfo(2, text, text, 2, 2, 2))
    name = "linux/amd64"
    return folded(
        (
            events.BuildStarted((story.AMD64,), text, (text,), at=START),
            events.PlatformStarted(name, text, text, at=START),
            FromExecutor(name, protocol.Planned(steps, text), at=START),
            FromExecutor(name, protocol.Started(1), at=START),
            FromExecutor(name, protocol.Finished(1, 1.0), at=START + 1),
            FromExecutor(name, protocol.Started(2), at=START + 1),
            FromExecutor(name, protocol.Finished(2, 1.0, error=text), at=START + 2),
            FromExecutor(name, protocol.BuildWarning(problem, text), at=START + 2),
            FromExecutor(name, protocol.Failed(problem), at=START + 2),
            events.PlatformEnded(name, "failed", text, at=START + 2),
            events.Published(text, text, at=START + 2),
            events.BuildEnded("failed", text, (events.Failure(problem, name),), at=START + 3),
        )
    )


# -- Markdown


class Html(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(markdown: str) -> Html:
    return Html(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))


TAGS = {"h3", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "code", "pre", "strong", "details",
        "summary"}  # fmt: skip


@pytest.mark.parametrize("evil", EVIL)
def test_the_summary_has_no_markup_from_outside(evil: str) -> None:
    markdown = step_summary.render(build_with(evil), {})
    page = shown(markdown)
    assert page.tags <= TAGS
    assert page.attributes == []
    assert "@" not in markdown
    assert "://" not in markdown
    assert "www." not in markdown
    assert page.text.count(clean_line(evil).strip()) >= 5, "it is shown as it is"
    for line in markdown.splitlines():
        assert not line.startswith(("::", "##["))


@given(st.text(max_size=60))
def test_any_text_is_text_in_the_summary(text: str) -> None:
    page = shown(step_summary.render(build_with(text), {}))
    assert page.tags <= TAGS
    assert page.attributes == []


def test_the_summary_has_platforms_sizes_times_cached_steps_and_warnings() -> None:
    text = shown(step_summary.render(folded(story.good()), {})).text
    state = folded(story.good())
    for each in state.platforms:
        assert each.platform in text
    assert "cached" in text
    assert f"Digest: {state.digest}" in text
    assert "1 warning" in text
    assert "TARGETARCH has a default" in text
    assert "Dockerfile:2" in text
    assert re.search(r"built in \d", text)
    assert "apt-get update" in text


def test_the_summary_of_a_failure_has_the_error_and_the_end_of_the_output() -> None:
    markdown = step_summary.render(folded(story.failing()), {})
    text = shown(markdown).text
    assert "ERROR: [linux/arm64] RUN make -j$(nproc) all" in text
    assert "cpuid.h: No such file or directory" in text
    assert "no tag was moved" in text


def test_the_summary_stays_below_what_github_takes() -> None:
    places = tuple(events.PlatformPlacement(f"linux/p{at}", how="native") for at in range(40))
    told: list[Event] = [events.BuildStarted(places, "x", at=START)]
    for at, place in enumerate(places):
        name = place.platform
        steps = tuple(protocol.StepInfo(each, "s", "`" * 9999, each, each, 500) for each in range(1, 500))
        problem = Problem("StepFailed", f"{at}" + "<" * 9999, "<" * 9999, log=("<" * 9999,) * 24)
        told += [events.PlatformStarted(name, at=START), FromExecutor(name, protocol.Planned(steps), at=START)]
        told += [FromExecutor(name, protocol.Finished(each, 1.0, True), at=START) for each in range(1, 500)]
        told += [FromExecutor(name, protocol.BuildWarning(problem), at=START)]
        told += [FromExecutor(name, protocol.Failed(problem), at=START)]
    failures = tuple(events.Failure(Problem("X", f"{at}" + "<" * 9999, "<" * 9999, log=("<" * 9999,) * 24))
                     for at in range(40))  # fmt: skip
    told.append(events.BuildEnded("failed", troubles=failures, at=START + 1))
    assert len(step_summary.render(folded(told), {}).encode()) < 1 << 20


# -- JUnit


@pytest.mark.parametrize("evil", EVIL)
def test_junit_is_xml_whatever_is_in_it(evil: str) -> None:
    root = ET.fromstring(junit.render(build_with(evil), {}))
    assert {each.tag for each in root.iter()} == {"testsuites", "testsuite", "testcase", "failure"}
    (suite,) = root
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["skipped"]) == ("2", "1", "0")
    assert clean_line(evil).strip() in (suite[1][0].text or "")


@given(st.text(max_size=60))
def test_any_text_is_text_in_junit(text: str) -> None:
    ET.fromstring(junit.render(build_with(text), {}))


def test_a_suite_is_a_platform_and_a_case_is_a_step() -> None:
    root = ET.fromstring(junit.render(folded(story.failing()), {}))
    assert [each.attrib["name"] for each in root] == ["linux/amd64", "linux/arm64"]
    cases = {each.attrib["name"]: each for each in root[1]}
    assert cases["[build 2/6] RUN apt-get update && apt-get install -y --no-install-recommends build-essential git "
                 "ca-certificates"].find("failure") is None  # fmt: skip
    failure = cases["[build 5/6] RUN make -j$(nproc) all"].find("failure")
    assert failure is not None
    assert failure.attrib["type"] == "StepFailed"
    assert "at Dockerfile:5" in (failure.text or "")
    assert cases["[build 6/6] RUN make install DESTDIR=/out"].find("skipped") is not None
    assert root[0].attrib["failures"] == "0"
    assert len({(each.attrib["classname"], each.attrib["name"]) for each in root.iter("testcase")}) == len(
        list(root.iter("testcase"))
    )


def test_what_failed_before_any_platform_is_a_case() -> None:
    state = folded((events.BuildEnded("failed", troubles=(events.Failure(story.TRAP),), at=START),))
    root = ET.fromstring(junit.render(state, {}))
    assert root[0].attrib["failures"] == "1"
    assert root[0][0][0].attrib["type"] == "DockerfileError"


# -- dotenv


def variables(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def test_dotenv_has_the_digest_for_later_jobs() -> None:
    state = folded(story.good())
    assert variables(dotenv.render(state, {})) == {
        "KANIFOLD_OUTCOME": "built",
        "KANIFOLD_DIGEST": state.digest,
        "KANIFOLD_PLATFORMS": "linux/amd64,linux/arm64",
        "KANIFOLD_IMAGE": story.PUSH_REF,
        "KANIFOLD_IMAGE_DIGEST": f"{story.PUSH_REF.rpartition(':')[0]}@{state.digest}",
        "KANIFOLD_DIGEST_LINUX_AMD64": state.platforms[0].digest,
        "KANIFOLD_DIGEST_LINUX_ARM64": state.platforms[1].digest,
    }
    assert variables(dotenv.render(folded(story.failing()), {})) == {"KANIFOLD_OUTCOME": "failed"}


@pytest.mark.parametrize("evil", EVIL)
def test_dotenv_has_no_line_from_outside(evil: str) -> None:
    told = (
        events.BuildStarted((events.PlatformPlacement(evil),), evil, (evil,), at=START),
        events.BuildEnded("built", evil, at=START),
    )
    text = dotenv.render(folded(told), {})
    assert all(re.fullmatch(r"KANIFOLD_[A-Z0-9_]+=[\w./:@,+-]*", line, re.ASCII) for line in text.splitlines())
    assert len(text) < 5000


def test_dotenv_is_within_gitlabs_limits() -> None:
    places = tuple(events.PlatformPlacement(f"linux/arm/v{at}") for at in range(60))
    told = (events.BuildStarted(places, "x", ("r.example/app:1",), at=START), events.BuildEnded("built", "d", at=START))
    assert len(variables(dotenv.render(folded(told), {}))) <= 20


# -- lines of the Dockerfile


def test_code_quality_has_warnings_and_errors_by_line_each_once() -> None:
    warning = FromExecutor("linux/amd64", protocol.BuildWarning(story.TRAP, "TargetArchDefault"), at=START)
    again = FromExecutor("linux/arm64", protocol.BuildWarning(story.TRAP, "TargetArchDefault"), at=START)
    found = json.loads(code_quality.render(folded((warning, again, *story.failing())), {}))
    assert [(each["check_name"], each["severity"], each["location"]) for each in found] == [
        ("TargetArchDefault", "minor", {"path": "Dockerfile", "lines": {"begin": 2, "end": 2}}),
        ("StepFailed", "blocker", {"path": "Dockerfile", "lines": {"begin": 5, "end": 5}}),
    ]
    assert len({each["fingerprint"] for each in found}) == 2


def test_a_fingerprint_stays_when_lines_are_added_above() -> None:
    def prints(line: int) -> list[str]:
        where = Location("Dockerfile", line, line, ("FROM a", "RUN x"), line - 1)
        told = [events.WarningRaised(problem=Problem("X", "bad", where=where), rule="Rule", at=START)]
        return [each["fingerprint"] for each in json.loads(code_quality.render(folded(told), {}))]

    assert prints(2) == prints(7)


@pytest.mark.parametrize(
    ("file", "environ", "shown"),
    [
        ("Dockerfile", {}, "Dockerfile"),
        ("Dockerfile", {"GITHUB_WORKSPACE": "/TOP"}, "app/Dockerfile"),
        ("../Dockerfile", {"CI_PROJECT_DIR": "/TOP"}, "Dockerfile"),
        ("/TOP/app/Dockerfile", {"CI_PROJECT_DIR": "/TOP"}, "app/Dockerfile"),
        ("../../Dockerfile", {"CI_PROJECT_DIR": "/TOP"}, "../../Dockerfile"),
        ("a\0b", {"CI_PROJECT_DIR": "/TOP"}, "a\0b"),
    ],
)
def test_files_are_named_as_the_repository_has_them(
    file: str, environ: dict[str, str], shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real" / "app").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real" / "app")
    where = {key: value.replace("/TOP", str(tmp_path / "link")) for key, value in environ.items()}
    assert ci.repository_path(file.replace("/TOP", str(tmp_path / "link")), where) == shown


def test_a_check_reports_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "Dockerfile").write_text("FROM scratch as base\nCOPY . /\n")
    monkeypatch.setenv("CI_PROJECT_DIR", str(tmp_path))
    words = ["build", "app", "--check", "--report", "codequality=quality.json"]
    assert cli.main(words, standalone_mode=False) == 1
    (found,) = json.loads((tmp_path / "quality.json").read_text())
    assert (found["check_name"], found["location"]["path"]) == ("FromAsCasing", "app/Dockerfile")


# -- when they are written


def test_a_summary_loads_no_http_and_no_other_report() -> None:
    """A cached build in a CI job has one, and would notice."""
    source = (
        "import sys; from orchestrator.reports import recording; recording.renderer('step-summary');"
        "recording.renderer('junit');"
        "print([each for each in ('ssl', 'urllib.request', 'http.client', 'rich', 'orchestrator.reports.dotenv')"
        " if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reports_are_written_before_the_last_event_and_the_summary_is_appended(tmp_path: Path) -> None:
    summary, variables_file = tmp_path / "summary", tmp_path / "env"
    summary.write_text("before\n")
    seen: list[bool] = []
    reports = (Report("step-summary", str(summary)), Report("dotenv", str(variables_file)))
    with reported(reports, lambda event: seen.append(variables_file.exists())) as emit:
        for event in story.good():
            emit(event)
    assert seen == [False] * (len(seen) - 1) + [True]
    assert summary.read_text().startswith("before\n### kanifold")


def test_a_summary_that_would_be_too_large_for_github_is_a_warning(tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    summary.write_bytes(bytes((1 << 20) - 10))
    told: list[Event] = []
    with reported((Report("step-summary", str(summary)),), told.append) as emit:
        for event in story.good():
            emit(event)
    [warning] = [each for each in told if isinstance(each, events.WarningRaised) and "summary" in each.problem.what]
    assert "1 MiB" in warning.problem.why
    assert summary.stat().st_size == (1 << 20) - 10


def test_a_report_that_cannot_be_written_is_an_error_of_a_good_build_and_else_a_warning(tmp_path: Path) -> None:
    reports = (Report("junit", str(tmp_path / "none" / "x")), Report("step-summary", str(tmp_path / "none" / "y")))
    told: list[Event] = []
    with pytest.raises(StoreError, match="cannot write the report"), reported(reports, told.append) as emit:
        for event in story.good():
            emit(event)
    assert [type(each) for each in told[-2:]] == [events.WarningRaised, events.BuildEnded], "the summary's"
    told.clear()
    with reported(reports, told.append) as emit:
        for event in story.failing():
            emit(event)
    assert [type(each) for each in told[-3:]] == [events.WarningRaised, events.WarningRaised, events.BuildEnded]


def test_the_command_writes_them_all(kanifold: Kanifold, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch AS only\nCOPY Dockerfile /\n")
    summary = tmp_path / "summary"
    summary.write_text("")
    words = [f"--report={kind}={tmp_path / kind}" for kind in ("junit", "dotenv", "codequality", "markdown")]
    built = kanifold("build", tmp_path, "-o", "type=cacheonly", *words, GITHUB_STEP_SUMMARY=str(summary))
    assert summary.read_text() == (tmp_path / "markdown").read_text()
    assert "built in" in summary.read_text()
    assert ET.fromstring((tmp_path / "junit").read_text())[0].attrib["failures"] == "0"
    assert variables((tmp_path / "dotenv").read_text())["KANIFOLD_DIGEST"].startswith("sha256:")
    assert json.loads((tmp_path / "codequality").read_text()) == []
    assert built.code == 0
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY none /\n")
    failed = kanifold.run(
        "build", tmp_path, "-o", "type=cacheonly", *words, GITHUB_ACTIONS="true", GITHUB_WORKSPACE=str(tmp_path)
    )
    assert failed.code == 1
    assert len(re.findall("^::error .*file=Dockerfile,line=2,", failed.err, re.MULTILINE)) == 1, "once"
    assert ET.fromstring((tmp_path / "junit").read_text())[0].attrib["failures"] == "1"
    assert variables((tmp_path / "dotenv").read_text()) == {"KANIFOLD_OUTCOME": "failed"}
    (found,) = json.loads((tmp_path / "codequality").read_text())
    assert found["location"]["lines"]["begin"] == 2


def test_a_join_says_what_it_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Images()
    root = made.index([made.entry("linux/amd64"), made.entry("linux/arm64")])
    made.layout(tmp_path / "in", {"1": root})
    (tmp_path / "summary").write_text("before\n")
    target = f"oci:{tmp_path / 'out|<b>'}:1"
    for file, warned in ((tmp_path / "summary", False), (tmp_path / "none" / "summary", True)):
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
        assert cli.main(["copy", f"oci:{tmp_path / 'in'}:1", target], standalone_mode=False) is None
        assert file.exists() != warned
    markdown = (tmp_path / "summary").read_text()
    assert markdown.startswith("before\n### kanifold")
    page = shown(markdown.removeprefix("before\n"))
    assert page.tags <= TAGS
    assert page.attributes == []
    for wanted in (root["digest"], "linux/amd64", "linux/arm64", "out|<b>"):
        assert wanted in page.text


@pytest.mark.parametrize("word", ["junit", "=x", "pdf=x", "junit=/nowhere/x"])
def test_a_report_that_is_none_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--report"):
        cli.main(["build", str(tmp_path), "--check", "--report", word], standalone_mode=False)
