#!/usr/bin/env python3
"""Measures what a cluster costs, in one of its own on this machine (``tests/cluster.py``). As root.

    .venv/bin/python ci/bench/kubernetes.py [--jobs 10,100,1000] [--quota N] [--wait T] [--only scale,first]

- ``scale``: memory and requests of an orchestrator by its number of Jobs, all of them at the same time. Their image
  ends at once, so that this machine suffices for a thousand. With ``--quota 0 --wait 1m`` all of them wait, and fail.
- ``first``: seconds from the command to the first step, on this machine and in the cluster: with the executor's image
  on its node, and when it has to be pulled. Medians of rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import bases  # noqa: E402 - of the tests
import cluster_images  # noqa: E402
import oci_layout  # noqa: E402
from cluster import Cluster, running  # noqa: E402

ENDING = "local.test/ending:1"
"""An image whose Python ends at once."""
PULLED = "bench/kanifold:1"


# -- scale


def ending(cluster: Cluster, folder: Path) -> None:
    """Give the nodes the image ``ENDING``."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        script = b"#!/bin/sh\nexit 3\n"
        member = tarfile.TarInfo("bin/python3")
        member.mode, member.size = 0o755, len(script)
        tar.addfile(member, io.BytesIO(script))
    plain.seek(0)
    base = tuple(step("linux/amd64") for step in bases.RECIPES["busybox"])
    layers = (*base, oci_layout.pack(plain, folder / "layer"))
    image = oci_layout.Image(bases.PLATFORMS["linux/amd64"].oci, layers, {"Env": [f"PATH={bases.PATH}"]})
    oci_layout.write_layout(folder / "ending", "1", [image])
    cluster.load(folder / "ending", ENDING)


async def orchestrate(url: str, count: int) -> dict[str, Any]:
    """Have ``count`` Jobs done at the same time; return what that took of this process."""
    from orchestrator.nodes.inventory import NodeEntry
    from orchestrator.nodes.kubernetes import address
    from orchestrator.nodes.kubernetes.cluster import Cluster as Node
    from orchestrator.nodes.kubernetes.cluster_api import KubernetesClient
    from orchestrator.nodes.kubernetes.kubernetes_node import KubernetesNode

    requests: Counter[str] = Counter()
    send, stream = KubernetesClient._send_once, KubernetesClient.stream

    async def counted(self: KubernetesClient, method: str, path: str, *rest: Any, streamed: bool) -> Any:
        requests["WATCH" if streamed else method] += 1
        return await send(self, method, path, *rest, streamed=streamed)

    def counted_stream(self: KubernetesClient, *rest: Any) -> Any:
        requests["STREAM"] += 1
        return stream(self, *rest)

    KubernetesClient._send_once = counted  # type: ignore[method-assign]
    KubernetesClient.stream = counted_stream  # type: ignore[method-assign,assignment]
    entry = NodeEntry("bench", url)
    shared = Node(address.parse(url), entry.name, "bench")
    nodes = [KubernetesNode(shared, entry, each) for each in ("amd64", "arm64")]
    await shared.connect()
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    ended = await asyncio.gather(*(nodes[each % 2].start() for each in range(count)), return_exceptions=True)
    for each in nodes:
        await each.close()
    after = resource.getrusage(resource.RUSAGE_SELF)
    whys = Counter(str(each)[:60] for each in ended)
    return {
        "jobs": count, "seconds": round(time.monotonic() - begun, 1), "requests": dict(requests),
        "MiB before": before.ru_maxrss >> 10, "MiB": after.ru_maxrss >> 10,
        "processor": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "ended": dict(whys.most_common(3)),
    }  # fmt: skip


