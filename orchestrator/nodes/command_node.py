"""Nodes whose executors are started by a command and connected by its pipes.

They do not share this machine's disk: a job is converted (``translation``), and results are sent back.
"""

from __future__ import annotations

from collections.abc import Sequence

from executor import protocol
from orchestrator import connection
from orchestrator.connection import Connection
from orchestrator.nodes.node import Description, Say, Support, silent
from platforms.errors import EnvironmentUnfit, KanifoldError, ProtocolError
from platforms.host import COMPAT
from platforms.parsing import parse
from platforms.platform import Platform, candidates


class CommandNode:
    """A node called ``name``. ``environment`` is added to the orchestrator's for ``command``."""

    def __init__(self, name: str, command: Sequence[str], environment: Sequence[tuple[str, str]] = ()) -> None:
        self.name = name
        self._command = tuple(command)
        self._environment = tuple(environment)
        self._spare: Connection | None = None
        """The executor that described the node, until it gets a job."""

    async def describe(self, platforms: Sequence[Platform]) -> Description:
        """Return the description in an executor's greeting. The executor is kept for the first job.

        Raises ``EnvironmentUnfit`` when the command cannot be started, ``ProtocolError`` when it is no executor.
        """
        if self._spare is None:
            self._spare = await self._start()
        greeting = self._spare.greeting
        own = self._platform(greeting)
        resources = greeting.resources or protocol.Resources()
        return Description(
            platform=own,
            support=tuple((each, self._support(each, own, greeting)) for each in platforms),
            kanifold=greeting.kanifold,
            protocol=greeting.version,
            processors=greeting.processors,
            isolation=greeting.isolation,
            emulators=greeting.emulators,
            load=max(0.0, resources.load),
            memory=max(0, resources.memory),
            disk=max(0, resources.disk),
        )

    async def start(self, say: Say = silent) -> Connection:
        """Return an executor: the one that described the node, or a new one."""
        spare, self._spare = self._spare, None
        return spare if spare is not None else await self._start()

    async def close(self) -> None:
        """End an executor that had no job."""
        if self._spare is not None:
            await self._spare.end()

    async def _start(self) -> Connection:
        return await connection.launch(self.name, self._command, self._environment)

    def _platform(self, greeting: protocol.Handshake) -> Platform:
        try:
            found = parse(greeting.host)
        except KanifoldError as error:
            raise ProtocolError(f"an executor on node {self.name} says no platform", why=str(error)) from error
        if str(found) != greeting.host:  # what it left out would be this machine's
            raise ProtocolError(f"an executor on node {self.name} says no platform", why=f"it is {greeting.host!r}")
        return found

    def _support(self, platform: Platform, own: Platform, greeting: protocol.Handshake) -> Support:
        """Return how ``platform`` runs on a host of the platform ``own``, according to the ``greeting``."""
        if platform.architecture == own.architecture:
            # arm64 processors do not tell their version, see platforms.emulation.
            if platform in candidates(own) or own.architecture == "arm64":
                return Support("native")
            return self._unfit(platform, own, greeting)
        if platform.architecture in greeting.emulators:
            return Support("emulated")
        if platform.architecture in COMPAT.get(own.architecture, ()):
            return Support()  # the kernel there may run it
        return self._unfit(platform, own, greeting)

    def _unfit(self, platform: Platform, own: Platform, greeting: protocol.Handshake) -> Support:
        emulators = f"emulators for {', '.join(greeting.emulators)}" if greeting.emulators else "no emulators"
        unfit = EnvironmentUnfit(
            f"node {self.name} runs no programs of {platform}",
            why=f"it is {own}, with {emulators}",
            remedy=f"give the build a node that is {platform}, or install an emulator there",
        )
        return Support(unfit=unfit)
