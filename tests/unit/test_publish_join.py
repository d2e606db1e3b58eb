"""Images become one product: an index over several, a single one for itself, annotations where they belong."""

from __future__ import annotations

import io
import json
from typing import Any, BinaryIO

import pytest

from executor.image import mediatypes
from executor.image.digest import sha256
from executor.image.manifest import Descriptor, Manifest, PlatformSpec, describe
from orchestrator.publish import join
from orchestrator.request import Annotation, BuildRequest
from orchestrator.results import Image
from platforms.parsing import parse

LAYER = Descriptor(mediatypes.OCI_LAYER_GZIP, sha256(b"layer"), 5)


def image(platform: str, media_type: str = mediatypes.OCI_MANIFEST) -> Image:
    wanted = parse(platform)
    config = Descriptor(mediatypes.OCI_CONFIG, sha256(platform.encode()), len(platform))
    manifest = Manifest(media_type, config, (LAYER,))
    spec = PlatformSpec(wanted.architecture, wanted.os, wanted.variant)
    descriptor, data = describe(manifest, spec)

    def content(_digest: str) -> BinaryIO:
        return io.BytesIO()

    return Image(wanted, manifest, descriptor, data, content)


def joined(*images: Image, annotations: tuple[Annotation, ...] = ()) -> tuple[Descriptor, dict[str, Any]]:
    product = join(BuildRequest(context=".", annotations=annotations), images)
    assert product.root.digest == sha256(product.data)
    assert product.root.size == len(product.data)
    return product.root, json.loads(product.data)


def test_several_images_are_an_index_in_the_order_asked_for() -> None:
    root, document = joined(image("linux/arm64"), image("linux/amd64"), image("linux/arm/v7"))
    assert root.media_type == document["mediaType"] == mediatypes.OCI_INDEX
    assert root.platform is None
    assert document["schemaVersion"] == 2
    assert [each["platform"] for each in document["manifests"]] == [
        {"architecture": "arm64", "os": "linux"},
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm", "os": "linux", "variant": "v7"},
    ]
    assert "annotations" not in document


def test_a_single_image_stands_for_itself() -> None:
    only = image("linux/arm64")
    root, document = joined(only)
    assert root.digest == only.descriptor.digest
    assert root.platform is None
    assert document["mediaType"] == mediatypes.OCI_MANIFEST


def test_annotations_for_an_index_make_one() -> None:
    wanted = Annotation("index", "", "a", "b")
    root, document = joined(image("linux/arm64"), annotations=(wanted,))
    assert root.media_type == mediatypes.OCI_INDEX
    assert document["annotations"] == {"a": "b"}
    assert [each["platform"]["architecture"] for each in document["manifests"]] == ["arm64"]


def test_annotations_of_manifests_are_not_the_indexs() -> None:
    _, document = joined(
        image("linux/arm64"), image("linux/amd64"),
        annotations=(Annotation("manifest", "", "m", "1"), Annotation("index", "", "i", "2")),
    )  # fmt: skip
    assert document["annotations"] == {"i": "2"}


def test_annotations_of_descriptors_are_where_the_descriptors_are() -> None:
    root, document = joined(
        image("linux/arm64"), image("linux/amd64"),
        annotations=(
            Annotation("manifest-descriptor", "linux/arm64", "d", "arm"),
            Annotation("manifest-descriptor", "", "d", "all"),
            Annotation("index-descriptor", "", "r", "1"),
        ),
    )  # fmt: skip
    assert [each["annotations"] for each in document["manifests"]] == [{"d": "arm"}, {"d": "all"}]
    assert root.annotations == (("r", "1"),)
    assert "annotations" not in document


def test_a_single_images_descriptor_is_the_root() -> None:
    root, document = joined(image("linux/arm64"), annotations=(Annotation("manifest-descriptor", "", "d", "1"),))
    assert document["mediaType"] == mediatypes.OCI_MANIFEST
    assert root.annotations == (("d", "1"),)


def test_the_last_annotation_of_a_key_counts() -> None:
    wanted = (Annotation("index", "", "a", "2"), Annotation("index", "", "a", "1"))
    assert joined(image("linux/arm64"), annotations=wanted)[1]["annotations"] == {"a": "1"}


@pytest.mark.parametrize(
    ("kinds", "meant"),
    [
        ((mediatypes.OCI_MANIFEST, mediatypes.OCI_MANIFEST), mediatypes.OCI_INDEX),
        ((mediatypes.DOCKER_MANIFEST, mediatypes.DOCKER_MANIFEST), mediatypes.DOCKER_INDEX),
    ],
)
def test_the_index_is_of_the_manifests_kind(kinds: tuple[str, str], meant: str) -> None:
    root, _ = joined(image("linux/amd64", kinds[0]), image("linux/arm64", kinds[1]))
    assert root.media_type == meant


def test_the_same_images_are_the_same_index() -> None:
    one = joined(image("linux/amd64"), image("linux/arm64"))
    assert joined(image("linux/amd64"), image("linux/arm64")) == one
    assert joined(image("linux/arm64"), image("linux/amd64")) != one
