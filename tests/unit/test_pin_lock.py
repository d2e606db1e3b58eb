"""Files with the digests of external images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from executor.protocol import Pin
from orchestrator import pin_lock
from platforms.errors import StoreError, UsageError

DIGEST = "sha256:" + "a" * 64


def test_what_is_written_is_read(tmp_path: Path) -> None:
    pins = (Pin("debian:12", DIGEST), Pin("reg.example/app", DIGEST))
    pin_lock.write(str(tmp_path / "lock"), pins)
    assert pin_lock.read(str(tmp_path / "lock")) == pins


def test_the_metadata_of_a_build_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(
        json.dumps({"containerimage.digest": DIGEST, "kanifold.pins": {"debian:12": DIGEST}})
    )
    assert pin_lock.read(str(tmp_path / "m.json")) == (Pin("debian:12", DIGEST),)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"kanifold.pins": []}', '{"kanifold.pins": {"a": "sha256:1"}}',
     '{"kanifold.pins": {"a": 1}}',
     '{"kanifold.pins": {"a": "' + DIGEST + '"}}' + " " * (5 << 20)],
    ids=range(8),
)  # fmt: skip
def test_files_without_pins_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content)
    with pytest.raises(UsageError, match="holds no pins"):
        pin_lock.read(str(tmp_path / "lock"))


def test_files_that_cannot_be_read_or_written_are_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in ("nothing", "fifo"):
        with pytest.raises(UsageError, match="cannot read the pins"):
            pin_lock.read(str(tmp_path / path))
    with pytest.raises(StoreError):
        pin_lock.write(str(tmp_path / "nothing" / "lock"), ())
