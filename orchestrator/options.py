"""Options that several commands have, and what a shell completes their values with."""

from __future__ import annotations

from typing import Any

import click

from platforms import debug


def complete_directories(_context: click.Context, _option: click.Parameter, begun: str) -> list[Any]:
    """Directories that begin with ``begun``."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="dir")]


def complete_files(_context: click.Context, _option: click.Parameter, begun: str) -> list[Any]:
    """Files that begin with ``begun``."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="file")]


def complete_times(_context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """Times after the last ``=`` of ``[REGISTRY=]TIME``."""
    registry, equals, last = begun.rpartition("=")
    return [registry + equals + each for each in ("10s", "30s", "1m", "5m") if each.startswith(last)]


def complete_platforms(_context: click.Context, _option: click.Parameter, begun: str) -> list[str]:
    """The usual platforms after the last comma."""
    from platforms.emulation import USUAL

    before, comma, last = begun.rpartition(",")
    return [before + comma + str(each) for each in USUAL if str(each).startswith(last)]


def _debug(_context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        debug.enable()


DEBUG = click.option(
    "-D",
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_debug,
    help="Write to stderr what each process does, and when (KANIFOLD_DEBUG=1).",
)
INSECURE = click.option(
    "--insecure-registry", "insecure", metavar="HOST", multiple=True, help="Allow plain HTTP and unverified TLS."
)
MIRRORS = click.option(
    "--registry-mirror",
    "mirrors",
    metavar="[REGISTRY=]HOST",
    multiple=True,
    help="Where to look first (default registry: docker.io).",
)
TIMEOUT = click.option(
    "--registry-timeout",
    "timeouts",
    metavar="[REGISTRY=]TIME",
    multiple=True,
    shell_complete=complete_times,
    help="Give a registry up after so long without getting further, tries included: 20s, 2m, …",
)
