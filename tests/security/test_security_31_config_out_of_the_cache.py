"""Attack 31 (CVE-2024-24557 moby): builds on ``scratch`` find each other's images, and instructions are in no key.

A config is worked out anew by every build and never cached; so each of two Dockerfiles that differ in one instruction
has its own, however much the builds share.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Kanifold
from oci_layout import read_image

COMMON = "FROM scratch\nCOPY f /f\n"
PAIRS = {
    "HEALTHCHECK": ("HEALTHCHECK CMD one", "HEALTHCHECK CMD two"),
    "HEALTHCHECK's times": ("HEALTHCHECK --interval=1s CMD one", "HEALTHCHECK --interval=2s CMD one"),
    "ONBUILD": ("ONBUILD RUN one", "ONBUILD RUN two"),
    "ENV": ("ENV A=1", "ENV A=2"),
    "LABEL": ("LABEL a=1", "LABEL a=2"),
    "CMD": ('CMD ["one"]', 'CMD ["two"]'),
    "ENTRYPOINT": ('ENTRYPOINT ["one"]', 'ENTRYPOINT ["two"]'),
    "EXPOSE": ("EXPOSE 1", "EXPOSE 2"),
    "STOPSIGNAL": ("STOPSIGNAL 1", "STOPSIGNAL 2"),
    "USER": ("USER 1", "USER 2"),
    "VOLUME": ("VOLUME /1", "VOLUME /2"),
    "WORKDIR": ("WORKDIR /1", "WORKDIR /2"),
    "SHELL": ('SHELL ["one"]', 'SHELL ["two"]'),
    "MAINTAINER": ("MAINTAINER one", "MAINTAINER two"),
}


@pytest.mark.parametrize("instruction", PAIRS)
def test_another_instruction_is_another_config(kanifold: Kanifold, tmp_path: Path, instruction: str) -> None:
    folder = kanifold.folder("context")
    (folder / "f").write_text("f")
    found = []
    for number, line in enumerate((*PAIRS[instruction], PAIRS[instruction][0])):
        (folder / "Dockerfile").write_text(f"{COMMON}{line}\n")
        out = tmp_path / str(number)
        kanifold("build", folder, "-o", f"type=oci,tar=false,dest={out}", SOURCE_DATE_EPOCH="1")
        found.append(read_image(out, "linux/amd64"))
    one, other, again = (json.dumps([image.config["config"], image.config.get("author")]) for image in found)
    assert one != other
    assert one == again
    assert found[0].config["rootfs"]["diff_ids"][0] == found[1].config["rootfs"]["diff_ids"][0]
