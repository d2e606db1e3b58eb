"""Signs of life of an executor that was started as a command: its end is not noticed when a network or a machine fails.

Local executors that are forked need none: the kernel closes their pipes.
"""

from __future__ import annotations

import asyncio
from typing import Final

from executor import protocol
from orchestrator.process import Worker
from platforms import framing
from platforms.errors import ConnectionLost

INTERVAL: Final = 5.0
"""Seconds between two pings."""
SILENT_INTERVALS: Final = 12
"""Intervals without a sign of life after which an executor is given up, or ends: a minute.

TCP tries again at growing intervals, so a shorter interruption of the network must fit.
"""


def start(worker: Worker, node: str) -> asyncio.Task[None]:
    """Send the first ping to the executor ``worker``, which runs on the node called ``node``, and others as a task.

    An executor shows no signs of life before it was asked for them.
    """
    worker.stdin.write(framing.encode(protocol.Ping(INTERVAL * SILENT_INTERVALS)))
    return asyncio.create_task(_watch(worker, node))


async def _watch(worker: Worker, node: str) -> None:
    """Send pings until the executor has ended or is given up.

    Then it is killed here, and whoever reads from it gets ``ConnectionLost``. Intervals are counted, not seconds, so
    time in which this process or machine was stopped is one interval at most.
    """
    patience = INTERVAL * SILENT_INTERVALS
    ping = protocol.Ping(patience)
    heard, silent = worker.stdout.blocks, 0
    while silent < SILENT_INTERVALS:
        await asyncio.sleep(INTERVAL)
        if worker.stdin.is_closing():
            return  # it has ended, or is to end
        if not worker.stdin.transport.get_write_buffer_size():  # else there is something to hear
            worker.stdin.write(framing.encode(ping))
        alive = worker.stdout.blocks != heard or worker.stdout.behind
        heard, silent = worker.stdout.blocks, 0 if alive else silent + 1
    worker.stdout.set_exception(
        ConnectionLost(
            f"the executor on node {node} is silent",
            why=f"nothing has come from it for {patience:.0f} seconds",
            remedy=f"check that {node} is up and can be reached",
        )
    )
    worker.process.kill()
