"""Rendering errors and warnings: lines for a pipe, a panel for a terminal, annotations for GitHub Actions.

In a pipe an error begins with ``ERROR: what: why``, so that one line can be searched for; then come the location with
the lines around it, the erroneous ones marked ``>>>``, the end of the step's output, and the remedy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TextIO

from orchestrator.view import terminal, wording
from orchestrator.view.build_state import WarningState
from orchestrator.view.ci import annotated, in_actions, neutralise
from orchestrator.view.events import Failure
from orchestrator.view.output_stream import OutputStream
from orchestrator.view.untrusted import clean_line, clean_lines, clean_log
from platforms.errors import KanifoldError, Location, Problem

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.text import Text

MARK: Final = ">>>"


def exit_code(problem: Problem) -> int:
    """Return the exit status for ``problem``: 1 build failed, 2 usage, 3 environment unfit, 130 interrupted."""
    return KanifoldError.of(problem).exit_code


def render_problem(
    problem: Problem, stream: TextIO | None = None, environ: Mapping[str, str] | None = None, platform: str = ""
) -> int:
    """Print ``problem`` on ``stream`` (default: stderr), as a panel on a terminal and as lines elsewhere.

    Returns its exit code, so that a command can end with ``return render_problem(error.problem)``.
    """
    stream = stream or sys.stderr
    environ = os.environ if environ is None else environ
    if terminal.wants_colour(stream, environ):
        _print(panel(problem, platform), stream, environ)
    else:
        OutputStream(stream).write("".join(f"{line}\n" for line in _for_pipe(problem, platform, environ)))
    return exit_code(problem)


def render_warning(
    problem: Problem,
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
    rule: str = "",
    platforms: tuple[str, ...] = (),
) -> None:
    """Print ``problem`` as a warning on ``stream`` (default: stderr); ``rule`` is the build check that found it."""
    stream = stream or sys.stderr
    environ = os.environ if environ is None else environ
    if terminal.wants_colour(stream, environ):
        _print(warning_text(problem, rule, platforms), stream, environ)
    else:
        lines = warning_lines(problem, rule, platforms)
        if in_actions(environ):
            lines = (*annotated("warning", problem, environ), *map(neutralise, lines))
        OutputStream(stream).write("".join(f"{line}\n" for line in lines))


def _for_pipe(problem: Problem, platform: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    lines = problem_lines(problem, platform)
    return (*annotated("error", problem, environ), *map(neutralise, lines)) if in_actions(environ) else lines


def distinct(troubles: tuple[Failure, ...]) -> tuple[Failure, ...]:
    """Return ``troubles`` with equal ones of several platforms merged: ``linux/amd64, linux/arm64``."""
    platforms: dict[Problem, list[str]] = {}
    for each in troubles:
        platforms.setdefault(each.problem, []).append(each.platform)
    return tuple(Failure(problem, ", ".join(filter(None, names))) for problem, names in platforms.items())


def problem_lines(problem: Problem, platform: str = "") -> tuple[str, ...]:
    """Return ``problem`` as printable lines without control characters."""
    why = clean_lines(problem.why)
    first = f"{clean_line(problem.what)}: {why[0]}" if why else clean_line(problem.what)
    lines = [f"ERROR: {f'[{clean_line(platform)}] ' if platform else ''}{first}"]
    lines += [f"  {line}" for line in why[1:]]
    if problem.where:
        lines.append(f"  at {format_location(problem.where)}")
        lines += [f"  {line}" for line in excerpt(problem.where)]
    if problem.log:
        lines.append(f"  {_log_heading(problem)}:")
        lines += [f"  | {clean_log(line)}" for line in problem.log]
    remedy = clean_lines(problem.remedy)
    lines += [f"  {'remedy: ' if number == 0 else '        '}{line}" for number, line in enumerate(remedy)]
    return tuple(lines)


def warning_lines(problem: Problem, rule: str = "", platforms: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return a warning as printable lines: ``WARNING: what: why (rule, file:line)``, and the remedy below."""
    whose = f"[{clean_line(', '.join(platforms))}] " if platforms else ""
    lines = [f"WARNING: {whose}{wording.warning_line(WarningState(problem, rule, platforms))}"]
    lines += [f"  {line}" for line in clean_lines(problem.remedy)]
    return tuple(lines)


def format_location(where: Location) -> str:
    """Return ``Dockerfile:3`` or ``Dockerfile:3-5``."""
    lines = f"{where.line}" if where.end_line <= where.line else f"{where.line}-{where.end_line}"
    return f"{clean_line(where.file)}:{lines}"


def excerpt(where: Location) -> tuple[str, ...]:
    """Return the lines around the location, numbered, the erroneous ones marked."""
    last = where.first + len(where.source) - 1
    return tuple(
        f"{number:>{len(str(last))}} | {MARK if where.line <= number <= where.end_line else '   '} {line}".rstrip()
        for number, line in enumerate((clean_line(line.rstrip().expandtabs(8)) for line in where.source), where.first)
    )


def _log_heading(problem: Problem) -> str:
    count = len(problem.log)
    return f"the last {count} lines of the step's output" if count > 1 else "the last line of the step's output"


def panel(problem: Problem, platform: str = "") -> Panel:
    """Return ``problem`` as a rich panel."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    parts: list[Text] = [Text(clean_line(problem.what), "bold")]
    parts += [Text(line) for line in clean_lines(problem.why)]
    if problem.where:
        where = problem.where
        parts.append(Text(f"\n{format_location(where)}", "cyan"))
        for number, line in enumerate(excerpt(where), where.first):
            at_fault = where.line <= number <= where.end_line
            parts.append(Text(line, "bold red" if at_fault else "dim", no_wrap=True, overflow="ellipsis"))
    if problem.log:
        parts.append(Text(f"\n{_log_heading(problem)}", "cyan"))
        parts += [Text(f"│ {clean_log(line)}", overflow="fold") for line in problem.log]
    if problem.remedy:
        parts.append(Text("\n" + "\n".join(clean_lines(problem.remedy)), "green"))
    title = Text(f"error: {clean_line(platform)}" if platform else "error", "bold red")
    return Panel(Group(*parts), title=title, title_align="left", border_style="red", padding=(0, 1))


def warning_text(problem: Problem, rule: str = "", platforms: tuple[str, ...] = ()) -> Text:
    """Return a warning as rich text."""
    from rich.text import Text

    first, *rest = warning_lines(problem, rule, platforms)
    text = Text("⚠ ", "yellow", overflow="fold")
    text.append(first.removeprefix("WARNING: "), "yellow")
    for line in rest:
        text.append(f"\n{line}", "not yellow dim")
    return text


def _print(what: Panel | Text, stream: TextIO, environ: Mapping[str, str]) -> None:
    import io

    from rich.console import Console

    width = terminal.size(stream, environ)[0]
    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
        width=width,
        _environ=environ,
    )
    with console.capture() as captured:
        console.print(what)
    OutputStream(stream).write(captured.get())
