"""A node that shares nothing with this machine: what a job names here is sent there, or refused, and no path leaks.

The executor is in a mount namespace where the directory with all that the job is made of is empty, and every byte that
it is sent is kept: a path of this machine could not work there, and would be found.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Base
from msgspec.structs import replace
from object_services import S3, served
from oci_layout import read_image
from protocol_nodes import Marked, apart, build

from executor.objects.cache_account import CacheAccount
from executor.protocol import BuildOptions, CacheExport, CacheInBucket, CacheInDirectory
from executor.registry.reference import parse as reference
from executor.registry.registry_settings import RegistryCertificates, RegistrySettings
from executor.step_options import StepOptions
from orchestrator.cache_accounts import GivenAccount
from orchestrator.outputs import OciLayout, Output, Push
from orchestrator.request import BuildRequest, SecretSource
from platforms.errors import BuildError, KanifoldError, StepFailed, UsageError
from platforms.parsing import parse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")


@dataclass
class Machine:
    """This machine, all of it in ``near``, and a node beside it."""

    near: Path
    far: Path
    mark: Marked

    @property
    def record(self) -> Path:
        return self.far / "sent"

    def build(self, request: BuildRequest) -> None:
        build(request, apart(self.near, self.far / "store", self.record, self.mark))

    def request(self, dockerfile: str, *outputs: Output) -> BuildRequest:
        """A build of ``dockerfile``, whose every part is a path in ``near``."""
        place = self.near / "dockerfiles" / "App"
        place.write_text(dockerfile)
        return BuildRequest(
            context=str(self.near / "context"),
            dockerfile=str(place),
            platforms=(parse("linux/amd64"),),
            outputs=outputs,
            build_contexts=(
                ("image", f"oci-layout://{self.near / 'layout'}"),
                ("more", str(self.near / "more")),
            ),
            secrets=(SecretSource("word", str(self.near / "secrets" / "word")),),
            options=BuildOptions(
                root=str(self.near / "store"),
                registries=RegistrySettings(
                    certificates=(
                        RegistryCertificates(
                            "registry.example.com", "", str(self.near / "cert"), str(self.near / "key")
                        ),
                    )
                ),
            ),
        )

    def leaks(self) -> list[bytes]:
        """What was sent around a path of this machine."""
        sent = self.record.read_bytes()
        assert sent, "nothing was sent"
        found = []
        for path in (str(self.near).encode(), str(Path.home()).encode()):
            at = sent.find(path)
            if at >= 0:
                found.append(sent[max(0, at - 100) : at + 100])
        return found


@pytest.fixture
def machine(tmp_path: Path, busybox: Base, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    near, far = tmp_path / "near", tmp_path / "far"
    for each in (far, *(near / name for name in ("context", "more", "dockerfiles", "secrets", "home"))):
        each.mkdir(parents=True)
    shutil.copytree(busybox.layout, near / "layout")
    (near / "context" / "file").write_text("of the context")
    (near / "context" / ".dockerignore").write_text("ignored\n")
    (near / "context" / "ignored").write_text("ignored")
    (near / "more" / "file").write_text("of the named context")
    (near / "secrets" / "word").write_text("hush")
    monkeypatch.setenv("HOME", str(near / "home"))
    monkeypatch.delenv("KANIFOLD_ROOT", raising=False)
    mark = Marked()
    yield Machine(near, far, mark)
    assert mark.wait_until_gone(3) == [], "a process is left"


EVERYTHING = """
FROM image
COPY . /context/
COPY --from=more file /more
COPY --from=image /bin/busybox /copied
RUN --mount=type=secret,id=word test "$(cat /run/secrets/word)" = hush && echo ran > /ran
"""


def test_a_job_that_names_all_there_is_here_is_done_there(machine: Machine, tmp_path: Path) -> None:
    out = machine.near / "out"
    machine.build(machine.request(EVERYTHING, OciLayout(str(out))))
    seen = read_image(out, "linux/amd64")
    assert seen.text("/context/file") == "of the context"
    assert seen.text("/more") == "of the named context"
    assert seen.text("/ran") == "ran\n"
    assert "copied" in seen.tree
    assert "context/ignored" not in seen.tree
    assert machine.leaks() == []
    assert (machine.far / "store").is_dir(), "the executor has no store of its own"


def test_a_cache_in_a_directory_is_reached_from_there(machine: Machine) -> None:
    cache = CacheInDirectory(str(machine.near / "cache"))
    request = machine.request("FROM image\nRUN echo ran > /ran\n", OciLayout(str(machine.near / "out")))
    for options in (
        replace(request.options, cache_to=(CacheExport(cache),)),
        replace(request.options, cache_from=(cache,)),
    ):
        machine.build(replace(request, options=options))
        assert machine.leaks() == []
        shutil.rmtree(machine.far / "store")
    assert list((machine.near / "cache" / "steps").iterdir())


def test_an_archive_of_a_layout_is_sent_like_one(machine: Machine) -> None:
    shutil.make_archive(str(machine.near / "archive"), "tar", machine.near / "layout")
    request = machine.request("FROM image\nRUN echo ran > /ran\n", OciLayout(str(machine.near / "out")))
    archive = f"oci-layout://{machine.near / 'archive.tar'}"
    machine.build(replace(request, build_contexts=(("image", archive),)))
    assert read_image(machine.near / "out", "linux/amd64").text("/ran") == "ran\n"
    assert machine.leaks() == []


def test_a_layout_is_named_with_its_tag(machine: Machine) -> None:
    request = machine.request("FROM image\nRUN echo ran > /ran\n", OciLayout(str(machine.near / "out")))
    wrong = replace(request, build_contexts=(("image", f"oci-layout://{machine.near / 'layout'}:none"),))
    with pytest.raises(BuildError, match="no image called 'none'"):
        machine.build(wrong)
    assert machine.leaks() == []


def test_an_error_is_shown_where_it_is_for_the_user(machine: Machine) -> None:
    request = machine.request("FROM image\nRUN exit 7\n", OciLayout(str(machine.near / "out")))
    with pytest.raises(BuildError) as caught:
        machine.build(request)
    trouble = caught.value.troubles[0].problem  # type: ignore[attr-defined]
    assert trouble.kind == StepFailed.__name__
    assert trouble.where.file == request.dockerfile
    assert trouble.where.line == 2
    assert machine.leaks() == []


def test_what_is_wrong_with_a_file_here_is_said_here_alone(machine: Machine) -> None:
    request = machine.request(EVERYTHING, OciLayout(str(machine.near / "out")))
    secret = machine.near / "secrets" / "word"
    secret.unlink()
    with pytest.raises(BuildError) as caught:
        machine.build(request)
    trouble = caught.value.troubles[0].problem  # type: ignore[attr-defined]
    assert str(secret) in trouble.what
    assert trouble.why == os.strerror(2)
    assert trouble.remedy
    assert trouble.where.file == request.dockerfile
    assert machine.leaks() == []


def test_a_cache_at_a_service_is_used_from_there_with_the_account_of_here(machine: Machine) -> None:
    with served(service := S3()):
        name = f"{service.url}/bucket"
        cache = CacheInBucket(
            name, "bucket", "eu-west-1", "steps", ("app",), "blobs", endpoint=service.url, path_style=True
        )
        request = machine.request("FROM image\nRUN echo ran > /ran\n", OciLayout(str(machine.near / "out")))
        machine.build(
            replace(
                request,
                options=replace(request.options, cache_from=(cache,), cache_to=(CacheExport(cache),)),
                cache_accounts=(GivenAccount(name, CacheAccount("key", "not-of-this-world")),),
            )
        )
        assert any(key.startswith("steps/app/") for key in service.objects)
    assert b"not-of-this-world" in machine.record.read_bytes(), "the executor was not given the account"
    assert not any(
        b"not-of-this-world" in path.read_bytes()
        for path in machine.far.rglob("*")
        if path.is_file() and path != machine.record
    )
    assert machine.leaks() == []


@pytest.mark.parametrize("flag", ["--cgroup-parent", "certificate"])
def test_what_is_for_this_machine_alone_is_refused_before_anything_is_sent(machine: Machine, flag: str) -> None:
    request = machine.request("FROM image\nRUN echo ran > /ran\n", OciLayout(str(machine.near / "out")))
    options = request.options
    match flag:
        case "--cgroup-parent":
            options = replace(options, steps=StepOptions(cgroup_parent="/of/this/machine"))
        case _:
            request = replace(request, outputs=(Push(),), tags=(reference("registry.example.com/app:1"),))
    with pytest.raises(KanifoldError, match=flag) as caught:
        machine.build(replace(request, options=options))
    assert isinstance(caught.value, UsageError)
    assert "elsewhere" in caught.value.problem.what
    assert caught.value.problem.why
    assert caught.value.problem.remedy
    assert b'"job"' not in machine.record.read_bytes()


def test_an_isolation_mode_that_the_node_is_not_in_is_refused_for_steps_alone(machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, whose mode is namespaces")
    layout = OciLayout(str(machine.near / "out"))
    asking = BuildOptions(root=str(machine.near / "store"), isolation="single")
    machine.build(replace(machine.request("FROM image\nCOPY file /\n", layout), options=asking))
    request = replace(machine.request("FROM image\nRUN true\n", layout), options=asking)
    with pytest.raises(KanifoldError, match="this executor does so by namespaces, not single"):
        machine.build(request)
