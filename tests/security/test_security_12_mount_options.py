"""Attack 12 (CVE-2024-9675, CVE-2024-9407 buildah): a cache's id climbs out of its folder, and options go unchecked."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Base, Kanifold

from executor.dockerfile import expand, parse
from executor.dockerfile.instructions import Run
from platforms.errors import DockerfileError


@pytest.mark.parametrize("id_", ["../../../../..{canary}", "{canary}", "..", ".", "/", "a/../../b", "x\x01y"])
def test_an_id_is_no_path(kanifold: Kanifold, busybox: Base, tmp_path: Path, id_: str) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    canary.chmod(0o777)
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text(
        f"FROM {busybox.ref}\nRUN --mount=type=cache,id={id_.format(canary=canary)},target=/c ls -A /c; touch /c/evil\n"
    )
    kanifold("build", folder)
    assert list(canary.iterdir()) == []
    (found,) = kanifold.home.rglob("evil")
    assert found.parent.parent.parent == kanifold.root / "cache"


@pytest.mark.parametrize(
    "options",
    [
        "type=bind,bind-propagation=shared,target=/m",
        "type=bind,rshared,target=/m",
        "type=bind,dev,target=/m",
        "type=bind,exec=1,target=/m",
        "type=bind,relabel=shared,target=/m",
        "type=cache,target=/m,suid",
        "type=cache,target=/m,z",
        "type=tmpfs,target=/m,tmpcopyup",
        "type=tmpfs,target=/m,size=-1",
        "type=devpts,target=/m",
        "type=image,target=/m",
        "type=cache,target=/m,sharing=both",
        "type=cache,target=/m,mode=08",
        "type=secret,id=a,gid=-1",
        "target=/m,o=upperdir",
    ],
)
def test_an_option_that_nobody_knows_is_refused(options: str) -> None:
    with pytest.raises(DockerfileError):
        for run in parse(f"FROM scratch\nRUN --mount={options} true".encode()).stages[0].instructions:
            assert isinstance(run, Run)
            expand(run, {}, "\\")
