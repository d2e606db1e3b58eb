"""Attack 59 (review): a step becomes the user that owns the user namespace of its network, and has all power over that.

The owner of a user namespace has all capabilities in it (user_namespaces(7)), whatever a step has been left; and a step
of root's can become any user. With CAP_NET_ADMIN it would lead the connections of the job's other steps wherever it
likes, also of those that come after it.
"""

from __future__ import annotations

import os
import shutil

import pytest
from network_world import PYTHON, run, world
from ordinary_user import User
from sandbox_process import opened

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    pytest.mark.skipif(not shutil.which("ip"), reason="no ip (Debian: iproute2)"),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON} (Debian: python3)"),
    pytest.mark.skipif(not shutil.which("pasta"), reason="no pasta (Debian: passt)"),
]

SWITCHING_OFF = """
import fcntl, os, struct
def switch_off(name):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        fcntl.ioctl(line, 0x8914, struct.pack("16sh22x", name, 0))
ids = [sum(map(int, line.split()[::2])) - 1 for line in open("/proc/self/uid_map")]
powerful = []
for last in ids:
    for uid in range(last, max(last - 5000, -1), -1):
        try:
            os.seteuid(uid)
            switch_off(b"lo")
            powerful.append(uid)
        except PermissionError:
            pass
        finally:
            os.seteuid(0)
print(powerful)
"""


@pytest.mark.parametrize("mode", ["root", "mapped", "single"])
def test_no_user_that_a_step_can_become_has_power_over_its_network(request: pytest.FixtureRequest, mode: str) -> None:
    user: User | None = None
    if mode != "root":
        user = request.getfixturevalue("_user_with_ids" if mode == "mapped" else "_user_without_ids")
    with opened(user, world=world) as sandbox:
        done = run(sandbox, SWITCHING_OFF, network="isolated")
        assert (done.ended.shared, done.out, done.err) == ("", "[]\n", "")
        after = run(sandbox, 'print(open("/sys/class/net/lo/flags").read())', network="isolated")
        assert after.out.strip() == "0x9"  # up, and the loopback interface
