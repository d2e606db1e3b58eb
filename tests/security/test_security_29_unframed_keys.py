"""Attack 29 (kaniko #873, #911, #825): parts of a cache key are joined without frames, and another step's layer comes.

What a key has to hold is in ``tests/integration/test_cache_keys.py``; here is that no two environments read the same.
"""

from __future__ import annotations

from pathlib import Path

from conftest import Base, Kanifold
from hypothesis import given
from hypothesis import strategies as st
from oci_layout import read_image

from executor.solver.keys import key

TEXT = st.text("AB=-, \n\0x", max_size=4)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=4).map(tuple)


@given(PAIRS, PAIRS, st.lists(TEXT, max_size=3).map(tuple), st.lists(TEXT, max_size=3).map(tuple))
def test_other_inputs_are_another_key(
    env: tuple[tuple[str, str], ...],
    other_env: tuple[tuple[str, str], ...],
    argv: tuple[str, ...],
    other_argv: tuple[str, ...],
) -> None:
    same = (env, argv) == (other_env, other_argv)
    assert (key("run", env, argv) == key("run", other_env, other_argv)) is same


def test_arguments_whose_texts_join_alike(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    """kaniko's own case, as builds."""
    folder = kanifold.folder("context")
    seen = []
    for number, (a, b) in enumerate((("x-B=z", "y"), ("x", "z-B=y"))):
        (folder / "Dockerfile").write_text(f"FROM {busybox.ref}\nARG A\nARG B\nRUN echo $A, $B > /seen\n")
        out = tmp_path / str(number)
        kanifold(
            "build", folder, "-o", f"type=oci,tar=false,dest={out}", "--build-arg", f"A={a}", "--build-arg", f"B={b}"
        )
        seen.append(read_image(out, "linux/amd64").text("seen"))
    assert seen == ["x-B=z, y\n", "x, z-B=y\n"]
