"""An image that is written to the same layout once more: its files stay, and the trace says what the output took."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from conftest import Kanifold

Context = Callable[[Mapping[str, str | bytes]], Path]


def test_a_layout_that_is_written_again_keeps_its_files(kanifold: Kanifold, context: Context, tmp_path: Path) -> None:
    project = context({"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "content"})
    out, trace = tmp_path / "out", tmp_path / "trace.json"

    def written() -> dict[Path, tuple[int, int]]:
        kanifold("build", project, "-o", f"type=oci,tar=false,dest={out}", "--trace", trace)
        (span,) = [each for each in json.loads(trace.read_text())["traceEvents"] if each["name"] == f"publish {out}"]
        assert span["dur"] > 0
        return {each: (each.stat().st_ino, each.stat().st_mtime_ns) for each in out.glob("blobs/*/*")}

    first, again = written(), written()
    assert (again, len(again)) == (first, 3)


def test_a_layout_that_was_damaged_is_mended(kanifold: Kanifold, context: Context, tmp_path: Path) -> None:
    project = context({"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "content"})
    out = tmp_path / "out"
    arguments = ("build", project, "-o", f"type=oci,tar=false,dest={out}")
    for _ in range(2):  # by then it is remembered what was there
        kanifold(*arguments)
    blobs = {each: each.read_bytes() for each in out.glob("blobs/*/*")}
    for path, data in blobs.items():
        with path.open("r+b") as file:
            file.write(bytes(len(data)))
    kanifold(*arguments)
    assert {each: each.read_bytes() for each in out.glob("blobs/*/*")} == blobs
