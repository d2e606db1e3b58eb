"""Attack 55 (review): what is read in place of a Dockerfile, an ignore file, a config or a cache's entry.

A link in a strangers' checkout was read and its lines were quoted in the error, a FIFO was waited for without end, and
bytes that are no text, or nested too deeply, ended in a traceback. As in BuildKit a link may not lead out of the
context, and what is no file is no file.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from oci_layout import read_image

from executor.image import config
from executor.registry import oci_archive
from executor.solver import remote_entry
from platforms import regular
from platforms.errors import ArchiveError

SECRET = "[disclosed\nFROM disclosed:disclosed:disclosed\nCOPY\n"
DEEP = b"[" * 200_000 + b"]" * 200_000


def build(kanifold: Kanifold, folder: Path, *more: str) -> tuple[int, str]:
    done = kanifold.run("build", folder, "--output", "type=oci,tar=false,dest=out", *more)
    return done.code, done.said


def fifo(path: Path) -> None:
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.mkdir()


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("flags", [(), ("--check",), ("--call", "outline"), ("--call", "targets")])
@pytest.mark.parametrize("name", ["Dockerfile", "dockerfile", "Dockerfile.dockerignore", ".dockerignore"])
def test_a_link_out_of_the_context_is_not_read(
    kanifold: Kanifold, tmp_path: Path, name: str, flags: tuple[str, ...]
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    folder = kanifold.folder("context")
    if "ignore" in name:
        if flags:
            pytest.skip("read as for a build")
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    for target in (tmp_path / "secret", Path("../../secret"), Path("sub/../../../secret")):
        (folder / "sub").mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        code, said = build(kanifold, folder, *flags)
        assert (code, "disclosed" in said) == (1, False), said
        assert "leads out of" in said


@pytest.mark.parametrize("spelling", ["inside", "alias", "through a link of the context"])
def test_a_file_named_in_the_context_is_no_way_out_either(kanifold: Kanifold, tmp_path: Path, spelling: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_text(SECRET)
    folder = kanifold.folder("context")
    (folder / "link").symlink_to(tmp_path / "elsewhere/secret")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "alias").symlink_to(folder)
    named = {
        "inside": folder / "link",
        "alias": tmp_path / "alias/link",
        "through a link of the context": tmp_path / "alias/sub/secret",
    }[spelling]
    code, said = build(kanifold, folder, "-f", str(named))
    assert (code, "disclosed" in said) == (1, False), said


def test_links_inside_of_the_context_and_files_named_outside_are_what_they_were(
    kanifold: Kanifold, tmp_path: Path
) -> None:
    folder = kanifold.folder("context")
    (folder / "docker").mkdir()
    (folder / "docker/real").write_text("FROM scratch\nCOPY . /\n")
    (folder / "docker/ignore").write_text("docker\nDockerfile\n.dockerignore\n")
    (folder / "Dockerfile").symlink_to("docker/real")
    (folder / ".dockerignore").symlink_to("docker/ignore")
    (folder / "file").write_text("x")
    assert build(kanifold, folder)[0] == 0
    assert set(read_image(kanifold.home / "out", "linux/amd64").tree) == {"file"}
    (tmp_path / "target").write_text("FROM scratch\nCOPY file /named\n")
    (tmp_path / "chosen").symlink_to("target")
    assert build(kanifold, folder, "-f", str(tmp_path / "chosen"))[0] == 0
    assert set(read_image(kanifold.home / "out", "linux/amd64").tree) == {"named"}


def test_a_descriptor_that_the_shell_hands_over_may_be_a_pipe(kanifold: Kanifold) -> None:
    folder = kanifold.folder("context")
    command = " ".join([*kanifold.command, "build", str(folder), "-o", "type=tar,dest=-"])
    done = subprocess.run(
        ["bash", "-c", f"{command} -f <(printf 'FROM scratch\\nWORKDIR /piped\\n')"],
        env=kanifold.environment(), cwd=kanifold.home, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"piped" in done.stdout


@pytest.mark.parametrize("make", [fifo, directory, listening, device])
@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore", "Dockerfile.dockerignore", "outside", "named"])
def test_what_is_no_file_is_a_clear_error_and_not_waited_for(
    kanifold: Kanifold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], None]
) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    named = kanifold.folder("other")
    place = {"outside": tmp_path / "outside", "named": named / ".dockerignore"}.get(name, folder / name)
    place.unlink(missing_ok=True)
    monkeypatch.chdir(place.parent)
    make(place)
    more = {"outside": ("-f", str(place)), "named": ("--build-context", f"n={named}")}.get(name, ())
    code, said = build(kanifold, folder, *more)
    assert code == 1, said
    assert "not a regular file" in said or "leads out of" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("make", [fifo, directory, device])
def test_an_entry_of_a_cache_that_is_no_file_is_a_warning(
    kanifold: Kanifold, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY file /file\n")
    (folder / "file").write_text("x")
    cache = tmp_path / "cache"
    assert build(kanifold, folder, "--cache-to", f"type=local,dest={cache}")[0] == 0
    (entry,) = (cache / "steps").iterdir()
    entry.unlink()
    make(entry)
    code, said = build(kanifold, folder, "--cache-from", f"type=local,src={cache}", "--root", str(tmp_path / "clean"))
    assert code == 0, said
    assert "cannot be used" in said


def test_a_secret_that_turned_into_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    fifo(tmp_path / "secret")
    with pytest.raises(OSError, match="not a regular file"):
        regular.open_file(str(tmp_path / "secret"))


@pytest.mark.parametrize(
    "data",
    [b'{"key":"k\xff"}', b'{"key":"k","result":"\\ud800"}', b'{"key":"k","x":' + DEEP + b"}", b'{"\xff":1}', b"\xff"],
)
def test_a_caches_entry_that_is_no_text_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(ArchiveError):
        remote_entry.decode(data, "k")
    with pytest.raises(ArchiveError):
        remote_entry.read_inline(b'{"' + remote_entry.INLINE.encode() + b'":[' + data + b"]}")


@pytest.mark.parametrize(
    "inner",
    [
        b'"Env":["A=\xff"]',
        b'"Labels":{"\xff":"a"}',
        b'"Env":["A=\\ud800"]',
        b'"X":' + DEEP,
        b'"WorkingDir":"/a\\u0000b"',
        b'"Env":["A=\\u0000"]',
        b'"User":"\\u0000"',
        b'"Shell":["\\u0000"]',
    ],
)
def test_a_bases_config_that_is_no_text_is_a_clear_error(inner: bytes) -> None:
    with pytest.raises(ArchiveError, match="malformed image config"):
        config.parse(b'{"architecture":"amd64","os":"linux","config":{' + inner + b"}}")


@pytest.mark.parametrize(
    ("dockerfile", "why"),
    [
        ("FROM scratch\nWORKDIR /" + "a/" * 20_000 + "\n", "file name too long"),
        ("FROM scratch\nCOPY f /" + "a" * 256 + "/\n", "file name too long"),
        ('FROM scratch\nCOPY ["f\\u0000", "/x"]\n', "NUL byte"),
        ('FROM scratch\nSHELL ["\\u0000"]\n', "NUL byte"),
        ("FROM scratch\nRUN --mount=type=tmpfs,target=/x,size=" + "9" * 5_000 + " x\n", "invalid value for size"),
        ("ARG SOURCE_DATE_EPOCH=" + "9" * 5_000 + "\nFROM scratch\nWORKDIR /x\n", "SOURCE_DATE_EPOCH"),
        ("FROM scratch\nENV A=" + "${A:-" * 8_000 + "}" * 8_000 + "\n", "failed to process"),
    ],
)
def test_words_that_are_too_much_are_clear_errors(kanifold: Kanifold, dockerfile: str, why: str) -> None:
    folder = kanifold.folder("context")
    (folder / "f").write_text("x")
    (folder / "Dockerfile").write_text(dockerfile)
    code, said = build(kanifold, folder)
    assert code in (1, 2), said
    assert why in said
    assert "Traceback" not in said


def test_a_tree_deeper_than_pythons_stack_is_copied(kanifold: Kanifold) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY d /d\n")
    for depth in range(1, 1501):
        (folder / "/".join(["d"] * depth)).mkdir()
    try:
        code, said = build(kanifold, folder)
    finally:
        subprocess.run(["rm", "-r", folder / "d"], check=True)  # deeper than shutil's stack, too
    assert code == 0, said
    assert "/".join(["d"] * 1500) in read_image(kanifold.home / "out", "linux/amd64").tree


def test_a_moment_of_a_cache_without_a_time_zone_is_no_moment(
    kanifold: Kanifold, busybox: Base, tmp_path: Path
) -> None:
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text(f"FROM {busybox.ref}\nCOPY Dockerfile /file\n")
    cache = tmp_path / "cache"
    assert build(kanifold, folder, "--cache-to", f"type=local,dest={cache}")[0] == 0
    for entry in (cache / "steps").iterdir():
        entry.write_text(json.dumps({**json.loads(entry.read_text()), "created": "2026-01-01T00:00:00"}))
    more = ("--cache-from", f"type=local,src={cache}", "--cache-ttl", "1h", "--root", str(tmp_path / "clean"))
    code, said = build(kanifold, folder, *more)
    assert code == 0, said


@pytest.mark.parametrize("make", [fifo, device, directory])
def test_an_image_archive_that_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "image.tar")
    with pytest.raises(ArchiveError, match="cannot read the image archive"):
        oci_archive.read_archive(str(tmp_path / "image.tar"))
