"""Emulators out of images: where they are looked for, that they stay, that steps run in them and results do not depend
on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import emulators
import pytest
from conftest import Base, Kanifold, needs
from emulator_layouts import FOREIGN, MACHINE, QEMU, file, layout, stopping
from oci_layout import image_manifests
from protocol_nodes import Marked, build, remote
from registry_server import MemoryRegistry, Served

from executor.protocol import BuildOptions, Job
from executor.store import emulators as kept_emulators
from executor.store.store import open_store
from orchestrator.nodes.placement import Placement
from orchestrator.request import BuildRequest
from orchestrator.translation import translate
from platforms import emulation
from platforms.errors import BuildError, EnvironmentUnfit, UsageError
from platforms.parsing import parse

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not MACHINE, reason="needs Linux on x86-64 or arm64")

PLATFORM = f"linux/{FOREIGN}"
PROGRAM = f"usr/bin/{QEMU}"
RUN = "FROM {base}\nRUN uname -m > /machine\n"
EPOCH = "1700000000"


@pytest.fixture
def real(tmp_path: Path) -> str:
    """The name of an image with this machine's qemu."""
    needs(f"{QEMU}-static")
    content = Path(str(emulators.emulator({"arm64": "arm64"}.get(FOREIGN, FOREIGN)))).read_bytes()
    return layout(tmp_path / "real", [file(PROGRAM, content)])


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """The name of an image whose emulator ends every program with the status 42."""
    return layout(tmp_path / "fake", [file(PROGRAM, stopping())])


@pytest.fixture
def context(tmp_path: Path, busybox: Base) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(RUN.format(base=busybox.ref))
    return folder


def private(kanifold: Kanifold) -> None:
    """Skip where no user namespace can have handlers of its own."""
    if f"{PLATFORM}" not in {
        each["platform"] for each in json.loads(kanifold("platforms", "--json").out) if each.get("how") == "private"
    }:
        pytest.skip("a handler in a user namespace needs Linux 6.7, and one for this host's own qemu")


# -- the commands ---------------------------------------------------------------------------------------------------


def test_what_is_added_is_listed_used_and_kept_until_it_is_removed(kanifold: Kanifold, fake: str) -> None:
    where, _, digest = fake.rpartition("@")
    assert digest in kanifold("emulators", "add", FOREIGN, "--image", where).out
    (listed,) = json.loads(kanifold("emulators", "ls", "--json").out)
    assert (listed["architecture"], listed["image"], listed["file"]) == (FOREIGN, fake, QEMU)
    kanifold("prune", "--all")
    (shown,) = (each for each in json.loads(kanifold("platforms", "--json").out) if each["platform"] == PLATFORM)
    assert f"{QEMU} of the image {fake}" in shown["why"], shown
    assert f"{QEMU} of the image {fake}" in kanifold("doctor").out
    kanifold("emulators", "rm", FOREIGN)
    assert kanifold("emulators", "ls").out == ""
    assert fake not in kanifold("platforms").out
    kanifold("prune", "--all")
    assert "snapshot" not in kanifold("du").out
    assert kanifold.run("emulators", "rm", FOREIGN).code == 2


def test_an_emulator_is_replaced_by_the_next_one_that_is_added(kanifold: Kanifold, fake: str, tmp_path: Path) -> None:
    other = layout(tmp_path / "other", [file(f"usr/bin/{QEMU}-static", stopping())])
    for each in (fake, other):
        kanifold("emulators", "add", f"linux/{FOREIGN}", "--image", each)
    (listed,) = json.loads(kanifold("emulators", "ls", "--json").out)
    assert (listed["image"], listed["file"]) == (other, QEMU)


def test_what_needs_no_emulator_or_has_none_is_refused(kanifold: Kanifold, fake: str) -> None:
    for each in (MACHINE, "sparc64", "a b"):
        assert kanifold.run("emulators", "add", each, "--image", fake).code == 2
    missing = kanifold.run("emulators", "add", "s390x", "--image", fake)
    assert missing.code == 3
    assert "/usr/bin/qemu-s390x: there is none" in missing.err
    assert kanifold("emulators", "ls").out == ""


def test_an_image_of_a_registry_is_added_by_its_digest(
    kanifold: Kanifold, server: tuple[MemoryRegistry, Served], tmp_path: Path
) -> None:
    registry, served = server
    name = layout(tmp_path / "image", [file(PROGRAM, stopping())])
    registry.add_layout("qemu", tmp_path / "image")
    kanifold("emulators", "add", FOREIGN, "--image", f"{served.host}/qemu:latest")
    (listed,) = json.loads(kanifold("emulators", "ls", "--json").out)
    assert listed["image"] == f"{served.host}/qemu@{name.rpartition('@')[2]}"


