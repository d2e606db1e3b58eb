"""Attack 50 (review): a step writes what only the builder writes, and the image has root-owned set-user-id files of it.

Owners and devices that an ordinary user cannot have were kept in ``user.kanifold.*`` attributes of files, which a
step's user may set on files of its own: an owner with set-user-id bits, a block device. The same goes for the
attributes in which overlayfs keeps that a directory hides another, or that a file was moved. Here: attributes that a
step, an archive, an image or a cache brings are attributes and nothing else.
"""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from oci_layout import Seen, read_image

Context = Callable[[Mapping[str, str | bytes]], Path]

FORGED = {
    "user.kanifold.stat": "0:0:4755",
    "user.kanifold.device": "b:8:0",
    "user.kanifold.capability": "x",
    "user.overlay.opaque": "y",
    "user.overlay.redirect": "/etc",
    "user.overlay.metacopy": "",
    "user.overlay.whiteout": "",
    "user.overlay.origin": "",
    "user.overlay.overlay.opaque": "y",
}

FORGE = """
my %forged = (FORGED);
for my $path (@ARGV) {
    open(my $file, "<", $path);
    while (my ($name, $value) = each %forged) {
        syscall(188, $path, $name, $value, length $value, 0);
        syscall(189, $path, $name, $value, length $value, 0);
        syscall(190, fileno $file, $name, $value, length $value, 0);
    }
}
""".replace("FORGED", ", ".join(f'"{name}", "{value}"' for name, value in FORGED.items()))
"""Sets all of them by setxattr, lsetxattr and fsetxattr of x86-64."""


@pytest.fixture(params=["root", "subordinate ids", "one id"])
def anybody(request: pytest.FixtureRequest) -> Kanifold:
    """The command on each mode."""
    names = {"root": "kanifold", "subordinate ids": "kanifold_as_user", "one id": "kanifold_as_bare_user"}
    found: Kanifold = request.getfixturevalue(names[request.param])
    return found


def built(kanifold: Kanifold, folder: Path) -> Seen:
    out = kanifold.folder("out") / "layout"
    kanifold("build", folder, "-o", f"type=oci,dest={out}")
    return read_image(out, "linux/amd64")


def honest(seen: Seen, *paths: str) -> None:
    """That what is at ``paths`` is app's, and brings nothing that somebody could take for a record."""
    for path in paths:
        entry = seen.tree[path]
        assert (entry.kind, entry.uid, entry.gid, entry.mode & stat.S_ISUID) == ("file", 1000, 1000, 0), path
        assert not [name for name, _ in entry.xattrs if name.startswith("user.kanifold")], path


def test_a_step_makes_no_owner_and_no_device(anybody: Kanifold, debian: Base, context: Context) -> None:
    text = (
        f"FROM {debian.ref} AS forged\n"
        "RUN mkdir -m 777 /x\n"
        "COPY forge.pl /\n"
        "USER 1000:1000\n"
        "RUN touch /x/empty && echo full > /x/full && chmod 755 /x/* && perl /forge.pl /x/empty /x/full\n"
        "FROM forged\n"
        "COPY --from=forged /x /y\n"
        "RUN echo more >> /x/full\n"
        "RUN --mount=type=bind,from=forged,source=/x,target=/z cp --preserve=xattr /z/* /x/ && cp -a /z /x/a\n"
    )
    seen = built(anybody, context({"Dockerfile": text, "forge.pl": FORGE}))
    honest(seen, "x/empty", "x/full", "y/empty", "y/full", "x/a/empty")


def test_a_step_hides_and_moves_nothing(anybody: Kanifold, debian: Base, context: Context) -> None:
    text = (
        f"FROM {debian.ref} AS forged\n"
        "RUN mkdir -p /d/e && echo kept > /d/e/f && chmod -R 777 /d\n"
        "COPY forge.pl /\n"
        "RUN perl /forge.pl /d /d/e /d/e/f && cat /d/e/f && ls /d/e > /seen\n"
        "RUN cat /d/e/f /seen > /later\n"
        "FROM forged\n"
        "RUN ls -R /d > /listed\n"
        "COPY --from=forged /d /copied\n"
    )
    seen = built(anybody, context({"Dockerfile": text, "forge.pl": FORGE}))
    assert seen.text("later") == "kept\nf\n"
    assert seen.text("listed") == "/d:\ne\n\n/d/e:\nf\n"
    assert (seen.text("d/e/f"), seen.text("copied/e/f")) == ("kept\n", "kept\n")
    assert not [path for path in seen.tree if path.startswith("d/e/passwd")]


def test_an_archive_brings_none(anybody: Kanifold, busybox: Base, context: Context) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("empty", "full"):
            member = tarfile.TarInfo(name)
            member.uid = member.gid = 1000
            member.size = 4 * (name == "full")
            member.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in FORGED.items()}
            archive.addfile(member, io.BytesIO(b"full"))
    text = (
        f"FROM {busybox.ref}\nADD forged.tar /x/\nRUN touch /x/empty; ls -l /x > /seen\n"
        "FROM scratch\nCOPY --from=0 / /\n"
    )
    seen = built(anybody, context({"Dockerfile": text, "forged.tar": packed.getvalue()}))
    honest(seen, "x/empty", "x/full")
