"""``--output`` as buildx spells it, and what ``--push`` and no destination at all come to."""

from __future__ import annotations

from pathlib import Path

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
        ("type=docker", Output("load")),
        ("type=cacheonly", Output("cacheonly")),
        ("type=registry", Output("registry")),
        ("type=image,push=true", Output("registry")),
        ("type=image,push=true,name=a/b:1", Output("registry", names=("a/b:1",))),
        ('type=registry,"name=a:1,b:2"', Output("registry", names=("a:1", "b:2"))),
        ("type=registry,push-by-digest=true,name=a", Output("registry", names=("a",), push_by_digest=True)),
        ("type=oci,dest=o,oci-mediatypes=false", Output("oci", "o", oci_media_types=False)),
        ("type=oci,dest=o,compression=zstd,compression-level=3,force-compression=true",
         Output("oci", "o", compression="zstd", compression_level=3, force_compression=True)),
        ("type=oci,dest=o,rewrite-timestamp=true,oci-artifact=true,buildinfo=false,buildinfo-attrs=true",
         Output("oci", "o", rewrite_timestamp=True)),
        ("type=oci,dest=o,rewrite-timestamp=false", Output("oci", "o", rewrite_timestamp=False)),
        ("type=image,push=true,unpack=true,store=false,name-canonical=true", Output("registry")),
        ("type=registry,registry.insecure=true", Output("registry", insecure=True)),
        ("type=registry,dangling-name-prefix=a/b", Output("registry", dangling="a/b")),
        ("type=registry,name=c,dangling-name-prefix=a,danging-name-empty-only=true", Output("registry", names=("c",))),
        ("type=registry,dangling-name-prefix=a/b,danging-name-empty-only=true", Output("registry", dangling="a/b")),
        ("type=local,dest=out,mode=copy", Output("local", "out")),
        ("type=local,dest=out,mode=delete", Output("local", "out", delete=True)),
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
    assert gather([], push=False, tags=["a"]) == (Output("oci", DEFAULT_LAYOUT),)


def test_push_is_a_registry_once() -> None:
    assert gather([], push=True, tags=["a"]) == (Output("registry"),)
    assert gather(["type=registry"], push=True, tags=["a"]) == (Output("registry"),)
    assert gather(["type=oci,dest=x"], push=True, tags=["a"]) == (Output("oci", "x"), Output("registry"))


def test_a_push_needs_a_name() -> None:
    with pytest.raises(UsageError, match="where to push"):
        gather([], push=True, tags=[])
    assert gather(["type=registry,name=a"], push=False, tags=[])


@pytest.mark.parametrize("text", ["type=image", "type=image,push=false", "type=image,name=b:1"])
def test_push_pushes_an_image_output(text: str) -> None:
    (found,) = gather([text], push=True, tags=["a"])
    assert (found.kind, found.names) == ("registry", ("b:1",) if "name" in text else ())


def test_load_is_there_once_and_beside_others() -> None:
    assert gather([], push=False, load=True, tags=[]) == (Output("load"),)
    assert [each.kind for each in gather(["type=docker"], push=False, load=True, tags=[])] == ["load"]
    assert [each.kind for each in gather(["type=docker,dest=x"], push=True, load=True, tags=["a"])] == [
        "docker",
        "registry",
        "load",
    ]


def test_what_goes_nowhere_goes_nowhere() -> None:
    assert gather(["type=cacheonly"], push=False, tags=["a"]) == ()
    assert gather(["type=cacheonly"], push=True, tags=["a"]) == (Output("registry"),)


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