# -- builds ---------------------------------------------------------------------------------------------------------


def test_steps_run_in_the_emulator_that_was_added(kanifold: Kanifold, fake: str, context: Path) -> None:
    private(kanifold)
    kanifold("emulators", "add", FOREIGN, "--image", fake)
    outcome = kanifold.run("build", context, "--platform", PLATFORM, "-o", "type=cacheonly")
    assert outcome.code == 1
    assert "exit code: 42" in outcome.err


@pytest.mark.root
@pytest.mark.parametrize("who", ["kanifold_as_user", "kanifold_as_bare_user"])
def test_an_ordinary_user_has_emulators_of_its_own(who: str, request: pytest.FixtureRequest, busybox: Base) -> None:
    kanifold: Kanifold = request.getfixturevalue(who)
    private(kanifold)
    context = kanifold.folder("context")
    (context / "Dockerfile").write_text(RUN.format(base=busybox.ref))
    kanifold("emulators", "add", FOREIGN, "--image", layout(kanifold.home / "image", [file(PROGRAM, stopping())]))
    outcome = kanifold.run("build", context, "--platform", PLATFORM, "-o", "type=cacheonly")
    assert (outcome.code, "exit code: 42" in outcome.err) == (1, True), outcome.said


def test_steps_run_in_the_emulator_of_the_image_that_is_named_and_no_other(
    kanifold: Kanifold, fake: str, tmp_path: Path, context: Path
) -> None:
    private(kanifold)
    empty = layout(tmp_path / "empty", [file("usr/bin/true", stopping())])
    words = ("build", context, "--platform", PLATFORM, "-o", "type=cacheonly")
    assert "exit code: 42" in kanifold.run(*words, "--emulator-image", fake).err
    assert "exit code: 42" in kanifold.run(*words, KANIFOLD_EMULATOR_IMAGE=fake).err
    assert kanifold("emulators", "ls").out == "", "it is kept for its digest, not added"
    outcome = kanifold.run(*words, "--emulator-image", empty)
    assert (outcome.code, "there is none" in outcome.err) == (3, True)
    assert kanifold(*words).code == 0, "without the flag the installed one is used again"


def test_an_image_without_a_digest_is_refused(kanifold: Kanifold, context: Path) -> None:
    outcome = kanifold.run("build", context, "--platform", PLATFORM, "--emulator-image", "docker.io/example/qemu:1")
    assert outcome.code == 2
    assert "has no digest" in outcome.err


def test_nothing_is_fetched_for_a_build_that_emulates_nothing(kanifold: Kanifold, context: Path) -> None:
    absent = f"oci-layout:///nowhere@sha256:{'0' * 64}"
    kanifold("build", context, "--platform", f"linux/{MACHINE}", "-o", "type=cacheonly", "--emulator-image", absent)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    kanifold("build", context, "--platform", PLATFORM, "-o", "type=cacheonly", "--emulator-image", absent)


def test_results_and_cache_keys_do_not_depend_on_the_emulator(
    kanifold: Kanifold, real: str, context: Path, tmp_path: Path
) -> None:
    private(kanifold)
    words = ("build", context, "--platform", PLATFORM, "--progress", "rawjson")
    kanifold(*words, "-o", f"type=oci,dest={tmp_path / 'one'}", SOURCE_DATE_EPOCH=EPOCH)
    again = kanifold(
        *words, "-o", f"type=oci,dest={tmp_path / 'two'}", "--emulator-image", real, SOURCE_DATE_EPOCH=EPOCH
    )
    said = [json.loads(line) for line in again.err.splitlines()]
    assert [each["type"] for each in said].count("schema") == 1
    assert any(each.get("cached") for each in said)
    kanifold(
        *words, "--no-cache", "-o", f"type=oci,dest={tmp_path / 'three'}", "--emulator-image", real,
        SOURCE_DATE_EPOCH=EPOCH,
    )  # fmt: skip
    one, two, three = (image_manifests(tmp_path / each) for each in ("one", "two", "three"))
    assert one == two == three


def test_a_damaged_layer_leaves_nothing_that_is_used(kanifold: Kanifold, fake: str, tmp_path: Path) -> None:
    blob = max((tmp_path / "fake/blobs/sha256").iterdir(), key=lambda each: each.stat().st_size)
    content = blob.read_bytes()
    blob.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])  # the operating system, which gzip ignores
    outcome = kanifold.run("emulators", "add", FOREIGN, "--image", fake)
    assert (outcome.code, "its content has another digest" in outcome.err) == (1, True)
    assert kanifold("emulators", "ls").out == ""
    assert "snapshot" not in kanifold("du").out
    blob.write_bytes(content)
    kanifold("emulators", "add", FOREIGN, "--image", fake)


