"""Directories in each other, deeper than a path has bytes (PATH_MAX): a build ends in an error that says so."""

from __future__ import annotations

import pytest
from conftest import Base, Kanifold

DEEP = """\
RUN n=$(printf %0250d 0); for top in b a; do mkdir -p /d/$top; cd /d/$top; \\
    for i in $(seq 10); do mkdir $n; cd $n; done; done; mv /d/b .
"""


@pytest.mark.parametrize(
    "isolation", ["", "answered", *(pytest.param(each, marks=pytest.mark.slow) for each in ("single", "chroot"))]
)
@pytest.mark.parametrize("rest", ["RUN true", "FROM scratch\nCOPY --from=0 /d /d"], ids=["a layer", "a copy"])
def test_a_path_that_is_too_long_is_named_as_the_cause(
    kanifold: Kanifold, busybox: Base, isolation: str, rest: str
) -> None:
    folder = kanifold.home / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {busybox.ref}\n{DEEP}{rest}\n")
    mode = [f"--isolation={isolation}"] if isolation else []
    done = kanifold.run("build", folder, *mode, "--progress=plain", "-o", f"type=oci,dest={kanifold.home / 'out'}")
    assert done.code == 1, done.said
    assert "Traceback" not in done.said
    assert "more than 4,095 bytes" in done.err.rsplit("ERROR", 1)[1]
    assert max(map(len, done.err.rsplit("ERROR", 1)[1].splitlines())) < 1000
