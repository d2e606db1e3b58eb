"""Attack 10 (CVE-2024-1753 buildah): a bind mount's source is a symbolic link, and the step sees the host's root."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Base, Kanifold

LINKS = ["/", "/../../../../../..", "../../../../..", "{canary}", "../../../../../..{canary}"]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    made = tmp_path / "canary"
    made.mkdir()
    made.chmod(0o777)
    (made / "canary-file").write_text("kept")
    return made


@pytest.mark.parametrize("where", ["stage", "context", "named context"])
@pytest.mark.parametrize("link", LINKS)
def test_a_link_leads_to_the_sources_own_files(
    kanifold: Kanifold, busybox: Base, canary: Path, link: str, where: str
) -> None:
    folder = kanifold.folder("context")
    link = link.format(canary=canary)
    inside = Path(f"{folder}{canary}")
    inside.mkdir(parents=True)
    (inside / "own").touch()
    (folder / "link").symlink_to(link)
    stage = f"FROM scratch AS from\nCOPY --from=named . /\nFROM {busybox.ref}\n"
    name = {"stage": "from=from,", "context": "", "named context": "from=named,"}[where]
    (folder / "Dockerfile").write_text(
        f"{stage}RUN --mount={name}source=/link,target=/m,rw echo seen $(ls /m); "
        "rm -rf /m/* 2>/dev/null; touch /m/evil; true\n"
    )
    done = kanifold.run("build", folder, "--build-context", f"named={folder}", "--progress", "plain")
    assert done.code == 0, done.said
    (seen,) = [line for line in done.said.splitlines() if " seen " in line and "echo" not in line]
    assert "canary-file" not in seen
    assert ("own" in seen) is ("canary" in link)
    assert {path.name: path.read_text() for path in canary.iterdir()} == {"canary-file": "kept"}
    assert (inside / "own").exists()
    assert not (inside / "evil").exists()
