"""Running the steps of a build, each in namespaces and a root file system of its own.

``enter`` moves this process to where steps can be run, ``start`` returns a ``Launcher``, and ``Launcher.run`` takes a
``Spec`` and returns an ``Ended``. ``trial`` tells which isolation modes this host allows.
"""

from executor.sandbox.isolation import Isolation, IsolationMode, enter
from executor.sandbox.launcher import Launcher, Running, start
from executor.sandbox.spec import Bind, BindFd, Ended, Mount, ScriptFile, SecretFile, Spec, Tmpfs

__all__ = [
    "Bind",
    "BindFd",
    "Ended",
    "Isolation",
    "IsolationMode",
    "Launcher",
    "Mount",
    "Running",
    "ScriptFile",
    "SecretFile",
    "Spec",
    "Tmpfs",
    "enter",
    "start",
]
