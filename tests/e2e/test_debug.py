"""``--debug``: what each process of a build does, on stderr; without it, nothing of that, and never a secret."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from registry_server import Asked, Said, served

ROOT = Path(__file__).resolve().parents[2]
Context = Callable[[Mapping[str, str | bytes]], Path]
LINE = re.compile(r"^ *\d+\.\d{3} ([\w-]+)\[(\d+)\] (.+)$", re.MULTILINE)
SECRET, PASSWORD, QUERY = "secret-word-81", "password-word-82", "query-word-83"


def told(err: str) -> dict[str, list[str]]:
    """What each process wrote, by its name."""
    found: dict[str, list[str]] = {}
    for name, _, what in LINE.findall(err):
        found.setdefault(name, []).append(what)
    return found


def has(lines: list[str], pattern: str) -> bool:
    return any(re.match(pattern, each) for each in lines)


@pytest.mark.parametrize("switch", ["--debug", "KANIFOLD_DEBUG"])
def test_each_process_tells_what_it_does(
    kanifold: Kanifold, busybox: Base, registry: str, context: Context, switch: str
) -> None:
    where = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo hello > /hello\nRUN cat /hello\n"})
    flags = [switch] if switch.startswith("-") else []
    environment = {} if flags else {switch: "1"}
    tag = f"{registry}/debug/{switch.strip('-').lower()}:1"
    done = kanifold("build", where, "-t", tag, "--push", *flags, **environment)
    told_by = told(done.err)

    main = told_by["kanifold"]
    assert has(main, "process begins")
    assert has(main, "placed platform=linux/.* runs=native")
    assert has(main, f"image pinned name={busybox.ref} digest=sha256:")
    assert has(main, r"executors ordered executors=1 processes=1")
    assert has(main, r"executor process ended pid=\d+ status=0")
    assert has(main, "process ends status=0")

    for name in ("kanifold-forks", "kanifold-http", "kanifold-exec"):
        assert has(told_by[name], r"process begins parent=\d+")
        assert has(told_by[name], "process ends status=0")

    # What it says of a request: method, address, outcome, time.
    requests = [each for each in told_by["kanifold-http"] if each.startswith("request")]
    assert has(requests, rf"request method=\w+ url=http://{registry}/v2/base/busybox/manifests/\S+ status=200 seconds=")
    assert has(requests, rf"request method=PUT url=http://{registry}/v2/debug/\S+ status=201")

    executor = told_by["kanifold-exec"]
    assert has(executor, "job taken platform=linux/")
    assert has(executor, r"process started name=kanifold-steps pid=\d+")
    assert has(executor, r"process ended name=kanifold-steps pid=\d+ status=0")
    assert has(executor, "job ends platform=linux/.* status=0")
    assert has(executor, r"cache look-up key=\w+ found=no")
    assert has(executor, r"cache record key=\w+ result=\w+")
    assert has(executor, r"step runs step=2 argv=\('/bin/sh', '-c', 'echo hello > /hello'\) user=0 cwd=/ network=")
    assert has(executor, "step ended step=2 code=0")
    assert has(executor, r"leased things=s\d+")
    assert has(executor, r"snapshot made number=\d+ bytes=\d+ names=result:")

    steps = told_by["kanifold-steps"]
    assert has(steps, "process begins")
    assert has(steps, "packet kind=run")
    assert has(steps, r"step's process ended pid_inside=\d+ status=0")

    # The same again is found: under the same keys.
    again = told(kanifold("build", where, "-o", "type=oci,dest=out", "--debug").err)
    key = next(each.split()[2] for each in executor if each.startswith("cache look-up"))
    assert has(again["kanifold-exec"], rf"cache look-up {key} found=(?!no)\w+")
    assert not has(again["kanifold-exec"], "step runs")

    # And what has been pushed is known without asking an executor.
    repeated = told(kanifold("build", where, "-t", tag, "--push", "--debug").err)
    assert has(repeated["kanifold"], "cached results: no executor is started")
    assert "kanifold-exec" not in repeated


@pytest.mark.parametrize("user", ["kanifold_as_user", "kanifold_as_bare_user"])
def test_ordinary_users_are_told_the_same(
    user: str, request: pytest.FixtureRequest, busybox: Base, context: Context
) -> None:
    kanifold: Kanifold = request.getfixturevalue(user)
    where = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo hello > /hello\n"})
    told_by = told(kanifold("build", where, "-o", "type=cacheonly", "-D", "--no-cache").err)
    mode = "mapped" if user == "kanifold_as_user" else "single"
    assert has(told_by["kanifold-exec"], f"isolation mode={mode}")
    assert has(told_by["kanifold-steps"], "ready for steps")
    assert has(told_by["kanifold-exec"], "step ended step=2 code=0")


@pytest.mark.parametrize("debug", ["1", ""])
def test_an_executor_that_is_a_command_of_its_own_tells_too(debug: str) -> None:
    program = """
import asyncio, sys
from orchestrator import process

async def main():
    worker = await process.start((sys.executable, "-P", "-m", "executor"), (), 1 << 20)
    worker.stdin.close()
    await worker.end()
    await worker.process.stderr_closed
    print("kept:", worker.process.stderr_tail)

asyncio.run(main())
"""
    environment = {"KANIFOLD_DEBUG": debug, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    lines = told(done.stderr).get("executor", [])
    assert has(lines, "process begins") == has(lines, "process ends status=130") == bool(debug)
    assert done.stdout == "kept: \n"


def test_without_it_nothing_of_that_is_told(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    where = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo hello > /hello\n"})
    for progress in ("plain", "rawjson", "quiet"):
        done = kanifold("build", where, "-o", "type=cacheonly", "--progress", progress)
        assert told(done.said) == {}


def test_lines_of_a_failing_build_are_there_to_its_end(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    where = context({"Dockerfile": f"FROM {busybox.ref}\nRUN exit 7\n"})
    done = kanifold.run("-D", "build", where, "-o", "type=cacheonly")
    assert done.code == 1
    told_by = told(done.err)
    assert has(told_by["kanifold-exec"], "step ended step=2 code=7")
    assert has(told_by["kanifold-exec"], "process ends status=1")
    assert has(told_by["kanifold"], "process ends status=1")


def test_neither_a_secret_nor_a_password_nor_a_query_is_told(
    kanifold: Kanifold, busybox: Base, context: Context
) -> None:
    basic = base64.b64encode(f"user:{PASSWORD}".encode()).decode()

    def answer(asked: Asked) -> Said:
        welcome = asked.headers.get("authorization", "") == f"Basic {basic}"
        return Said(200, {}, b"content") if welcome else Said(401, {"www-authenticate": 'Basic realm="r"'})

    with served(answer) as server:
        where = context(
            {
                "Dockerfile": f"FROM {busybox.ref}\n"
                f"ADD http://user:{PASSWORD}@{server.host}/file?signature={QUERY} /file\n"
                "RUN --mount=type=secret,id=s,env=S,target=/s "
                f"test $(cat /s) = {SECRET} && test $S = {SECRET}\n"
                "RUN cat /file\n"
            }
        )
        done = kanifold(
            "build", where, "--debug", "--progress", "quiet", "-o", "type=cacheonly", "--secret", "id=s,env=GIVEN",
            GIVEN=SECRET,
        )  # fmt: skip
        told_by = told(done.err)
        assert has(told_by["kanifold-exec"], r"question number=\d+ kind=secret of=s")
        requests = told_by["kanifold-exec"] + told_by["kanifold-http"]
        assert has(requests, rf"request method=GET url=http://{server.host}/file status=200 ")
        assert "/file?" not in "".join(requests)
    for word in (SECRET, PASSWORD, QUERY, basic):
        assert word not in done.said
    assert has(told_by["kanifold-exec"], r"step runs .*= \*\*\* && test \$S = \*\*\*")
