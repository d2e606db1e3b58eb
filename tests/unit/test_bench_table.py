"""Tables of benches in which builders are compared with the first of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = str(Path(__file__).resolve().parents[2] / "ci" / "bench")


def test_medians_are_compared_with_those_of_the_first_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    import measuring
    import table
    from workloads import WORKLOADS

    taken = {
        "steps": {
            "namespaces": [measuring.Measured(seconds, 0, 2.0) for seconds in (1.0, 2.0, 9.0)],
            "chroot": [measuring.Measured(seconds, 0, 5.0) for seconds in (3.0, 3.0, 1.0)],
        },
        "base": {"chroot": [measuring.Measured(4.0, 0, 4.0)]},
    }
    rows = table.rows(taken, WORKLOADS)
    wall = [line.split("|")[2:4] for line in table.ratios(rows, ["namespaces", "chroot"]).splitlines()[2:]]
    spent = [line.split("|")[2:4] for line in table.processors(rows, ["namespaces", "chroot"]).splitlines()[2:]]
    assert [[each.strip() for each in line] for line in wall] == [["2.00", "3.00 (1.50)"], ["-", "4.00"]]
    assert [[each.strip() for each in line] for line in spent] == [["2.00", "5.00 (2.50)"], ["-", "4.00"]]
    for name in ("measuring", "table", "workloads"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "sleep"], "no such workload: sleep"),
        (["--isolation", "chroot,jail"], "no such mode: jail; there are answered"),
        (["--isolation", ","], "no such mode"),
        (["--isolation", "chroot", "--container", "docker-root"], "ask for one"),
        (["--part", "modes"], "--part is for a comparison"),
        (["--rounds", "0"], "it is 1 at least"),
        (["--again", "-1"], "it is no number"),
        (["--timeout", "soon"], "it is no number"),
    ],
)
def test_what_a_bench_cannot_do_is_said_before_anything_is_built(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setattr(sys, "argv", ["bench", "--kanifold", "/bin/false", *words])
    import bench

    with pytest.raises(SystemExit) as refused:
        bench.main()
    assert said in f"{refused.value.code} {capsys.readouterr().err}"
