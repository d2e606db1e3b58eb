"""What the documents say is true: commands run, flags exist, links lead somewhere, tables agree with the code."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from platforms import errors

if TYPE_CHECKING:
    from conftest import Base, Kanifold

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), *ROOT.glob("examples/*/*.md")]


def code(text: str) -> Iterator[str]:
    """The lines of a page's indented and fenced shell blocks."""
    fence = ""
    for line in text.splitlines():
        if line.startswith("```"):
            fence = "" if fence else line
        elif line.startswith("    ") or fence in ("```sh", "```console"):
            yield line.strip().removeprefix("$ ").partition("  #")[0]


def test_the_first_command_is_the_demo_and_the_second_the_tests() -> None:
    assert list(code(README))[:2] == ["ci/demo", "ci/test"]


def test_the_first_command_builds_two_platforms_from_nothing(tmp_path: Path) -> None:
    """The demo with a home of its own; the virtual environment is this one where ``ci/venv`` made it."""
    own = Path(sys.prefix)
    venv = own if any(own.glob("kanifold-installed-*")) else tmp_path / "venv"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KANIFOLD_ROOT", "XDG_"))}
    cache = os.environ.get("KANIFOLD_TEST_CACHE", str(Path.home() / ".cache" / "kanifold-tests"))
    environment = {**kept, "HOME": str(tmp_path), "KANIFOLD_VENV": str(venv), "KANIFOLD_TEST_CACHE": cache}
    dest = tmp_path / "out"
    done = subprocess.run(
        [ROOT / "ci" / "demo", dest], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    index = json.loads(done.stdout[done.stdout.index("{") :])
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["amd64", "arm64"]


def test_the_quick_start_shows_the_example_and_what_building_it_prints(kanifold: Kanifold, busybox: Base) -> None:
    """But for comments, labels, digests and times."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
    shown = next(text for kind, text in blocks if kind == "dockerfile")
    example = (ROOT / "examples" / "hello" / "Dockerfile").read_text()
    example = re.sub(r"^(# .*|#|LABEL .*\n .*)\n", "", example, flags=re.M).lstrip()
    assert shown == example
    command, *printed = next(text for kind, text in blocks if kind == "console").splitlines()
    words = [*shlex.split(command)[2:], "--build-context", f"busybox=oci-layout://{busybox.layout}"]
    (kanifold.home / "examples").symlink_to(ROOT / "examples")
    said = kanifold(*words)
    assert printed[-1].startswith("sha256:")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", said.out)
    lines = [re.sub(r"^[✓ ] ", "", line) for line in printed[:-1]]
    for line in lines:
        like = re.sub(r"[0-9.]+s\b", "[0-9.]+s", re.sub(r"[0-9a-f]{12}$", "[0-9a-f]{12}", line))
        assert re.search(rf"^ *{re.sub(' +', ' +', like)}$", said.err, re.M), f"{like!r} is not in:\n{said.err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert missing == []


_OF_A_SHELL = frozenset({"|", "||", "&&", ";", ">", ">>", "<", "2>&1"})
"""Words after which another command or a file follows."""


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, ...], str]:
    """The help of each command that a page has named."""
    return {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_flags_exist(page: Path, kanifold: Kanifold, helps: dict[tuple[str, ...], str]) -> None:
    written = [*code(page.read_text()), *re.findall(r"`(kanifold [^`]+)`", page.read_text())]
    for line in written:
        if not line.startswith("kanifold "):
            continue
        words = list(itertools.takewhile(lambda word: word not in _OF_A_SHELL, shlex.split(line)))[1:]
        if words[0] in ("is", "has"):  # a message about kanifold
            continue
        command = tuple(words[:2] if words[0] in ("emulators", "index", "node") else words[:1])
        if not all(re.fullmatch(r"[a-z-]+", word) for word in command):
            continue
        if command not in helps:
            helps[command] = kanifold(*command, "--help").out
        flags = [word.partition("=")[0] for word in words if re.match(r"-\w|--\w", word)]
        unknown = [flag for flag in flags if not re.search(rf"(^|[\s,/]){re.escape(flag)}\b", helps[command])]
        assert unknown == [], line


def test_the_exit_codes_are_those_of_the_code() -> None:
    table = {int(number) for number in re.findall(r"^\| (\d+) \|", README, re.M)}
    raised = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    assert table == raised | {0}


def test_scripts_named_in_the_contributors_guide_exist() -> None:
    named = set(re.findall(r"`(ci/\w+)`", (ROOT / "CONTRIBUTING.md").read_text()))
    assert named >= {"ci/demo", "ci/test", "ci/bases"}
    assert [script for script in named if not os.access(ROOT / script, os.X_OK)] == []
