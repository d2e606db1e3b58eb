"""Bake files: what is wrong in them is an error with its place, and no file takes long or much memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.release.bake import bake_file, bake_names
from orchestrator.release.model import Release, ReleaseImage
from platforms.errors import UsageError

VALIDATED = (
    'variable "N" {\n  default = 1\n  validation {\n    condition = N > 1\n    error_message = "N is ${N}"\n  }\n}'
)
CIRCLE = 'target "a" {\n  tags = target.b.tags\n}\ntarget "b" {\n  tags = target.a.tags\n}'


def read(text: str, given: Mapping[str, str] | None = None, name: str = "docker-bake.hcl") -> Release:
    """The release that a file with ``text`` declares, in the working directory."""
    Path(name).write_text(text)
    return bake_file.read((name,), given or {}, ())


def image(release: Release, name: str) -> ReleaseImage:
    found = release.image(name)
    assert found is not None
    return found


def error(text: str, name: str = "docker-bake.hcl") -> str:
    """What a file with ``text`` is refused with."""
    with pytest.raises(UsageError) as caught:
        read(text, name=name)
    return str(caught.value)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ('target "a" {\n  tags = [TGA]\n}\nvariable "TAG" {}', "2:11", "did you mean TAG?"),
        ('target "a" {\n  tags = [uper("x")]\n}', "2:11", "did you mean upper?"),
        ('target "a" {\n  tags = ["x"\n}', "3:1", "] is missing"),
        ('target "a" {\n  tags = 5\n}', "2:10", "the value of tags is wrong: list of string required"),
        ('target "a" {\n  pull = "maybe"\n}', "2:10", "bool required"),
        ('target "a" {\n  args = { x = "${[1]}${1}" }\n}', "2:19", "a text cannot contain this value"),
        ('target "a" {\n  output = ["dest=x,y=z"]\n}', "2:12", "a type is required"),
        ('target "a" {\n  tags = [upper("a", "b")]\n}', "2:11", "it takes 1 argument, and here are 2"),
        ('target "a" {\n  tags = [lower(null)]\n}', "2:17", "argument 1 of lower() is null"),
        ('target "a" {\n  tags = [element([], 0)]\n}', "2:11", "the list is empty"),
        ('target "a" {\n  tags = ["é", 1 / 0]\n}', "2:16", "division by zero"),
        ('target "a b" {}', "1:1", "is not a name"),
        ('target "a" {\n  inherits = ["b"]\n}\ntarget "c" {}', "1:1", "it inherits from b, which is not there"),
        ('targt "a" {}', "1:1", "did you mean target?"),
        ('group "a" {}', "1:1", "the group a has no targets"),
        ('target "a" {\n  policy = ["filename=x"]\n}', "2:3", "source policies are not supported"),
        ('target "a" {\n  name = "x"\n  matrix = { v = [1, 2] }\n}', "1:1", "several combinations of the matrix"),
        ('variable "N" {\n  type = number\n  default = "x"\n}', "3:13", "the default of N is wrong"),
        (VALIDATED, "4:17", "N is 1"),
        ("a = b\nb = a", "2:5", "variable a refers to itself"),
        ('function "f" {\n  params = [x]\n  result = f(x)\n}\ny = f(1)', "3:12", "function f refers to itself"),
        (CIRCLE, "2:10", "refers to itself"),
        ("x = 1 y = 2", "1:7", "a new line is expected"),
        ("x = 1\nx = 2", "2:1", "set twice"),
        ('x = "%{ if true }a"', "1:", "it is not HCL"),
    ],
)  # fmt: skip
def test_an_error_has_file_line_and_column(text: str, place: str, said: str) -> None:
    found = error(text)
    assert found.startswith(f"docker-bake.hcl:{place}")
    assert said in found


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ('{"target": {"a": {"tags": ["${X}"]}}}', "1:28", "unknown variable X"),
        ('{"target":\n  {"a": {"tags": ["x",]}}}', "2:23", "a value is expected"),
        ('{"target": {"a": 5}}', "1:18", "an object is expected"),
        ('{"target": {"a": {"tags": []}}} x', "1:33", "more after the document"),
    ],
)
def test_an_error_in_json_has_its_place_too(text: str, place: str, said: str) -> None:
    found = error(text, "docker-bake.json")
    assert found.startswith(f"docker-bake.json:{place}")
    assert said in found


def lines(first: str, rest: str, count: int = 30) -> str:
    """A file that begins with ``first``; ``rest`` follows, with each number and the one before."""
    return "\n".join((first, *(rest.format(at, at - 1) for at in range(1, count))))


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 50_000,
        "x = " + "(" * 50_000 + "1" + ")" * 50_000,
        "x = " + '"${' * 20_000,
        "x = " + "!" * 50_000 + "true",
        "x = " + "1 + " * 50_000 + "1",
        "x = " + "true ? 1 : " * 20_000 + "1",
        'target "x" {\n' * 10_000 + "}\n" * 10_000,
        lines('a0 = "0123456789"', 'a{0} = "${{a{1}}}${{a{1}}}"'),
        lines('a0 = ["x"]', "a{0} = [a{1}, a{1}]"),
        lines('a0 = ["x"]', "a{0} = concat(a{1}, a{1})"),
        lines("a0 = 10", "a{0} = a{1} * a{1}"),
        lines("a1000 = 1", "a{1} = a{0}", 1001),
        lines('function "f0" {{\n params = [x]\n result = x\n}}'.replace("{{", "{").replace("}}", "}"),
              'function "f{0}" {{\n params = [x]\n result = f{1}(f{1}(x))\n}}\ny{0} = f{0}(1)'),
        lines('target "t0" {}', 'target "t{0}" {{\n inherits = ["t{1}"]\n}}', 1000),
        "x = setproduct(range(1000), range(1000), range(1000))",
        "x = [for a in range(1000): [for b in range(1000): 1]]",
        "x = setunion([for i in range(1000): [i]])",
        'target "a" {\n name = "x"\n matrix = { a = range(100), b = range(100) }\n}',
        'x = indent(1000000000, "\\n")',
        'x = regex("(((a{100}){100}){100}){100}", "a")',
        f'x = regex("^(a+)+$", "{"a" * 10_000}b")',
        f'x = jsondecode("{"[" * 50_000}")',
        "x = 1.0e999999999",
        f'x = "{"a" * (1 << 20)}"',
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused(text: str) -> None:
    assert error(text)


@pytest.mark.parametrize("text", ['{"a":' * 50_000, "[" * 50_000, '{"target": {"a": {"args": ' + '{"x":' * 1000])
def test_a_hostile_file_in_json_is_refused(text: str) -> None:
    assert "nested too deeply" in error(text, "docker-bake.json")


@pytest.mark.parametrize("path", ["https://github.com/docker/buildx.git", "git@github.com:a/b.git", "ssh://host/x"])
def test_a_definition_from_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="not a local file"):
        bake_file.read((path,), {}, ())


def test_a_variable_is_given_by_flag_then_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
variable "TAG" { default = "file" }
variable "MANY" {
  type = list(string)
  default = []
}
variable "MAP" {
  type = map(number)
  default = null
}
variable "FLAG" { default = false }
target "a" {
  tags = [TAG]
  labels = { many = join("+", MANY), map = jsonencode(MAP), flag = FLAG }
}
"""
    monkeypatch.setenv("TAG", "environment")
    monkeypatch.setenv("MANY", 'x,"y,z"')
    monkeypatch.setenv("MAP_JSON", '{"a": 1}')
    monkeypatch.setenv("FLAG", "1")
    assert image(read(text), "a").tags == ("environment",)
    assert dict(image(read(text), "a").labels) == {"many": "x+y,z", "map": '{"a":1}', "flag": "true"}
    assert image(read(text, {"TAG": "flag"}), "a").tags == ("flag",)


