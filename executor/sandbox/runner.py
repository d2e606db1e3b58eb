"""The boundary behind which a step is run. ``launcher`` is what stands behind it: namespaces, made by the zygote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

    from executor.sandbox.spec import Ended, Spec


class Runner(Protocol):
    """Runs the steps of one job, several at once if asked to. To be used from any thread."""

    def prepare(self, *, isolated: bool) -> None:
        """Say that a step is to come, with an isolated network or another, while there is something else to do."""
        ...

    def run(self, spec: Spec, stdout: int, stderr: int, cancelled: Future[None]) -> Ended:
        """Run a step to its end. ``stdout`` and ``stderr`` are descriptors that stay the caller's to close.

        When it returns, no process of the step is left, and ``spec.rootfs`` holds what it has changed. ``cancelled``
        is what says that ``cancel_all`` is called next, or has been. Raises ``EnvironmentUnfit`` when this host does
        not allow the step.
        """
        ...

    def cancel_all(self) -> None:
        """Kill all steps that are running; those started later are not touched."""
        ...

    def stop(self) -> None:
        """Kill all steps. When this returns, nothing of them is left, nor of what runs them."""
        ...
