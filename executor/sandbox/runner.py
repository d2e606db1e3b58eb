"""The interface of what runs steps. ``launcher`` implements it with namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

    from executor.sandbox.spec import Ended, Spec


class Runner(Protocol):
    """Runs the steps of one job, several at a time. Thread-safe."""

    def prepare(self, *, isolated: bool) -> None:
        """Announce a step, with an isolated network or another, so that preparations can begin."""
        ...

    def run(self, spec: Spec, stdout: int, stderr: int, cancelled: Future[None]) -> Ended:
        """Run a step to its end. The descriptors ``stdout`` and ``stderr`` are closed by the caller.

        Afterwards no process of the step exists, and ``spec.rootfs`` has its changes. ``cancelled`` is done before
        ``cancel_all`` is called. Raises ``EnvironmentUnfit`` if this host does not allow the step.
        """
        ...

    def cancel_all(self) -> None:
        """Kill all running steps; later ones are not affected."""
        ...

    def stop(self) -> None:
        """Kill all steps and end the processes that run them."""
        ...
