"""Times in an image's history: every entry has one, a cached build has the old ones, and none is after the epoch."""

from __future__ import annotations

from executor.image.config import History
from executor.solver.export import dated

BASE, FIRST, SECOND = "2024-01-01T00:00:00Z", "2025-02-02T00:00:00Z", "2025-03-03T00:00:00Z"
EPOCH, EPOCH_TEXT = 1_700_000_000, "2023-11-14T22:13:20Z"


def entry(created: str = "") -> History:
    return History(created=created, created_by="x", empty_layer=not created)


def times(history: list[str], base: int = 1, epoch: int | None = None) -> list[str]:
    return [each.created for each in dated(tuple(map(entry, history)), base, epoch)]


def test_a_step_without_a_layer_has_the_time_of_the_layer_before_it() -> None:
    assert times([BASE, "", FIRST, "", SECOND, ""]) == [BASE, FIRST, FIRST, FIRST, SECOND, SECOND]


def test_steps_before_the_first_new_layer_have_its_time() -> None:
    assert times([BASE, "", "", FIRST, ""]) == [BASE, FIRST, FIRST, FIRST, FIRST]


def test_without_new_layers_the_bases_time_stands() -> None:
    assert times([BASE, "", ""]) == [BASE, BASE, BASE]


def test_nothing_new_is_after_the_epoch() -> None:
    assert times([BASE, FIRST, ""], epoch=EPOCH) == [BASE, EPOCH_TEXT, EPOCH_TEXT]


def test_what_is_before_the_epoch_stays() -> None:
    early = "2020-01-01T00:00:00Z"
    assert times([BASE, early, ""], epoch=EPOCH) == [BASE, early, early]


def test_from_scratch_the_epoch_is_all_there_is() -> None:
    assert times(["", ""], base=0, epoch=EPOCH) == [EPOCH_TEXT, EPOCH_TEXT]


def test_a_bases_entries_are_its_own() -> None:
    assert times([FIRST, "", FIRST], base=2, epoch=EPOCH)[:1] == [FIRST]


def test_nothing_but_times_changes() -> None:
    history = (entry(BASE), History(created_by="RUN x", comment="c", author="a"), entry(FIRST))
    for before, after in zip(history, dated(history, 1, None), strict=True):
        assert (before.created_by, before.comment, before.author, before.empty_layer) == (
            after.created_by,
            after.comment,
            after.author,
            after.empty_layer,
        )
