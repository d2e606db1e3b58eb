"""The commands ``kanifold node …``.

Options are named as ``docker buildx create`` and ``podman farm`` name theirs; docs/nodes.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import click

from orchestrator import options, project_file, values
from orchestrator.nodes import inventory, inventory_file, node_states
from orchestrator.nodes.inventory import KUBERNETES, LOCAL, NodeEntry
from orchestrator.nodes.node_states import NodeState
from orchestrator.options import choice, ignored, number, switch, text, texts
from orchestrator.view import units
from orchestrator.view.stdout import print_json, print_line
from platforms.errors import EnvironmentUnfit, UsageError
from platforms.platform import Platform

_HEADINGS: Final = (
    "name", "url", "native", "emulated", "isolation", "version", "latency", "load", "free disk", "state",
)  # fmt: skip
_BOOTSTRAP_SECONDS: Final = 600.0
"""How long a node may take that kanifold is sent to."""


class NodeFlags(options.Flags):
    """The flags of these commands; each is a decorator."""

    platforms = texts(
        "--platform",
        metavar="LIST",
        read=values.platforms,
        complete=options.complete_platforms,
        help="Build these platforms there, and no others (default: all that it runs).",
    )
    max_jobs = number("--max-jobs", least=1, help="Platforms built there at a time (default: its processors).")
    bootstrap = switch(
        "--bootstrap/--no-bootstrap",
        default=True,
        help="Send kanifold there if it is missing or of another version (default), or never do.",
    )
    python = text("--python", metavar="PROGRAM", help="The Python there (default: the first of a usable version).")
    replace = switch("--replace", help="Put it in the place of the node of this name.")
    output = choice("--format", among=("table", "json"), default="table", help="How it is printed.")
    asks = switch(
        "--bootstrap", help="Send kanifold to nodes where this version of it is missing, before they are asked."
    )
    silent = ignored("--append", help="Accepted from habit (buildx): nodes are always added to those that are there.")


_name = click.argument("name", metavar="NAME", shell_complete=options.complete_nodes)
_names = click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=options.complete_nodes)


class _NodeCommands(click.Group):
    """Commands with the other names that people know them by."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        names = {"list": "ls", "remove": "rm"}
        return super().get_command(ctx, names.get(cmd_name, cmd_name))


@click.group(cls=_NodeCommands, short_help="Machines that platforms are built on.")
def node() -> None:
    """Name machines that are reached over SSH, and clusters: builds then run each platform where it is native, and
    emulate the rest.

    They are kept in $XDG_CONFIG_HOME/kanifold/nodes.yaml. A build uses all of them, and this machine, unless it is
    told --node or KANIFOLD_NODES.
    """


@node.command(short_help="Add a machine.")
@click.argument("name", metavar="NAME")
@click.argument("url", metavar="[URL]", default="")
@NodeFlags.platforms
@NodeFlags.max_jobs
@NodeFlags.bootstrap
@NodeFlags.python
@NodeFlags.replace
@NodeFlags.silent
def add(name: str, url: str, **given: Any) -> None:
    """Add the machine at URL, ssh://[USER@]HOST[:PORT], or a cluster, and call it NAME.

    USER, PORT, keys and jump hosts may as well come from ~/.ssh/config, where HOST may be an alias. A cluster is
    kubernetes://CONTEXT/NAMESPACE?image=IMAGE; its other options are in docs/kubernetes.md. Without a URL, it is the
    one that kanifold.yaml in the current directory proposes. URL local is this machine, for its --max-jobs. Nothing is
    asked of the machine: that is kanifold node check.
    """
    flags = NodeFlags(given)
    proposed = _proposed(name) if not url else project_file.ProposedNode(name, url)
    declared = inventory.declared(proposed.name, proposed.url)
    entry = NodeEntry(
        declared.name,
        declared.url,
        flags.platforms or proposed.platforms,
        flags.max_jobs or proposed.max_jobs,
        flags.bootstrap,
        inventory.check_python(flags.python) if flags.python else "",
    )
    inventory_file.add(inventory.user_file(), entry, replace=flags.replace)
    print_line(f"added {entry.name}, {entry.url}; kanifold node check {entry.name} connects to it")


