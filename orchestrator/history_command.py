"""``kanifold history``: the last builds of a store."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Final

import msgspec

from executor.store.store import default_root
from orchestrator import build_history
from orchestrator.build_history import BuildRecord
from orchestrator.view import units, wording
from orchestrator.view.stdout import print_json, print_line
from orchestrator.view.untrusted import clean_line
from platforms.errors import UsageError

_INDENT: Final = " " * 22
_PLATFORMS: Final = 3
"""Number of platforms that are named; of more, the number is shown."""


def show(root: str, count: int, *, as_json: bool) -> None:
    """Print the last ``count`` builds, the last one first. Raises ``UsageError`` if there is no store at ``root``."""
    if root and not os.path.isdir(root):
        raise UsageError(f"there is no store at {root}", remedy="see kanifold doctor for where it is")
    builds = build_history.read(os.path.abspath(root or default_root()))[:count]
    if as_json:
        print_json([msgspec.to_builtins(each) for each in builds])
        return
    if not builds:
        print_line("no build is recorded")
    for each in builds:
        for line in lines(each):
            print_line(line)


def lines(build: BuildRecord) -> list[str]:
    """Return the lines for a build: when, how long, and what; then what came of it."""
    began = datetime.fromtimestamp(max(0.0, min(build.began, 4e9))).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    steps = f"{build.ran} run, {build.cached} cached"
    facts = [f"{build.outcome} in {units.duration(build.seconds)}", _platforms(build)]
    facts += [steps] if build.ran or build.cached else []
    facts += [wording.plural(build.warnings, "warning")] if build.warnings else []
    found = [f"{began}   {clean_line(build.name) or 'image'}", _INDENT + ", ".join(filter(None, facts))]
    found += [_INDENT + clean_line(build.digest)] if build.digest else []
    found += [f"{_INDENT}published {clean_line(each)}" for each in build.tags if each != build.name]
    found += [_INDENT + clean_line(build.error)] if build.error else []
    found += [f"{_INDENT}report {clean_line(each)}{_missing(each)}" for each in build.reports]
    return found


def _platforms(build: BuildRecord) -> str:
    if len(build.platforms) > _PLATFORMS:
        return wording.plural(len(build.platforms), "platform")
    return " ".join(map(clean_line, build.platforms))


def _missing(path: str) -> str:
    return "" if os.path.exists(path) else " (no longer there)"
