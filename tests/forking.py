"""Running the command many times without the start of an interpreter each time: a process with all modules forks.

As a program, this is that process: for each line, a JSON object that says what to run, it prints a line with the
status.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MODULES = (
    "orchestrator.cli",
    "orchestrator.command",
    "orchestrator.fanout",
    "executor.__main__",
    "executor.solver.solver",
)


class Forks:
    """Runs ``kanifold`` by its own entry point, one run after the other, each in a forked process.

    ``python`` with ``environment`` can import the packages; ``becoming`` selects the user (``ordinary_user``).
    """

    def __init__(
        self,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        becoming: Mapping[str, Any] | None = None,
    ) -> None:
        # The file itself may be out of a user's reach.
        self._process = subprocess.Popen(
            [python, "-c", Path(__file__).read_text()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd="/", env=None if environment is None else {**os.environ, **environment}, **(becoming or {}),
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

    def __call__(self, arguments: Sequence[str], environment: Mapping[str, str], said: Path) -> int:
        """Run the command with both outputs going to the file ``said``; returns the exit status, negative for a
        signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"arguments": list(arguments), "environment": dict(environment), "said": str(said)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _run(arguments: list[str], environment: dict[str, str], said: str) -> int:
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in (1, 2):
        os.dup2(out, fd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["kanifold", *arguments]
    try:
        importlib.import_module("orchestrator.__main__").main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    """Fork for each line of stdin, and print the status."""
    sys.path[:] = [each for each in sys.path if each]
    for name in MODULES:
        importlib.import_module(name)
    importlib.import_module("executor.__main__").preload_registries()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_run(**order))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
