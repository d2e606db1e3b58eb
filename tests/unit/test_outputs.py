"""``--output`` as buildx spells it, and what ``--push`` and no destination at all come to."""

from __future__ import annotations

import pytest

from orchestrator.outputs import DEFAULT_LAYOUT, Output, gather, parse
from platforms.errors import UsageError


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("type=oci,dest=out", Output("oci", "out")),
        ("type=oci,dest=out,tar=true", Output("oci", "out", archive=True)),
        ("type=oci,dest=out.tar", Output("oci", "out.tar", archive=True)),
        ("type=oci,dest=out.tar,tar=false", Output("oci", "out.tar")),
        ("type=oci,dest=-", Output("oci", "-", archive=True)),
        ("type=docker,dest=out.tar", Output("docker", "out.tar", archive=True, oci_media_types=False)),
        ("type=registry", Output("registry")),
        ("type=image,push=true", Output("registry")),
        ("type=image,push=true,name=a/b:1", Output("registry", names=("a/b:1",))),
        ('type=registry,"name=a:1,b:2"', Output("registry", names=("a:1", "b:2"))),
        ("type=registry,push-by-digest=true,name=a", Output("registry", names=("a",), push_by_digest=True)),
        ("type=oci,dest=o,oci-mediatypes=false", Output("oci", "o", oci_media_types=False)),
        ("type=oci,dest=o,compression=zstd,compression-level=3,force-compression=true",
         Output("oci", "o", compression="zstd", compression_level=3, force_compression=True)),
        ("type=local,dest=out", Output("local", "out")),
        ("type=tar,dest=out.tar", Output("tar", "out.tar")),
        ("out", Output("local", "out")),
        ("-", Output("tar", "-")),
        ("TYPE=oci,Dest=Out", Output("oci", "Out")),
        ('type=oci,"dest=a,b"', Output("oci", "a,b")),
        ("type=oci,dest=o,annotation.a.b=c", Output("oci", "o", annotations=(("annotation.a.b", "c"),))),
        ("type=oci,dest=o,annotation-index[linux/arm64].Org.X=1",
         Output("oci", "o", annotations=(("annotation-index[linux/arm64].Org.X", "1"),))),
    ],
)  # fmt: skip
def test_spellings(text: str, meant: Output) -> None:
    assert parse(text) == meant


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type=floppy", "floppy"),
        ("dest=x", "type"),
        ("type=oci,dest=a,dest=b", "dest"),
        ("type=oci,colour=red", "colour"),
        ("type=oci,dest=o,tar", "tar"),
        ("type=oci,tar=maybe", "tar"),
        ("type=oci,compression=xz", "xz"),
        ("type=oci,compression-level=high", "compression-level"),
        ("type=image", "push"),
        ("type=image,push=false", "push"),
        ("type=registry,push=false", "push"),
        ("type=local", "dest"),
        ("type=tar", "dest"),
        ('type=oci,"dest', "comma-separated"),
        ("", "type"),
        ("type=registry,tar=true", "tar"),
    ],
)
def test_refusals_name_the_key(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert words in str(caught.value) + caught.value.problem.remedy


def test_without_a_destination_there_is_a_layout() -> None:
    assert gather([], push=False, tags=["a"]) == (Output("oci", DEFAULT_LAYOUT),)


def test_push_is_a_registry_once() -> None:
    assert gather([], push=True, tags=["a"]) == (Output("registry"),)
    assert gather(["type=registry"], push=True, tags=["a"]) == (Output("registry"),)
    assert gather(["type=oci,dest=x"], push=True, tags=["a"]) == (Output("oci", "x"), Output("registry"))


def test_a_push_needs_a_name() -> None:
    with pytest.raises(UsageError, match="where to push"):
        gather([], push=True, tags=[])
    assert gather(["type=registry,name=a"], push=False, tags=[])
