"""The one renderer of errors and warnings: lines for a pipe, a panel for a terminal, annotations for GitHub Actions.

In a pipe an error begins with ``ERROR: what: why``, so that one line is enough to search for; then come the place with
the lines around it, those at fault marked ``>>>``, the end of the step's output, and the remedy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TextIO

from orchestrator.view import terminal, wording
from orchestrator.view.ci import annotation, harmless, in_actions
from orchestrator.view.events import Trouble
from orchestrator.view.sink import Sink
from orchestrator.view.state import Caution
from orchestrator.view.untrusted import clean_line, clean_lines, clean_log
from platforms.errors import KanifoldError, Location, Problem

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.text import Text

MARK: Final = ">>>"


def exit_code(problem: Problem) -> int:
    """The process's exit status for ``problem``: 1 build failed, 2 usage, 3 environment unfit, 130 interrupted."""
    return KanifoldError.of(problem).exit_code


def render_problem(
    problem: Problem, stream: TextIO | None = None, environ: Mapping[str, str] | None = None, platform: str = ""
) -> int:
    """Show ``problem`` on ``stream`` (stderr), as a panel where it is a terminal and as lines elsewhere.

    Returns its exit code, so that a command can end with ``return render_problem(error.problem)``.
    """
    stream = stream or sys.stderr
    environ = os.environ if environ is None else environ
    if terminal.wants_colour(stream, environ):
        _print(panel(problem, platform), stream, environ)
    else:
        Sink(stream).write("".join(f"{line}\n" for line in _for_pipe(problem, platform, environ)))
    return exit_code(problem)


def render_warning(
    problem: Problem,
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
    rule: str = "",
    platforms: tuple[str, ...] = (),
) -> None:
    """Show ``problem`` as a warning on ``stream`` (stderr); ``rule`` is the name of the build check that found it."""
    stream = stream or sys.stderr
    environ = os.environ if environ is None else environ
    if terminal.wants_colour(stream, environ):
        _print(caution_text(problem, rule, platforms), stream, environ)
    else:
        lines = caution_lines(problem, rule, platforms)
        if in_actions(environ):
            lines = (annotation("warning", problem), *map(harmless, lines))
        Sink(stream).write("".join(f"{line}\n" for line in lines))


def _for_pipe(problem: Problem, platform: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    lines = problem_lines(problem, platform)
    return (annotation("error", problem), *map(harmless, lines)) if in_actions(environ) else lines


def distinct(troubles: tuple[Trouble, ...]) -> tuple[Trouble, ...]:
    """``troubles`` with those that are the same for several platforms put together: ``linux/amd64, linux/arm64``."""
    platforms: dict[Problem, list[str]] = {}
    for each in troubles:
        platforms.setdefault(each.problem, []).append(each.platform)
    return tuple(Trouble(problem, ", ".join(filter(None, names))) for problem, names in platforms.items())


def problem_lines(problem: Problem, platform: str = "") -> tuple[str, ...]:
    """``problem`` as printable lines without any control character."""
    why = clean_lines(problem.why)
    first = f"{clean_line(problem.what)}: {why[0]}" if why else clean_line(problem.what)
    lines = [f"ERROR: {f'[{clean_line(platform)}] ' if platform else ''}{first}"]
    lines += [f"  {line}" for line in why[1:]]
    if problem.where:
        lines.append(f"  at {place(problem.where)}")
        lines += [f"  {line}" for line in excerpt(problem.where)]
    if problem.log:
        lines.append(f"  {_log_heading(problem)}:")
        lines += [f"  | {clean_log(line)}" for line in problem.log]
    remedy = clean_lines(problem.remedy)
    lines += [f"  {'remedy: ' if number == 0 else '        '}{line}" for number, line in enumerate(remedy)]
    return tuple(lines)


def caution_lines(problem: Problem, rule: str = "", platforms: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A warning as printable lines: ``WARNING: what: why (rule, file:line)``, and the remedy below."""
    whose = f"[{clean_line(', '.join(platforms))}] " if platforms else ""
    lines = [f"WARNING: {whose}{wording.caution_line(Caution(problem, rule, platforms))}"]
    lines += [f"  {line}" for line in clean_lines(problem.remedy)]
    return tuple(lines)


def place(where: Location) -> str:
    """``Dockerfile:3`` or ``Dockerfile:3-5``."""
    lines = f"{where.line}" if where.end_line <= where.line else f"{where.line}-{where.end_line}"
    return f"{clean_line(where.file)}:{lines}"


def excerpt(where: Location) -> tuple[str, ...]:
    """The lines around the place, numbered, those at fault marked."""
    last = where.first + len(where.source) - 1
    return tuple(
        f"{number:>{len(str(last))}} | {MARK if where.line <= number <= where.end_line else '   '} {line}".rstrip()
        for number, line in enumerate((clean_line(line.rstrip().expandtabs(8)) for line in where.source), where.first)
    )


def _log_heading(problem: Problem) -> str:
    count = len(problem.log)
    return f"the last {count} lines of the step's output" if count > 1 else "the last line of the step's output"


def panel(problem: Problem, platform: str = "") -> Panel:
    """``problem`` as a rich panel."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    parts: list[Text] = [Text(clean_line(problem.what), "bold")]
    parts += [Text(line) for line in clean_lines(problem.why)]
    if problem.where:
        where = problem.where
        parts.append(Text(f"\n{place(where)}", "cyan"))
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


def caution_text(problem: Problem, rule: str = "", platforms: tuple[str, ...] = ()) -> Text:
    """A warning as rich text."""
    from rich.text import Text

    first, *rest = caution_lines(problem, rule, platforms)
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
    Sink(stream).write(captured.get())
