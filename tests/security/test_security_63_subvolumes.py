"""Attack 63 (review): a step makes a subvolume of btrfs in a cache directory, fills it and makes it read-only.

A cache is a directory of the store as it is. Nothing but the special call that the step used takes the mark away: so it
stays, and every ``prune`` fails.
"""

from __future__ import annotations

import pytest
from network_world import PYTHON, run
from sandbox_process import SandboxProcess

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON} (Debian: python3)")

ASKING = """
import errno, fcntl, os
names = {
    "BTRFS_IOC_SNAP_CREATE": 0x50009401, "BTRFS_IOC_SUBVOL_CREATE": 0x5000940E,
    "BTRFS_IOC_SNAP_CREATE_V2": 0x50009417, "BTRFS_IOC_SUBVOL_CREATE_V2": 0x50009418,
    "FICLONE": 0x40049409, "BTRFS_IOC_INO_LOOKUP_USER": 0xD000943E, "FS_IOC_GETFLAGS": 0x80086601,
}
directory = os.open("/", os.O_RDONLY)
for name, number in names.items():
    try:
        fcntl.ioctl(directory, number, directory if name == "FICLONE" else bytearray(4096))
    except OSError as error:
        if error.errno == errno.EPERM:
            print(name)
"""


def test_no_step_makes_subvolumes(sandbox: SandboxProcess) -> None:
    done = run(sandbox, ASKING)
    assert done.err == ""
    assert done.out.split() == [
        "BTRFS_IOC_SNAP_CREATE",
        "BTRFS_IOC_SUBVOL_CREATE",
        "BTRFS_IOC_SNAP_CREATE_V2",
        "BTRFS_IOC_SUBVOL_CREATE_V2",
    ]
