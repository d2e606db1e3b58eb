"""``--format`` of ``index inspect``: what buildx's users write, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from small_images import Images

from executor.image.manifest import Descriptor, parse
from executor.registry.reference import Reference
from orchestrator.index import inspection, templates
from orchestrator.index.image_sources import Document, Opener
from orchestrator.index.inspection import Inspection
from platforms.errors import ArchiveError, UsageError


class Held:
    """An image source out of a dictionary."""

    def __init__(self, images: Images, root: dict[str, Any]) -> None:
        self._images = images
        self._root = root

    @property
    def name(self) -> str:
        return "held"

    @property
    def repository(self) -> Reference | None:
        return None

    def root(self) -> Document:
        return self.document(Descriptor(self._root["mediaType"], self._root["digest"], self._root["size"]))

    def document(self, descriptor: Descriptor) -> Document:
        data = self._images.blobs[descriptor.digest]
        return Document(descriptor, data, parse(data))

    def has(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self._images.blobs

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        assert descriptor.size <= limit
        return self._images.blobs[descriptor.digest]

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        yield self._images.blobs[descriptor.digest]

    def blob_opener(self, descriptor: Descriptor) -> AbstractContextManager[Opener]:
        raise NotImplementedError

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        return ()


def several() -> Inspection:
    images = Images()
    amd, arm = images.entry("linux/amd64", "x"), images.entry("linux/arm64", annotations={"k": "v"})
    root = images.index([amd, arm, images.attestation(amd)], annotations={"a": "b"})
    return inspection.inspect("app:1", Held(images, root))


def single() -> Inspection:
    images = Images()
    return inspection.inspect("app:1", Held(images, images.image("linux/arm/v7", "x")))


def rendered(template: str, found: Inspection) -> str:
    return templates.render(templates.parse(template), found)


def test_the_manifest_is_what_buildx_prints() -> None:
    found = several()
    shown = json.loads(rendered("{{json .Manifest}}", found))
    assert list(shown) == ["schemaVersion", "mediaType", "digest", "size", "manifests", "annotations"]
    assert shown["digest"] == found.root.descriptor.digest
    assert [each["platform"]["architecture"] for each in shown["manifests"]] == ["amd64", "arm64", "unknown"]
    own = single()
    assert json.loads(rendered("{{json .Manifest}}", own)) == inspection.plain(own.root.descriptor)


def test_images_are_by_platform_where_there_are_several() -> None:
    shown = json.loads(rendered("{{ json .Image }}", several()))
    assert list(shown) == ["linux/amd64", "linux/arm64"]
    assert json.loads(rendered("{{json .Image}}", single()))["architecture"] == "arm"


@pytest.mark.parametrize(
    ("template", "meant"),
    [
        ("{{.Name}}", "app:1"),
        ("Name: {{.Name}}\n", "Name: app:1\n"),
        ("{{.Manifest.MediaType}}", "application/vnd.oci.image.index.v1+json"),
        ("a \n{{- .Name -}} \n b {{ .Name }} c", "aapp:1b app:1 c"),
        ('{{json (index .Manifest.Manifests 1).Annotations}}', '{\n  "k": "v"\n}'),
        ('{{(index .Image "linux/amd64").Config.Labels.text}}', "x"),
        ('{{(index .Image "linux/arm64").OS}}', "linux"),
        ('{{json (index .Image "linux/amd64").rootfs.type}}', '"layers"'),
    ],
)  # fmt: skip
def test_fields_are_found_by_gos_names_and_by_the_documents(template: str, meant: str) -> None:
    assert rendered(template, several()) == meant


def test_diff_ids_are_found_by_gos_name() -> None:
    assert len(json.loads(rendered("{{json .Image.RootFS.DiffIDs}}", single()))) == 1


def test_the_whole_is_the_name_the_manifest_and_the_image() -> None:
    assert list(json.loads(rendered("{{json .}}", several()))) == ["name", "manifest", "image"]


def test_attestations_are_read() -> None:
    found = several()
    provenance = json.loads(rendered("{{json .Provenance}}", found))
    assert provenance["linux/amd64"]["SLSA"]["kind"] == "https://slsa.dev/provenance/v1"
    assert json.loads(rendered("{{json .SBOM}}", found))["linux/amd64"]["SPDX"]["kind"] == "https://spdx.dev/Document"
    assert json.loads(rendered("{{json .Provenance}}", single())) == {}


def test_a_statement_in_an_envelope_is_not_guessed() -> None:
    images = Images()
    amd = images.entry()
    layer = images.blob(
        "application/vnd.in-toto.provenance+dsse",
        b"{}",
        annotations={"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"},
    )
    about = {key: value for key, value in images.attestation(amd).items() if key in ("platform", "annotations")}
    manifest = images.document(
        "application/vnd.oci.image.manifest.v1+json", {"config": images.blob("x/y", b"{}"), "layers": [layer]}
    )
    found = inspection.inspect("app", Held(images, images.index([amd, {**manifest, **about}])))
    with pytest.raises(ArchiveError, match="cannot be read"):
        rendered("{{json .Provenance}}", found)


@pytest.mark.parametrize(
    "template",
    ["nothing", "{{", "{{.Name", "}}", "{{range .Manifest.Manifests}}{{.Digest}}{{end}}", "{{if .Name}}x{{end}}",
     "{{printf \"%s\" .Name}}", "{{.Name | json}}", "{{json}}", "{{json .Name .Name}}",
     "{{len .Image}}", "{{$x := 1}}"],
)  # fmt: skip
def test_the_rest_of_gos_templates_is_refused_with_what_there_is(template: str) -> None:
    with pytest.raises(UsageError) as caught:
        templates.parse(template)
    assert "json .Manifest" in caught.value.problem.remedy


@pytest.mark.parametrize(
    "template",
    ["{{.Nothing}}", "{{.Manifest.Nothing}}", "{{.Image}}", "{{json (index .Image \"linux/s390x\")}}",
     "{{json (index .Manifest.Manifests 9)}}", "{{.Name.x}}"],
)  # fmt: skip
def test_fields_that_are_not_there_are_errors(template: str) -> None:
    with pytest.raises(UsageError, match="--format"):
        rendered(template, several())


def test_the_table_shows_platforms_layers_annotations_and_attestations() -> None:
    lines = inspection.table(several())
    assert lines[0] == "Name:       app:1"
    assert "annotation: a=b" in lines
    amd = next(number for number, line in enumerate(lines) if line.startswith("linux/amd64"))
    assert lines[amd].split()[-2] == "1", "layers"
    assert lines[amd + 1] == "  attestation: provenance (https://slsa.dev/provenance/v1)"
    assert lines[amd + 2] == "  attestation: sbom (https://spdx.dev/Document)"
    assert lines[amd + 4] == "  annotation: k=v"
    assert not any(line.startswith("unknown") for line in lines)
    assert len(inspection.table(several(), layers=True)) == len(lines) + 2


def test_the_document_for_programs_says_its_version() -> None:
    found = inspection.document(several())
    assert (found["schemaVersion"], found["name"]) == (1, "app:1")
    assert [each["platform"] for each in found["manifests"]] == ["linux/amd64", "linux/arm64"]
    amd = found["manifests"][0]
    assert amd["totalSize"] == amd["size"] + amd["config"]["size"] + amd["layers"][0]["size"]
    (attested,) = amd["attestations"]
    assert [each["predicateType"] for each in attested["statements"]] == [
        "https://slsa.dev/provenance/v1",
        "https://spdx.dev/Document",
    ]
