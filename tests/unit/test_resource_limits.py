"""--resource and --cgroup-parent: buildx's names, and the files of a control group that they come to."""

from __future__ import annotations

import pytest

from executor.step_options import ResourceLimits, control_files
from orchestrator import values
from orchestrator.resource_limits import limits
from platforms.errors import UsageError


@pytest.mark.parametrize(
    ("texts", "meant"),
    [
        ([], {}),
        (["memory=2g"], {"memory.max": str(2 << 30)}),
        (["memory=2g", "memory-swap=3g"], {"memory.max": str(2 << 30), "memory.swap.max": str(1 << 30)}),
        (["memory=1m", "memory-swap=1m"], {"memory.max": str(1 << 20), "memory.swap.max": "0"}),
        (["memory=1m", "memory-swap=-1"], {"memory.max": str(1 << 20), "memory.swap.max": "max"}),
        (["cpu-shares=1024"], {"cpu.weight": "39"}),
        (["cpu-shares=2"], {"cpu.weight": "1"}),
        (["cpu-shares=262144"], {"cpu.weight": "10000"}),
        (["cpu-quota=50000"], {"cpu.max": "50000 100000"}),
        (["cpu-quota=50000", "cpu-period=20000"], {"cpu.max": "50000 20000"}),
        (["cpuset-cpus=0-3,7", "cpuset-mems=0"], {"cpuset.cpus": "0-3,7", "cpuset.mems": "0"}),
        (["pids=100", "pids=200"], {"pids.max": "200"}),
    ],
)
def test_resources_become_control_files(texts: list[str], meant: dict[str, str]) -> None:
    assert dict(control_files(limits(texts))) == meant


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memroy=1g", "did you mean memory"),
        ("memory", "is not NAME=VALUE"),
        ("memory=0", "a number above 0"),
        ("memory=much", "is not a size"),
        ("cpu-quota=-5", "a number above 0"),
        ("cpuset-cpus=a", "numbers and ranges"),
        ("memory-swap=1g", "memory and swap together"),
    ],
)
def test_what_is_no_resource_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        limits([text])


@pytest.mark.parametrize(
    ("text", "path"),
    [("/a/b/", "a/b"), ("build.slice", "build.slice"), ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"), ("x", "x")],
)
def test_a_parent_is_a_path_or_a_slice(text: str, path: str) -> None:
    assert values.control_group(text, "--cgroup-parent") == path


@pytest.mark.parametrize("text", ["/", "../x", "a//b", "a/./b", "a--b.slice"])
def test_a_parent_leads_nowhere_else(text: str) -> None:
    with pytest.raises(UsageError):
        values.control_group(text, "--cgroup-parent")


def test_nothing_is_asked_of_a_group_by_default() -> None:
    assert control_files(ResourceLimits()) == ()
