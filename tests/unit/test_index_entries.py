"""The rules by which manifests and indexes become one index."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from executor.image import mediatypes
from executor.image.digest import sha256
from executor.image.manifest import Descriptor, Index, PlatformSpec, encode, parse
from orchestrator.index import annotating, entries
from orchestrator.index.entries import IndexEntry
from platforms import parsing
from platforms.errors import PlatformMissing, UsageError


def entry(
    platform: str,
    text: str = "",
    *,
    kind: str = mediatypes.OCI_MANIFEST,
    annotations: tuple[tuple[str, str], ...] = (),
    rest: dict[str, Any] | None = None,
) -> IndexEntry:
    """An entry for ``platform`` ("" for none), whose digest ``text`` makes another."""
    system, architecture, variant = (*platform.split("/"), "", "")[:3] if platform else ("", "", "")
    spec = PlatformSpec(architecture, system, variant) if platform else None
    digest = sha256(f"{platform} {text}".encode())
    return IndexEntry(Descriptor(kind, digest, 10, spec, annotations), rest or {}, text)


def attestation(subject: IndexEntry) -> IndexEntry:
    annotations = (
        (entries.REFERENCE_DIGEST, subject.descriptor.digest),
        (entries.REFERENCE_TYPE, entries.ATTESTATION),
    )
    return entry("unknown/unknown", f"of {subject.descriptor.digest}", annotations=annotations)


def platforms(found: tuple[IndexEntry, ...]) -> list[str]:
    return [str(each.platform) for each in found]


AMD, ARM = entry("linux/amd64", "a"), entry("linux/arm64", "b")


def test_entries_stay_in_the_order_of_the_sources() -> None:
    assert entries.joined([ARM, AMD]) == (ARM, AMD)


def test_an_entry_that_several_sources_have_is_there_once() -> None:
    one = entry("linux/amd64", "a", annotations=(("k", "1"), ("l", "1")))
    other = entry("linux/amd64", "a", annotations=(("k", "2"),))
    (found,) = entries.joined([one, other])
    assert found.descriptor.annotations == (("k", "2"), ("l", "1"))


def test_two_manifests_for_one_platform_are_refused_with_both_named() -> None:
    with pytest.raises(UsageError) as caught:
        entries.joined([AMD, entry("linux/amd64", "other")])
    assert caught.value.problem.what == "there are two manifests for linux/amd64"
    assert AMD.descriptor.digest in caught.value.problem.why
    assert "of other" in caught.value.problem.why
    assert "--duplicate" in caught.value.problem.remedy


@pytest.mark.parametrize(
    ("one", "other"),
    [("linux/arm64", "linux/arm64/v8"), ("linux/arm", "linux/arm/v7"), ("linux/amd64/v1", "linux/amd64")],
)
def test_platforms_are_the_same_by_their_normal_form(one: str, other: str) -> None:
    with pytest.raises(UsageError):
        entries.joined([entry(one, "1"), entry(other, "2")])


@pytest.mark.parametrize(
    ("one", "other"), [("linux/arm/v6", "linux/arm/v7"), ("linux/amd64", "linux/amd64/v2"), ("", ""), ("linux/386", "")]
)
def test_other_platforms_are_other_platforms(one: str, other: str) -> None:
    assert len(entries.joined([entry(one, "1"), entry(other, "2")])) == 2


def test_builds_of_windows_are_platforms_of_their_own() -> None:
    def windows(version: str) -> IndexEntry:
        spec = PlatformSpec("amd64", "windows", os_version=version)
        return IndexEntry(Descriptor(mediatypes.OCI_MANIFEST, sha256(version.encode()), 1, spec))

    assert len(entries.joined([windows("10.0.17763.1"), windows("10.0.20348.2")])) == 2


def test_a_manifest_that_an_index_lists_for_several_platforms_keeps_all_of_them() -> None:
    newer = entry("linux/arm/v7", "a")
    spec = PlatformSpec("arm", "linux", "v6")
    older = IndexEntry(replace(newer.descriptor, platform=spec), source=newer.source)
    for every in ((newer, AMD, older), (older, newer, AMD)):
        assert entries.joined(every) == every
        assert entries.joined(every, "all") == every
        assert entries.chosen(every, ["linux/arm/v6"], parsing.parse) == {every.index(older)}
    assert entries.filtered([newer, older, AMD], [parsing.parse("linux/arm/v6")]) == (older,)
    (found,) = entries.joined([newer, replace(older, source="another")])
    assert found.descriptor.platform == spec


def test_an_entry_without_a_variant_stands_for_one_only_where_none_has_it() -> None:
    newer = entry("linux/amd64/v3", "a")
    wanted = parsing.parse("linux/amd64/v3")
    for every in ((AMD, newer), (newer, AMD)):
        assert entries.filtered(every, [wanted]) == (newer,)
        assert entries.chosen(every, ["linux/amd64/v3"], parsing.parse) == {every.index(newer)}
        assert entries.ordered(every, [wanted, parsing.parse("linux/amd64")]) == (newer, AMD)
        assert entries.ordered(every, [parsing.parse("linux/amd64"), wanted]) == (AMD, newer)
    assert entries.filtered([AMD, ARM], [wanted]) == (AMD,)


def test_what_has_a_platform_is_an_image_whatever_its_annotations_say() -> None:
    annotations = attestation(ARM).descriptor.annotations
    said = IndexEntry(replace(AMD.descriptor, annotations=annotations))
    assert (said.subject, str(said.platform)) == ("", "linux/amd64")


@pytest.mark.parametrize(("duplicate", "kept"), [("first", [0, 1]), ("last", [2, 3]), ("all", [0, 1, 2, 3])])
def test_which_of_two_counts_can_be_said_and_attestations_go_along(
    duplicate: entries.Duplicate, kept: list[int]
) -> None:
    other = entry("linux/amd64", "other")
    every = [AMD, attestation(AMD), other, attestation(other)]
    assert entries.joined(every, duplicate) == tuple(every[each] for each in kept)


def test_platforms_are_filtered_with_their_attestations_and_what_says_none_stays() -> None:
    every = [AMD, ARM, attestation(AMD), attestation(ARM), entry("", "index", kind=mediatypes.OCI_INDEX)]
    found = entries.filtered(every, [parsing.parse("linux/arm64")])
    assert found == (ARM, every[3], every[4])
    assert entries.filtered(every, []) == tuple(every)


def test_a_platform_that_is_not_there_is_an_error_that_lists_what_is() -> None:
    with pytest.raises(PlatformMissing) as caught:
        entries.filtered([AMD, ARM], [parsing.parse("linux/amd64"), parsing.parse("linux/s390x")])
    assert "linux/s390x" in caught.value.problem.what
    assert caught.value.problem.why == "there are linux/amd64, linux/arm64"


def test_entries_can_have_the_order_of_the_platforms() -> None:
    last = entry("", "artefact")
    every = (AMD, attestation(AMD), last, ARM, attestation(ARM))
    wanted = [parsing.parse("linux/arm64"), parsing.parse("linux/amd64")]
    assert entries.ordered(every, wanted) == (ARM, AMD, last, every[4], every[1])


def test_entries_are_chosen_by_digest_or_platform() -> None:
    every = (AMD, ARM)
    assert entries.chosen(every, ["linux/arm64/v8"], parsing.parse) == {1}
    assert entries.chosen(every, [f"app@{AMD.descriptor.digest}"], parsing.parse) == {0}
    for word in ("linux/s390x", "sha256:" + "0" * 64):
        with pytest.raises(UsageError, match="has no entry"):
            entries.chosen(every, [word], parsing.parse)


DOCKER = entry("linux/amd64", "d", kind=mediatypes.DOCKER_MANIFEST)


@pytest.mark.parametrize(
    ("every", "annotations", "kind"),
    [
        ([AMD, ARM], (), mediatypes.OCI_INDEX),
        ([DOCKER], (), mediatypes.DOCKER_INDEX),
        ([DOCKER, ARM], (), mediatypes.OCI_INDEX),
        ([DOCKER], (("k", "v"),), mediatypes.OCI_INDEX),
    ],
)
def test_the_kind_of_the_index_is_what_its_entries_and_annotations_make_of_it(
    every: list[IndexEntry], annotations: tuple[tuple[str, str], ...], kind: str
) -> None:
    descriptor, data = entries.encoded(every, annotations)
    assert descriptor.media_type == json.loads(data)["mediaType"] == kind
    assert (descriptor.digest, descriptor.size) == (sha256(data), len(data))
    assert [each["mediaType"] for each in json.loads(data)["manifests"]] == [
        each.descriptor.media_type for each in every
    ]


def test_the_index_is_the_one_that_a_build_writes() -> None:
    index = Index(mediatypes.OCI_INDEX, (AMD.descriptor, ARM.descriptor), (("k", "v"),))
    assert entries.encoded([AMD, ARM], (("k", "v"),))[1] == encode(index)


def test_dockers_list_is_not_annotated() -> None:
    with pytest.raises(UsageError, match="no place for annotations"):
        entries.encoded([DOCKER], (("k", "v"),), mediatypes.DOCKER_INDEX)


def test_an_index_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError):
        entries.encoded([])


def test_fields_that_mean_nothing_here_are_kept() -> None:
    odd = entry("linux/amd64", "a", rest={"urls": ["https://example.com/a"], "com.example": {"x": 1}})
    _, data = entries.encoded([odd])
    index = parse(data)
    assert isinstance(index, Index)
    assert entries.entries_of(index, data, "a") == (odd,)
    assert json.loads(data)["manifests"][0]["com.example"] == {"x": 1}


# -- annotations


def test_an_annotation_without_level_is_the_indexs() -> None:
    found = annotating.parse(["a=1", "index:b=2", "index-descriptor:c=3"])
    assert annotating.of_level(found, "index") == (("a", "1"), ("b", "2"))
    assert annotating.of_level(found, "index-descriptor") == (("c", "3"),)


def test_descriptors_are_annotated_and_attestations_are_not() -> None:
    wanted = annotating.parse(["manifest-descriptor[linux/arm64]:k=arm", "manifest-descriptor:k=all"])
    found = annotating.described((AMD, ARM, attestation(AMD)), wanted)
    assert [dict(each.descriptor.annotations).get("k") for each in found] == ["all", "arm", None]


def test_annotating_a_platform_that_is_not_there_is_an_error() -> None:
    wanted = annotating.parse(["manifest-descriptor[linux/s390x]:k=v"])
    with pytest.raises(UsageError, match="linux/s390x, which is not there"):
        annotating.described((AMD,), wanted)


@pytest.mark.parametrize(
    "text", ["manifest:k=v", "manifest[linux/amd64]:k=v", "index[linux/amd64]:k=v", "nothing:k=v", "k"]
)
def test_annotations_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="annotation"):
        annotating.parse([text])