def test_a_variable_of_the_wrong_type_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNT", "many")
    assert "the value 'many' of the variable COUNT is wrong" in error('variable "COUNT" { default = 1 }')


def test_an_override_that_matches_nothing_is_an_error() -> None:
    Path("docker-bake.hcl").write_text('target "web" {}')
    for text, said in (("wbe.tags=x", "did you mean web?"), ("web.tgas=x", "unknown key"), ("web.args=x", "arg.NAME")):
        with pytest.raises(UsageError, match=said):
            bake_file.read(("docker-bake.hcl",), {}, (text,))


def test_a_target_of_a_matrix_is_a_group_of_its_combinations() -> None:
    found = read('target "a" {\n name = "a-${v}"\n matrix = { v = ["x", "y"] }\n args = { V = v }\n}')
    assert [each.name for each in found.images] == ["a-x", "a-y"]
    group = found.group("a")
    assert group is not None
    assert group.members == ("a-x", "a-y")


def test_an_image_says_where_it_is_declared() -> None:
    where = image(read('\ntarget "a" {}'), "a").where
    assert where is not None
    assert (where.file, where.line) == ("docker-bake.hcl", 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("services:\n  a:\n    build:\n      contxt: .", ":4:15: unknown key contxt (did you mean context?)"),
        ("services:\n  a: {extends: b, build: .}", "compose.yaml:2:16: there is no service b"),
        ("services:\n  a: {extends: a, build: .}", "extends itself"),
        ('services:\n  a: {image: "${X:?must be set}", build: .}', "the variable X is required"),
        ('services:\n  a: {image: "a$", build: .}', "a $ begins no variable"),
        ("services: [", "it is not YAML"),
        ("a: 1", "the file has no services"),
        ("services: {a: {build: {secrets: [s]}}}\nsecrets: {s: {external: true}}", "is external"),
        ("include: [other.yaml]\nservices: {a: {build: .}}", "compose.yaml:1:10: include is not supported"),
        ("services: {a: {extends: {file: /etc/passwd, service: b}}}", "of another file cannot be extended"),
    ],
)
def test_an_error_in_a_compose_file_has_its_place(text: str, said: str) -> None:
    assert said in error(text, "compose.yaml")


