"""Attack 66 (review): some lines of variables fill the memory, or keep the builder busy.

A line could double what the one before it had, up to a limit; that many lines could each have as much was not limited.
2 KB of ``ENV`` made a config of 600 MB. ``${A//a/…}`` was held against the limit only when it had been put together.
Patterns with a newline, which a base image's ENV can bring, were matched by backtracking.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from conftest import Kanifold

from executor.dockerfile import shellpattern
from executor.dockerfile.words import expand
from platforms.errors import DockerfileError

LINES = 150
DOUBLED = ["A=xxxxxxxxxxxxxxxx", *["A=$A$A"] * 17]
"""2 MiB."""
DOCKERFILES = {
    "ENV": ["FROM scratch", *[f"ENV {each}" for each in DOUBLED], *[f"ENV B{i}=x$A" for i in range(LINES)]],
    "ARG": ["FROM scratch", *[f"ARG {each}" for each in DOUBLED], *[f"ARG B{i}=x$A" for i in range(LINES)]],
    "ARG before FROM": [*[f"ARG {each}" for each in DOUBLED], *[f"ARG B{i}=x$A" for i in range(LINES)], "FROM scratch"],
    "LABEL": ["FROM scratch", *[f"ENV {each}" for each in DOUBLED], *[f"LABEL b{i}=x$A" for i in range(LINES)]],
    "one name": ["FROM scratch", *[f"ENV {each}" for each in DOUBLED], *["ENV B=x$A$A"] * LINES],
    "stages": [
        "FROM scratch AS s", *[f"ENV {each}" for each in DOUBLED], *[f"FROM s AS s{i}\nENV B=x$A" for i in range(LINES)]
    ],
    "replaced": ["FROM scratch", f"ENV A={'a' * 30000}", *[f"ENV B=${{A//a/{'b' * 30000}}}"] * 20],
    "white space": ["FROM scratch", "ENV A='x '", *["ENV A=$A$A"] * 19, *["EXPOSE $A"] * LINES],
}  # fmt: skip


@pytest.mark.parametrize("flags", [(), ("--check",), ("--call", "outline")])
@pytest.mark.parametrize("kind", DOCKERFILES)
def test_what_lines_make_of_each_other_is_limited_in_all(kanifold: Kanifold, kind: str, flags: tuple[str, ...]) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text("\n".join(DOCKERFILES[kind]) + "\n")
    measured = "import resource, subprocess, sys; subprocess.run(sys.argv[1:]); " + (
        "print('used', *resource.getrusage(resource.RUSAGE_CHILDREN)[:3])"
    )
    command = [*kanifold.command, "build", str(folder), *flags, *(() if flags else ("-o", "type=cacheonly"))]
    done = subprocess.run(
        [sys.executable, "-c", measured, *command], cwd=kanifold.home, env=kanifold.environment(),
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    said = done.stdout + done.stderr
    user, system, peak = map(float, said.partition("used ")[2].split()[:3])
    if flags != ("--call", "outline") or kind not in ("LABEL", "stages"):  # of which it reads none, and two
        assert re.search(r"more than \d+ MiB|is too large|invalid containerPort", said), said[-2000:]
    assert user + system < 12, said[-500:]
    assert peak < 600 << 10, said[-500:]


def test_a_dockerfile_of_many_lines_is_none_of_that(kanifold: Kanifold) -> None:
    folder = kanifold.folder("context")
    lines = ["ENV K=0", *[f"ENV K{i}=$K$PATH" for i in range(2000)]]
    (folder / "Dockerfile").write_text("\n".join(["FROM scratch", *lines]) + "\n")
    kanifold("build", folder, "-o", "type=cacheonly")


@pytest.mark.parametrize(
    "text", ["${A#$P}", "${A##$P}", "${A%$R}", "${A%%$R}", "${A/$P/x}", "${A//$P/x}", "${A//a/$A}", "${A//?/$A}"]
)
def test_patterns_take_no_more_than_pattern_times_value(text: str) -> None:
    pattern = "*a" * 300 + "\nb"
    env = {"A": ("a" * 3000 + "\nc") * 3, "P": pattern, "R": pattern[::-1]}
    began = time.process_time()
    try:
        expand(text, env)
    except DockerfileError as error:
        assert "more than 16 MiB" in error.problem.what
    assert time.process_time() - began < 5


def spans(pattern: str, value: str) -> Iterator[tuple[int, int]]:
    """Each leftmost, longest match of ``pattern`` in ``value``, found by trying all there are."""
    form = re.compile(re.escape(pattern).replace(r"\*", "[^\n]*").replace(r"\?", "[^\n]"))
    at = 0
    while at <= len(value):
        found = next(
            ((start, end) for start in range(at, len(value) + 1) for end in range(len(value), start - 1, -1)
             if form.fullmatch(value[start:end])), None,
        )  # fmt: skip
        if found is None:
            return
        yield found
        at = found[1]


def test_patterns_with_newlines_mean_what_they_meant() -> None:
    chance = random.Random(66)
    for _ in range(3000):
        pattern = "".join(chance.choices("ab*?\n", k=chance.randrange(6))) + "\n"
        pattern += "".join(chance.choices("ab*?\n", k=chance.randrange(4)))
        value = "".join(chance.choices("ab\n", k=chance.randrange(9)))
        expected, done = "", 0
        for start, end in spans(pattern, value):
            expected += value[done:start] + "R"
            done = end
        found = shellpattern.replaced_all(pattern, value, "R", 1000)
        assert found == expected + value[done:], (pattern, value)
        form = re.compile(re.escape(pattern).replace(r"\*", "[^\n]*").replace(r"\?", "[^\n]"))
        heads = [cut for cut in range(len(value) + 1) if form.fullmatch(value[:cut])]
        tails = [cut for cut in range(len(value) + 1) if form.fullmatch(value[cut:])]
        for longest, head, tail in (
            (False, min(heads, default=0), max(tails, default=len(value))),
            (True, max(heads, default=0), min(tails, default=len(value))),
        ):
            assert shellpattern.without_prefix(pattern, value, longest=longest) == value[head:]
            assert shellpattern.without_suffix(pattern, value, longest=longest) == value[:tail]
