"""``kanifold doctor`` and ``kanifold platforms``: the capabilities of this host, and how to extend them."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile

from executor.registry import auth
from executor.store.emulators import StoreEmulators
from executor.store.store import default_root
from orchestrator.view.stdout import print_json, print_line
from platforms import emulation, host
from platforms.emulation import Emulation
from platforms.errors import EnvironmentUnfit, KanifoldError, UsageError
from platforms.paths import settings_file
from platforms.platform import Platform

OK, MISSING = "ok", "--"


def show_platforms(as_json: bool) -> None:
    """Print the usual platforms and how their programs run here."""
    rows = _emulation("")
    if as_json:
        print_json([_as_data(str(platform), found) for platform, found in rows])
        return
    width = max(len(str(platform)) for platform, _ in rows)
    for platform, found in rows:
        print_line(f"{platform!s:<{width}}  {_how(found)}")


def examine(root: str) -> int:
    """Print the capabilities of this host; the exit status is 0 if builds can run, here or on a node."""
    from executor.store.store import open_store

    print_line(f"host        {host.host()}")
    works = _isolation() if sys.platform == "linux" else _elsewhere()
    if works:
        _network()
        _bounds()
    print_line()
    print_line("emulation")
    for platform, found in _emulation(root):
        mark = MISSING if isinstance(found, EnvironmentUnfit) else OK
        print_line(f"  {mark} {platform!s:<16} {_how(found)}")
        if isinstance(found, Emulation):
            for reason in found.skipped:
                if not reason.startswith(f"{emulation.EmulationMode.NATIVE}:"):  # the first line names the host
                    print_line(f"       not {reason}")
        else:
            print_line(f"       {found.problem.remedy}")
    print_line()
    print_line("store")
    place, stored = root or default_root(), True
    try:
        with open_store(place) as store:
            print_line(f"  {OK} {place}{_files(store.root) if sys.platform == 'linux' else ''}")
    except KanifoldError as error:
        print_line(f"  {MISSING} {place}: {error}")
        stored = False
    print_line()
    print_line("credentials")
    try:
        auth.docker_keychain()("docker.io")
        print_line(f"  {OK} configuration files can be read")
    except KanifoldError as error:
        print_line(f"  {MISSING} {error}")
    elsewhere = _nodes()
    return 0 if stored and (works or elsewhere) else EnvironmentUnfit.exit_code


def _nodes() -> bool:
    """Print how the nodes of the inventory are. Returns whether one of them can be used in place of this machine."""
    path = settings_file("nodes.yaml")
    if not os.path.exists(path):
        return False
    from orchestrator.nodes import inventory, node_commands, node_states

    print_line()
    print_line("nodes")
    try:
        known = [each for each in inventory.load(path) if each.url != inventory.LOCAL]
    except UsageError as error:
        print_line(f"  {MISSING} {error}: {error.problem.why}")
        return False
    states = node_states.examine(known)
    node_commands.print_states(states, "  ")
    return any(each.problem is None for each in states)


def _emulation(root: str) -> tuple[tuple[Platform, Emulation | EnvironmentUnfit], ...]:
    """Return how the usual platforms run here, also with emulators that were added to the store at ``root``."""
    with contextlib.closing(StoreEmulators(root)) as emulators:
        return emulation.overview(emulators)


def _isolation() -> bool:
    from executor.sandbox import isolation, trial

    print_line()
    print_line("isolation of steps")
    wanted = isolation.requested()
    found = trial.probe_modes()
    used = next((each.mode for each in found if each.usable and wanted in (None, each.mode)), None)
    remedies = set()
    for checked in found:
        if checked.usable:
            asked = f", as {isolation.VARIABLE} says" if wanted else ""
            print_line(f"  {OK} {checked.mode}{f'  <- in use{asked}' if checked.mode is used else ''}")
            continue
        print_line(f"  {MISSING} {checked.mode}: {checked.why}")
        if checked.remedy not in remedies:
            print_line(f"       {checked.remedy}")
            remedies.add(checked.remedy)
    if wanted and used is None:
        print_line(f"  {MISSING} {isolation.VARIABLE} allows no other mode than {wanted}")
    if used is None:
        print_line(f"  {OK} FROM, COPY, ADD and metadata, which need none")
    return used is not None


def _network() -> None:
    from executor.sandbox import network
    from platforms import syscalls

    print_line()
    print_line("network of steps")
    why = network.probe()
    if not why:
        print_line(f"  {OK} their own, by {network.HELPER}")
        return
    print_line(f"  {MISSING} the network of this machine, its loopback interface included: {why}")
    print_line(f"       {network.remedy(why)}")
    if syscalls.landlock_version() >= network.SCOPES:
        print_line(f"  {OK} without its abstract sockets (Landlock)")
    else:
        print_line(f"  {MISSING} its abstract sockets as well: Landlock has no scopes here (Linux 6.12)")


def _bounds() -> None:
    from executor.sandbox import cgroup

    print_line()
    print_line("bounds of steps (--resource)")
    if why := cgroup.probe():
        print_line(f"  {MISSING} {why}")
        print_line(f"       {cgroup.REMEDY}")
    else:
        print_line(f"  {OK} control groups")


def _files(place: str) -> str:
    """Return what there is to say of the way in which steps get their files."""
    from executor.snapshotter import kinds

    with tempfile.TemporaryDirectory(dir=place) as scratch:
        if kinds.fitting(scratch) != "plain":
            return ""
    return ", with a copy of the layers for each stage: its file system cannot be written to by mounts of layers"


def _elsewhere() -> bool:
    print_line()
    print_line("isolation")
    print_line(f"  {MISSING} steps run on Linux only: {sys.platform} can orchestrate, and needs a Linux node")
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
