"""Attack 8 (CVE-2025-31133, -52565, -52881 runc): what masks, and where it masks, swapped for symbolic links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sandbox_process import Inside, Node, SandboxProcess

LOOK = (
    "cat /proc/kcore /proc/keys /proc/timer_list | head -c 1; find /proc/acpi /proc/scsi /sys/firmware -mindepth 1;"
    "echo x > /proc/sys/kernel/hostname; echo x > /proc/sysrq-trigger; hostname"
)

FAKES: dict[str, dict[str, Node]] = {
    "null": {"dev/null": ("->", "/proc/sys/kernel/core_pattern")},
    "pts": {"dev/pts": ("->", "/proc"), "dev/ptmx": ("->", "/proc/kcore")},
    "proc": {"proc": ("->", "/tmp")},
    "proc-up": {"proc": ("->", "../../../../../../proc")},
    "proc-itself": {"proc": ("->", "self")},
    "proc-full": {"proc/kcore": "fake", "proc/sys": ("->", "/tmp"), "proc/keys": ("->", "/dev/null")},
    "dev-proc": {"dev": ("->", "proc")},
    "sys-proc": {"sys": ("->", "proc")},
    "proc-sys": {"proc": ("->", "sys")},
}


@pytest.mark.parametrize("fake", FAKES)
def test_fakes_in_the_image_unmask_nothing(either_sandbox: SandboxProcess, fake: str) -> None:
    done = either_sandbox.run(LOOK, layers=(either_sandbox.plant(FAKES[fake]), either_sandbox.busybox))
    if done.ended.error:  # refusing is fine too, as long as nothing is left
        assert done.ended.code == 125
    else:
        assert done.out == "buildkitsandbox\n"
    assert done.diff == {}


def test_a_parallel_step_that_swaps_the_mount_point(root_sandbox: SandboxProcess, tmp_path: Path) -> None:
    """A directory that two steps share is a link at one moment and a directory at the next."""
    (tmp_path / "canary").mkdir()
    ends = root_sandbox.call(_race, str(tmp_path / "canary"))
    assert os.listdir(tmp_path / "canary") == []
    assert {0} < ends <= {0, 125}  # some mounted on the directory, some met the link and stayed inside, or failed


def _race(inside: Inside, canary: str) -> set[int]:
    from executor.sandbox import Bind, Spec, Tmpfs
    from executor.snapshotter.rootfs import Overlay

    shared = inside.plant({"sub/inner": None})
    root = inside.busybox()
    climb = f"../../../../../../../../../../{canary}"
    swap = (
        f"cd /shared; ln -s {climb} link;"
        " until [ -e stop ]; do mv sub real; mv link sub; mv sub link; mv real sub; done"
    )
    mounts = (Bind(shared, "/shared"),)
    swapper = inside._start(Spec(Overlay((root,), "", ""), ("/bin/sh", "-c", swap), ("PATH=/bin",), mounts=mounts))
    ends = set()
    for _ in range(150):
        spec = Spec(
            Overlay((root,), "", ""),
            ("/bin/true",),
            mounts=(*mounts, Tmpfs("/shared/sub/made/here"), Tmpfs("/shared/sub/inner")),
        )
        ends.add(inside.run_all([spec])[0].ended.code)
    Path(f"{shared}/stop").touch()
    inside._finish(*swapper)
    return ends
