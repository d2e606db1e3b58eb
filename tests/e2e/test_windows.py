"""Images for Windows: made of a base, files and metadata, as BuildKit makes them on Linux; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import windows_base
import windows_image
from conftest import Kanifold
from oci_layout import read_image

NEXT = f"windows({windows_base.NEW})/amd64"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = tmp_path_factory.mktemp("windows") / "base"
    windows_base.write(layout)
    return layout


@pytest.fixture
def build(kanifold: Kanifold, base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Builds ``tmp_path/context`` for Windows, with the arguments given; returns the layout."""

    def run(*words: str, platforms: str = "windows/amd64", name: str = "out", **environment: str) -> Path:
        kanifold(
            "build", tmp_path / "context", "--platform", platforms, "--build-context", f"base=oci-layout://{base}",
            "--build-arg", f"SOURCE_DATE_EPOCH={windows_image.EPOCH}", "-o", f"type=oci,dest={tmp_path / name}", *words,
            **environment,
        )  # fmt: skip
        return tmp_path / name

    return run


def dockerfile(folder: Path, text: str) -> None:
    context = folder / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(text)
    (context / "x").write_text("x\n")


def test_images_are_those_of_buildkit(build: Callable[..., Path], tmp_path: Path) -> None:
    """Index, configs and every entry of every layer, of two versions of Windows and two architectures."""
    windows_image.write_context(tmp_path / "context")
    found = windows_image.picture(build(platforms=",".join(windows_image.PLATFORMS)))
    wanted = json.loads(windows_image.GOLDEN.read_text())
    for own, theirs in zip(found, wanted, strict=True):
        for key in theirs:
            assert own[key] == theirs[key], key


def test_from_scratch_the_layers_have_the_usual_form(build: Callable[..., Path], tmp_path: Path) -> None:
    dockerfile(tmp_path, "FROM scratch\nCOPY x C:/a/x\nWORKDIR /w\nCMD x\n")
    seen = read_image(build(), "windows/amd64")
    assert sorted(seen.tree) == ["a", "a/x", "w"]
    assert seen.config["config"] == {"ArgsEscaped": True, "Cmd": ["cmd", "/S", "/C", "x"], "WorkingDir": "\\w"}


def test_linked_copies_and_links_are_right_on_windows(build: Callable[..., Path], tmp_path: Path) -> None:
    r"""BuildKit leaves ``Files\`` away from what ``--link`` copies, and puts it before the targets of links."""
    dockerfile(tmp_path, "FROM base\nCOPY --link x C:/a/x\nCOPY d C:/d\n")
    (tmp_path / "context" / "d").mkdir()
    (tmp_path / "context" / "d" / "link").symlink_to("../a/x")
    first, second = windows_image.picture(build(platforms=f"{NEXT},windows/arm64"))[0]["layers"][2:]
    assert [each[0] for each in first] == ["Hives", "Files", "Files/a", "Files/a/x"]
    assert [(each[0], each[5]) for each in second][2:] == [("Files/d", ""), ("Files/d/link", "../a/x")]


def test_a_cache_elsewhere_has_the_same_layers(build: Callable[..., Path], tmp_path: Path) -> None:
    dockerfile(tmp_path, "FROM base AS first\nCOPY x C:/a/x\nFROM base\nCOPY --from=first C:/a C:/b\n")
    cache = tmp_path / "cache"
    one = build("--cache-to", f"type=local,dest={cache},mode=max", name="one")
    fresh = str(tmp_path / "fresh")
    other = build("--cache-from", f"type=local,src={cache}", name="other", KANIFOLD_ROOT=fresh)
    assert (one / "index.json").read_text() == (other / "index.json").read_text()


def test_linux_and_windows_share_no_layer_of_equal_files(build: Callable[..., Path], tmp_path: Path) -> None:
    """Their archives differ, although COPY names a layer by its content, whatever it is built on."""
    dockerfile(tmp_path, "FROM base AS windows\nFROM scratch AS linux\nFROM $TARGETOS\nCOPY --link x /a/x\n")
    layout = build(platforms="linux/amd64,windows/amd64")
    assert sorted(read_image(layout, "linux/amd64").tree) == ["a", "a/x"]
    windows = read_image(layout, "windows/amd64").tree
    assert "Files/a/x" in windows
    assert "a" not in windows


def test_run_is_refused_before_anything_is_done(
    kanifold: Kanifold, base: Path, tmp_path: Path, build: Callable[..., Path]
) -> None:
    dockerfile(tmp_path, "FROM base\nRUN dir\n")
    refused = kanifold.run(
        "build", tmp_path / "context", "--platform", "windows/amd64", "--build-context", f"base=oci-layout://{base}",
        "-o", "type=cacheonly",
    )  # fmt: skip
    assert refused.code == 3
    assert "cannot run programs of windows/amd64" in refused.err
    assert "FROM --platform=$BUILDPLATFORM" in refused.err
    made = "FROM --platform=$BUILDPLATFORM scratch AS made\nCOPY x /y\n"
    dockerfile(tmp_path, made + "FROM base\nCOPY --from=made /y C:\\\\y\n")
    assert read_image(build(), "windows/amd64").tree["Files/y"].content == b"x\n"


@pytest.mark.parametrize(
    ("instruction", "why"),
    [
        (r"COPY x D:\\x", "not on the system drive"),
        (r"WORKDIR \\\\server\\share", "UNC paths are not supported"),
        (r"COPY D:\\x C:\\x", "not on the system drive"),
        ("WORKDIR C:", "names no path"),
    ],
)
def test_paths_elsewhere_are_refused_at_their_line(
    kanifold: Kanifold, base: Path, tmp_path: Path, instruction: str, why: str
) -> None:
    dockerfile(tmp_path, f"FROM base\n{instruction}\n")
    refused = kanifold.run(
        "build", tmp_path / "context", "--platform", "windows/amd64", "--build-context", f"base=oci-layout://{base}",
        "-o", "type=cacheonly",
    )  # fmt: skip
    assert refused.code == 1
    assert why in refused.err
    assert "Dockerfile:2" in refused.err
