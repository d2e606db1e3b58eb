"""How large a store may become: what the settings say, and what counts when they say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.store import policy
from executor.store.policy import Policy, load
from platforms.errors import UsageError

GIB = 1 << 30


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "kanifold").mkdir()
    return {"XDG_CONFIG_HOME": str(tmp_path)}


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (40 * GIB, Policy(4 * GIB, 32 * GIB, 8 * GIB, 60 * 86400.0)),
        (1000 * GIB, Policy(10 * GIB, 100 * GIB, 200 * GIB, 60 * 86400.0)),
    ],
)
def test_defaults_are_parts_of_the_disk_and_no_more_than_a_bound(
    home: dict[str, str], monkeypatch: pytest.MonkeyPatch, total: int, expected: Policy
) -> None:
    monkeypatch.setattr(policy, "disk", lambda root: policy.Disk(total, 0))
    assert load("/", home) == expected


def test_the_environment_comes_before_the_file(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "kanifold" / "store.yaml").write_text(
        "reservedSpace: 1GB\nmaxUsedSpace: 2g\nminFreeSpace: 0\nkeepDuration: 36h\ngc: false\n"
    )
    said = load("/", home)
    assert said == Policy(GIB, 2 * GIB, 0, 36 * 3600.0, enabled=False)
    over = {"KANIFOLD_MAX_USED_SPACE": "5GiB", "KANIFOLD_KEEP_DURATION": "0", "KANIFOLD_GC": "1"}
    assert load("/", home | over) == Policy(GIB, 5 * GIB, 0, 0.0)


def test_a_file_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load("/", {"KANIFOLD_STORE_SETTINGS": str(tmp_path / "none")})
    (tmp_path / "some").write_text("")
    assert load("/", {"KANIFOLD_STORE_SETTINGS": str(tmp_path / "some")}).enabled


@pytest.mark.parametrize(
    "text",
    ["maxUsed: 1GB", "maxUsedSpace: much", "maxUsedSpace: true", "keepDuration: 5", "gc: perhaps", "- 1", "a: [", "\0"],
)
def test_settings_that_make_no_sense_are_an_error_that_names_them(home: dict[str, str], text: str) -> None:
    file = Path(home["XDG_CONFIG_HOME"]) / "kanifold" / "store.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load("/", home)
    assert str(file) in f"{caught.value.problem.what} {caught.value.problem.why}"


def test_a_part_of_the_disk_is_taken_of_the_stores(tmp_path: Path) -> None:
    found = load(str(tmp_path / "not" / "yet"), {"KANIFOLD_MIN_FREE_SPACE": "50%", "HOME": "/nowhere"})
    assert found.min_free == policy.disk(str(tmp_path)).total // 2
