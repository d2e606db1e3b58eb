"""Attack 56 (review): words from outside reach a terminal, outputs go through links, credentials to whoever asks.

``--call outline`` and ``du --verbose`` printed terminal escapes of a Dockerfile as they are; ``--metadata-file``,
``--iidfile``, ``--trace`` and a layout's ``blobs`` were written through links; an executor was told the credential of
any registry that it named.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
from pathlib import Path

import pytest
from conftest import Kanifold
from packages import parsed, violations

from executor import protocol
from executor.registry.auth import Credential
from executor.registry.registry_settings import RegistrySettings
from orchestrator.answers import answers
from orchestrator.request import BuildRequest

EVIL = "\x1b]0;retitled\x07\x1b[31m\u202e\x9b1m"

DOCKERFILE = f"""\
# title {EVIL}
ARG title="{EVIL}"
# stage {EVIL} described
FROM scratch AS stage
# own {EVIL}
ARG own="x{EVIL}"
ARG title
LABEL a="$own$title"
COPY Dockerfile "/{EVIL}"
RUN --mount=type=secret,id={EVIL} --mount=type=ssh,id=b{EVIL} x
"""


def shown_raw(text: str) -> list[str]:
    """The characters in ``text`` that a terminal acts on."""
    return [letter for letter in text if letter not in "\n" and not letter.isprintable()]


@pytest.mark.parametrize(
    "flags", [("--call", "outline"), ("--call", "targets"), ("--check",), ("--call", "outline,format=json"), ()]
)
def test_words_of_a_dockerfile_have_no_effect_on_a_terminal(kanifold: Kanifold, flags: tuple[str, ...]) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    done = kanifold.run("build", folder, *flags, "-o", "type=cacheonly")
    assert "Traceback" not in done.said
    assert shown_raw(done.said) == [], done.said


def test_words_in_the_store_have_no_effect_on_a_terminal(kanifold: Kanifold) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text(f'FROM scratch\nCOPY Dockerfile "/a{EVIL}"\n')
    kanifold("build", folder, "-o", "type=oci,tar=false,dest=out")
    for command in (("du", "--verbose"), ("du",), ("prune", "--all")):
        done = kanifold(*command)
        assert shown_raw(done.said) == [], done.said
        assert ("retitled" in done.out) == ("--verbose" in command)


def printed_loosely(source: str) -> list[str]:
    """The calls of ``print`` in ``source`` that show anything but what is written there, or a digest."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
        and not all(
            isinstance(each, ast.Constant) or ast.unparse(each).startswith("result.root.digest") for each in node.args
        )
    ]


def test_all_that_commands_print_passes_one_door() -> None:
    found = violations(lambda _, source: printed_loosely(source), "orchestrator/")
    assert found.keys() <= {"orchestrator/view/stdout.py"}, "orchestrator.view.stdout prints a line or JSON"
    assert printed_loosely("print(f'{row.description}')") == ["line 1: print(f'{row.description}')"]
    assert printed_loosely("print('all')\nprint(result.root.digest)") == []


OUTPUTS = {
    "--metadata-file": ("--metadata-file", "{}"),
    "--iidfile": ("--iidfile", "{}"),
    "--trace": ("--trace", "{}"),
    "tar": ("-o", "type=tar,dest={}"),
    "oci": ("-o", "type=oci,dest={}"),
    "docker": ("-o", "type=docker,name=x,dest={}"),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_replaces_a_link_rather_than_follow_it(kanifold: Kanifold, tmp_path: Path, output: str) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    flag, value = OUTPUTS[output]
    for target in ("canary", "not-there"):
        (tmp_path / "canary").write_text("alive")
        place = tmp_path / f"{target}.tar"
        place.symlink_to(target)
        more = () if flag == "-o" else ("-o", "type=cacheonly")
        done = kanifold.run("build", folder, flag, value.format(place), *more)
        assert done.code == 0, done.said
        assert (tmp_path / "canary").read_text() == "alive"
        assert not (tmp_path / "not-there").exists()
        assert place.is_file() and not place.is_symlink()
        assert place.stat().st_size
    assert sorted(each.name for each in tmp_path.iterdir()) == ["canary", "canary.tar", "home", "not-there.tar"]


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_fifo_that_nobody_reads_is_not_waited_for(kanifold: Kanifold, tmp_path: Path, output: str) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    flag, value = OUTPUTS[output]
    os.mkfifo(tmp_path / "pipe.tar")
    more = () if flag == "-o" else ("-o", "type=cacheonly")
    done = kanifold.run("build", folder, flag, value.format(tmp_path / "pipe.tar"), *more)
    assert done.code in (1, 2), done.said
    assert "Traceback" not in done.said


@pytest.mark.parametrize("link", ["blobs", "blobs/sha256", "index.json", "oci-layout"])
def test_a_layout_is_not_written_through_links(kanifold: Kanifold, tmp_path: Path, link: str) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    canary = tmp_path / "canary"
    (canary / "sha256").mkdir(parents=True)
    (canary / ".incoming-old").write_text("alive")
    out = tmp_path / "out"
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(canary)
    done = kanifold.run("build", folder, "-o", f"type=oci,tar=false,dest={out}")
    assert done.code == (0 if link == "oci-layout" else 1), done.said
    assert "Traceback" not in done.said
    assert {each.name for each in canary.rglob("*")} == {"sha256", ".incoming-old"}


@pytest.mark.parametrize("link", ["blobs", "blobs/sha256", "steps"])
def test_a_cache_directory_is_not_written_through_links(kanifold: Kanifold, tmp_path: Path, link: str) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    canary, cache = tmp_path / "canary", tmp_path / "cache"
    canary.mkdir()
    (cache / link).parent.mkdir(parents=True)
    (cache / link).symlink_to(canary)
    done = kanifold.run("build", folder, "-o", "type=cacheonly", "--cache-to", f"type=local,dest={cache}")
    assert done.code == 0, done.said
    assert "its cache is not written" in done.said
    assert list(canary.rglob("*")) == []


def test_an_executor_is_told_the_credentials_of_its_jobs_registries() -> None:
    asked: list[str] = []

    def keychain(name: str) -> Credential:
        asked.append(name)
        return Credential("user", "password")

    job = protocol.Job(
        1,
        "linux/amd64",
        b"FROM x",
        contexts=(protocol.ImageContext("c", "context.example/x"), protocol.DirectoryContext("", "/d")),
        pins=(protocol.Pin("base.example/x:1", "sha256:" + "0" * 64), protocol.Pin("debian", "sha256:" + "0" * 64)),
        push=("push.example/team/app",),
        options=protocol.BuildOptions(
            cache_from=(
                protocol.CacheInRegistry("cache.example/c"),
                protocol.CacheInDirectory("/evil.example/c"),
            ),
            registries=RegistrySettings(mirrors=(("docker.io", ("http://mirror.example:5000/hub",)),)),
        ),
    )
    answer = answers(BuildRequest("."), job, keychain, None, None)  # type: ignore[arg-type]
    theirs = ["context.example", "base.example", "docker.io", "push.example", "cache.example", "mirror.example:5000"]
    for name in (*theirs, "bank.example", "evil.example", "", "push.example/team"):
        found = asyncio.run(answer(protocol.Ask(1, protocol.AskCredential(name, "team/app"))))  # type: ignore[arg-type]
        assert (found is not None) == (name in theirs), name
        assert found is None or json.loads(found)["password"] == "password"  # type: ignore[arg-type]
    assert asked == [f"{name}/team/app" for name in theirs]
