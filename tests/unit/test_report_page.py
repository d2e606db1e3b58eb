"""The report page: what it says, that nothing in it is anything but text, and that it needs nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_states
from msgspec.structs import replace

from orchestrator import values
from orchestrator.reports import html_page
from orchestrator.view.build_state import BuildState
from platforms.errors import UsageError

VOID = {"meta", "rect", "path"}


class Page(HTMLParser):
    """The elements of a page, whose nesting is checked."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(state: BuildState) -> str:
    return html_page.render(state, {}).replace("</rect>", "").replace("</path>", "")


@pytest.mark.parametrize("outcome", ["built", "failed", "cancelled"])
def test_hostile_words_are_text(outcome: str) -> None:
    found = Page(page(report_states.state(12, outcome=outcome, hostile=True)))  # type: ignore[arg-type]
    names = {name for name, _ in found.elements}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "input", "button"}
    assert all(not key.startswith("on") for _, attributes in found.elements for key in attributes)
    assert all(key not in ("style", "src") for _, attributes in found.elements for key in attributes)
    assert any("<script>alert(1)</script>" in each for each in found.texts)
    assert "\x1b" not in html_page.render(report_states.state(12, hostile=True), {})


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page(report_states.state())
    found = Page(text)
    assert [each["href"] for each in found.named("a") if not str(each["href"]).startswith("#")] == []
    assert not re.search(r"url\(|@import|https?://", text.replace("registry.example.com", ""))
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = next(each["content"] for each in found.named("meta") if "http-equiv" in each)
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_links_lead_to_sections_and_what_scrolls_can_be_reached_by_keyboard() -> None:
    found = Page(page(report_states.state()))
    sections = {each["id"] for each in found.named("section")}
    assert {str(each["href"])[1:] for each in found.named("a")} == sections
    assert sections == {"overview", "timeline", "steps", "warnings", "layers", "index", "stages"}
    regions = [each for each in found.named("div") if each.get("class") == "scroll"]
    assert regions
    assert all(each.get("tabindex") == "0" and each.get("aria-label") for each in regions)
    assert all(each.get("scope") for each in found.named("th"))
    assert len(found.named("caption")) == len(found.named("table"))
    drawings = [each for each in found.named("svg") if each.get("aria-hidden") != "true"]
    assert all(each.get("role") == "img" and each.get("aria-label") for each in drawings)


def test_the_page_tells_why_a_step_was_made() -> None:
    text = page(report_states.state())
    assert "why it was made" in text
    assert "changed: the environment, what it mounts" in text or "changed: the files below" in text


def test_errors_and_warnings_are_shown_at_their_lines() -> None:
    text = page(report_states.state(outcome="failed"))
    assert text.count("<mark><b>    4</b> RUN make -C /src</mark>") == 2
    assert "Dockerfile:4" in text
    assert "main.c:3: error: expected" in text


def test_the_drawing_of_the_stages_has_a_table_with_the_same() -> None:
    text = page(report_states.state())
    assert text.count('class="edge"') == sum(map(len, report_states.NEEDS))
    assert "base, build, docs" in text


def test_the_page_of_a_release_has_each_image_and_its_stages() -> None:
    one = report_states.state(12)
    named = [replace(each, platform=f"{image} {each.platform}") for image in ("base", "web") for each in one.platforms]
    found = Page(page(replace(one, digest="", platforms=tuple(named))))
    captions = [each["aria-label"] for each in found.named("div") if each.get("class") == "scroll"]
    assert {"Drawing of the stages of base", "Drawing of the stages of web"} <= set(captions)
    assert {each["id"] for each in found.named("section")} >= {"index", "stages"}
    assert sum(each.strip() in ("base", "web") for each in found.texts) >= 4


def test_a_thousand_steps_make_a_page_of_two_megabytes_at_most() -> None:
    text = page(report_states.state(1000))
    assert len(text) < 2_000_000
    assert text.count("<tr>") > 3000
    assert "<details open><summary><strong>stage build" not in text  # long stages are folded


def test_an_empty_build_has_a_page() -> None:
    assert "<h1>image</h1>" in html_page.render(BuildState(), {})


def test_the_flag_takes_a_file_name_alone(tmp_path: Path) -> None:
    name = str(tmp_path / "build.html")
    assert values.report(name, "--report").kind == "html"
    assert values.report(f"html={name}", "--report").path == name
    with pytest.raises(UsageError):
        values.report(str(tmp_path / "build.txt"), "--report")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium: apt-get install chromium")
def test_a_browser_shows_it_without_breaking_the_policy(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html_page.render(report_states.state(hostile=True), {}))
    command = [
        "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={tmp_path}/profile", "--window-size=900,1200", f"--screenshot={tmp_path}/page.png",
        f"file://{tmp_path}/page.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Content Security Policy" not in done.stderr
    assert (tmp_path / "page.png").stat().st_size > 20_000
