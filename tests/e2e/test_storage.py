"""``kanifold du`` and ``kanifold prune`` in the words that users of buildx have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold

Context = Callable[[Mapping[str, str | bytes]], Path]

EVERYTHING = {"blob", "snapshot", "record", "cache-mount"}


@pytest.fixture
def built(kanifold: Kanifold, busybox: Base, context: Context) -> Callable[[], str]:
    """Builds, and says what the build said; the store has every kind of thing then."""
    text = f"FROM {busybox.ref}\nRUN --mount=type=cache,target=/c echo x > /c/x && echo x > /x\n"
    folder = context({"Dockerfile": text})
    arguments = ("build", folder, "--progress", "plain", "-o", f"type=oci,dest={kanifold.home / 'out'}")
    return lambda: kanifold(*arguments).err


def kinds(kanifold: Kanifold, *filters: str) -> set[str]:
    """The kinds of what the store holds, by ``du``."""
    lines = kanifold("du", *filters).out.splitlines()
    return {line.split()[0] for line in lines} - {"total"}


def test_du_shows_what_meets_all_conditions(kanifold: Kanifold, built: Callable[[], str]) -> None:
    built()
    assert kinds(kanifold) == EVERYTHING
    assert kinds(kanifold, "--filter", "type=regular") == EVERYTHING - {"cache-mount"}
    assert kinds(kanifold, "--filter", "type=snapshot", "--filter", "until=1h") == set()
    assert "echo x" in kanifold("du", "--verbose", "--filter", "description~=echo x").out


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (("-f",), EVERYTHING),
        (("--force", "--filter", "until=24h"), EVERYTHING),
        (("--keep-storage", "1g"), EVERYTHING),
        (("--reserved-space", "10GB", "--all"), EVERYTHING),
        (("--filter", "type=exec.cachemount"), EVERYTHING - {"cache-mount"}),
        (("--filter", "type==regular"), {"cache-mount"}),
        (("--max-used-space", "0"), set()),
        (("--all", "--force"), set()),
    ],
)
def test_prune_leaves_what_was_not_asked_for(
    kanifold: Kanifold, built: Callable[[], str], flags: tuple[str, ...], left: set[str]
) -> None:
    built()
    assert "freed" in kanifold("prune", *flags).out
    assert kinds(kanifold) == left
    assert ("CACHED" in built()) is (left != set() and "snapshot" in left)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--filter", "colour=red"), "colour"),
        (("--filter", "type=frontend"), "frontend"),
        (("--filter", "until=soon"), "soon"),
        (("--keep-storage", "much"), "--keep-storage"),
    ],
)
def test_prune_refuses_what_it_does_not_know(kanifold: Kanifold, flags: tuple[str, ...], named: str) -> None:
    refused = kanifold.run("prune", *flags)
    assert refused.code == 2
    assert named in refused.err
