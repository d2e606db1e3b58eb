"""``kanifold du`` and ``kanifold prune``: listing and pruning the store."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Sequence

from executor.store import prune as pruning
from executor.store.prune import UsageInfo
from executor.store.store import open_store
from orchestrator import build_history, fields
from orchestrator.view.stdout import print_line
from orchestrator.view.units import size as shown
from platforms.errors import EnvironmentUnfit, UsageError


def show(root: str, verbose: bool, filters: Sequence[str]) -> None:
    """Print the total for each kind of resource that matches ``filters`` and, if ``verbose``, a line for each
    resource."""
    _check(root)
    with open_store(root or None) as store:
        rows = pruning.usage(store, filters)
    if verbose:
        for row in sorted(rows, key=lambda each: (each.kind, -each.size)):
            state = "in use" if row.in_use else f"used {_ago(row.last_used)}"
            print_line(f"{row.kind:<12} {shown(row.size):>10}  {state:<14} {row.id[:24]:<24} {row.description[:60]}")
        print_line()
    for kind, count, total in _sums(rows):
        print_line(f"{kind:<12} {count:>7}  {shown(total):>10}")
    print_line(f"{'total':<12} {len(rows):>7}  {shown(sum(each.size for each in rows)):>10}")


def prune(root: str, everything: bool, keep_storage: str, filters: Sequence[str]) -> None:
    """Remove what is not in use. Without limits: garbage, and what no cache record needs."""
    _check(root)
    if sys.platform == "linux":
        # Files of steps belong to ids that exist only in a user namespace with the same mapping.
        from executor.sandbox import isolation

        with contextlib.suppress(EnvironmentUnfit):  # where no step can run, all files are this user's
            isolation.enter()
    with open_store(root or None) as store:
        done = pruning.prune(
            store,
            keep_storage=fields.size(keep_storage, "--keep-storage") if keep_storage else None,
            filters=filters,
            all=everything,
        )
        if everything and not filters:
            build_history.clear(store.root)
    for kind, count, total in _sums(done.removed):
        print_line(f"{kind:<12} {count:>7}  {shown(total):>10}")
    print_line(f"freed {shown(done.freed)}")


def _check(root: str) -> None:
    """Raise if there is no store at ``root``, instead of making one."""
    if root and not os.path.isdir(root):
        raise UsageError(f"there is no store at {root}", remedy="see kanifold doctor for where it is")


def _sums(rows: Iterable[UsageInfo]) -> list[tuple[str, int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        count, total = found.get(row.kind, (0, 0))
        found[row.kind] = count + 1, total + row.size
    return [(kind, *both) for kind, both in sorted(found.items())]


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{int(seconds // unit)}{name} ago"
    return "just now"
