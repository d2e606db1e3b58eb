"""The history of builds: what is recorded, that it is bounded, and what a crash or another process does to it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from report_states import DIGEST

from executor import protocol
from orchestrator import build_history, history_command
from orchestrator.build_history import BUILDS, FILE, BuildRecord, append, read
from orchestrator.cli import cli
from orchestrator.request import Report
from orchestrator.view import events
from platforms.errors import Problem


def record(number: int) -> BuildRecord:
    return BuildRecord(1_700_000_000.0 + number, 1.5, f"app:{number}", "built", ("linux/amd64",), DIGEST)


def test_the_last_builds_come_first(tmp_path: Path) -> None:
    for number in range(3):
        append(str(tmp_path), record(number))
    assert [each.name for each in read(str(tmp_path))] == ["app:2", "app:1", "app:0"]


def test_it_is_bounded(tmp_path: Path) -> None:
    for number in range(5 * BUILDS):
        append(str(tmp_path), record(number))
    found = read(str(tmp_path))
    assert BUILDS <= len(found) <= 2 * BUILDS
    assert found[0].name == f"app:{5 * BUILDS - 1}"
    long = BuildRecord(0.0, 0.0, "x" * 9000, "built")
    append(str(tmp_path), long)
    assert read(str(tmp_path)) == found


def test_a_line_that_a_crash_has_cut_is_passed_over(tmp_path: Path) -> None:
    append(str(tmp_path), record(1))
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"began": 17000')
    append(str(tmp_path), record(2))
    assert [each.name for each in read(str(tmp_path))] == ["app:2", "app:1"]


@pytest.mark.parametrize("data", [b"\xff\n", b"[" * 100_000, b"{}\n", b'{"began": "x"}\n', b"null\n"])
def test_whatever_is_in_the_file_is_no_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(data)
    assert read(str(tmp_path)) == ()
    append(str(tmp_path), record(1))
    assert [each.name for each in read(str(tmp_path))] == ["app:1"]


def test_builds_at_the_same_time_lose_no_line(tmp_path: Path) -> None:
    program = (
        "import sys; from orchestrator.build_history import BuildRecord, append\n"
        "for at in range(40): append(sys.argv[1], BuildRecord(0.0, 0.0, f'{sys.argv[2]}-{at}', 'built'))"
    )

    def run(name: str) -> None:
        subprocess.run([sys.executable, "-c", program, str(tmp_path), name], check=True)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, "abc"))
    assert {each.name for each in read(str(tmp_path))} == {f"{name}-{at}" for name in "abc" for at in range(40)}


def test_a_link_at_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        append(str(tmp_path / "store"), record(1))
    assert not (tmp_path / "elsewhere").exists()


def test_events_become_a_record(tmp_path: Path) -> None:
    seen: list[events.Event] = []
    problem = Problem("StepFailed", "RUN false failed")
    with build_history.recorded(str(tmp_path), (Report("html", "x.html"),), seen.append) as emit:
        emit(events.BuildStarted(platforms=(events.PlatformPlacement("linux/amd64"),), name="app:1", tags=("app:1",)))
        emit(events.FromExecutor(platform="linux/amd64", message=protocol.BuildWarning(problem)))
        emit(events.BuildEnded(outcome="failed", troubles=(events.Failure(problem),)))
    assert len(seen) == 3
    (found,) = read(str(tmp_path))
    assert (found.name, found.outcome, found.error, found.warnings) == ("app:1", "failed", "RUN false failed", 1)
    assert found.reports == (str(Path.cwd() / "x.html"),)


def test_the_command_shows_builds_with_their_reports(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("")
    evil = BuildRecord(1.0, 2.0, "\x1b[31mred\n##[x]", "failed", error="\x1b[2J", reports=(str(report), "/nowhere"))
    append(str(tmp_path), evil)
    shown = CliRunner().invoke(cli, ["history", "--root", str(tmp_path)]).output
    assert "\x1b" not in shown
    assert f"report {report}\n" in shown
    assert "report /nowhere (no longer there)" in shown
    shown = CliRunner().invoke(cli, ["history", "--root", str(tmp_path), "--json"]).output
    assert json.loads(shown)[0]["outcome"] == "failed"
    assert history_command.lines(record(1))[0].endswith("app:1")


def test_it_is_forgotten_with_the_store(tmp_path: Path) -> None:
    append(str(tmp_path), record(1))
    build_history.clear(str(tmp_path))
    assert read(str(tmp_path)) == ()
