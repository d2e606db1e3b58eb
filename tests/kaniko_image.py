"""kaniko's executor as its users have it: alone in the root of a container, which it overwrites."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from containers import Root

VARIABLES = {
    "PATH": "/usr/local/bin:/kaniko", "HOME": "/root", "USER": "root", "SSL_CERT_DIR": "/kaniko/ssl/certs",
    "DOCKER_CONFIG": "/kaniko/.docker/",
}  # fmt: skip
"""Its image's environment."""


def make(folder: Path, executor: str, volume: str) -> Root:
    """Make the root file system of the image in the empty directory ``folder``, out of the program ``executor``.

    The container's volume, which is also the directory that it begins in, is mounted at ``volume``.
    """
    for name in ("kaniko/ssl/certs", "kaniko/.docker", "etc", "root", "workspace"):
        (folder / name).mkdir(parents=True)
    shutil.copyfile(executor, folder / "kaniko/executor")
    (folder / "kaniko/executor").chmod(0o755)
    (folder / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/sbin/nologin\n")
    (folder / "etc/group").write_text("root:x:0:\n")
    return Root(folder, volume)


def words(context: str, platform: str, *more: str) -> Sequence[str]:
    """The command that builds the Dockerfile of ``context`` for one platform; plain HTTP is allowed."""
    return (
        "/kaniko/executor", "--force", "--context", f"dir://{context}", "--custom-platform", platform, "--insecure",
        "--insecure-pull", *more,
    )  # fmt: skip
