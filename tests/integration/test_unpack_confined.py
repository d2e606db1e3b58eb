"""No archive reaches anything outside of its directory, whatever its entries are made of."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import raw_tar as raw
from hostile_tar import canary, universe

from executor.snapshotter.unpack import Unpacked, UnpackLimits, extract, unpack, unpack_onto
from platforms.errors import ArchiveError

LIMITS = UnpackLimits()
Apply = Callable[..., Unpacked]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """The canary, beside the roots that archives are unpacked into."""
    return canary(tmp_path / "outside")


@pytest.mark.parametrize("apply", [unpack, unpack_onto, extract])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_no_mix_of_entries_reaches_the_canary(tmp_path: Path, outside: Path, apply: Apply, length: int) -> None:
    parts = universe(outside)
    # Every seventh of the longest mixes (seven and twenty have no common divisor): attack 4's test takes all.
    chosen = itertools.islice(itertools.product(parts, repeat=length), 0, None, 7 if length == 3 else 1)
    before = raw.fingerprint(outside)
    roots = tmp_path / "roots"
    roots.mkdir()
    for number, mix in enumerate(chosen):
        root = roots / str(number)
        root.mkdir()
        with contextlib.suppress(ArchiveError):
            apply(raw.stream(*mix), str(root), limits=LIMITS)
        if number % 200 == 0:
            assert raw.fingerprint(outside) == before
    assert raw.fingerprint(outside) == before


@pytest.mark.parametrize("length", [1, 2])
def test_no_layer_reaches_the_canary_through_the_layer_below(tmp_path: Path, outside: Path, length: int) -> None:
    before = raw.fingerprint(outside)
    for number, mix in enumerate(itertools.product(universe(outside), repeat=length)):
        root = tmp_path / f"root{number}"
        root.mkdir()
        (root / "a").symlink_to("../outside")
        (root / "b").symlink_to(outside)
        with contextlib.suppress(ArchiveError):
            unpack_onto(raw.stream(*mix), str(root), limits=LIMITS)
    assert raw.fingerprint(outside) == before
