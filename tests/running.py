"""Running images with other tools: skopeo selects the platform, umoci unpacks, runc (as root) or a chroot runs.

Independent of kanifold's code, so a broken layer, config or index is detected as on a user's machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import bases
import emulators

TIMEOUT = 60.0
"""Timeout of an image's command in seconds."""

_NATIVE = {"x86_64": ("amd64", "i386"), "aarch64": ("arm64",)}


def run_image(layout: Path, platform: str, *arguments: str, scratch: Path) -> str:
    """Return the output of the image's command (or of ``arguments`` instead) on ``platform``.

    AssertionError with the output when one of the tools rejects the image or the command fails.
    """
    bundle = unpack(layout, platform, scratch)
    spec = json.loads((bundle / "config.json").read_text())
    process = spec["process"]
    command = list(arguments) or process["args"]
    arch = bases.PLATFORMS[platform].debian
    native = arch in _NATIVE.get(os.uname().machine, ())
    if native and os.geteuid() == 0:  # umoci's bundle for others maps one id, and images want more
        return _contained(bundle, spec, command)
    user = f"{process['user']['uid']}:{process['user']['gid']}"
    inside = ["chroot", f"--userspec={user}", str(bundle / "rootfs"), *command]
    environment = ["env", "-i", *process["env"]]
    done = emulators.run_mapped(None if native else arch, [*environment, *inside], TIMEOUT)
    assert done.returncode == 0, f"{' '.join(command)} on {platform}: {done.stdout}"
    return done.stdout


def unpack(layout: Path, platform: str, scratch: Path) -> Path:
    """Return an OCI bundle of the image, in a new directory below ``scratch``: its files are in ``rootfs``."""
    work = Path(tempfile.mkdtemp(dir=scratch))
    parts = platform.split("/")
    chosen = [f"--override-os={parts[0]}", f"--override-arch={parts[1]}"]
    if len(parts) > 2:
        chosen.append(f"--override-variant={parts[2]}")
    _tool("skopeo", *chosen, "copy", "--quiet", f"oci:{layout}", f"oci:{work / 'one'}:it")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    _tool("umoci", "unpack", *rootless, "--image", f"{work / 'one'}:it", str(work / "bundle"))
    return work / "bundle"


def _contained(bundle: Path, spec: dict, command: list[str]) -> str:  # type: ignore[type-arg]
    spec["process"] |= {"args": command, "terminal": False}
    spec["linux"].pop("resources", None)  # limits need a cgroup of one's own, which a test machine may not grant
    (bundle / "config.json").write_text(json.dumps(spec))
    state = ["--root", str(bundle.parent / "state")]
    return _tool("runc", *state, "run", "--bundle", str(bundle), f"test-{os.getpid()}-{bundle.parent.name}")


def _tool(*command: str) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TIMEOUT
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout
