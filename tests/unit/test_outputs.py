"""``--output`` as buildx spells it, and what ``--push`` and no destination at all come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.outputs import (
    DEFAULT_LAYOUT,
    CacheOnly,
    DockerArchive,
    ImageOptions,
    ImageStore,
    LocalArchive,
    LocalDirectory,
    OciArchive,
    OciLayout,
    Output,
    Push,
    gather,
    parse,
)
from platforms.errors import UsageError


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("type=oci,dest=out", OciLayout("out")),
        ("type=oci,dest=out,tar=true", OciArchive("out")),
        ("type=oci,dest=out.tar", OciArchive("out.tar")),
        ("type=oci,dest=out.tar,tar=false", OciLayout("out.tar")),
        ("type=oci,dest=-", OciArchive("-")),
        ("type=oci", OciLayout(DEFAULT_LAYOUT)),
        ("type=oci,tar=true", OciArchive("-")),
        ("type=docker,dest=out.tar", DockerArchive("out.tar", ImageOptions(oci_media_types=False))),
        ("type=docker", ImageStore()),
        ("type=cacheonly", CacheOnly()),
        ("type=registry", Push()),
        ("type=image,push=true", Push()),
        ("type=image,push=true,name=a/b:1", Push(ImageOptions(names=("a/b:1",)))),
        ('type=registry,"name=a:1,b:2"', Push(ImageOptions(names=("a:1", "b:2")))),
        ("type=registry,push-by-digest=true,name=a", Push(ImageOptions(names=("a",)), by_digest=True)),
        ("type=oci,dest=o,oci-mediatypes=false", OciLayout("o", ImageOptions(oci_media_types=False))),
        ("type=oci,dest=o,compression=zstd,compression-level=3,force-compression=true",
         OciLayout("o", ImageOptions(compression="zstd", compression_level=3, force_compression=True))),
        ("type=oci,dest=o,rewrite-timestamp=true,oci-artifact=true,buildinfo=false,buildinfo-attrs=true",
         OciLayout("o", ImageOptions(rewrite_timestamp=True))),
        ("type=oci,dest=o,rewrite-timestamp=false", OciLayout("o", ImageOptions(rewrite_timestamp=False))),
        ("type=image,push=true,unpack=true,store=false,name-canonical=true", Push()),
        ("type=registry,registry.insecure=true", Push(insecure=True)),
        ("type=registry,dangling-name-prefix=a/b", Push(dangling="a/b")),
        ("type=registry,name=c,dangling-name-prefix=a,danging-name-empty-only=true", Push(ImageOptions(names=("c",)))),
        ("type=registry,dangling-name-prefix=a/b,danging-name-empty-only=true", Push(dangling="a/b")),
        ("type=local,dest=out,mode=copy", LocalDirectory("out")),
        ("type=local,dest=out,mode=delete", LocalDirectory("out", delete=True)),
        ("type=local,dest=out", LocalDirectory("out")),
        ("type=tar,dest=out.tar", LocalArchive("out.tar")),
        ("out", LocalDirectory("out")),
        ("-", LocalArchive("-")),
        ("TYPE=oci,Dest=Out", OciLayout("Out")),
        ('type=oci,"dest=a,b"', OciLayout("a,b")),
        ("type=oci,dest=o,annotation.a.b=c", OciLayout("o", ImageOptions(annotations=(("annotation.a.b", "c"),)))),
        ("type=oci,dest=o,annotation-index[linux/arm64].Org.X=1",
         OciLayout("o", ImageOptions(annotations=(("annotation-index[linux/arm64].Org.X", "1"),)))),
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
        ("type=image,push=true,rewrite-timestmap=true", "did you mean rewrite-timestamp?"),
        ("type=registry,unpack=perhaps", "unpack"),
        ("type=oci,dest=o,unpack=true", "unpack"),
        ("type=oci,dest=o,oci-artifact=true,oci-mediatypes=false", "oci-artifact"),
        ("type=regsitry", "did you mean registry?"),
        ("type=oci,compression=ztsd", "did you mean zstd?"),
        ("type=local,dest=o,mode=move", "mode"),
        ("type=tar,dest=o,mode=delete", "mode"),
        ("type=local,dest=o,annotation.a=b", "annotate"),
        ("type=cacheonly,dest=x", "dest"),
    ],
)
def test_refusals_name_the_key(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert words in str(caught.value) + caught.value.problem.remedy


def test_without_a_destination_there_is_a_layout() -> None:
    assert gather([], push=False, tags=["a"]) == (OciLayout(DEFAULT_LAYOUT),)


def test_push_is_a_registry_once() -> None:
    assert gather([], push=True, tags=["a"]) == (Push(),)
    assert gather(["type=registry"], push=True, tags=["a"]) == (Push(),)
    assert gather(["type=oci,dest=x"], push=True, tags=["a"]) == (OciLayout("x"), Push())


def test_a_push_needs_a_name() -> None:
    with pytest.raises(UsageError, match="where to push"):
        gather([], push=True, tags=[])
    assert gather(["type=registry,name=a"], push=False, tags=[])


@pytest.mark.parametrize("text", ["type=image", "type=image,push=false", "type=image,name=b:1"])
def test_push_pushes_an_image_output(text: str) -> None:
    names = ("b:1",) if "name" in text else ()
    assert gather([text], push=True, tags=["a"]) == (Push(ImageOptions(names=names)),)


def test_load_is_there_once_and_beside_others() -> None:
    assert gather([], push=False, load=True, tags=[]) == (ImageStore(),)
    assert gather(["type=docker"], push=False, load=True, tags=[]) == (ImageStore(),)
    docker = ImageOptions(oci_media_types=False)
    assert gather(["type=docker,dest=x"], push=True, load=True, tags=["a"]) == (
        DockerArchive("x", docker),
        Push(),
        ImageStore(docker),
    )


def test_what_goes_nowhere_goes_nowhere() -> None:
    assert gather(["type=cacheonly"], push=False, tags=["a"]) == ()
    assert gather(["type=cacheonly"], push=True, tags=["a"]) == (Push(),)


def test_deleting_elsewhere_takes_a_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    assert gather(["type=local,dest=out/deep,mode=delete"], push=False, tags=[])
    for place in (".", "..", tmp_path, "../there", "link/there", "out/../../there", "/"):
        text = f"type=local,dest={place},mode=delete"
        with pytest.raises(UsageError, match="not below the current directory") as caught:
            gather([text], push=False, tags=[])
        assert "--allow buildx.local.delete" in caught.value.problem.remedy
    assert gather(["type=local,dest=../there,mode=delete"], push=False, tags=[], may_delete=True)
