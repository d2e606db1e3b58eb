"""A sparse index lists manifests that are not there: what is there is shown, and the rest is marked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_server import MemoryRegistry, served
from small_images import Images

from orchestrator.cli import cli
from platforms.errors import ArchiveError, KanifoldError, RegistryError

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("HOME", str(tmp_path))

    def inspect(*words: str) -> str:
        capsys.readouterr()
        cli.main(["index", "inspect", *words], standalone_mode=False)
        return capsys.readouterr().out

    return inspect


def sparse() -> tuple[Images, dict[str, str], dict[str, dict[str, object]]]:
    """An index of three platforms and two attestations, one of each not there; its digests by name."""
    made = Images()
    amd, arm, risc = (made.entry(f"linux/{each}") for each in ("amd64", "arm64", "riscv64"))
    attested = made.attestation(amd), made.attestation(arm)
    root = made.index([amd, arm, risc, *attested])
    digests = {"amd": amd["digest"], "arm": arm["digest"], "lost": attested[1]["digest"], "root": root["digest"]}
    for gone in ("arm", "lost"):
        made.blobs.pop(digests[gone])
        made.types.pop(digests[gone])
    return made, digests, {"1": root}


def check(run: Run, name: str, digests: dict[str, str], *flags: str) -> None:
    lines = run(*flags, name).splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("linux/", "attestation"))}
    assert rows["linux/arm64"] == ["linux/arm64", "-", "missing", digests["arm"]]
    assert rows["attestation"] == ["attestation", "-", "missing", digests["lost"]]
    assert rows["linux/amd64"][-1] == digests["amd"]
    assert any("attestation: provenance" in line for line in lines)
    found = json.loads(run("--format", "json", *flags, name))
    assert found["digest"] == digests["root"]
    assert [each["platform"] for each in found["manifests"]] == ["linux/amd64", "linux/riscv64"]
    assert [(each["platform"], each["digest"]) for each in found["missing"]] == [
        ("linux/arm64", digests["arm"]), (None, digests["lost"])
    ]  # fmt: skip
    assert json.loads(run("--format", "{{json .Manifest}}", *flags, name))["digest"] == digests["root"]
    assert list(json.loads(run("--format", "{{json .Image}}", *flags, name))) == ["linux/amd64", "linux/riscv64"]


def test_in_a_registry(run: Run) -> None:
    made, digests, roots = sparse()
    memory = MemoryRegistry()
    made.put(memory, "app", roots)
    with served(memory) as server:
        check(run, f"{server.host}/app:1", digests)


def test_in_a_layout(run: Run, tmp_path: Path) -> None:
    made, digests, roots = sparse()
    made.layout(tmp_path / "layout", roots)
    check(run, f"oci:{tmp_path / 'layout'}:1", digests)


def test_what_is_damaged_is_not_missing(run: Run) -> None:
    made, digests, roots = sparse()
    made.blobs[digests["amd"]] += b" "
    memory = MemoryRegistry()
    made.put(memory, "app", roots)
    with served(memory) as server, pytest.raises((ArchiveError, RegistryError)):
        run(f"{server.host}/app:1")


def test_a_sparse_index_is_not_joined(run: Run, tmp_path: Path) -> None:
    made, digests, roots = sparse()
    made.layout(tmp_path / "layout", roots)
    with pytest.raises(KanifoldError, match=digests["arm"]):
        cli.main(
            ["index", "create", "-t", f"oci:{tmp_path / 'out'}:1", f"oci:{tmp_path / 'layout'}:1"],
            standalone_mode=False,
        )
