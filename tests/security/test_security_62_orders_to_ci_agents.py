"""Attack 62 (review; CVE-2020-15228): what a step prints is obeyed by the agent of the CI system that shows it.

GitHub's runner takes orders where its variables are set; Azure Pipelines' agent and TeamCity's, and whatever reads the
output of a command in a container that knows of no CI, were given them: ``##vso[task.setvariable]`` changes the
environment of later tasks, ``##vso[task.uploadfile]`` and ``##teamcity[publishArtifacts]`` give away files.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold

from executor import protocol
from orchestrator.view import events, open_display
from orchestrator.view.untrusted import clean_line, clean_log, clean_logs, clean_name
from platforms.errors import Location, Problem

ORDER = re.compile(r"##\w*\[|^\s*::", re.M)
WORDS = (
    "##[add-mask]x",
    "##vso[task.setvariable variable=PATH]/evil",
    "##VSO[task.uploadfile]/etc/passwd",
    "##teamcity[publishArtifacts '/etc/passwd']",
    "###[group]",
    "::add-mask::x",
    "  ::add-mask::x",
)
WHERE: dict[str, dict[str, str]] = {"none": {}, "azure": {"TF_BUILD": "True"}, "github": {"GITHUB_ACTIONS": "true"}}


@pytest.mark.parametrize("clean", [clean_line, clean_log, clean_name, lambda text: "\n".join(clean_logs(text))])
@pytest.mark.parametrize("hidden", ["{}", "a {}", "é{}", "#\x1b[m{}", "##\b#{}", "\r{}"])
def test_no_text_that_is_shown_has_an_order_in_it(clean: Callable[[str], str], hidden: str) -> None:
    for word in WORDS[:5]:
        shown = clean(hidden.format(word[:1] + ("\x1b[0m" if clean is clean_log else "") + word[1:]))
        assert not re.search(r"##\w*\[", shown), shown
    assert clean("a ## b") == "a ## b"
    assert clean("## [x]") == "## [x]"


@pytest.mark.parametrize("mode", ["plain", "quiet", "rawjson"])
@pytest.mark.parametrize("where", WHERE)
def test_no_display_passes_orders_on(mode: str, where: str) -> None:
    out = io.StringIO()
    text = "\n".join(WORDS)
    problem = Problem("build", text, why=text, remedy=text, where=Location(text, 1, 1, WORDS, 1), log=WORDS)
    step = protocol.StepInfo(1, WORDS[1], text, 1)
    with open_display(mode, out, WHERE[where]) as display:
        display.emit(
            events.BuildStarted(platforms=(events.PlatformPlacement("linux/amd64", text, text),), name=text, at=0.0)
        )
        for message in (
            protocol.Planned((step,)),
            protocol.Started(1),
            protocol.Log(1, text),
            protocol.Finished(1, 1.0, error=text),
        ):
            display.emit(events.FromExecutor(platform="linux/amd64", message=message))
        display.emit(events.WarningRaised(problem=problem, rule=text))
        display.emit(events.BuildEnded(outcome="failed", troubles=(events.Failure(problem, "linux/amd64"),)))
    lines = out.getvalue()
    own = re.compile(r"^::(group|endgroup|stop-commands|[0-9a-f]{32}|warning|error)\b.*$", re.M)
    if where == "github":
        lines = re.sub(r"^::stop-commands::(\w+)\n.*?^::\1::$", "", lines, flags=re.M | re.S)
        lines = own.sub("", lines)
    assert not re.search(r"##\w*\[", lines), lines
    assert where != "github" or not ORDER.search(lines), lines
    if mode == "rawjson":
        log = [each for each in map(json.loads, lines.splitlines()) if each["type"] == "log"]
        assert [each["text"] for each in log] == list(WORDS), "to a program it is what it was"


@pytest.mark.parametrize(
    "method", ["outline", "outline,format=json", "targets,format=json", "check,format=json", "check"]
)
def test_what_is_said_of_a_dockerfile_is_no_order(kanifold: Kanifold, method: str) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text(
        f"# a {WORDS[1]}\nARG a='{WORDS[2]}'\n# b {WORDS[3]}\n"
        f"FROM scratch AS b\nARG c='{WORDS[0]}'\nENV x y{WORDS[1]}\n"
    )
    said = kanifold.run("build", folder, "--call", method).said
    assert not ORDER.search(said), said
    if method.endswith("json"):
        assert json.loads(said)


@pytest.mark.parametrize("progress", ["plain", "rawjson", "quiet"])
def test_a_step_gives_no_orders(
    kanifold: Kanifold, busybox: Base, context: Callable[[Mapping[str, str | bytes]], Path], progress: str
) -> None:
    folder = context({"Dockerfile": f'FROM {busybox.ref}\nRUN echo "a {WORDS[1]}" && false\n'})
    said = kanifold.run("build", folder, "--progress", progress, "-o", "type=cacheonly", TF_BUILD="True").said
    assert "task.setvariable" in said
    assert not ORDER.search(said), said
