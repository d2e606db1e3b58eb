"""The release file: what it may say, what it comes to, and the place of everything that is wrong in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from orchestrator import project_file, yaml_settings
from orchestrator.release import release_file
from orchestrator.release.model import ImageTest, Release, ReleaseImage
from platforms.errors import UsageError

SCHEMA = json.loads((Path(release_file.__file__).parent / "kanifold.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)

GOOD = """\
platforms: [linux/amd64, linux/arm64]
variables:
  REGISTRY: registry.example.com/team
  VERSION: 1.10
  CHANNEL:
templates:
  common:
    labels: {org.opencontainers.image.vendor: Example, tier: base}
    annotations: {"index:org.opencontainers.image.title": "${REGISTRY}"}
    platforms: [linux/amd64]
images:
  base:
    context: base
    tags: "${REGISTRY}/base:${VERSION}"
  web:
    inherits: common
    matrix:
      python: ["3.12", 3.13]
      variant: [slim, full]
      exclude: [{python: "3.12", variant: full}]
      include: [{python: "3.14", variant: tiny}]
    depends-on: {root: base}
    labels: {tier: "web-${variant}"}
    args: {PYTHON: "${python}", EMPTY: ""}
    tags:
      - "${REGISTRY}/web:${VERSION}-python${python}-${variant}"
      - "${CHANNEL:+${REGISTRY}/web:${CHANNEL}}"
    secrets: ["id=token,env=TOKEN", {id: key, src: key.txt}]
    cache-from: registry.example.com/cache
    outputs: [{type: oci, dest: out}, files]
    ssh: default
    no-cache: true
    test:
      - python3 -c 'import web'
      - {name: scan, script: [./scan, --fast], timeout: 2m}
      - {command: [web, --check], network: true, platforms: linux/amd64}
groups:
  default: [base, web]
