"""``kanifold``: the command."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from typing import Final, NoReturn

_YOUNG: Final = 50_000
"""Objects that may come to be before the collector looks for cycles: loading us makes as many, and all of them stay."""


def main() -> None:
    """Run the command line and exit with its status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a build listens, Ctrl-C just ends us: an exception while a module is being loaded can get lost there,
        # and leave a lock behind that hangs us later.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    stranger = _stranger()
    if stranger:
        sys.exit(
            f"kanifold: the package {stranger!r} that Python finds is not kanifold's own. Install kanifold as a tool "
            "with an environment of its own: pipx install kanifold, or uv tool install kanifold."
        )
    _open_streams()
    gc.set_threshold(_YOUNG)
    started = None
    if sys.argv[1:2] == ["build"]:
        from orchestrator.bootstrap import start_early

        started = start_early(sys.argv[2:])
    try:
        from orchestrator.cli import main as run

        status = run(started)
    finally:
        if started is not None:
            started.close()
    _leave(status)


def _leave(status: int) -> NoReturn:
    """End without taking five hundred modules apart first, which a cached build would notice."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # what matters has been flushed, and complained about
            stream.flush()
    os._exit(status)


def _open_streams() -> None:
    """Put /dev/null in the place of standard streams that were closed: their numbers would go to pipes of ours."""
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, fd)
            if null != fd:
                os.close(null)
            setattr(sys, name, open(fd, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115


def _stranger() -> str:
    """The name of a package that another distribution has put in the place of ours; "" when all is well.

    The names of our three packages are general, and ``executor`` is also a distribution of its own.
    """
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in ("executor", "platforms"):
        place = getattr(__import__(name), "__file__", None) or ""
        if os.path.dirname(os.path.dirname(os.path.abspath(place))) != home:
            return name
    return ""


if __name__ == "__main__":
    main()