def _proposed(name: str) -> project_file.ProposedNode:
    found = {each.name: each for each in project_file.load().nodes or ()}.get(inventory.check_name(name))
    if found is None or not found.url:
        raise UsageError(
            f"there is no address for the node {name}",
            why=f"none was given, and {project_file.NAME} here has none",
            remedy=f"kanifold node add {name} ssh://USER@HOST",
        )
    return found


@node.command(short_help="Remove machines from the inventory.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=options.complete_nodes)
def rm(names: tuple[str, ...]) -> None:
    """Remove the machines of these NAMEs from the inventory. What is stored there stays until kanifold prune is run."""
    inventory_file.remove(inventory.user_file(), names)
    for each in names:
        print_line(f"removed {each}")


@node.command(short_help="List all machines, and how they are.")
@NodeFlags.output
@NodeFlags.asks
def ls(**given: Any) -> None:
    """Ask this machine and all of the inventory what they are, all at once, and print a line for each.

    The platforms are those of linux. emulated are those with an emulator, which has not been tried; latency is that of
    a message and its reply, load the processes that run, of the processors. state is ok, unfit (no steps can run there)
    or down; the reason is below.
    """
    flags = NodeFlags(given)
    states = _examined((), flags.asks)
    if flags.output == "json":
        print_json([_as_data(each) for each in states])
        return
    rows = [tuple(each.upper() for each in _HEADINGS), *map(_row, states)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if unusable := [each for each in states if each.problem is not None]:
        print_line()
        print_states(unusable)


@node.command(short_help="Show everything about machines.")
@_names
@NodeFlags.output
@NodeFlags.asks
def inspect(names: tuple[str, ...], **given: Any) -> None:
    """Ask the machines of these NAMEs (default: all) and print all that is known of each."""
    flags = NodeFlags(given)
    states = _examined(names, flags.asks)
    if flags.output == "json":
        print_json([_as_data(each) for each in states])
        return
    for number_, state in enumerate(states):
        if number_:
            print_line()
        for key, value in _rows_of(state):
            print_line(f"{key + ':':<12} {value}")


@node.command(short_help="Connect to machines, and say what is wrong.")
@_names
@NodeFlags.bootstrap
def check(names: tuple[str, ...], **given: Any) -> None:
    """Connect to the machines of these NAMEs (default: this one and all of the inventory), as a build does.

    What is wrong is said with its remedy. The exit status is 0 if all can be used, and 3 if one cannot.
    """
    states = _examined(names, NodeFlags(given).bootstrap)
    print_states(states)
    if any(each.problem is not None for each in states):
        click.get_current_context().exit(EnvironmentUnfit.exit_code)


def _examined(names: Sequence[str], bootstrap: bool) -> tuple[NodeState, ...]:
    """Return how the nodes ``names`` are; without names all, this machine first."""
    known = inventory.load(inventory.user_file())
    if names:
        chosen = [inventory.find(each, known) for each in dict.fromkeys(names)]
    else:
        here = () if any(each.name == LOCAL for each in known) else (NodeEntry(LOCAL, LOCAL),)
        chosen = [*here, *known]
    return node_states.examine(chosen, bootstrap, _BOOTSTRAP_SECONDS if bootstrap else node_states.PATIENCE)


def print_states(states: Iterable[NodeState], indent: str = "") -> None:
    """Print a line for each node that can be used, and the problem of each that cannot."""
    for each in states:
        if each.problem is None:
            print_line(f"{indent}ok {each.entry.name}: {_summary(each)}")
        else:
            print_line(f"{indent}-- {each.entry.name}: {each.problem.what}")
            for line in (*each.problem.why.splitlines(), *each.problem.log, each.problem.remedy):
                if line:
                    print_line(f"{indent}     {line}")


def _summary(state: NodeState) -> str:
    found = state.description
    assert found is not None
    emulated = f", emulates {_short(found.emulated)}" if found.emulated else ""
    if found.scheduled and not found.isolation:
        return f"{found.platform}, {_latency(state)}; no executor was started"
    return (
        f"{found.platform}, {found.processors} processors, {found.isolation}, kanifold {found.kanifold}, "
        f"{_latency(state)}{emulated}"
    )


def _row(state: NodeState) -> tuple[str, ...]:
    entry, found = state.entry, state.description
    if found is None:
        return (entry.name, entry.url, _short(entry.platforms) or "-", "-", "-", "-", "-", "-", "-", state.word)
    return (
        entry.name,
        entry.url,
        _short(_declared(entry, found.native)) or "-",
        _short(_declared(entry, found.emulated)) or "-",
        found.isolation or ("-" if found.scheduled else "none"),
        found.kanifold,
        _latency(state),
        f"{found.load:.1f} of {found.processors}" if found.processors else "-",
        units.size(found.disk) if found.disk else "-",
        state.word,
    )


def _rows_of(state: NodeState) -> list[tuple[str, str]]:
    entry, found = state.entry, state.description
    facts = [("name", entry.name), ("url", entry.url), ("state", state.word)]
    if entry.platforms:
        facts.append(("declared", _named(entry.platforms)))
    most = "any number" if entry.url.startswith(KUBERNETES) else "as many as it has processors"
    facts.append(("max jobs", str(entry.max_jobs or most)))
    facts.append(("bootstrap", "yes" if entry.bootstrap else "no"))
    if entry.python:
        facts.append(("python", entry.python))
    if found is not None:
        facts += [
            ("platform", str(found.platform)),
            ("native", _named(found.native) or "none"),
            ("emulated", _named(found.emulated) or "none"),
            ("latency", _latency(state)),
        ]
    if found is not None and (found.isolation or not found.scheduled):
        facts += [
            ("isolation", found.isolation or "none"),
            ("version", f"{found.kanifold} (protocol {found.protocol})"),
            ("processors", str(found.processors)),
            ("load", f"{found.load:.2f}"),
            ("memory", f"{units.size(found.memory)} free"),
            ("disk", f"{units.size(found.disk)} free for its store"),
            ("connected", f"in {units.duration(state.seconds)}"),
        ]
    if state.problem is not None:
        facts.append(("problem", ": ".join(filter(None, (state.problem.what, state.problem.why)))))
        facts.append(("remedy", state.problem.remedy))
    return facts


def _as_data(state: NodeState) -> dict[str, object]:
    entry, found, problem = state.entry, state.description, state.problem
    data: dict[str, object] = {
        "name": entry.name,
        "url": entry.url,
        "platforms": list(map(str, entry.platforms)),
        "max_jobs": entry.max_jobs,
        "bootstrap": entry.bootstrap,
        "python": entry.python,
        "state": state.word,
        "problem": problem and {"what": problem.what, "why": problem.why, "remedy": problem.remedy},
        "description": None,
    }
    if found is not None:
        data["description"] = {
            "platform": str(found.platform),
            "native": list(map(str, found.native)),
            "emulated": list(map(str, found.emulated)),
            "isolation": found.isolation,
            "version": found.kanifold,
            "protocol": found.protocol,
            "processors": found.processors,
            "load": round(found.load, 2),
            "memory": found.memory,
            "disk": found.disk,
            "latency": round(state.latency, 6),
            "connected": round(state.seconds, 3),
        }
    return data


def _declared(entry: NodeEntry, platforms: Iterable[Platform]) -> tuple[Platform, ...]:
    return tuple(each for each in platforms if entry.takes(each))


def _named(platforms: Iterable[Platform]) -> str:
    return ", ".join(map(str, platforms))


def _short(platforms: Iterable[Platform]) -> str:
    return ",".join(str(each).removeprefix("linux/") for each in platforms)


def _latency(state: NodeState) -> str:
    return f"{state.latency * 1000:.1f} ms"
