"""The plan of a build for which something has to be fetched: a git repository, a URL, what comes on stdin."""

from __future__ import annotations

import asyncio
import os
from functools import partial

from orchestrator import plan as planning
from orchestrator.answers import read_secret
from orchestrator.contexts import FetchedContexts, FetchOptions
from orchestrator.plan import BuildPlan
from orchestrator.request import BuildRequest
from orchestrator.view.events import Emit


async def plan(request: BuildRequest, scratch: str, emit: Emit, fetched: FetchedContexts | None = None) -> BuildPlan:
    """The plan of ``request``. What is fetched goes below ``scratch``, which is made; ``fetched`` has what other builds
    of the session have fetched. Raises as ``plan.read`` does.

    Cancelling ends what is being fetched.
    """
    os.mkdir(scratch, 0o700)
    agent = request.agents.get("default", "")
    options = FetchOptions(
        scratch, partial(_secret, request), agent, emit=emit, fetched=fetched, access=(request.secrets, agent)
    )
    reading = asyncio.create_task(asyncio.to_thread(planning.read, request, request.platforms, options))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        options.cancel.set_result(None)
        await asyncio.gather(reading, return_exceptions=True)
        raise


def _secret(request: BuildRequest, name: str) -> bytes | None:
    """The value of the secret ``name``; None when there is none."""
    found = next((each for each in request.secrets if each.id == name), None)
    return None if found is None else read_secret(found.file, found.variable)
