"""Attack 28 (CVE-2025-4953 podman): what a step writes to a bind mount stays in the context, or reaches other stages"""

from __future__ import annotations

import hashlib
from pathlib import Path

from conftest import Base, Kanifold
from oci_layout import read_image


def state(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time and content of everything."""
    return {
        str(path): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in (folder, *folder.rglob("*"))
    }


def test_what_is_written_goes_with_the_step(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    folder = kanifold.folder("context")
    (folder / "d").mkdir()
    (folder / "d" / "f").write_text("one\n")
    harm = "echo evil > /m/f; echo evil > /m/new; chmod 777 /m; mkdir /m/dir; rm -f /m/g; true"
    (folder / "d" / "g").write_text("two\n")
    (folder / "Dockerfile").write_text(
        f"FROM {busybox.ref} AS source\nCOPY d /m\n"
        f"FROM {busybox.ref} AS evil\n"
        f"RUN --mount=source=d,target=/m,rw {harm}\n"
        f"RUN --mount=from=source,source=/m,target=/m,rw {harm}\n"
        "RUN --mount=source=d,target=/m ls -l /m | awk '{print $1, $9}' > /seen; cat /m/* >> /seen\n"
        f"FROM {busybox.ref}\nCOPY --from=evil /seen /context\nCOPY --from=source /m /stage\nCOPY d /copied\n"
    )
    before = state(folder)
    kanifold("build", folder, "-o", f"type=oci,tar=false,dest={tmp_path / 'out'}")
    assert state(folder) == before
    image = read_image(tmp_path / "out", "linux/amd64")
    for place in ("stage", "copied"):
        assert {path: image.text(path) for path in image.tree if path.startswith(f"{place}/")} == {
            f"{place}/f": "one\n",
            f"{place}/g": "two\n",
        }
    assert "evil" not in image.text("context")
    assert "new" not in image.text("context")
    assert image.text("context").endswith("one\ntwo\n")
