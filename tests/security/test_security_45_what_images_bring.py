"""Attack 45 (kaniko #587, CVE-2022-4122, CVE-2026-41567, CVE-2026-53488): the image or context turns on the builder.

A base's ONBUILD overwrites the executor, an ignore file that is a link discloses another file, programs that come with
an image are run on the host, labels steer the builder. Here: nothing of an image runs or is read outside of a step.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from oci_layout import read_image
from registry_server import Said, served

PROGRAMS = (
    "tar",
    "gzip",
    "xz",
    "bzip2",
    "zstd",
    "unxz",
    "git",
    "ssh",
    "sh",
    "newuidmap",
    "newgidmap",
    "getent",
    "qemu",
)


def test_programs_labels_and_triggers_of_a_base_do_nothing_here(
    kanifold: Kanifold, busybox: Base, registry: str, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    canary.chmod(0o777)
    command = Path(kanifold.command[0])
    before = command.read_bytes()
    bait = kanifold.folder("bait")
    (bait / "evil").write_text(f"#!/bin/sh\ntouch {canary}/$(basename $0)\n")
    (bait / "evil").chmod(0o755)
    places = " ".join(f"/{folder}/{name}" for folder in ("bin", "usr/bin", "usr/sbin") for name in PROGRAMS)
    (bait / "Dockerfile").write_text(
        f"FROM {busybox.ref}\nCOPY evil /evil\n"
        f"RUN mkdir -p /usr/bin /usr/sbin /etc; for p in {places}; do ln -sfn /evil $p; done; "
        "echo 'passwd: evil' > /etc/nsswitch.conf; echo 'who:x:7:7::/:/bin/sh' > /etc/passwd\n"
        "LABEL root=/ KANIFOLD_ROOT=/tmp/evil run=/evil kanifold.audit-allow=* io.buildah.version=1\n"
        f"ENV KANIFOLD_ROOT={canary} LD_PRELOAD=/evil GIT_SSH=/evil PYTHONPATH={canary}\n"
        f"ONBUILD COPY evil {command}\nONBUILD COPY evil /proc/self/exe\n"
    )
    kanifold("build", bait, "-t", f"{registry}/bait:1", "--push")
    folder = kanifold.folder("context")
    (folder / "evil").write_text("overwritten")
    with tarfile.open(folder / "a.tar.xz", "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("unpacked"), io.BytesIO())
    (folder / "Dockerfile").write_text(
        f"FROM {registry}/bait:1\nADD a.tar.xz /x/\nCOPY --chown=who a.tar.xz /y/\nUSER who\nWORKDIR /w\n"
    )
    out = tmp_path / "out"
    done = kanifold.run("build", folder, "-o", f"type=oci,tar=false,dest={out}")
    assert list(canary.iterdir()) == []
    assert command.read_bytes() == before
    assert done.code == 0, done.said
    image = read_image(out, "linux/amd64")
    assert image.text(str(command)) == "overwritten"
    assert "x/unpacked" in image.tree
    assert (image.tree["y/a.tar.xz"].uid, image.tree["w"].uid) == (7, 7)


@pytest.mark.parametrize("name", [".dockerignore", "Dockerfile", "Dockerfile.dockerignore"])
def test_a_link_in_a_strangers_context_discloses_nothing(kanifold: Kanifold, tmp_path: Path, name: str) -> None:
    """CVE-2022-4122: what the link leads to is read as a Dockerfile or ignore file, and quoted by an error."""
    secret = tmp_path / "secret"
    secret.write_text("[disclosed\nFROM disclosed:disclosed:disclosed\n")
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, ".")
    out = tmp_path / "out"
    with served(lambda _: Said(200, {}, packed.getvalue())) as server:
        done = kanifold.run("build", f"{server.url}/context.tar", "-o", f"type=oci,tar=false,dest={out}")
    assert "disclosed" not in done.said
    assert done.code == (1 if name == "Dockerfile" else 0), done.said
    if done.code == 0:
        assert read_image(out, "linux/amd64").tree[name].target == str(secret)
