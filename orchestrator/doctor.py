"""``kanifold doctor`` and ``kanifold platforms``: what this host can do, why not more, and what to install."""

from __future__ import annotations

import sys

from executor.registry import auth
from executor.store.store import default_root
from orchestrator.view.said import say, say_json
from platforms import emulation, host
from platforms.emulation import Emulation
from platforms.errors import EnvironmentUnfit, KanifoldError

OK, MISSING = "ok", "--"


def show_platforms(as_json: bool) -> None:
    """Print every usual platform and how its programs run here."""
    rows = emulation.overview()
    if as_json:
        say_json([_as_data(str(platform), found) for platform, found in rows])
        return
    width = max(len(str(platform)) for platform, _ in rows)
    for platform, found in rows:
        say(f"{platform!s:<{width}}  {_how(found)}")


def examine(root: str) -> int:
    """Print the whole examination; the exit status is 0 when builds for this host's own platform can run."""
    from executor.store.store import open_store

    say(f"host        {host.host()}")
    works = _isolation() if sys.platform == "linux" else _elsewhere()
    if works:
        _network()
        _bounds()
    say()
    say("emulation")
    for platform, found in emulation.overview():
        mark = MISSING if isinstance(found, EnvironmentUnfit) else OK
        say(f"  {mark} {platform!s:<16} {_how(found)}")
        if isinstance(found, Emulation):
            for reason in found.skipped:
                if not reason.startswith(f"{emulation.EmulationMode.NATIVE}:"):  # the first line says what this host is
                    say(f"       not {reason}")
        else:
            say(f"       {found.problem.remedy}")
    say()
    say("store")
    place = root or default_root()
    try:
        open_store(place).close()
        say(f"  {OK} {place}")
    except KanifoldError as error:
        say(f"  {MISSING} {place}: {error}")
        works = False
    say()
    say("credentials")
    try:
        auth.docker_keychain()("docker.io")
        say(f"  {OK} configuration files can be read")
    except KanifoldError as error:
        say(f"  {MISSING} {error}")
    return 0 if works else EnvironmentUnfit.exit_code


def _isolation() -> bool:
    from executor.sandbox import isolation

    say()
    say("isolation")
    usable = False
    for checked in isolation.probe_modes():
        if checked.usable:
            chosen = "" if usable else "  <- in use"
            usable = True
            say(f"  {OK} {checked.mode}{chosen}")
        else:
            say(f"  {MISSING} {checked.mode}: {checked.why}")
            say(f"       {checked.remedy}")
    return usable


def _network() -> None:
    from executor.sandbox import network
    from platforms import syscalls

    say()
    say("network of steps")
    why = network.probe()
    if not why:
        say(f"  {OK} their own, by {network.HELPER}")
        return
    say(f"  {MISSING} the network of this machine, its loopback interface included: {why}")
    say(f"       {network.remedy(why)}")
    if syscalls.landlock_version() >= network.SCOPES:
        say(f"  {OK} without its abstract sockets (Landlock)")
    else:
        say(f"  {MISSING} its abstract sockets as well: Landlock has no scopes here (Linux 6.12)")


def _bounds() -> None:
    from executor.sandbox import cgroup

    say()
    say("bounds of steps (--resource)")
    if why := cgroup.probe():
        say(f"  {MISSING} {why}")
        say(f"       {cgroup.REMEDY}")
    else:
        say(f"  {OK} control groups")


def _elsewhere() -> bool:
    say()
    say("isolation")
    say(f"  {MISSING} steps run on Linux only: {sys.platform} can orchestrate, and needs a Linux node")
    return False


def _how(found: Emulation | EnvironmentUnfit) -> str:
    if isinstance(found, EnvironmentUnfit):
        return "no: " + found.problem.what
    return f"{found.mode}: {found.why}" if found.why else str(found.mode)


def _as_data(platform: str, found: Emulation | EnvironmentUnfit) -> dict[str, object]:
    if isinstance(found, EnvironmentUnfit):
        return {"platform": platform, "usable": False, "why": str(found), "remedy": found.problem.remedy}
    return {
        "platform": platform,
        "usable": True,
        "how": str(found.mode),
        "emulator": found.interpreter,
        "why": found.why,
    }
