"""Every option of ``docker buildx imagetools``, beside what buildx makes of it.

buildx is a Go module (github.com/docker/buildx/cmd/buildx); the tests skip without it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import judges
import pytest
from registry_server import docker_registry
from small_images import Images

from orchestrator.cli import cli
from orchestrator.index.commands import index
from platforms.errors import KanifoldError

pytestmark = [
    pytest.mark.registry,
    judges.needs("buildx"),
]

Run = Callable[..., str]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A repository that holds ``two`` (an index with attestations), ``one``, ``docker``, ``risc``; their digests."""
    folder = tmp_path_factory.mktemp("images")
    made = Images()
    amd, arm = made.entry("linux/amd64"), made.entry("linux/arm64")
    two = made.index([amd, arm, made.attestation(amd), made.attestation(arm)])
    lists = {
        "two": two,
        "one": made.image("linux/amd64"),
        "risc": made.image("linux/riscv64"),
        "docker": made.image("linux/s390x", docker=True),
        "docker-too": made.image("linux/ppc64le", docker=True),
    }
    made.layout(folder / "in", lists)
    with docker_registry(folder / "registry") as host:
        for name in lists:
            cli.main(["copy", "-q", f"oci:{folder / 'in'}:{name}", f"{host}/app:{name}"], standalone_mode=False)
        yield f"{host}/app", {name: each["digest"] for name, each in lists.items()}


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*words: str) -> str:
        capsysbinary.readouterr()
        cli.main(["index", *words], standalone_mode=False)
        return capsysbinary.readouterr().out.decode()

    return run


