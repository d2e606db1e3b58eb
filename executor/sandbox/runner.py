"""The interface of what runs steps. ``launcher`` implements it with namespaces, ``Unavailable`` without."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

    from executor.sandbox.spec import Ended, Spec
    from platforms.errors import EnvironmentUnfit


class Runner(Protocol):
    """Runs the steps of one job, several at a time. Thread-safe."""

    def prepare(self, *, isolated: bool) -> None:
        """Announce a step, with an isolated network or another, so that preparations can begin.

        Raises ``EnvironmentUnfit`` if it is known that this host allows no step.
        """
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


class Unavailable:
    """``Runner`` where no step can run, for the reason ``unfit``."""

    def __init__(self, unfit: EnvironmentUnfit) -> None:
        self._unfit = unfit

    def prepare(self, *, isolated: bool) -> NoReturn:
        del isolated
        raise self._unfit

    def run(self, spec: Spec, stdout: int, stderr: int, cancelled: Future[None]) -> NoReturn:
        del spec, stdout, stderr, cancelled
        raise self._unfit

    def cancel_all(self) -> None:
        """Nothing runs."""

    def stop(self) -> None:
        """Nothing runs."""
