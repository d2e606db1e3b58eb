"""Attack 60 (review): the files of an image carry rights to the machine that they are written to.

``--output type=local`` gave an image's files to whoever ran the build and kept their modes, so that a set-user-id
program of a stranger's user was one of the builder's, and a block device that everybody may open was the host's disk.
"""

from __future__ import annotations

import os
import stat
import struct
import tarfile
from pathlib import Path

import pytest
import raw_tar as raw
from conftest import Kanifold

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 7, 0, 0, 0)
"""cap_setuid, effective."""
ARCHIVE = raw.stream(
    raw.header(b"d/", raw.DIRECTORY, mode=0o3777, uid=1000, gid=1000),
    raw.file(b"d/other", b"x", mode=0o4755, uid=1000, gid=1000),
    raw.file(b"roots", b"x", mode=0o6711),
    raw.pax((b"SCHILY.xattr.security.capability", CAPABILITY)),
    raw.file(b"ping", b"x", mode=0o755),
    raw.header(b"disk", raw.BLOCK, mode=0o666, device=(8, 0)),
    raw.header(b"zero", raw.CHARACTER, mode=0o666, device=(1, 5)),
    raw.header(b"again", raw.HARDLINK, link=b"zero"),
).getvalue()


@pytest.mark.parametrize("who", ["kanifold", "kanifold_as_user", "kanifold_as_bare_user"])
@pytest.mark.parametrize("mode", ["copy", "delete"])
def test_files_have_no_rights_beyond_their_own(who: str, mode: str, request: pytest.FixtureRequest) -> None:
    kanifold: Kanifold = request.getfixturevalue(who)
    folder = kanifold.folder("context")
    (folder / "x.tar").write_bytes(ARCHIVE)
    (folder / "Dockerfile").write_text("FROM scratch\nADD x.tar /\n")
    kanifold("build", folder, "-o", f"type=local,dest=out,mode={mode}", "-o", "type=tar,dest=all.tar")

    out = kanifold.home / "out"
    assert sorted(os.listdir(out)) == ["d", "ping", "roots"]
    for path in (out / "d", out / "d/other", out / "roots", out / "ping"):
        assert not path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID), path
        assert "security.capability" not in os.listxattr(path), path
    assert stat.S_IMODE((out / "roots").stat().st_mode) == 0o711
    assert stat.S_IMODE((out / "d").stat().st_mode) == 0o1777
    assert _modes(kanifold.home / "all.tar") == {"d": 0o3777, "d/other": 0o4755, "roots": 0o6711, "ping": 0o755}


def _modes(archive: Path) -> dict[str, int]:
    with tarfile.open(archive) as opened:
        return {each.name: each.mode for each in opened if each.isreg() or each.isdir()}