def scale(cluster: Cluster, counts: list[int], quota: int, wait: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of Jobs, each of a process of its own, in a namespace with a quota of Pods."""
    with tempfile.TemporaryDirectory() as scratch:
        ending(cluster, Path(scratch))
    for count in counts:
        namespace = f"bench-{count}"
        cluster.kubectl("create", "namespace", namespace)
        cluster.kubectl("create", "quota", "-n", namespace, "few", f"--hard=pods={quota}")
        url = f"kubernetes://test/{namespace}?image={ENDING}&wait={wait}&deadline=2h"
        command = [sys.executable, __file__, "--orchestrate", str(count), url]
        done = subprocess.run(command, env=environment(cluster), check=True, stdout=subprocess.PIPE, text=True)
        left = cluster.get("jobs", "-n", namespace)["items"]
        yield {**json.loads(done.stdout), "left": len(left)}
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def environment(cluster: Cluster) -> dict[str, str]:
    return {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "PYTHONPATH": str(ROOT)}


# -- the first step


def first(cluster: Cluster, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the seconds to the first step of a build, here and in the cluster."""
    images = cluster_images.made()
    with tempfile.TemporaryDirectory() as scratch:
        copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false"]
        for source, name in ((images / "kanifold", PULLED), (base(Path(scratch)), "bench/busybox:1")):
            subprocess.run([*copy, f"oci:{source}", f"docker://{cluster.registry}/{name}"], check=True)
        (Path(scratch) / "Dockerfile").write_text(f"FROM {cluster.registry}/bench/busybox:1\nRUN true\n")
        node = f"farm=kubernetes://test/default?image={cluster.registry}/{PULLED}"
        taken: dict[str, list[float]] = {"this machine": [], "cluster, image pulled": [], "cluster, image there": []}
        for _ in range(rounds):
            taken["this machine"].append(seconds(cluster, Path(scratch), "local"))
            for each in cluster.nodes:
                each.ctr(
                    "images",
                    "rm",
                    "--sync",
                    *[name for name in each.ctr("images", "ls", "-q").split() if PULLED in name or "@sha256" in name],
                )
            taken["cluster, image pulled"].append(seconds(cluster, Path(scratch), node))
            taken["cluster, image there"].append(seconds(cluster, Path(scratch), node))
    for where, found in taken.items():
        yield {"where": where, "seconds": round(statistics.median(found), 2), "all": [round(each, 2) for each in found]}


def base(folder: Path) -> Path:
    bases.make_layout("busybox", folder / "busybox", ("linux/amd64",))
    return folder / "busybox"


def seconds(cluster: Cluster, context: Path, node: str) -> float:
    """Return the seconds from the command to the first step of a build whose steps are all run."""
    command = [
        Path(sys.executable).with_name("kanifold"), "build", context, "--no-cache", "--platform=linux/amd64",
        f"--insecure-registry={cluster.registry}", "-o", f"type=registry,name={cluster.registry}/bench/app:1",
        "--node", node, "--progress=rawjson", "--root", context / "store",
    ]  # fmt: skip
    begun = time.time()
    done = subprocess.run(command, env=environment(cluster), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stderr.splitlines():
        event = json.loads(line)
        if event["type"] == "step_started":
            return float(parse(event["time"]) - begun)
    raise AssertionError("no step was started")


def parse(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default="10,100,1000")
    parser.add_argument("--quota", type=int, default=20)
    parser.add_argument("--wait", default="2h", help="how long a Pod may take to be started")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="scale,first")
    parser.add_argument("--orchestrate", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.orchestrate:
        count, url = given.orchestrate
        print(json.dumps(asyncio.run(orchestrate(url, int(count)))))
        return
    named = os.environ.get("KANIFOLD_CLUSTER")
    if named:
        report(Cluster(Path(named)), given)
    else:
        with running() as made:
            report(made, given)


def report(cluster: Cluster, given: argparse.Namespace) -> None:
    """Print the rows of what is wanted, as they come."""
    wanted = given.only.split(",")
    if "first" in wanted:
        for row in first(cluster, given.rounds):
            print(json.dumps(row), flush=True)
    if "scale" in wanted:
        for row in scale(cluster, [int(each) for each in given.jobs.split(",")], given.quota, given.wait):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