"""


def read(text: str, environ: Mapping[str, str] | None = None, **given: str) -> Release:
    from orchestrator import yaml_settings

    return release_file.parsed(
        yaml_settings.parse(text.encode(), "kanifold.yaml"), given, {"SOURCE_DATE_EPOCH": "0", **(environ or {})}
    )


def image(text: str, environ: Mapping[str, str] | None = None, **given: str) -> ReleaseImage:
    """The image ``a`` of a file with these lines for it."""
    lines = "".join(f"    {line}\n" for line in text.splitlines())
    found = read(f"variables: {{A: '', B: b, HOST:}}\nimages:\n  a:\n{lines}", environ, **given).image("a")
    assert found is not None
    return found


def test_a_file_declares_images_and_groups() -> None:
    found = read(GOOD)
    assert [each.name for each in found.images] == [
        "base",
        "web-3-12-slim",
        "web-3-13-slim",
        "web-3-13-full",
        "web-3-14-tiny",
    ]
    web = found.images[2]
    assert web.tags == ("registry.example.com/team/web:1.10-python3.13-slim",), "an empty text of a list is left out"
    assert web.matrix == (("python", "3.13"), ("variant", "slim"))
    assert dict(web.labels) == {"org.opencontainers.image.vendor": "Example", "tier": "web-slim"}
    assert dict(web.args)["PYTHON"] == "3.13"
    assert dict(web.args)["EMPTY"] == ""
    assert web.annotations == ("index:org.opencontainers.image.title=registry.example.com/team",)
    assert web.platforms == ("linux/amd64",), "its template's"
    assert found.images[0].platforms == ("linux/amd64", "linux/arm64"), "those of the file"
    assert web.contexts == (("root", "target:base"),)
    assert web.depends_on == ("base",)
    assert web.secrets == ((("id", "token"), ("env", "TOKEN")), (("id", "key"), ("src", "key.txt")))
    assert web.cache_from == ((("type", "registry"), ("ref", "registry.example.com/cache")),)
    assert web.outputs == ((("type", "oci"), ("dest", "out")), (("type", "local"), ("dest", "files")))
    assert web.ssh == ((("id", "default"),),)
    assert web.no_cache is True
    assert web.pull is None
    run, scan, command = web.tests
    assert (run.name, run.run, run.timeout) == ("test-1", "python3 -c 'import web'", ImageTest("").timeout)
    assert (scan.name, scan.script, scan.timeout) == ("scan", ("./scan", "--fast"), 120.0)
    assert (command.command, command.network, command.platforms) == (("web", "--check"), True, ("linux/amd64",))
    group = found.group("web")
    assert group is not None
    assert group.members == tuple(each.name for each in found.images[1:]), "a matrix is a group of its images"


def test_a_variable_is_what_the_command_line_says_else_the_environment_else_the_default() -> None:
    text = 'target: "${HOST:-none}-${B}"'
    assert image(text).target == "none-b"
    assert image(text, {"HOST": "x", "B": "y"}).target == "x-y"
    assert image(text, {"HOST": "x", "B": "y"}, B="z").target == "x-z"


def test_the_commit_is_a_variable_and_the_epoch(tmp_path: Path, repository: Path) -> None:
    (repository / "kanifold.yaml").write_text(
        'images: {a: {tags: "app:${git.version}-${git.major}-${git.branch-tag}"}}'
    )
    found = release_file.read(str(repository / "kanifold.yaml"), {}, {}).images[0]
    assert found.tags == ("app:1.2.3-1-feature-x",)
    assert dict(found.args) == {"SOURCE_DATE_EPOCH": "1700000000"}
    given = release_file.read(str(repository / "kanifold.yaml"), {}, {"SOURCE_DATE_EPOCH": "5"}).images[0]
    assert given.args == (), "that of the environment is every build's"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A checkout of the branch feature/x, whose commit has the tags v1.2.3, v1.3.0-rc1 and other."""
    import subprocess

    date = "1700000000 +0000"
    environment = {"GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    commands = (
        "init -q -b feature/x",
        "-c user.name=a -c user.email=a@example.com commit -q --allow-empty -m x",
        "tag other",
        "tag v1.2.3",
        "tag v1.3.0-rc1",
    )
    folder = tmp_path / "checkout"
    folder.mkdir()
    for each in commands:
        subprocess.run(["git", *each.split(" ")], cwd=folder, env=environment, check=True)
    return folder


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("images: {}", "1:1", "it declares no image"),
        ("images:\n  web: {contxt: .}", "2:9: images.web.contxt", "unknown key (did you mean context?)"),
        ("imges: {web: {}}", "1:1: imges", "unknown key (did you mean images?)"),
        ("images: {a: {tags: 'x:${VERSON}'}}\nvariables: {VERSION: 1}", "1:14: images.a.tags", "VERSION?"),
        ("images: {a: {tags: 'x:${HOME}'}}", "1:14: images.a.tags", "there is no variable HOME"),
        ("images: {a: {target: '${V}'}}\nvariables: {V: }", "1:14: images.a.target", "the variable V has no value"),
        ("images: {a: {target: '${V}'}}\nvariables: {V: '${W}', W: '${V}'}", "2:", "depends on itself: V -> W -> V"),
        ("images: {a: {target: '${V'}}\nvariables: {V: 1}", "1:14: images.a.target", "the brace of ${V is not closed"),
        ("images: {a: {target: '${}'}}", "1:14: images.a.target", "not the name of a variable"),
        ("images: {a: {inherits: comon}}\ntemplates: {common: {}}", "1:14: images.a.inherits", "common?"),
        ("images: {a: {inherits: b}, b: {inherits: a}}", "1:", "inherits from itself"),
        ("images: {a: {matrix: {}}}", "1:14: images.a.matrix", "a matrix has axes"),
        ("images: {a: {matrix: {v: []}}}", "1:23: images.a.matrix.v", "at least one value"),
        ("images: {a: {matrix: {v: [x, x]}}}", "1:30: images.a.matrix.v[1]", "there twice"),
        ("images: {a: {matrix: {v: [slim], exclude: [{v: slm}]}}}", "1:45", "no value slm (did you mean slim?)"),
        ("images: {a: {matrix: {v: [slim], exclude: [{w: slim}]}}}", "1:45", "unknown key (did you mean v?)"),
        ("images: {a: {matrix: {v: [x], w: [y], include: [{v: z}]}}}", "1:49", "no value for w"),
        ("images: {a: {matrix: {v: [x], exclude: [{v: x}]}}}", "1:14: images.a.matrix", "all combinations"),
        ("images: {a: {matrix: {v: [x.y, x-y]}}}", "1:10: images.a", "two images are called a-x-y"),
        ("images: {a: {name: b}}", "1:14: images.a.name", "only an image with a matrix"),
        ("images: {a b: {}}", "1:10: images.a b", "cannot have this name"),
        ("images: {a: {}}\ntemplates: {a: {}}", "2:13: templates.a", "an image has this name"),
        ("images: {a: {}}\ngroups: {g: [b]}", "2:10: groups.g", "neither an image nor a group b"),
        ("images: {a: {}}\ngroups: {a: [a]}", "2:10: groups.a", "an image has this name"),
        ("images: {a: {test: {}}}", "1:14: images.a.test", "one of run, command and script"),
        ("images: {a: {test: {run: x, comand: y}}}", "1:29: images.a.test.comand", "command?"),
        ("images: {a: {test: {run: x, timeout: soon}}}", "1:29: images.a.test.timeout", "is no duration"),
        ("images: {a: {test: [{name: t, run: x}, {name: t, run: y}]}}", "1:40", "two tests are called t"),
        ("images: {a: {no-cache: maybe}}", "1:14: images.a.no-cache", "true or false"),
        ("images: {a: {outputs: [{type: [x]}]}}", "1:25", "a text is expected"),
        ("images: {a: {outputs: 'type=oci,x'}}", "1:14: images.a.outputs", "'x' is not key=value"),
        ("variables: {1x: y}\nimages: {a: {}}", "1:13: variables.1x", "cannot have this name"),
        ("images: {a: {args: &x {b: c}, labels: *x}}", "1:", "aliases are not supported"),
    ],
)
def test_what_is_wrong_has_its_place(text: str, place: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    problem = caught.value.problem
    assert problem.what.startswith(f"kanifold.yaml:{place}"), problem.what
    assert why in problem.why
    assert problem.where is not None


def test_a_variable_that_the_file_does_not_declare_cannot_be_given() -> None:
    with pytest.raises(UsageError, match=r"--var VERSON: the release file has no such variable .did you mean VERSION"):
        read(GOOD, VERSON="2")


@pytest.mark.parametrize("text", [GOOD, "images: {a: }", "images: {a: {inherits: [], args: , test: }}"])
def test_the_schema_accepts_what_is_read(text: str) -> None:
    read(text)
    assert not list(VALIDATOR.iter_errors(plain(text)))


@pytest.mark.parametrize(
    "text",
    [
        "imges: {}",
        "images: {a: {contxt: .}}",
        "images: {a: {args: [x]}}",
        "images: {a: {matrix: {v: []}}}",
        "images: {a: {test: {}}}",
        "images: {a: {test: {run: x, script: y}}}",
        "images: {a b: {}}",
        "images: {a: {}}\nvariables: {1x: y}",
    ],
)
def test_the_schema_refuses_what_is_not(text: str) -> None:
    with pytest.raises(UsageError):
        read(text)
    assert list(VALIDATOR.iter_errors(plain(text)))


def test_the_schema_is_one_and_has_every_key() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert tuple(SCHEMA["properties"]) == project_file.KEYS
    assert set(SCHEMA["$defs"]["image"]["properties"]) == set(release_file.IMAGE_KEYS)
    assert set(SCHEMA["$defs"]["test"]["properties"]) == set(release_file.TEST_KEYS)


def plain(text: str) -> Any:
    return yaml.safe_load(text)


def test_a_file_names_nodes_and_no_addresses() -> None:
    text = "images: {a: {nodes: ['b=ssh://me@example.com']}}"
    with pytest.raises(UsageError, match="a node cannot be called"):
        release_file.parsed(yaml_settings.parse(text.encode(), "kanifold.yaml"), {}, {})


def _row(length: int, head: str, entry: str) -> str:
    return "\n".join((head, "  X0: a", *(entry.format(each, each - 1) for each in range(1, length))))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (_row(1000, "variables:", '  X{}: "${{X{}}}"') + '\nimages: {a: {tags: "${X999}"}}', "depend on each other"),
        (
            _row(1000, "templates:", "  X{}: {{inherits: X{}}}").replace("X0: a", "X0: {}")
            + "\nimages: {a: {inherits: X999}}",
            "inherit in a row",
        ),
        (
            "images:\n" + "".join(f"  a{each}: {{matrix: {{x: {list(range(250))}}}}}\n" for each in range(9)),
            "more than 400 images",
        ),
    ],
)
def test_what_is_too_much_is_refused_at_once(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        release_file.parsed(yaml_settings.parse(text.encode(), "kanifold.yaml"), {}, {"SOURCE_DATE_EPOCH": "0"})
    assert reason in caught.value.problem.why


def test_a_default_is_made_once_however_often_it_is_used() -> None:
    """Otherwise 30 variables that each use the one before twice would be made a thousand million times."""
    text = _row(30, "variables:", '  X{0}: "${{X{1}:+x}}${{X{1}:+x}}"') + '\nimages: {a: {tags: "r:${X29}"}}'
    (image,) = release_file.parsed(
        yaml_settings.parse(text.encode(), "kanifold.yaml"), {}, {"SOURCE_DATE_EPOCH": "0"}
    ).images
    assert image.tags == ("r:xx",)