@pytest.fixture
def theirs(tmp_path: Path) -> Run:
    def run(*words: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(
            [judges.find("buildx"), "imagetools", *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def meaning(document: str) -> Any:
    """The document without what the two may write differently and mean the same by: empty annotations."""
    found = json.loads(document)
    for each in (found, *found.get("manifests", ())):
        if not each.get("annotations", True):
            del each["annotations"]
    return found


SAME = [
    ["{app}:two"],
    ["{app}:one"],
    ["--prefer-index=false", "{app}:one"],
    ["--prefer-index=true", "{app}:one"],
    ["{app}:two", "{app}:risc"],
    ["{app}:risc", "{app}:two"],
    ["{app}:one", "{app}:two"],
    ["{app}@{risc}", "{app}:one"],
    ["{risc}", "{app}:one"],
    ["{app}:docker"],
    ["{app}:docker", "{app}:docker-too"],
    ["{app}:docker", "{app}:risc"],
    ["-p", "linux/arm64", "{app}:two"],
    ["--platform", "linux/arm64,linux/riscv64", "{app}:two", "{app}:risc"],
    ["-p", "linux/amd64", "-p", "linux/arm64/v8", "{app}:two"],
    ["--annotation", "index:a=b", "--annotation", "index:c=d=e", "{app}:one"],
    ["--annotation", "manifest-descriptor:a=b", "{app}:one", "{app}:risc"],
    ["--annotation", "manifest-descriptor[linux/riscv64]:a=b", "{app}:one", "{app}:risc"],
    ["--annotation", "index,manifest-descriptor:a=b", "{app}:one", "{app}:risc"],
    ["--append", "-t", "{app}:two", "{app}:risc"],
    ["--progress", "plain", "--builder", "default", "{app}:two"],
]


@pytest.mark.parametrize("words", SAME, ids=" ".join)
def test_a_dry_run_comes_to_the_same_index(
    images: tuple[str, dict[str, str]], ours: Run, theirs: Run, words: Sequence[str]
) -> None:
    app, digests = images
    written = [each.format(app=app, **digests) for each in words]
    own = ours("create", "--dry-run", *written)
    builder = ["--builder", "default"] if "--builder" not in written else []
    assert meaning(own) == meaning(theirs("create", "--dry-run", *builder, *written))


FILES = [
    "{risc}",
    "{app}:risc",
    '{{"digest": "{risc}", "annotations": {{"k": "v"}}}}',
    '{{"digest": "{risc}", "platform": {{"os": "linux", "architecture": "riscv64", "os.version": "10"}}}}',
    '{{"digest": "{risc}", "platform": {{"os": "freebsd"}}}}',
]


@pytest.mark.parametrize("text", FILES)
def test_files_mean_the_same(
    images: tuple[str, dict[str, str]], ours: Run, theirs: Run, text: str, tmp_path: Path
) -> None:
    app, digests = images
    (tmp_path / "source").write_text(text.format(app=app, **digests))
    words = ("create", "--dry-run", "-f", str(tmp_path / "source"), f"{app}:one")
    assert meaning(ours(*words)) == meaning(theirs(*words))


def test_the_metadata_file_has_buildxs_keys(
    images: tuple[str, dict[str, str]], ours: Run, theirs: Run, tmp_path: Path
) -> None:
    app, digests = images
    found = []
    for run, tag in ((ours, "ours"), (theirs, "theirs")):
        file = tmp_path / f"{tag}.json"
        run("create", "-t", f"{app}:{tag}", "--metadata-file", str(file), f"{app}:two")
        found.append(json.loads(file.read_text()))
    assert found[1].keys() <= found[0].keys()
    assert found[0]["containerimage.descriptor"] == found[1]["containerimage.descriptor"]
    assert found[0]["containerimage.digest"] == digests["two"]


@pytest.mark.parametrize("tag", ["two", "one", "docker"])
@pytest.mark.parametrize(
    "template",
    ["{{json .Manifest}}", "{{json .Image}}", "{{.Name}}", "{{.Manifest.Digest}}", "{{.Manifest.MediaType}}",
     "{{json .Provenance}}", "{{json .SBOM}}", "{{json .}}", "{{.Name}}: {{- .Manifest.Size}} bytes"],
)  # fmt: skip
def test_templates_show_the_same(
    images: tuple[str, dict[str, str]], ours: Run, theirs: Run, template: str, tag: str
) -> None:
    name = f"{images[0]}:{tag}"
    own, other = (run("inspect", "--format", template, name).strip() for run in (ours, theirs))
    if "json" in template:
        assert json.loads(own) == json.loads(other)
    else:
        assert own == other


def test_raw_is_byte_by_byte(images: tuple[str, dict[str, str]], ours: Run, theirs: Run) -> None:
    assert ours("inspect", "--raw", f"{images[0]}:two") == theirs("inspect", "--raw", f"{images[0]}:two")


def test_buildx_reads_what_was_joined(images: tuple[str, dict[str, str]], ours: Run, theirs: Run) -> None:
    app, _ = images
    digest = ours("create", "-t", f"{app}:joined", "--annotation", "a=b", f"{app}:two", f"{app}:docker").strip()
    shown = theirs("inspect", f"{app}:joined")
    assert digest in shown
    assert all(platform in shown for platform in ("linux/amd64", "linux/arm64", "linux/s390x"))


REFUSED = [
    ["--annotation", "manifest:a=b", "{app}:two"],
    ["--annotation", "manifest[linux/amd64]:a=b", "{app}:two"],
    ["--annotation", "nonsense:a=b", "{app}:two"],
    ["-p", "linux/s390x", "{app}:two"],
    ["--builder", "nonsense", "{app}:two"],
    ["{app}:nothing"],
    ["-f", "/nowhere", "{app}:two"],
    [],
]


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_buildx_refuses_is_refused(
    images: tuple[str, dict[str, str]], ours: Run, theirs: Run, words: Sequence[str]
) -> None:
    app, digests = images
    written = [each.format(app=app, **digests) for each in words]
    with pytest.raises((KanifoldError, click.ClickException)):
        ours("create", "--dry-run", *written)
    with pytest.raises(AssertionError, match="ERROR"):
        theirs("create", "--dry-run", *written)


BEYOND = [
    (["--annotation", "a=b"], "annotations are not supported yet"),
    (["--annotation", "index-descriptor:a=b"], "annotations are invalid while creating an image"),
]


@pytest.mark.parametrize(("words", "why"), BEYOND)
def test_what_only_buildx_refuses(
    images: tuple[str, dict[str, str]], ours: Run, theirs: Run, words: Sequence[str], why: str
) -> None:
    source = f"{images[0]}:two"
    ours("create", "--dry-run", *words, source)
    with pytest.raises(AssertionError, match=why):
        theirs("create", "--dry-run", *words, source)


def test_pushing_to_several_tags_and_repositories_is_the_same(
    images: tuple[str, dict[str, str]], ours: Run, theirs: Run
) -> None:
    app, _ = images
    raw = []
    for run, name in ((ours, "ours"), (theirs, "theirs")):
        tags = [f"{app}:{name}-1", f"{app}:{name}-2", f"{app}-{name}/deep:1"]
        words = [word for each in tags for word in ("-t", each)]
        run("create", *words, f"{app}:two", f"{app}:risc")
        raw += [str(meaning(ours("inspect", "--raw", each))) for each in tags]
        run("create", "--append", *words[:4], f"{app}:docker")
        raw += [f"appended {meaning(ours('inspect', '--raw', each))}" for each in tags[:2]]
    assert raw[:5] == raw[5:]
    assert len(set(raw)) == 2


@pytest.mark.parametrize("mode", ["auto", "none", "plain", "rawjson"])  # for tty, buildx wants a terminal
def test_progress_has_buildxs_modes(images: tuple[str, dict[str, str]], ours: Run, theirs: Run, mode: str) -> None:
    name = f"{images[0]}:progress"
    for run in (ours, theirs):
        run("create", "--progress", mode, "-t", name, f"{images[0]}:two")


def test_every_option_of_buildx_is_one_here(theirs: Run) -> None:
    """A new one of buildx's fails this test; those that there are have tests above."""
    commands = {"create": index.commands["create"], "inspect": index.commands["inspect"]}
    tested = {
        "create": {"--annotation", "--append", "--builder", "--dry-run", "--file", "--metadata-file", "--platform",
                   "--prefer-index", "--progress", "--tag"},
        "inspect": {"--builder", "--format", "--raw"},
    }  # fmt: skip
    for name, command in commands.items():
        listed = set(re.findall(r"(--[a-z-]+)", theirs(name, "--help").partition("Flags:")[2])) - {"--help", "--debug"}
        own = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        assert listed == tested[name]
        assert listed <= own
