"""Writes docs/cli.md, the reference of the command line, from the commands themselves.

    .venv/bin/python ci/reference.py        write it
    .venv/bin/python ci/reference.py -      print it

``tests/unit/test_docs_cli.py`` fails when the page is not what this prints.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from orchestrator.cli import cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
_HEAD = """\
# The command line

Made from the commands by `ci/reference.py`; change the texts in `orchestrator/flags.py` (those of `build`) and
`orchestrator/cli.py`. Flags that take a list may also be given several times.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_HEAD, *_command(cli, "kanifold")]).rstrip() + "\n"


def _command(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    if command is not cli:
        yield f"## {path}\n"
    if not isinstance(command, click.Group):
        yield f"    {path} {' '.join(command.collect_usage_pieces(context))}\n"
    yield f"{_prose(command.help or '')}\n"
    rows = [row for row in (_row(each, context) for each in command.params) if row]
    if rows:
        yield "| flag | meaning |\n|---|---|"
        yield "\n".join(rows) + "\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _command(found, f"{path} {name}")


def _prose(text: str) -> str:
    """A help text as Markdown: click's mark of a preformatted paragraph becomes its indentation."""
    return re.sub(r"^\x08\n", "", inspect.cleandoc(text), flags=re.MULTILINE)


def _row(parameter: click.Parameter, context: click.Context) -> str:
    record = parameter.get_help_record(context)
    if record is None or isinstance(parameter, click.Argument):
        return ""
    names, text = (" ".join(each.split()).replace("|", "\\|") for each in record)
    return f"| `{names}` | {text} |"


if __name__ == "__main__":
    if sys.argv[1:] == ["-"]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page())
