"""Stages read configs at the same moment; the first decoding of a type must not be a race.

msgspec builds what it knows of a type when the type is first decoded, and crashes the process when two threads begin
that together. So decoders are made once, when their module is loaded; ``test_architecture`` demands it everywhere.
"""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
sys.path[:0] = {path!r}
sys.setswitchinterval(1e-6)  # seconds: threads take turns as often as they can
from executor.image import config
data = b'{{"architecture": "amd64", "os": "linux", "config": {{"Env": ["A=b"]}}, "rootfs": {{"type": "layers"}}}}'
together = threading.Barrier(8)

def read():
    together.wait()
    config.parse(data)

threads = [threading.Thread(target=read) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
"""


def test_eight_threads_parse_their_first_config_together() -> None:
    for _ in range(8):  # without the precaution, two in three of these crash
        done = subprocess.run([sys.executable, "-c", PROGRAM.format(path=sys.path)], check=False, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