@pytest.mark.parametrize(
    "text",
    [
        lines("a0: &a0 [x, x]", "a{0}: &a{0} [*a{1}, *a{1}]"),
        "a: &a {b: *a}",
        "services: " + "[" * 3_000,
        'services: {a: {image: "' + "${A:-" * 10_000 + '", build: .}}',
    ],
)
def test_a_hostile_compose_file_is_refused(text: str) -> None:
    assert error(text, "compose.yaml")


def test_files_are_known_by_their_names() -> None:
    yes = ("docker-bake.hcl", "a/x.HCL", "docker-bake.override.json", "compose.yaml", "docker-compose.prod.yml")
    assert all(map(bake_names.handles, yes))
    assert not any(map(bake_names.handles, ("kanifold.yaml", "release.yml")))


def test_the_files_of_a_directory_are_found_in_their_order() -> None:
    for name in ("docker-bake.override.hcl", "docker-bake.hcl", "compose.yml", "other.hcl"):
        Path(name).write_text("")
    assert bake_names.found_in(".") == ("compose.yml", "docker-bake.hcl", "docker-bake.override.hcl")


def test_a_dotenv_file_is_not_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values go into the images."""
    release = tmp_path / "release"
    release.mkdir()
    monkeypatch.chdir(release)
    (release / "compose.yaml").write_text("services: {a: {build: {context: ., args: {A: '${KEY}'}}}}")
    (tmp_path / "credentials").write_text("KEY=secret")
    (release / ".env").symlink_to("../credentials")
    with pytest.raises(UsageError, match="outside of the release"):
        bake_file.read(("compose.yaml",), {}, ())