@pytest.mark.root
def test_a_store_that_is_mounted_noexec_is_named_as_the_reason(kanifold: Kanifold, fake: str, context: Path) -> None:
    kanifold.root.mkdir()
    mount = 'mount -t tmpfs -o noexec none "$0" && "$@"'
    inside = ("unshare", "--mount", "sh", "-c", mount, str(kanifold.root), *kanifold.command)
    apart = replace(kanifold, command=inside)
    build = ("build", context, "--platform", PLATFORM, "-o", "type=cacheonly", "--emulator-image", fake)
    outcome = apart.run(*build, KANIFOLD_EMULATION="private")  # a tracer starts a copy
    assert outcome.code == 3
    assert "its file system is mounted noexec" in outcome.err
    assert "put the store on one that is not" in outcome.err


# -- elsewhere ------------------------------------------------------------------------------------------------------


def test_a_job_takes_the_name_of_the_image_along_but_no_path_of_this_machine(tmp_path: Path) -> None:
    class Elsewhere:
        name = "far"

    away = Placement(parse(PLATFORM), Elsewhere())  # type: ignore[arg-type]
    name = f"registry.example.com/qemu@sha256:{'1' * 64}"
    job = Job(1, PLATFORM, b"", options=BuildOptions(emulator_image=name))
    assert translate(job, away).job.options.emulator_image == name
    with pytest.raises(UsageError, match="cannot read oci-layout"):
        translate(Job(1, PLATFORM, b"", options=BuildOptions(emulator_image=layout(tmp_path / "x", []))), away)


def test_an_executor_whose_store_lacks_the_image_says_how_to_have_it(tmp_path: Path) -> None:
    name = f"registry.example.com/qemu@sha256:{'1' * 64}"
    with open_store(str(tmp_path / "store")):
        pass
    with pytest.raises(EnvironmentUnfit) as raised:
        emulation.emulation(parse(PLATFORM), kept_emulators.StoreEmulators(str(tmp_path / "store"), name))
    assert f"kanifold emulators add --image {name} {FOREIGN}" in raised.value.problem.remedy


def elsewhere(base: Base, image: str, tmp_path: Path) -> None:
    """Build a step of the foreign platform on a node with a store of its own; raises its error."""
    context = tmp_path / "far"
    context.mkdir()
    (context / "Dockerfile").write_text(RUN.format(base=base.ref))
    options = BuildOptions(emulator_image=image, root=str(tmp_path / "near-store"))
    request = BuildRequest(str(context), platforms=(parse(PLATFORM),), options=options)
    build(request, remote(tmp_path / "far-store", Marked(), HOME=str(tmp_path)))


def test_an_executor_elsewhere_fetches_the_image_into_its_own_store(
    kanifold: Kanifold, busybox: Base, server: tuple[MemoryRegistry, Served], fake: str, tmp_path: Path
) -> None:
    private(kanifold)
    registry, served = server
    registry.add_layout("qemu", tmp_path / "fake")
    with pytest.raises(BuildError, match="did not complete successfully: exit code: 42"):
        elsewhere(busybox, f"{served.host}/qemu@{fake.rpartition('@')[2]}", tmp_path)
    asked = len(served.asked)
    (tmp_path / "far").rename(tmp_path / "before")
    with pytest.raises(BuildError, match="exit code: 42"):
        elsewhere(busybox, f"{served.host}/qemu@{fake.rpartition('@')[2]}", tmp_path)
    assert not any("/qemu/" in each.path for each in served.asked[asked:]), "it is in the store by now"


def test_an_executor_elsewhere_that_cannot_fetch_it_says_why(
    busybox: Base, server: tuple[MemoryRegistry, Served], tmp_path: Path
) -> None:
    name = f"{server[1].host}/qemu@sha256:{'1' * 64}"
    with pytest.raises(BuildError, match=f"cannot pull {name}") as raised:
        elsewhere(busybox, name, tmp_path)
    assert raised.value.exit_code == EnvironmentUnfit.exit_code


def test_the_greeting_of_an_executor_has_what_was_added_there(kanifold: Kanifold, tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [file("usr/bin/qemu-mips64", stopping())])
    kanifold("emulators", "add", "mips64", "--image", image)
    environment = {**kanifold.environment(), "PATH": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "executor"], env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "mips64" in json.loads(done.stdout.splitlines()[0])["emulators"]
