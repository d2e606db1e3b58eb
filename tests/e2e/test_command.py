"""The command line: what it answers, where results go, what a second build costs, what looks after the store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Base, Kanifold, Reader

Context = Callable[[Mapping[str, str | bytes]], Path]


def test_help_is_worth_reading(kanifold: Kanifold) -> None:
    said = kanifold("--help").out
    for word in ("build", "platforms", "doctor", "prune", "du"):
        assert re.search(rf"^\s+{word}\s+\w+", said, re.M), f"{word} has no line in --help"
    flags = kanifold("build", "--help").out
    for flag in (
        "--file", "--platform", "--tag", "--build-arg", "--target", "--label", "--annotation", "--push", "--output",
        "--no-cache", "--pull", "--progress", "--metadata-file", "--iidfile", "--jobs", "--keep-going", "--audit",
    ):  # fmt: skip
        assert flag in flags


def test_version_is_the_packages(kanifold: Kanifold) -> None:
    assert re.fullmatch(r"kanifold\D* \d+\.\d+\.\d+\n", kanifold("--version").out)


def test_platforms_says_how_each_runs(kanifold: Kanifold) -> None:
    said = kanifold("platforms").out
    assert re.search(r"linux/(amd64|arm64)\b.*native", said)
    assert "qemu" in said


def test_doctor_says_which_rung_and_why(kanifold: Kanifold) -> None:
    said = kanifold("doctor").said
    assert "namespaces" in said
    assert "qemu" in said or "emulat" in said


@pytest.mark.parametrize("command", ["du", "prune"])
def test_a_store_that_is_not_there_is_not_made_by_looking_at_it(kanifold: Kanifold, command: str) -> None:
    outcome = kanifold.run(command, "--root", kanifold.home / "elsewhere")
    assert outcome.code == 2
    assert f"there is no store at {kanifold.home / 'elsewhere'}" in outcome.err
    assert not (kanifold.home / "elsewhere").exists()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("bu", ["plain,build"]),
        ("build --progress q", ["plain,quiet"]),
        ("build --platform linux/amd64,linux/s", ["plain,linux/amd64,linux/s390x"]),
        ("build ex", ["dir,ex"]),
        ("build --file Do", ["file,Do"]),
    ],
)
def test_the_shell_completes_commands_values_and_paths(kanifold: Kanifold, typed: str, offered: list[str]) -> None:
    words = f"kanifold {typed}"
    said = kanifold.run(_KANIFOLD_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    assert said.out.splitlines() == offered


def test_without_a_destination_a_layout_is_written_and_its_path_printed(
    kanifold: Kanifold, busybox: Base, context: Context, read: Reader
) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nCOPY f /\n", "f": "content"})
    outcome = kanifold("build", folder, "--platform", "linux/amd64,linux/arm64", cwd=folder)
    layout = next(path.parent for path in folder.rglob("oci-layout") if path.is_file())
    assert str(layout) in outcome.said or layout.name in outcome.said
    assert read(layout, "linux/arm64").text("/f") == "content"


def test_on_a_terminal_the_digest_is_there_once_and_last(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nCOPY f /\n", "f": "content"})
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [*kanifold.command, "build", "."], cwd=folder, env=kanifold.environment(TERM="xterm"), stdin=theirs,
        stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError), open(ours, "rb", 0, closefd=False) as terminal:
            while block := terminal.read(4096):
                said += block
        os.close(ours)
    assert process.returncode == 0
    last = said.decode().split("✓ built in")[-1]
    assert len(re.findall(r"sha256:[0-9a-f]{64}", last)) == 1
    assert re.search(r"sha256:[0-9a-f]{64}\s*$", last)


def test_a_progress_bar_is_heard_of_before_its_line_ends(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    folder = context(
        {"Dockerfile": f"FROM {busybox.ref}\nRUN printf 'a line\\r\\n10%%\\r20%%\\r30%%\\r'; sleep 1000\n"}
    )
    with kanifold.start("build", folder, "--progress", "plain") as process:
        assert process.stderr is not None
        output = (line.split()[-1] for line in process.stderr if re.search(r"/2\] \d+\.\d+ ", line))
        heard = [next(output), next(output)]
        process.terminate()
    assert heard == ["line", "20%"]


def test_one_build_has_several_destinations(
    kanifold: Kanifold, busybox: Base, context: Context, registry: str, read: Reader, tmp_path: Path
) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nCOPY f /\n", "f": "content"})
    tar, plain = tmp_path / "image.tar", tmp_path / "layout"
    metadata, iid = tmp_path / "metadata.json", tmp_path / "iid"
    one, two = f"{registry}/several/one:1", f"{registry}/several/two:2"
    kanifold(
        "build", folder, "--platform", "linux/amd64,linux/arm64", "-t", one, "-t", two, "--push",
        "-o", f"type=oci,dest={tar},tar=true", "-o", f"type=oci,dest={plain}",
        "--metadata-file", metadata, "--iidfile", iid,
    )  # fmt: skip
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "unpacked")
    for where in (one, two, tmp_path / "unpacked", plain):
        assert read(where, "linux/arm64").text("/f") == "content"
    digest = json.loads(metadata.read_text())["containerimage.digest"]
    assert digest == iid.read_text()
    assert read(f"{registry}/several/one@{digest}").text("/f") == "content"


def test_labels_annotations_and_arguments_arrive(
    kanifold: Kanifold, busybox: Base, context: Context, read: Reader
) -> None:
    text = f"FROM {busybox.ref} AS first\nARG WHO=nobody\nRUN echo $WHO > /who\nFROM first AS second\nRUN false\n"
    dest, folder = kanifold.home / "out", context({"recipe": text})
    kanifold(
        "build", folder, "-f", "recipe", "--target", "first", "--build-arg", "WHO=me",
        "--label", "a=b", "--annotation", "manifest:c=d", "--annotation", "index:e=f",
        "--platform", "linux/amd64,linux/arm64", "-o", f"type=oci,dest={dest}", cwd=folder,
    )  # fmt: skip
    seen = read(dest)
    assert seen.text("/who") == "me\n"
    assert seen.config["config"]["Labels"] == {"a": "b"}
    assert seen.manifest["annotations"]["c"] == "d"
    top = json.loads((dest / "index.json").read_text())
    index = json.loads((dest / "blobs" / top["manifests"][0]["digest"].replace(":", "/")).read_text())
    assert index["annotations"]["e"] == "f"


def test_an_unchanged_build_runs_nothing(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN cat /proc/sys/kernel/random/uuid > /once\nCOPY f /\n"})
    (folder / "f").write_text("one")
    both = ("--platform", "linux/amd64,linux/arm64", "--iidfile")

    def digest(name: str, *more: str) -> str:
        file = kanifold.home / name
        kanifold("build", folder, *both, file, "-o", f"type=oci,dest={file}.oci", *more)
        return file.read_text()

    first = digest("first")
    assert digest("second") == first, "the random number was drawn again"
    assert digest("third", "--no-cache") != first
    (folder / "f").write_text("two")
    assert digest("fourth") != first


def test_the_store_can_be_seen_and_pruned(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo x > /x\n"})
    kanifold("build", folder, "-o", f"type=oci,dest={kanifold.home / 'out'}")
    assert kanifold("du").out.strip()
    used = sum(path.stat().st_size for path in kanifold.root.rglob("*") if path.is_file())
    kanifold("prune", "--all")
    left = sum(path.stat().st_size for path in kanifold.root.rglob("*") if path.is_file())
    assert left < used / 2


@pytest.mark.parametrize("progress", ["plain", "rawjson", "quiet"])
def test_progress_without_a_terminal(kanifold: Kanifold, busybox: Base, context: Context, progress: str) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo to be seen\n"})
    outcome = kanifold("build", folder, "--progress", progress, "-o", f"type=oci,dest={kanifold.home / 'out'}")
    assert "\x1b" not in outcome.said
    lines = (outcome.out + outcome.err).splitlines()
    if progress == "plain":
        assert any("to be seen" in line and "RUN" not in line for line in lines)
    elif progress == "rawjson":
        assert all(isinstance(json.loads(line), dict) for line in outcome.err.splitlines())
    else:
        assert "to be seen" not in outcome.said


def test_a_binary_of_another_architecture_is_found(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    text = f"FROM --platform=linux/amd64 {busybox.ref} AS fetched\nFROM {busybox.ref}\n" + (
        "COPY --from=fetched /bin/busybox /opt/tool\n"
    )
    folder = context({"Dockerfile": text})
    arguments = ("build", folder, "--platform", "linux/arm64", "-o", f"type=oci,dest={kanifold.home / 'out'}")
    warned = kanifold(*arguments)
    found = "/opt/tool is amd64"
    assert found in warned.err
    refused = kanifold.run(*arguments, "--audit=error")
    assert refused.code == 1
    assert found in refused.err
    assert found not in kanifold(*arguments, "--audit=off").err
    assert kanifold.run(*arguments, "--audit=error", "--audit-allow", "/opt/tool").code == 0


def test_a_package_that_brings_a_program_for_each_platform_is_no_finding(
    kanifold: Kanifold, busybox: Base, context: Context
) -> None:
    text = f"FROM --platform=linux/amd64 {busybox.ref} AS x64\nFROM --platform=linux/arm64 {busybox.ref} AS arm64\n" + (
        "FROM scratch\n"
        "COPY --from=x64 /bin/busybox /app/node_modules/x/prebuilds/linux-x64/x.node\n"
        "COPY --from=arm64 /bin/busybox /app/node_modules/x/prebuilds/linux-arm64/x.node\n"
    )
    folder = context({"Dockerfile": text})
    out = f"type=oci,dest={kanifold.home / 'out'}"
    both = ("build", folder, "--platform", "linux/amd64,linux/arm64", "--audit=error", "-o", out)
    kanifold(*both)
    (folder / "Dockerfile").write_text(text + "COPY --from=x64 /bin/busybox /usr/bin/tool\n")
    refused = kanifold.run(*both)
    assert refused.code == 1
    assert "/usr/bin/tool is amd64" in refused.err
    assert "x.node is amd64" not in refused.err
