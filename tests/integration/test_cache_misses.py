"""Why a step was made again: the parts of its key that have changed since the last time."""

from __future__ import annotations

import json
import re

from conftest import Base, Kanifold


def test_the_report_names_what_has_changed(kanifold: Kanifold, busybox: Base) -> None:
    context = kanifold.folder("context")
    (context / "Dockerfile").write_text(
        f"FROM {busybox.ref}\nWORKDIR /w\nCOPY f /f\nRUN cat /f\nARG WHO\nRUN echo $WHO\nUSER 1:1\nRUN id\n"
    )
    (context / "f").write_text("1")
    report = kanifold.home / "report.html"

    def why(*options: str) -> dict[str, str]:
        kanifold("build", context, "-o", f"type=oci,dest={kanifold.home}/image.tar", f"--report={report}", *options)
        rows = re.findall(r'<code class="name">([^<]*)</code>.*?<td>([^<]*)</td></tr>', report.read_text())
        return {name: reason for name, reason in rows if reason}

    first = "it was not made before, as it is written"
    assert why("--build-arg", "WHO=a") == dict.fromkeys(
        ("WORKDIR /w", "COPY f /f", "RUN cat /f", "RUN echo $WHO", "RUN id"), first
    )
    assert why("--build-arg", "WHO=a") == {}
    changed = why("--build-arg", "WHO=b")
    assert changed["RUN echo $WHO"] == "changed: the environment"
    assert changed["RUN id"] == "changed: the files below, the environment"
    (context / "f").write_text("22")
    changed = why("--build-arg", "WHO=b")
    assert changed["COPY f /f"] == "changed: the files"
    assert changed["RUN cat /f"] == "changed: the files below"
    (context / "f").write_text("333")
    changed = why("--build-arg", "WHO=b", "--platform", "linux/386")
    assert (changed["COPY f /f"], changed["RUN cat /f"]) == (
        "changed: the files below, the files",
        "it was not made before, as it is written",
    )
    assert set(why("--build-arg", "WHO=b", "--no-cache").values()) == {"the cache was not to be used"}

    builds = json.loads(kanifold("history", "--json").out)
    assert len(builds) == 6
    assert {each["outcome"] for each in builds} == {"built"}
    assert all(each["reports"] == [str(report)] for each in builds)
    assert (builds[2]["ran"], builds[4]["cached"]) == (4, 5)
    kanifold("prune", "--all", "--force")
    assert "no build is recorded" in kanifold("history").out
