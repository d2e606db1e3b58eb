"""``--load``: loading an image into the image store of docker, podman, nerdctl or containerd, by their own commands.

docker, podman, nerdctl and ctr read an archive on stdin. Which of them is usable is determined before the build; where
several are, the user selects one (``--load-to``, ``$KANIFOLD_LOAD``).

Sources: docker load, podman-load(1), nerdctl load, ctr images import.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO, Final, cast

import msgspec

from platforms.errors import BuildError, EnvironmentUnfit, Interrupted, UsageError

NAMES: Final = ("docker", "podman", "nerdctl", "ctr")
_SECONDS: Final = 20.0
"""Timeout in seconds for detecting a program."""
_SHOWN: Final = 20
"""Maximum number of output lines in an error."""


class Loader(msgspec.Struct, frozen=True):
    """A program that loads images."""

    name: str
    command: tuple[str, ...]
    """The command, which reads an archive on stdin."""
    several: bool
    """Whether it can store an image of several platforms."""
    wants_name: bool = False
    """Whether an image without a name is lost."""


def find(chosen: str = "") -> Loader:
    """Return the program to load into: ``chosen``, or the only one that is usable.

    Raises ``EnvironmentUnfit`` when there is none, ``UsageError`` when there are several and none was chosen.
    """
    if chosen:
        if chosen not in NAMES:
            raise UsageError(f"--load-to {chosen}: unknown program", remedy=f"use one of {', '.join(NAMES)}")
        found, why = _detect(chosen)
        if found is None:
            raise EnvironmentUnfit(f"cannot load the image into {chosen}", why=why, remedy=_REMEDY)
        return found
    usable: list[Loader] = []
    reasons: list[str] = []
    for name in NAMES:
        if name == "ctr" and any(each.name == "nerdctl" for each in usable):
            continue  # it uses the same containerd
        found, why = _detect(name)
        if found is not None:
            usable.append(found)
        else:
            reasons.append(f"{name}: {why}")
    if not usable:
        raise EnvironmentUnfit("there is no program to --load the image into", why="; ".join(reasons), remedy=_REMEDY)
    if len(usable) > 1:
        names = [each.name for each in usable]
        raise UsageError(
            f"--load: {' and '.join(names)} can take the image",
            remedy=f"choose: --load-to {names[0]}, or KANIFOLD_LOAD={names[0]} in the environment",
        )
    return usable[0]


_REMEDY: Final = "install podman, or start docker or containerd; or write an archive: -o type=oci,dest=FILE.tar"


def check(loader: Loader, platforms: Sequence[object], *, named: bool) -> None:
    """Raise ``UsageError`` if ``loader`` cannot load an image for all ``platforms``, or one that is not ``named``."""
    if loader.wants_name and not named:
        raise UsageError(f"--load: {loader.name} keeps no image without a name", remedy="name the image with --tag REF")
    if len(platforms) > 1 and not loader.several:
        raise UsageError(
            f"--load: {loader.name} takes an image for one platform",
            why=f"this build is for {', '.join(map(str, platforms))}; several are taken by nerdctl, ctr, and by docker "
            "where its image store is containerd's",
            remedy="build one of them with --platform, or --push and pull",
        )


def _detect(name: str) -> tuple[Loader | None, str]:
    """Return the program ``name`` as a loader; or None, and why it is not usable."""
    if shutil.which(name) is None:
        return None, "not installed"
    match name:
        case "docker":
            # The package podman-docker installs podman as docker.
            if "podman" in _output_of(["docker", "--version"])[0].lower():
                return None, "it is podman under another name"
            said, why = _output_of(["docker", "info", "--format", "{{json .DriverStatus}}"])
            containerd = "io.containerd.snapshotter" in said
            return (Loader(name, ("docker", "load"), containerd), "") if not why else (None, why)
        case "podman":
            said, why = _output_of(["podman", "--version"])
            return (Loader(name, ("podman", "load"), False), "") if not why else (None, why)
        case "nerdctl":
            said, why = _output_of(["nerdctl", "info", "--format", "{{.ID}}"])
            return (Loader(name, ("nerdctl", "load", "--all-platforms"), True), "") if not why else (None, why)
        case _:
            said, why = _output_of(["ctr", "version"])
            command = ("ctr", "images", "import", "--all-platforms", "-")
            return (Loader(name, command, True, True), "") if not why else (None, why)


def _output_of(command: Sequence[str]) -> tuple[str, str]:
    """Return the stdout of ``command``, and why it failed; "" if it did not."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_SECONDS, text=True,
            errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} does not answer"
    except OSError as error:
        return "", error.strerror or str(error)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return done.stdout, lines[-1]
    return done.stdout, ""


def run(loader: Loader, write: Callable[[BinaryIO], None], cancelled: threading.Event) -> None:
    """Run ``loader`` with the data that ``write`` writes, until ``cancelled``.

    Raises ``BuildError`` with the program's output when it fails.
    """
    try:
        process = subprocess.Popen(
            loader.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise BuildError(f"cannot run {loader.name}", why=error.strerror or str(error)) from error
    said: list[bytes] = []
    assert process.stdin is not None
    assert process.stdout is not None
    hearing = threading.Thread(target=lambda: said.extend(process.stdout or ()), name="load", daemon=True)
    hearing.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # the program's output has the cause
            write(cast(BinaryIO, process.stdin))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        while process.poll() is None:
            if cancelled.is_set():
                raise Interrupted("the build was cancelled")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        hearing.join()
        process.stdout.close()
    if process.returncode:
        lines = tuple(line.decode("utf-8", "replace").rstrip() for line in said[-_SHOWN:])
        raise BuildError(
            f"{loader.name} did not take the image",
            why=f"{' '.join(loader.command)} ended with {process.returncode}",
            log=lines,
        )
