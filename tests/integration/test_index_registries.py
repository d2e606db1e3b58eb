"""``kanifold index`` and ``kanifold copy`` against two of Debian's registries, layouts and archives; beside skopeo."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_server import HTPASSWD, PASSWORD, USER, digest_of, docker_registry
from small_images import DOCKER_INDEX, INDEX, LAYER, MANIFEST, Images

from orchestrator.cli import cli
from platforms.errors import ArchiveError, PlatformMissing, RegistryError, StoreError, UsageError

pytestmark = pytest.mark.registry

Run = Callable[..., str]
ACCEPT = ", ".join((INDEX, MANIFEST, DOCKER_INDEX, "application/vnd.docker.distribution.manifest.v2+json"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("one")) as host:
        yield host


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("other")) as host:
        yield host


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    """The command line in this process: ``run("index", "create", …)`` is what it says on stdout."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def command(*words: str | Path) -> str:
        capsysbinary.readouterr()
        cli.main([str(each) for each in words], prog_name="kanifold", standalone_mode=False)
        return capsysbinary.readouterr().out.decode()

    return command


@pytest.fixture
def repository(host: str, request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return f"{host}/{request.node.name.replace('[', '-').rstrip(']').lower()}"


def served(reference: str) -> tuple[bytes, str]:
    """The bytes and the media type that a registry serves under ``REPOSITORY:TAG`` or ``REPOSITORY@DIGEST``."""
    name, _, target = reference.rpartition("@" if "@" in reference else ":")
    host, _, path = name.partition("/")
    request = urllib.request.Request(f"http://{host}/v2/{path}/manifests/{target}", headers={"Accept": ACCEPT})
    with urllib.request.urlopen(request) as answer:
        return answer.read(), answer.headers["content-type"]


def document(reference: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(served(reference)[0])
    return found


def exists(reference: str) -> bool:
    try:
        served(reference)
    except urllib.error.HTTPError as error:
        with error:
            assert error.code == 404
        return False
    return True


def blob(repository: str, digest: str) -> bytes:
    host, _, path = repository.partition("/")
    with urllib.request.urlopen(f"http://{host}/v2/{path}/blobs/{digest}") as answer:
        return bytes(answer.read())


def assert_whole(reference: str) -> None:
    """All that the image lists is there, under its digest."""
    repository = reference.rpartition("@" if "@" in reference else ":")[0]
    waiting = [document(reference)]
    while waiting:
        found = waiting.pop()
        for each in found.get("manifests", ()):
            data, media_type = served(f"{repository}@{each['digest']}")
            assert (digest_of(data), len(data), media_type) == (each["digest"], each["size"], each["mediaType"])
            waiting.append(json.loads(data))
        for each in (found["config"], *found["layers"]) if "config" in found else ():
            assert digest_of(blob(repository, each["digest"])) == each["digest"]


def two_platforms(path: Path) -> tuple[Images, dict[str, Any]]:
    """A layout at ``path`` whose ``1`` is an index of two platforms with attestations."""
    images = Images()
    amd, arm = images.entry("linux/amd64", str(path)), images.entry("linux/arm64", str(path))
    root = images.index([amd, arm, images.attestation(amd), images.attestation(arm)])
    images.layout(path, {"1": root})
    return images, root


def test_an_image_goes_from_a_layout_through_registries_to_an_archive_unchanged(
    run: Run, repository: str, other: str, tmp_path: Path
) -> None:
    _, root = two_platforms(tmp_path / "in")
    hops = [f"{repository}/a:1", f"{repository}/b:2", f"{other}/c:3", "oci-archive:four.tar", "oci-layout://five:5"]
    source = "oci-layout://in:1"
    for hop in hops:
        assert run("copy", source, hop).strip() == root["digest"]
        source = hop
    for each in hops[:3]:
        assert digest_of(served(each)[0]) == root["digest"]
        assert_whole(each)
    before = sorted(path.name for path in (tmp_path / "in" / "blobs" / "sha256").iterdir())
    assert sorted(path.name for path in (tmp_path / "five" / "blobs" / "sha256").iterdir()) == before


def test_skopeo_reads_what_was_copied(run: Run, repository: str, tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed (Debian package skopeo)")
    _, root = two_platforms(tmp_path / "in")
    for target in (f"{repository}:1", "oci-archive:a.tar:1", "oci:out:1"):
        run("copy", "oci:in:1", target)
    for place in (f"docker://{repository}:1", "oci-archive:a.tar:1", "oci:out:1"):
        command = [skopeo, "inspect", "--raw", place, *(["--tls-verify=false"] if "docker" in place else [])]
        assert digest_of(subprocess.run(command, check=True, capture_output=True).stdout) == root["digest"]


def test_blobs_of_the_same_registry_are_mounted(
    run: Run, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executor.registry import upload

    two_platforms(tmp_path / "in")
    run("copy", "oci:in:1", f"{repository}/a:1")

    def sent(*_: object, **__: object) -> None:
        raise AssertionError("a blob was sent")

    monkeypatch.setattr(upload, "upload", sent)
    run("copy", f"{repository}/a:1", f"{repository}/b:1")
    assert_whole(f"{repository}/b:1")


def test_images_of_several_places_become_one_index(run: Run, repository: str, other: str, tmp_path: Path) -> None:
    images = Images()
    amd, arm, risc = (images.image(f"linux/{each}") for each in ("amd64", "arm64", "riscv64"))
    images.layout(tmp_path / "in", {"amd": amd, "arm": arm, "risc": risc})
    run("copy", "oci:in:amd", f"{repository}/amd:1")
    run("copy", "oci:in:arm", f"{other}/arm:1")
    run("copy", "oci:in:risc", "oci-archive:risc.tar")
    digest = run("index", "create", "-t", f"{repository}/all:1", "-t", f"{other}/all:1", "-t", "oci:out:1",
                 f"{repository}/amd:1", f"{other}/arm@{arm['digest']}", "./risc.tar").strip()  # fmt: skip
    for each in (f"{repository}/all:1", f"{other}/all:1"):
        data, media_type = served(each)
        assert (digest_of(data), media_type) == (digest, INDEX)
        assert [entry["platform"]["architecture"] for entry in json.loads(data)["manifests"]] == [
            "amd64",
            "arm64",
            "riscv64",
        ]
        assert_whole(each)
    assert run("index", "inspect", "--raw", "oci:out:1") == data.decode()


def test_files_name_sources_too(run: Run, repository: str, tmp_path: Path) -> None:
    images = Images()
    built = {each: images.image(f"linux/{each}") for each in ("amd64", "arm64", "s390x", "386")}
    images.layout(tmp_path / "in", built)
    for name in built:
        run("copy", f"oci:in:{name}", f"{repository}:{name}", "--metadata-file", tmp_path / f"{name}.json")
    (tmp_path / "digest").write_text(built["amd64"]["digest"] + "\n")
    (tmp_path / "descriptor").write_text(json.dumps(built["arm64"] | {"annotations": {"k": "v"}}))
    (tmp_path / "metadata").mkdir()
    (tmp_path / "s390x.json").rename(tmp_path / "metadata" / "s390x.json")
    written = tmp_path / "written.json"
    digest = run("index", "create", "-t", f"{repository}:all", "-f", "digest", "-f", "descriptor", "-f", "386.json",
                 "--metadata", "metadata", "--metadata-file", written).strip()  # fmt: skip
    found = document(f"{repository}:all")["manifests"]
    assert [each["digest"] for each in found] == [built[each]["digest"] for each in ("amd64", "arm64", "386", "s390x")]
    assert found[1]["annotations"] == {"k": "v"}
    said = json.loads(written.read_text())
    assert said["containerimage.digest"] == said["containerimage.descriptor"]["digest"] == digest
    assert said["image.name"] == f"{repository}:all"
    assert said["kanifold.platforms"]["linux/s390x"] == {"digest": built["s390x"]["digest"]}


def test_a_single_index_is_copied_byte_by_byte_and_a_manifest_becomes_an_index(
    run: Run, repository: str, tmp_path: Path
) -> None:
    images, root = two_platforms(tmp_path / "in")
    assert run("index", "create", "-t", f"{repository}:1", "oci:in:1").strip() == root["digest"]
    one = json.loads(images.blobs[root["digest"]])["manifests"][0]
    at = f"{repository}@{one['digest']}"
    run("index", "create", "-t", f"{repository}:2", at)
    assert document(f"{repository}:2")["manifests"] == [
        {key: one[key] for key in ("mediaType", "digest", "size", "platform")}
    ]
    assert run("index", "create", "--prefer-index=false", "-t", f"{repository}:3", at).strip() == one["digest"]


def test_append_keeps_what_is_there(run: Run, repository: str, tmp_path: Path) -> None:
    images = Images()
    amd, arm, again = images.image(), images.image("linux/arm64"), images.image("linux/amd64", "newer")
    images.layout(tmp_path / "in", {"amd": amd, "arm": arm, "again": again})
    run("index", "create", "-t", f"{repository}:1", "--annotation", "index:a=b", "oci:in:amd")
    run("index", "create", "--append", "-t", f"{repository}:1", "oci:in:arm")
    found = document(f"{repository}:1")
    assert [each["digest"] for each in found["manifests"]] == [amd["digest"], arm["digest"]]
    assert found["annotations"] == {"a": "b"}
    with pytest.raises(UsageError, match="two manifests for linux/amd64"):
        run("index", "create", "--append", "-t", f"{repository}:1", "oci:in:again")
    run("index", "create", "--append", "--duplicate", "last", "-t", f"{repository}:1", "oci:in:again")
    assert [each["digest"] for each in document(f"{repository}:1")["manifests"]] == [arm["digest"], again["digest"]]
    with pytest.raises(UsageError, match="is not there"):
        run("index", "create", "--append", "-t", f"{repository}:none", "oci:in:arm")


def test_annotations_go_where_they_are_meant_to(run: Run, repository: str, tmp_path: Path) -> None:
    two_platforms(tmp_path / "in")
    annotations = (
        "index:a=1",
        "manifest-descriptor:b=2",
        "manifest-descriptor[linux/arm64]:b=3",
        "index-descriptor:c=4",
    )
    words = [word for each in annotations for word in ("--annotation", each)]
    run("index", "create", "-t", f"{repository}:1", "-t", "oci:out:1", *words, "oci:in:1")
    found = document(f"{repository}:1")
    assert found["annotations"] == {"a": "1"}
    amd, arm, *attestations = found["manifests"]
    assert (amd["annotations"], arm["annotations"]) == ({"b": "2"}, {"b": "3"})
    assert all("b" not in each["annotations"] for each in attestations)
    (root,) = json.loads((tmp_path / "out" / "index.json").read_text())["manifests"]
    assert root["annotations"]["c"] == "4"


def test_platforms_are_kept_with_their_attestations(run: Run, repository: str, tmp_path: Path) -> None:
    images, root = two_platforms(tmp_path / "in")
    entries = json.loads(images.blobs[root["digest"]])["manifests"]
    for command in (("index", "create", "-t", f"{repository}:1", "oci:in:1"), ("copy", "oci:in:1", f"{repository}:2")):
        run(*command, "--platform", "linux/arm64")
        tag = f"{repository}:{'1' if 'create' in command else '2'}"
        assert document(tag)["manifests"] == [entries[1], entries[3]]
        assert_whole(tag)
    with pytest.raises(PlatformMissing, match="linux/s390x"):
        run("copy", "oci:in:1", f"{repository}:3", "--platform", "linux/s390x")
    assert not exists(f"{repository}:3")


def test_a_dry_run_prints_what_would_be_pushed(run: Run, repository: str, tmp_path: Path) -> None:
    two_platforms(tmp_path / "in")
    printed = run("index", "create", "--dry-run", "-t", f"{repository}:1", "--annotation", "a=b", "oci:in:1")
    assert not exists(f"{repository}:1")
    digest = run("index", "create", "-t", f"{repository}:1", "--annotation", "a=b", "oci:in:1").strip()
    assert digest_of(printed.removesuffix("\n").encode()) == digest
    with pytest.raises(UsageError, match="what to call"):
        run("index", "create", "oci:in:1")


def test_dockers_manifests_make_dockers_list_unless_an_oci_one_is_among_them(
    run: Run, repository: str, tmp_path: Path
) -> None:
    images = Images()
    amd, arm = images.image(docker=True), images.image("linux/arm64", docker=True)
    oci = images.image("linux/s390x")
    images.layout(tmp_path / "in", {"amd": amd, "arm": arm, "oci": oci})
    run("index", "create", "-t", f"{repository}:1", "oci:in:amd", "oci:in:arm")
    assert served(f"{repository}:1")[1] == document(f"{repository}:1")["mediaType"] == DOCKER_INDEX
    assert_whole(f"{repository}:1")
    run("index", "create", "-t", f"{repository}:2", f"{repository}:1", "oci:in:oci")
    found = document(f"{repository}:2")
    assert found["mediaType"] == INDEX
    assert [each["mediaType"] for each in found["manifests"]] == [each["mediaType"] for each in (amd, arm, oci)]
    run("index", "create", "-t", f"{repository}:3", "--media-type", "oci", "oci:in:amd")
    assert document(f"{repository}:3")["mediaType"] == INDEX


def test_entries_are_added_annotated_and_removed_in_place(run: Run, repository: str, tmp_path: Path) -> None:
    two_platforms(tmp_path / "in")
    images = Images()
    images.layout(tmp_path / "more", {"risc": images.image("linux/riscv64"), "any": images.image("linux/arm/v6")})
    index = f"{repository}:1"
    run("copy", "oci:in:1", index)
    run("index", "add", index, "oci:more:risc", "--annotation", "new=yes")
    run("index", "add", index, "-m", "oci:more:any", "--arch", "arm", "--variant", "v5")
    run("index", "annotate", index, "--annotation", "whole=1")
    run("index", "annotate", index, "linux/amd64", "--annotation", "own=2", "--os-version", "6.1")
    found = document(index)
    assert found["annotations"] == {"whole": "1"}
    by_platform = {tuple(each["platform"].values()): each for each in found["manifests"]}
    assert by_platform["riscv64", "linux"]["annotations"] == {"new": "yes"}
    assert ("arm", "linux", "v5") in by_platform
    assert by_platform["amd64", "linux", "6.1"]["annotations"] == {"own": "2"}
    run("index", "remove", index, "linux/arm64", by_platform["riscv64", "linux"]["digest"])
    left = document(index)["manifests"]
    assert [each["platform"]["architecture"] for each in left] == ["amd64", "unknown", "arm"], "with its attestation"
    assert_whole(index)
    with pytest.raises(UsageError, match="nothing would be left"):
        run("index", "remove", index, *(each["digest"] for each in left))
    run("index", "remove", index, "linux/arm/v5", "-t", f"{repository}:2")
    assert (len(document(index)["manifests"]), len(document(f"{repository}:2")["manifests"])) == (3, 2)


def test_layouts_and_archives_are_changed_in_place(run: Run, tmp_path: Path) -> None:
    two_platforms(tmp_path / "in")
    for place in ("oci:out:1", "oci-archive:out.tar"):
        run("copy", "oci:in:1", place)
        run("index", "remove", place, "linux/amd64")
        assert "linux/amd64" not in run("index", "inspect", place)
        assert "linux/arm64" in run("index", "inspect", place)
    assert len(json.loads((tmp_path / "out" / "index.json").read_text())["manifests"]) == 1


def test_an_archive_of_several_images_is_not_changed_in_place(run: Run, tmp_path: Path) -> None:
    two_platforms(tmp_path / "in")
    run("copy", "oci:in:1", "oci:out:1")
    run("copy", "oci:in:1", "oci:out:2", "--platform", "linux/amd64")
    subprocess.run(["tar", "-cf", "out.tar", "-C", "out", "."], check=True, cwd=tmp_path)
    before = (tmp_path / "out.tar").read_bytes()
    with pytest.raises(UsageError, match="holds other images"):
        run("index", "remove", "oci-archive:out.tar:1", "linux/amd64")
    assert (tmp_path / "out.tar").read_bytes() == before


def test_what_a_tag_was_expected_to_be_is_looked_at_first(run: Run, repository: str, tmp_path: Path) -> None:
    _, root = two_platforms(tmp_path / "in")
    index = f"{repository}:1"
    with pytest.raises(RegistryError, match="not what was expected"):
        run("copy", "oci:in:1", index, "--expect", root["digest"])
    assert not exists(index)
    run("copy", "oci:in:1", index, "--expect", "none")
    for expect in (("--no-clobber",), ("--expect", "sha256:" + "0" * 64)):
        with pytest.raises(RegistryError, match="nothing has been changed"):
            run("copy", "oci:in:1", index, *expect)
    run("index", "annotate", index, "--annotation", "a=b", "--expect", root["digest"])
    assert document(index)["annotations"] == {"a": "b"}


def test_a_digest_that_is_not_there_ends_it_with_nothing_changed(run: Run, repository: str, tmp_path: Path) -> None:
    two_platforms(tmp_path / "in")
    run("copy", "oci:in:1", f"{repository}:0")
    missing = "sha256:" + "0" * 64
    with pytest.raises(RegistryError, match="does not have it"):
        run("index", "create", "-t", f"{repository}:1", f"{repository}:0", missing)
    assert not exists(f"{repository}:1")


def test_a_damaged_layout_is_noticed_before_anything_is_named(run: Run, repository: str, tmp_path: Path) -> None:
    images, _ = two_platforms(tmp_path / "in")
    layer = next(digest for digest, data in images.blobs.items() if data.startswith(b"linux/arm64 "))
    path = tmp_path / "in" / "blobs" / layer.replace(":", "/")
    path.write_bytes(path.read_bytes()[::-1])
    for target in (f"{repository}:1", "oci:out:1", "oci-archive:out.tar"):
        with pytest.raises((ArchiveError, StoreError), match=layer):
            run("copy", "oci:in:1", target)
    assert not exists(f"{repository}:1")
    assert not (tmp_path / "out").exists()
    assert not [path.name for path in tmp_path.iterdir() if "out.tar" in path.name]


def test_signatures_come_along_by_the_tag_schema(run: Run, repository: str, other: str, tmp_path: Path) -> None:
    """Debian's registry has no referrers API: whoever pushes a referrer keeps the list."""
    images = Images()
    image = images.entry()
    root = images.index([image])
    of_root, of_image = images.signature(root), images.signature(image)
    again = images.signature(of_root)
    images.layout(tmp_path / "in", {"1": root}, [of_root, of_image, again])
    run("copy", "oci:in:1", f"{repository}:1")
    run("copy", f"{repository}:1", f"{other}/signed:1")
    run("copy", f"{other}/signed:1", "oci:out:1")
    for name in (repository, f"{other}/signed"):
        for subject, signature in ((root, of_root), (image, of_image), (of_root, again)):
            (listed,) = document(f"{name}:{subject['digest'].replace(':', '-')}")["manifests"]
            assert listed["digest"] == signature["digest"]
            assert (listed["artifactType"], listed["annotations"]) == (
                "application/vnd.dev.sigstore.bundle.v0.3+json",
                {"signed": "yes"},
            )
            assert_whole(f"{name}@{signature['digest']}")
    assert set(images.blobs) == {f"sha256:{path.name}" for path in (tmp_path / "out" / "blobs" / "sha256").iterdir()}
    assert "Referrers:" in run("index", "inspect", "oci:out:1")
    run("copy", f"{repository}:1", f"{other}/bare:1", "--no-referrers")
    assert not exists(f"{other}/bare@{of_root['digest']}")


def test_a_list_of_referrers_is_added_to(run: Run, repository: str, tmp_path: Path) -> None:
    images = Images()
    root = images.image()
    one, two = images.signature(root, "1"), images.signature(root, "2")
    images.layout(tmp_path / "one", {"1": root}, [one])
    images.layout(tmp_path / "two", {"1": root}, [two])
    run("copy", "oci:one:1", f"{repository}:1")
    run("copy", "oci:two:1", f"{repository}:1")
    run("copy", "oci:two:1", f"{repository}:1")
    listed = document(f"{repository}:{root['digest'].replace(':', '-')}")["manifests"]
    assert [each["digest"] for each in listed] == [one["digest"], two["digest"]]


def test_foreign_layers_are_left_where_they_are_unless_asked_for(run: Run, repository: str, tmp_path: Path) -> None:
    images = Images()
    foreign = images.blob(
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", b"foreign", urls=["https://example.com/layer"]
    )
    config = images.blob("application/vnd.docker.container.image.v1+json", b'{"os":"windows","architecture":"amd64"}')
    root = images.document(
        "application/vnd.docker.distribution.manifest.v2+json",
        {"config": config, "layers": [foreign, images.blob(LAYER, b"own")]},
    )
    images.layout(tmp_path / "in", {"1": root})
    run("copy", "oci:in:1", "oci:out:1")
    assert not (tmp_path / "out" / "blobs" / foreign["digest"].replace(":", "/")).exists()
    run("copy", "oci:in:1", "oci:all:1", "--allow-nondistributable-artifacts")
    assert (tmp_path / "all" / "blobs" / foreign["digest"].replace(":", "/")).exists()


def test_an_index_in_an_index_is_copied_as_it_is(run: Run, repository: str, tmp_path: Path) -> None:
    images = Images()
    inner = images.index([images.entry("linux/amd64"), images.entry("linux/arm64")])
    root = images.index([inner, images.entry("linux/s390x")])
    images.layout(tmp_path / "in", {"1": root})
    assert run("copy", "oci:in:1", f"{repository}:1").strip() == root["digest"]
    assert_whole(f"{repository}:1")
    assert "index of 2" in run("index", "inspect", f"{repository}:1")


def test_an_index_can_be_listed_as_one_entry(run: Run, repository: str, tmp_path: Path) -> None:
    images, root = two_platforms(tmp_path / "in")
    run("index", "create", "-t", f"{repository}:1", "--no-flatten", "oci:in:1")
    assert document(f"{repository}:1")["manifests"] == [root]
    images.layout(tmp_path / "more", {"risc": images.image("linux/riscv64")})
    run("index", "add", f"{repository}:1", "--flatten", "oci:more:risc")
    assert document(f"{repository}:1")["manifests"][0] == root
    assert_whole(f"{repository}:1")


def test_what_a_layout_holds_is_found_by_digest_by_tag_and_alone(run: Run, tmp_path: Path) -> None:
    images, root = two_platforms(tmp_path / "in")
    amd = json.loads(images.blobs[root["digest"]])["manifests"][0]
    for name, digest in (
        ("./in", root["digest"]),
        (f"oci:in@{root['digest']}", root["digest"]),
        (f"oci-layout://in@{amd['digest']}", amd["digest"]),
    ):
        assert run("index", "inspect", "--format", "{{.Manifest.Digest}}", name).strip() == digest
    for name in ("oci:in:2", f"oci:in@sha256:{'0' * 64}", "oci:nothing", "oci-archive:in", "oci-archive:nothing.tar"):
        with pytest.raises(ArchiveError):
            run("index", "inspect", name)


def test_an_image_and_what_refers_to_it_are_one_image_in_a_layout(run: Run, tmp_path: Path) -> None:
    """Referrers are roots without a name: they are not taken for the image."""
    images = Images()
    root = images.image()
    images.layout(tmp_path / "in", {"v1": root}, [images.signature(root)])
    assert run("copy", "./in", "oci:out").strip() == root["digest"]
    named = [
        each.get("annotations", {}) for each in json.loads((tmp_path / "out" / "index.json").read_text())["manifests"]
    ]
    assert named[0] == {"org.opencontainers.image.ref.name": "v1"}, "named as its source"
    assert run("copy", "./out", "oci:again:1").strip() == root["digest"]


def test_each_registry_is_asked_as_the_user_that_it_knows(
    run: Run, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    htpasswd = tmp_path / "htpasswd"
    htpasswd.write_text(HTPASSWD + "\n")
    auth = f"{{htpasswd: {{realm: test, path: {json.dumps(str(htpasswd))}}}}}"
    _, root = two_platforms(tmp_path / "in")
    run("copy", "oci:in:1", f"{other}/open:1")
    with docker_registry(tmp_path / "closed", auth=auth) as closed:
        for password, refused in (("wrong", True), (PASSWORD, False)):
            secret = base64.b64encode(f"{USER}:{password}".encode()).decode()
            monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {closed: {"auth": secret}}}))
            if refused:
                with pytest.raises(RegistryError, match="wants to know who asks") as caught:
                    run("copy", f"{other}/open:1", f"{closed}/app:1")
                assert password not in str(caught.value.problem)
            else:
                assert run("copy", f"{other}/open:1", f"{closed}/app:1").strip() == root["digest"]
                assert run("copy", f"{closed}/app:1", f"{closed}/mounted:1").strip() == root["digest"]


def test_a_metadata_file_that_cannot_be_written_is_known_before_anything_is_pushed(
    run: Run, repository: str, tmp_path: Path
) -> None:
    two_platforms(tmp_path / "in")
    with pytest.raises(UsageError, match="--metadata-file"):
        run("copy", "oci:in:1", f"{repository}:1", "--metadata-file", tmp_path / "nothing" / "m.json")
    assert not exists(f"{repository}:1")


@pytest.mark.parametrize(("progress", "lines"), [("plain", True), ("tty", True), ("none", False), ("quiet", False)])
def test_what_is_told_meanwhile_is_asked_for(
    run: Run, repository: str, tmp_path: Path, progress: str, lines: bool, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    two_platforms(tmp_path / "in")
    cli.main(["copy", "oci:in:1", f"{repository}:1", "--progress", progress], standalone_mode=False)
    assert (b"published" in capsysbinary.readouterr().err) is lines


def test_progress_for_programs_is_json(
    run: Run, repository: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    _, root = two_platforms(tmp_path / "in")
    cli.main(["copy", "oci:in:1", f"{repository}:1", "--progress", "rawjson"], standalone_mode=False)
    told = [json.loads(line) for line in capsysbinary.readouterr().err.splitlines()]
    assert told[-1]["type"] == "published"
    assert told[-1]["digest"] == root["digest"]
