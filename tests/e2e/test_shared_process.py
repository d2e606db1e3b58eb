"""More platforms than processors: their executors share processes, and it cannot be told from what they build."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Base, Kanifold

Context = Callable[[Mapping[str, str | bytes]], Path]

THREE = "linux/amd64,linux/arm64,linux/386"


@pytest.fixture
def one(kanifold: Kanifold) -> Kanifold:
    """The command on one processor of the machine."""
    return dataclasses.replace(kanifold, command=("taskset", "-c", "0", *kanifold.command))


def executors_of(pid: int) -> list[int]:
    """The processes of the build ``pid`` that executors are in."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [each for each in children if Path(f"/proc/{each}/comm").read_text() == "kanifold-exec\n"]


def begun(process: subprocess.Popen[str], count: int) -> list[int]:
    """The processes of executors, once steps have said ``begun`` so many times."""
    assert process.stderr is not None
    for line in process.stderr:
        count -= line.rstrip().endswith("begun")
        if not count:
            return executors_of(process.pid)
    raise AssertionError("the build ended before its steps began")


def test_the_image_is_the_same(one: Kanifold, kanifold: Kanifold, busybox: Base, context: Context) -> None:
    folder = context(
        {
            "Dockerfile": f"FROM {busybox.ref}\nCOPY f /\nRUN --mount=type=secret,id=s,required uname -m > /m\n"
            "FROM scratch\nCOPY --from=0 /m /f /\n",
            "f": "content",
        }
    )
    words = ("build", folder, "--platform", THREE, "--secret", "id=s,src=/etc/hostname", "--build-arg")
    epoch = "SOURCE_DATE_EPOCH=1700000000"
    alone = kanifold(
        *words, epoch, "-o", f"type=oci,dest={kanifold.home / 'a'}", KANIFOLD_ROOT=f"{kanifold.home}/other"
    )
    shared = one(*words, epoch, "-o", f"type=oci,dest={kanifold.home / 'b'}")
    assert shared.out == alone.out


def test_all_of_it_ends_with_the_build(one: Kanifold, busybox: Base, context: Context) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo begun; sleep 1000\n"})
    with one.start("build", folder, "--platform", THREE, "--progress", "plain") as process:
        [executors] = begun(process, 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    assert not Path(f"/proc/{executors}").exists()
    assert [path for path in (one.root / "tmp").iterdir() if path.name != "partial"] == []


def test_one_that_fails_leaves_the_others_alone_when_told_to_keep_going(
    one: Kanifold, busybox: Base, context: Context
) -> None:
    text = f'FROM {busybox.ref}\nRUN test "$(uname -m)" != aarch64 && echo "begun"\nRUN sleep 2; echo sur"vived"\n'
    outcome = one.run(
        "build", context({"Dockerfile": text}), "--platform", THREE, "--progress", "plain", "--keep-going"
    )
    assert outcome.code == 1
    assert outcome.err.count("survived") == 2
    assert "linux/arm64" in outcome.err


BUG = """
from executor import jobrun

run = jobrun.run

def broken(task, cancellation):
    if task.job.platform == "linux/arm64":
        raise RuntimeError("a bug")
    run(task, cancellation)

jobrun.run = broken
"""


def test_a_job_that_breaks_off_leaves_the_others_alone_however_they_end(
    one: Kanifold, busybox: Base, context: Context
) -> None:
    """One ends without a word and another fails, and the third still has longer to go than executors have to end."""
    folder = context(
        {
            "Dockerfile": f"FROM {busybox.ref}\nARG TARGETARCH\n"
            'RUN test $TARGETARCH = 386 || { sleep 1; exit 1; }; sleep 4; echo sur"vived"\n'
        }
    )
    patched = one.folder("patched")
    (patched / "sitecustomize.py").write_text(BUG)
    path = os.pathsep.join(filter(None, (str(patched), one.extra.get("PYTHONPATH"))))
    outcome = one.run("build", folder, "--platform", THREE, "--progress", "plain", "--keep-going", PYTHONPATH=path)
    assert outcome.code == 1
    assert "[linux/arm64] an executor ended without a result" in outcome.err
    assert "RuntimeError: a bug" in outcome.err
    assert "survived" in outcome.err


def test_a_process_that_is_killed_is_an_error_of_each_of_its_platforms(
    one: Kanifold, busybox: Base, context: Context
) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo begun; sleep 1000\n"})
    with one.start("build", folder, "--platform", THREE, "--progress", "plain", "--keep-going") as process:
        [executors] = begun(process, 3)
        os.kill(executors, signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "[linux/amd64, linux/arm64, linux/386] an executor ended without a result: exit status -9" in err
