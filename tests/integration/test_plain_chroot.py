"""kanifold as root in a chroot whose root directory is no mount point, as Debian's package builders have it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold, Reader, needs

from platforms import binfmt

PREPARE = """\
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
mount --make-shared "$1"
mkdir "$1/root"
for each in /*; do
  case $each in "$2") continue;; esac
  if [ -L "$each" ]; then cp -P "$each" "$1/root/"
  elif [ -d "$each" ]; then mkdir "$1/root$each"; mount --rbind "$each" "$1/root$each"
  fi
done
shift 2
place=$1; shift
before=$(cat /proc/self/mountinfo)
status=0
chroot "$place/root" sh -c 'cd "$0" && shift 0 && exec "$@"' "$@" || status=$?
[ "$before" = "$(cat /proc/self/mountinfo)" ] || { echo "mounts have spread"; exit 99; }
exit $status
"""


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_steps_run_in_a_plain_chroot(
    kanifold: Kanifold,
    busybox: Base,
    context: Callable[[Mapping[str, str | bytes]], Path],
    read: Reader,
    tmp_path: Path,
    platform: str,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    needs("unshare", "chroot", "mount")
    if platform == "linux/arm64" and binfmt.find_qemu("arm64") is None:
        pytest.skip("no qemu-aarch64-static (ci/packages installs it on Debian, as root)")
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nCOPY file /\nRUN cat file >/made; id -u\n", "file": "text"})
    place = Path("/mnt")
    layout = tmp_path / "out"
    arguments = ["build", ".", "--platform", platform, "-o", f"type=oci,dest={layout},tar=false", "--progress", "plain"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", PREPARE, "sh", place, place, place, folder, *kanifold.command, *arguments],
        env=kanifold.environment(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(layout, platform).tree["made"].content == b"text"
