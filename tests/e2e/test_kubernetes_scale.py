"""Many Jobs of one orchestrator, by ``ci/bench/kubernetes.py``: their executors end at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

BENCH = Path(__file__).resolve().parents[2] / "ci" / "bench" / "kubernetes.py"

pytestmark = pytest.mark.slow


def orchestrated(cluster: Cluster, jobs: int, quota: int) -> dict[str, Any]:
    """Return what so many Jobs took of an orchestrator, in a namespace with a quota of Pods."""
    command = [sys.executable, BENCH, "--only=scale", f"--jobs={jobs}", f"--quota={quota}"]
    environment = {**os.environ, "KANIFOLD_CLUSTER": str(cluster.folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_fifty_jobs_finish_on_a_quota_of_five(cluster: Cluster) -> None:
    found = orchestrated(cluster, 50, 5)
    assert sum(found["ended"].values()) == 50
    assert all("the container ended" in why or "was ended by the cluster" in why for why in found["ended"])
    assert found["left"] == 0
    requests = found["requests"]
    assert requests["WATCH"] <= 10, "one watch of Pods and one of events, whatever is waited for"
    assert requests["GET"] <= 10
    assert requests["POST"] <= 2 * 50, "a Job that the quota refuses is made again"
    assert requests["DELETE"] <= 2 * 50
    assert found["MiB"] - found["MiB before"] < 25
