"""Names of images, and the sources of an index: words, files, descriptors, metadata of builds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from executor.registry import reference
from orchestrator import ci_run
from orchestrator.index import names, source_arguments
from orchestrator.index.names import ImageName, LayoutName, RegistryName
from platforms.errors import BuildError, UsageError

DIGEST = "sha256:" + "a" * 64


def registry(text: str) -> RegistryName:
    return RegistryName(reference.parse(text))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("app", registry("docker.io/library/app:latest")),
        ("r.example.com/app:1", registry("r.example.com/app:1")),
        (f"r.example.com/app@{DIGEST}", registry(f"r.example.com/app@{DIGEST}")),
        ("docker://app:1", registry("app:1")),
        ("docker-image://app:1", registry("app:1")),
        ("oci-layout://out", LayoutName("out")),
        ("oci-layout:///abs/out:v1", LayoutName("/abs/out", "v1")),
        (f"oci-layout://out:v1@{DIGEST}", LayoutName("out", "v1", DIGEST)),
        ("oci:out:v1", LayoutName("out", "v1")),
        ("oci-archive:a.tar", LayoutName("a.tar", archive=True)),
        ("oci-archive:dir/a.tar:v1", LayoutName("dir/a.tar", "v1", archive=True)),
        ("./out", LayoutName("./out")),
        ("./out:v1", LayoutName("./out", "v1")),
        ("/abs/a.tar", LayoutName("/abs/a.tar", archive=True)),
        ("../a.tar:v1", LayoutName("../a.tar", "v1", archive=True)),
    ],
)
def test_names(text: str, meant: ImageName) -> None:
    assert names.parse(text) == meant


def test_a_path_that_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "a:b"
    odd.mkdir()
    assert names.parse(str(odd)) == LayoutName(str(odd))
    file = tmp_path / "image"
    file.touch()
    assert names.parse(str(file)) == LayoutName(str(file), archive=True)


@pytest.mark.parametrize(
    "text",
    ["", "case/UPPER:1", "docker-daemon:app", "containers-storage:app", "docker-archive:a.tar", "oci-layout://",
     "oci-layout://:tag", "oci:out:bad tag", "oci-layout://out@sha256:123", "a\x1bb"],
)  # fmt: skip
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        names.parse(text)


@pytest.mark.parametrize("text", [f"r.example.com/app@{DIGEST}", f"oci-layout://out@{DIGEST}"])
def test_nothing_is_written_to_a_digest(text: str) -> None:
    with pytest.raises(UsageError, match="cannot write to"):
        names.parse_target(text)


def located(text: str, *targets: str) -> ImageName:
    given = source_arguments.parse(text)
    return given.located(source_arguments.homes([given], [names.parse(each) for each in targets]))


def test_a_digest_is_looked_for_in_the_only_repository() -> None:
    assert located(DIGEST, "r.example.com/app:1", "r.example.com/app:2") == registry(f"r.example.com/app@{DIGEST}")
    assert located(f" {DIGEST}\n", "oci-layout://out:1") == LayoutName("out", digest=DIGEST)
    for targets in ((), ("r.example.com/a", "r.example.com/b")):
        with pytest.raises(UsageError, match="nothing says where"):
            located(DIGEST, *targets)


def test_a_descriptor_may_be_given_as_json() -> None:
    text = json.dumps(
        {"digest": DIGEST, "platform": {"os": "linux", "architecture": "arm64"}, "annotations": {"k": "v"}}
    )
    given = source_arguments.parse(text)
    assert given.digest == DIGEST
    assert given.descriptor is not None
    assert (given.descriptor.media_type, given.descriptor.size) == ("", 0)
    assert given.descriptor.annotations == (("k", "v"),)


@pytest.mark.parametrize(
    "document",
    [
        {"schemaVersion": 2, "manifests": []},
        {"mediaType": "application/vnd.oci.image.manifest.v1+json"},
        {"digest": "not-a-digest"},
        {"digest": DIGEST, "size": -1},
        {"digest": DIGEST, "annotations": {"k": 1}},
        [],
    ],
)
def test_json_that_is_no_descriptor(document: object) -> None:
    with pytest.raises(UsageError):
        source_arguments.parse(json.dumps(document) if document else "{")


def metadata(path: Path, digest: str, images: str = "r.example.com/app:1", **more: object) -> Path:
    path.write_text(json.dumps({"containerimage.digest": digest, "image.name": images, **more}))
    return path


def test_what_a_build_wrote_names_its_image_by_digest(tmp_path: Path) -> None:
    file = metadata(tmp_path / "m.json", DIGEST, "r.example.com/app:1,other.example.com/app:1")
    for found in (*source_arguments.read(str(file)), *source_arguments.read_metadata(str(file))):
        assert found.located(()) == registry(f"r.example.com/app@{DIGEST}")
        home = RegistryName(reference.parse("other.example.com/app"))
        assert found.located((home,)) == registry(f"other.example.com/app@{DIGEST}"), "near where it is to be"


def test_what_buildx_wrote_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps({"containerimage.descriptor": {"digest": DIGEST, "size": 1}, "image.name": "app"}))
    assert source_arguments.read(str(file))[0].located(()) == registry(f"docker.io/library/app@{DIGEST}")


def test_a_directory_of_metadata_is_read_by_name(tmp_path: Path) -> None:
    digests = ["sha256:" + letter * 64 for letter in "ba"]
    metadata(tmp_path / "2.json", digests[0])
    metadata(tmp_path / "1.json", digests[1])
    (tmp_path / "notes.txt").write_text("nothing")
    assert [each.digest for each in source_arguments.read_metadata(str(tmp_path))] == [digests[1], digests[0]]


def test_builds_from_other_bases_are_not_joined(tmp_path: Path) -> None:
    digests = ["sha256:" + letter * 64 for letter in "abc"]
    metadata(tmp_path / "1.json", digests[0], **{"kanifold.pins": {"debian:12": digests[0], "alpine": digests[1]}})
    metadata(tmp_path / "2.json", digests[1], **{"kanifold.pins": {"debian:12": digests[0]}})
    metadata(tmp_path / "3.json", digests[2])
    source_arguments.check_same_build(source_arguments.read_metadata(str(tmp_path)))
    metadata(tmp_path / "2.json", digests[1], **{"kanifold.pins": {"debian:12": digests[2]}})
    with pytest.raises(BuildError, match="not built from the same debian:12") as caught:
        source_arguments.check_same_build(source_arguments.read_metadata(str(tmp_path)))
    for part in ("1.json", "2.json", digests[0], digests[2]):
        assert part in caught.value.problem.why


def test_metadata_of_another_run_is_not_joined(tmp_path: Path) -> None:
    digests = ["sha256:" + letter * 64 for letter in "abc"]
    first = ci_run.run_of({"GITHUB_SERVER_URL": "https://g.example", "GITHUB_REPOSITORY": "a/b", "GITHUB_RUN_ID": "7"})
    assert first == "github https://g.example a/b 7"
    metadata(tmp_path / "1.json", digests[0], **{"kanifold.run": first})
    metadata(tmp_path / "2.json", digests[1], **{"kanifold.run": first})
    metadata(tmp_path / "3.json", digests[2])
    source_arguments.check_same_build(source_arguments.read_metadata(str(tmp_path)))
    metadata(tmp_path / "2.json", digests[1], **{"kanifold.run": "gitlab 8\x1b[2J\n"})
    with pytest.raises(BuildError, match="not built in the same run") as caught:
        source_arguments.check_same_build(source_arguments.read_metadata(str(tmp_path)))
    for part in ("1.json", "2.json", "a/b 7", "gitlab 8"):
        assert part in caught.value.problem.why
    assert caught.value.problem.why.isprintable()


@pytest.mark.parametrize(
    ("environ", "run"),
    [
        ({}, ""),
        ({"CI_PIPELINE_ID": "5", "CI_SERVER_URL": "https://l.example", "CI_PROJECT_PATH": "a/b"},
         "gitlab https://l.example a/b 5"),
        ({"JENKINS_URL": "https://j.example", "BUILD_TAG": "jenkins-a-5"}, "jenkins https://j.example jenkins-a-5"),
        ({"JENKINS_URL": "https://j.example"}, ""),
    ],
)  # fmt: skip
def test_a_run_is_named_by_the_ci_systems_variables(environ: dict[str, str], run: str) -> None:
    assert ci_run.run_of(environ) == run


def test_other_dockerfiles_are_told(tmp_path: Path) -> None:
    digests = ["sha256:" + letter * 64 for letter in "ab"]
    for number, dockerfile in enumerate((digests[0], digests[0])):
        metadata(tmp_path / f"{number}.json", digests[number], **{"kanifold.dockerfile": dockerfile})
    assert source_arguments.different_dockerfile(source_arguments.read_metadata(str(tmp_path))) is None
    metadata(tmp_path / "1.json", digests[1], **{"kanifold.dockerfile": digests[1]})
    problem = source_arguments.different_dockerfile(source_arguments.read_metadata(str(tmp_path)))
    assert problem is not None
    assert "0.json" in problem.why
    assert "1.json" in problem.why


def test_an_image_of_another_name_among_others_is_told(tmp_path: Path) -> None:
    digests = ["sha256:" + letter * 64 for letter in "ab"]
    target = (registry("r.example.com/app:2"),)

    def told(first: str, second: str) -> str:
        for number, image in enumerate((first, second)):
            metadata(tmp_path / f"{number}.json", digests[number], image, **{"kanifold.dockerfile": digests[0]})
        problem = source_arguments.different_repositories(source_arguments.read_metadata(str(tmp_path)), target)
        return problem.what + problem.why if problem else ""

    assert told("r.example.com/app:1", "r.example.com/app:1-arm64,x/y") == ""
    assert told("r.example.com/staging:1", "r.example.com/staging:1") == "", "a copy to another place"
    mixed = told("r.example.com/app:1", "r.example.com/other:1")
    assert "1.json" in mixed
    assert "r.example.com/other" in mixed


def test_a_directory_without_metadata_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no metadata"):
        source_arguments.read_metadata(str(tmp_path))


def test_a_file_has_a_source_a_line(tmp_path: Path) -> None:
    file = tmp_path / "digests"
    file.write_text(f"\n{DIGEST}\r\n  r.example.com/app:1 \n")
    assert [each.text for each in source_arguments.read(str(file))] == [DIGEST, "r.example.com/app:1"]


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"\xff\xfe", b"{", b'{"a": 1}', b"x" * (source_arguments.FILE_LIMIT + 1)]
)
def test_files_without_sources_are_errors(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "f"
    file.write_bytes(content)
    with pytest.raises(UsageError):
        source_arguments.read(str(file))


def test_a_file_that_would_be_waited_for_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="not a regular file"):
        source_arguments.read(str(tmp_path / "fifo"))
