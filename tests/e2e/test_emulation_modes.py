"""``$KANIFOLD_EMULATION``: one mode is asked for; images do not depend on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold

from platforms.host import host

Context = Callable[[Mapping[str, str | bytes]], Path]

FOREIGN = "arm64" if host().architecture == "amd64" else "amd64"
STEPS = """\
FROM {base}
RUN uname -m > /machine; for each in 1 2 3; do sh -c "echo $each" >> /numbers; done
RUN printf '#!/bin/sh -e\\necho $0 $1\\n' > /bin/script; chmod +x /bin/script; script a > /said
"""


def test_images_do_not_depend_on_the_mode(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    folder = context({"Dockerfile": STEPS.format(base=busybox.ref)})
    digests = set()
    for mode in ("private", "traced"):
        build = (
            "build",
            folder,
            "--platform",
            f"linux/{FOREIGN}",
            "--no-cache",
            "-o",
            f"type=oci,dest={folder}/{mode}",
        )
        outcome = kanifold.run(*build, KANIFOLD_EMULATION=mode, SOURCE_DATE_EPOCH="1700000000")
        if outcome.code == 3:
            pytest.skip(f"{mode} cannot be used here")
        assert outcome.code == 0, outcome.said
        digests.add(outcome.out.split()[-1])
    assert len(digests) == 1, digests


def test_a_mode_that_does_not_exist_is_wrong_usage(kanifold: Kanifold) -> None:
    refused = kanifold.run("doctor", KANIFOLD_EMULATION="magic")
    assert refused.code == 2
    assert "use auto, private, register, traced" in refused.said
