"""Runs the steps of a build, each in namespaces and a root file system of its own.

``enter`` puts this process where steps can be run, ``start`` gives a ``Launcher``, ``Launcher.run`` takes a ``Spec``
and returns how it ``Ended``. ``probe_modes`` tells which ways of isolation this host allows.
"""

from executor.sandbox.isolation import Isolation, IsolationMode, ModeAvailability, enter, probe_modes
from executor.sandbox.launcher import Launcher, Running, start
from executor.sandbox.spec import Bind, BindFd, Ended, Mount, Secret, Spec, Tmpfs

__all__ = [
    "Bind",
    "BindFd",
    "Ended",
    "Isolation",
    "IsolationMode",
    "Launcher",
    "ModeAvailability",
    "Mount",
    "Running",
    "Secret",
    "Spec",
    "Tmpfs",
    "enter",
    "probe_modes",
    "start",
]
