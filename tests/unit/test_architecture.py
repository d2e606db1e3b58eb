"""Rules of the sources as tests: direction of imports, names of modules, reasons for dependencies."""

from __future__ import annotations

import ast
import builtins
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest
from packages import ROOMS, ROOT, SOURCES, parsed, violations

MODULES = [ROOT / path for path in SOURCES]

# The documented exit codes: an error class outside this table would end a build with a number nobody can look up.
EXIT_CODES = {0, 1, 2, 3, 130}


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a module, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def forbidden_imports(path: str, source: str) -> list[str]:
    """The imports in ``source``, the module at ``path``, that go to a higher package or hide where they go."""
    allowed = ROOMS[: ROOMS.index(path.partition("/")[0]) + 1]
    return [
        f"line {line}: {name or 'a relative import'}"
        for line, name in imports(parsed(source))
        if (name.partition(".")[0] in ROOMS and name.partition(".")[0] not in allowed) or name.startswith(".")
    ]


def test_imports_go_one_way() -> None:
    assert violations(forbidden_imports) == {}


@pytest.mark.parametrize(
    ("room", "source", "blamed"),
    [
        ("platforms", "import executor.protocol", ["line 1: executor.protocol"]),
        ("executor", "def late():\n    from orchestrator import plan", ["line 2: orchestrator"]),
        ("executor", "from ..orchestrator import plan", ["line 1: ..orchestrator"]),
        ("orchestrator", "import executor.protocol, platforms.host", []),
        ("platforms", "import executors_of_another_kind", []),
    ],
)
def test_the_import_rule_blames_what_it_should(room: str, source: str, blamed: list[str]) -> None:
    assert forbidden_imports(f"{room}/module.py", source) == blamed


DOORS: Mapping[str, frozenset[str]] = {
    "executor.context.directory": frozenset({"inputs", "job_contexts"}),
    "executor.context.git": frozenset({"fetched"}),
    "executor.context.gitprogram": frozenset({"fetched"}),
    "executor.context.http": frozenset({"fetched"}),
    "executor.objects.actions_objects": frozenset({"remote_cache"}),
    "executor.objects.bucket_objects": frozenset({"remote_cache"}),
    "executor.objects.directory_objects": frozenset({"remote_cache"}),
    "executor.registry.oci_archive": frozenset({"base"}),
    "executor.registry.client": frozenset({"jobclient"}),
    "executor.registry.layout": frozenset({"base"}),
    "executor.registry.registry_session": frozenset(),
    "executor.transport": frozenset({"jobclient"}),
    "socket": frozenset({"agent"}),
    "subprocess": frozenset(),
    "urllib.request": frozenset(),
}
"""What brings something in from outside, and the modules of ``executor/solver`` that account for it as an input."""


def unaccounted_imports(module: str, source: str) -> list[str]:
    """The imports in ``source``, the ``module`` of executor/solver, by which it could take in something unrecorded.

    Types are none of them, so what stands under TYPE_CHECKING does not count.
    """
    tree = parsed(source)
    typing = {id(node) for each in guarded(tree) for node in ast.walk(each)}
    return [
        name
        for node in ast.walk(tree)
        if id(node) not in typing
        for name in names(node)
        if module not in DOORS.get(name, {module})
    ]


def names(node: ast.AST) -> list[str]:
    """The modules that ``node`` may import, as dotted names: ``from a import b`` has ``a`` and ``a.b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def guarded(tree: ast.Module) -> list[ast.If]:
    """What is read by type checkers alone."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]


def test_what_comes_from_outside_comes_through_a_door() -> None:
    assert violations(lambda path, source: unaccounted_imports(Path(path).stem, source), "executor/solver/") == {}


def test_the_rule_of_doors_blames_what_it_should() -> None:
    source = "from executor.transport import Transport\ndef late():\n    from executor.context import http"
    assert unaccounted_imports("fetched", source) == ["executor.transport"]
    assert unaccounted_imports("solver", source) == ["executor.transport", "executor.context.http"]
    assert unaccounted_imports("solver", "if TYPE_CHECKING:\n    from executor.context import http") == []


@pytest.mark.parametrize("module", ["executor/transport.py", "executor/retry.py", "executor/context"])
def test_http_knows_no_registries(module: str) -> None:
    """URLs of a Dockerfile are asked by the same transport as registries are, and by nothing that knows these."""
    path = ROOT / module
    sources = {str(each): each.read_text() for each in (path.rglob("*.py") if path.is_dir() else (path,))}
    found = [
        f"{name}:{line}: {imported}"
        for name, source in sources.items()
        for line, imported in imports(parsed(source))
        if inside(imported, "executor.registry")
    ]
    assert found == []


def circles(sources: Mapping[str, str]) -> list[str]:
    """The circles of imports among ``sources``, by dotted name of a module; each as its modules, sorted.

    Imports inside of functions and under TYPE_CHECKING count, and so do the packages that Python imports before what
    is in them, except those that the module itself is in: they are imported by then, whatever it does.
    """
    edges = {
        module: {
            each
            for node in ast.walk(parsed(source))
            for found in imported_by(node, sources.keys())
            for each in (found, *(package for package in packages(found) if not inside(module, package)))
            if each != module and each in sources
        }
        for module, source in sources.items()
    }
    reached = {module: reachable(module, edges) for module in edges}
    found = {
        tuple(sorted({module, *(each for each in reached[module] if module in reached[each])}))
        for module in edges
        if module in reached[module]
    }
    return [" ".join(each) for each in sorted(found)]


def packages(module: str) -> list[str]:
    """The packages that ``module`` is in."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imported_by(node: ast.AST, modules: Collection[str]) -> set[str]:
    """Those of ``modules`` that ``node`` imports: of ``from a import b`` it is ``a.b`` if that is one, else ``a``."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in modules}
    if isinstance(node, ast.ImportFrom) and node.module:
        every = (f"{node.module}.{alias.name}" for alias in node.names)
        return {name if name in modules else node.module for name in every} & set(modules)
    return set()


def reachable(module: str, edges: Mapping[str, set[str]]) -> set[str]:
    """All that ``module`` imports, itself too only if something of that imports it."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for each in edges[waiting.pop()] - found:
            found.add(each)
            waiting.append(each)
    return found


def dotted(module: Path) -> str:
    """The name under which ``module`` is imported."""
    return ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_imports_go_in_a_circle() -> None:
    assert circles({dotted(module): module.read_text() for module in MODULES}) == []


@pytest.mark.parametrize(
    ("sources", "blamed"),
    [
        ({"a": "import b", "b": "def late():\n    import c", "c": "from a import x"}, ["a b c"]),
        ({"a": "if TYPE_CHECKING:\n    from b import T", "b": "import a"}, ["a b"]),
        ({"a": "from a import b", "a.b": "from a.c import d", "a.c": ""}, []),
        ({"a": "from a import b", "a.b": "from a import name"}, ["a a.b"]),
        ({"a": "import b", "a.c": "", "b": "import a.c"}, ["a b"]),
    ],
)
def test_the_rule_of_circles_blames_what_it_should(sources: Mapping[str, str], blamed: list[str]) -> None:
    assert circles(sources) == blamed


BEHIND_THE_SNAPSHOTTER = re.compile(
    r"overlay|lowerdir|upperdir|upper director|\bupper=|\.upper\b(?!\()|whiteout xattr|copied up|redirect_dir|metacopy"
    r"|pivot_root|mount_stack",
    re.IGNORECASE,
)
"""How a step gets its file system: known in ``executor/snapshotter`` and ``executor/sandbox``, and nowhere else."""
CHOICE = re.compile(
    r"['\"]overlay['\"]|by an overlay mount \(overlay\)|takes? no overlays|neither auto, overlay nor plain"
)
"""Where people choose, the choice has a name."""
CHOOSING = {"executor/protocol.py", "orchestrator/flags.py", "orchestrator/request.py", "orchestrator/values.py"}


def knows_behind_the_snapshotter(module: str, source: str) -> list[str]:
    """The words in ``source``, the file ``module``, that are the business of the snapshotter and the sandbox."""
    if module.startswith(("executor/snapshotter/", "executor/sandbox/", "executor/supervised/", "platforms/")):
        return []
    text = CHOICE.sub("", source) if module in CHOOSING else source
    return [found[0] for found in BEHIND_THE_SNAPSHOTTER.finditer(text)]


def test_only_the_snapshotter_and_the_sandbox_know_how_a_step_gets_its_files() -> None:
    assert violations(knows_behind_the_snapshotter) == {}


@pytest.mark.parametrize(
    ("module", "source", "blamed"),
    [
        ("executor/solver/base.py", "mount_stack(layers, upper=made.fs)", ["mount_stack", "upper="]),
        ("executor/store/snapshots.py", "# an Overlay's upper directory", ["Overlay", "upper director"]),
        ("orchestrator/flags.py", "Choice(['overlay'])  # an overlay", ["overlay"]),
        ("executor/solver/run.py", "kind = 'overlay'; name.upper(); upper = 1", ["overlay"]),
        ("executor/snapshotter/overlay.py", "upper=1", []),
    ],
)
def test_the_rule_of_the_snapshotter_blames_what_it_should(module: str, source: str, blamed: list[str]) -> None:
    assert knows_behind_the_snapshotter(module, source) == blamed


MOST_PARAMETERS = 6


def long_parameter_lists(source: str) -> list[str]:
    """The functions in ``source`` with too many parameters, ``self`` and keywords among them.

    What belongs together is a struct: those have no constructor that is written down, so their fields do not count.
    """
    found = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            every = node.args
            count = len((*every.posonlyargs, *every.args, *every.kwonlyargs))
            count += (every.vararg is not None) + (every.kwarg is not None)
            if count > MOST_PARAMETERS:
                found.append(f"line {node.lineno}: {getattr(node, 'name', 'lambda')} has {count}")
    return found


def test_no_function_of_the_executor_has_many_parameters() -> None:
    assert violations(lambda _, source: long_parameter_lists(source), "executor/") == {}


@pytest.mark.parametrize(
    ("source", "blamed"),
    [
        ("def f(a, b, /, c, *, d, e, f): ...", []),
        ("def f(a, b, /, c, *d, e, f, g): ...", ["line 1: f has 7"]),
        ("class A:\n    async def f(self, b, c, d, e, f, **g): ...", ["line 2: f has 7"]),
        ("f = lambda a, b, c, d, e, f, g: a", ["line 1: lambda has 7"]),
        ("class A(msgspec.Struct):" + "".join(f"\n    {name}: int" for name in "abcdefg"), []),
    ],
)
def test_the_rule_of_parameters_blames_what_it_should(source: str, blamed: list[str]) -> None:
    assert long_parameter_lists(source) == blamed


def identities(source: str) -> list[str]:
    """The calls of ``id`` in ``source``: what two things have in common is a value, and an object's address is none.

    An address is another object's when the first is gone, and a copy has another.
    """
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "id"
    ]


def test_nothing_is_known_by_its_address() -> None:
    assert violations(lambda _, source: identities(source)) == {}


def test_the_rule_of_addresses_blames_what_it_should() -> None:
    assert identities("known = {id(each): each for each in found}") == ["line 1: id(each)"]
    assert identities("os.getuid(), each.id, self.id(1), valid(each)") == []


def vague_words(path: str) -> list[str]:
    """The words in the path of a module that say nothing of what is in it."""
    vague = {"util", "utils", "helper", "helpers", "common", "misc", "shared", "lib"}
    return [part for part in Path(path).with_suffix("").parts if part.strip("_") in vague]


def test_modules_are_named_for_what_is_in_them() -> None:
    assert violations(lambda path, _: vague_words(path)) == {}


def test_every_module_says_what_it_promises() -> None:
    assert [path for path, source in SOURCES.items() if not ast.get_docstring(parsed(source))] == []


def needs_postponed_annotations(source: str) -> bool:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.AnnAssign)
    return any(isinstance(node, kinds) for node in ast.walk(parsed(source)))


def test_annotations_are_postponed() -> None:
    other = [path for path, source in SOURCES.items() if "from __future__ import annotations" not in source]
    assert [path for path in other if needs_postponed_annotations(SOURCES[path])] == []


ENTRY_POINTS = {"orchestrator/__main__.py", "executor/__main__.py", "orchestrator/cli.py"}


def ends_of_the_process(path: str, source: str) -> list[str]:
    """The calls in ``source``, the module at ``path``, that end the process."""
    if path in ENTRY_POINTS:
        return []
    return [
        f"line {node.lineno}: {ast.unparse(node.func)}"
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"sys.exit", "exit", "quit"}
    ]


def test_no_module_ends_the_process_from_within() -> None:
    """Errors are raised as data and rendered once; only the two entry points turn them into an exit code."""
    assert violations(ends_of_the_process) == {}


def decoders_made_late(source: str) -> list[str]:
    """Calls that make msgspec learn a type when a thread comes by: ``decode(…, type=T)``, ``convert(…, T)``, and
    ``Decoder(T)`` in a function."""
    tree = parsed(source)
    functions = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    inside = {call for each in ast.walk(tree) if isinstance(each, functions) for call in ast.walk(each)}
    return [
        f"line {node.lineno}: {ast.unparse(node.func)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (
                ast.unparse(node.func) in {"msgspec.json.decode", "msgspec.convert", "json.decode"}
                and (len(node.args) > 1 or any(word.arg == "type" for word in node.keywords))
            )
            or (node in inside and ast.unparse(node.func) in {"msgspec.json.Decoder", "msgspec.msgpack.Decoder"})
        )
    ]


def test_decoders_are_made_where_there_is_one_thread() -> None:
    """Two threads that make the decoder of one type together crash the process; see test_decoding_in_threads."""
    assert violations(lambda _, source: decoders_made_late(source)) == {}


def test_the_decoder_rule_blames_what_it_should() -> None:
    assert decoders_made_late("msgspec.json.decode(data, type=Thing)") == ["line 1: msgspec.json.decode"]
    assert decoders_made_late("def f():\n    return msgspec.json.Decoder(Thing)") == ["line 2: msgspec.json.Decoder"]
    assert decoders_made_late("DECODER = msgspec.json.Decoder(Thing)\nDECODER.decode(data)") == []


def test_every_error_class_has_a_documented_exit_code() -> None:
    from platforms import errors

    known = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.KanifoldError)
    }
    assert set(known.values()) <= EXIT_CODES
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or "")) | {"KanifoldError"}
    assert drawn == set(known), "the tree in the docstring is not the tree in the code"


def exceptions_nobody_catches(sources: Mapping[str, str]) -> list[str]:
    """Exception classes outside of platforms/errors.py that no ``except`` clause of ``sources`` names.

    A builtin that such a class is a kind of (ValueError, say; Exception itself does not count) will do as well.
    """
    builtin = {name for name, kind in vars(builtins).items() if isinstance(kind, type)}
    defined, caught = {}, set()
    for name, source in sources.items():
        for node in ast.walk(parsed(source)):
            if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & builtin:
                if any("Error" in text or "Exception" in text for text in map(ast.unparse, node.bases)):
                    defined[node.name] = (name, {ast.unparse(base) for base in node.bases} - {"Exception"})
            elif isinstance(node, ast.ExceptHandler) and node.type is not None:
                caught |= {part.rpartition(".")[2] for part in re.findall(r"[\w.]+", ast.unparse(node.type))}
    return [f"{where}: {name}" for name, (where, kinds) in defined.items() if not ({name} | kinds) & caught]


def test_exceptions_outside_the_tree_are_caught_at_home() -> None:
    """A class of its own may carry a finding to its caller; what nobody catches would reach the user as a traceback."""
    sources = {str(each.relative_to(ROOT)): each.read_text() for each in MODULES}
    del sources["platforms/errors.py"]
    assert exceptions_nobody_catches(sources) == []


def test_the_exception_rule_blames_what_it_should() -> None:
    loose = "class LooseError(Exception): pass"
    assert exceptions_nobody_catches({"a.py": loose}) == ["a.py: LooseError"]
    assert exceptions_nobody_catches({"a.py": loose, "b.py": "try: f()\nexcept (a.LooseError, OSError): g()"}) == []


# -- dependencies ---------------------------------------------------------------------------------------------------


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    names = {re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0].lower() for lines in lists for line in lines}
    return names - {project["name"]}


def explained() -> list[str]:
    return re.findall(r"^- `([^`]+)`: \S", (ROOT / "docs" / "dependencies.md").read_text(), re.M)


def test_every_dependency_has_its_reason() -> None:
    assert declared() - set(explained()) == set(), "in pyproject.toml, not in docs/dependencies.md"


def test_every_reason_has_its_dependency() -> None:
    assert set(explained()) - declared() == set(), "in docs/dependencies.md, not in pyproject.toml"
    assert len(explained()) == len(set(explained()))


def imported(module: Path) -> set[str]:
    """The distributions that ``module`` imports from, beside ours and Python's own."""
    spelled = {
        "asyncio_pool": "asyncio-pool",
        "azure": "azure-identity",
        "dockerfile_parse": "dockerfile-parse",
        "kubernetes_asyncio": "kubernetes-asyncio",
        "re2": "google-re2",
        "tree_sitter": "tree-sitter",
        "tree_sitter_hcl": "tree-sitter-hcl",
        "yaml": "pyyaml",
        "zlib_ng": "zlib-ng",
    }
    named = {name.partition(".")[0] for _, name in imports(parsed(module.read_text()))} - {""}
    return {spelled.get(name, name) for name in named - sys.stdlib_module_names - set(ROOMS)}


def test_third_party_imports_are_declared() -> None:
    assert {str(module): names for module in MODULES if (names := imported(module) - declared())} == {}


def test_every_dependency_is_used() -> None:
    programs = {"mypy", "pytest-xdist", "ruff", "types-pyyaml"}
    used = {name for module in (*MODULES, *(ROOT / "tests").rglob("*.py")) for name in imported(module)}
    assert declared() - programs - used == set()


def test_files_of_the_packages_are_installed() -> None:
    """What is not a module is in an installed copy only if it is declared."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    declared_files = {f"{package}/{name}" for package, names in tool.items() for name in names}
    there = {str(path.relative_to(ROOT)) for path in tracked() if path.relative_to(ROOT).parts[0] in ROOMS}
    assert {name for name in there if not name.endswith(".py")} == declared_files


# -- what the repository may not hold -------------------------------------------------------------------------------


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git clone")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
        return ""  # binary, or just removed


def test_no_path_of_a_developers_machine() -> None:
    own = re.compile(r"(?<![\w.$}])/(work|root|home/[a-z]+)/(?!\.|user\b)[\w-]+/[\w-]")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        if path != Path(__file__).resolve()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if own.search(line)
    ]
    assert found == []


def test_scripts_are_strict_and_executable() -> None:
    scripts = [path for folder in ("ci", ".ci") for path in (ROOT / folder).iterdir() if path.is_file()]
    shell = [path for path in scripts if path.read_text().startswith("#!/usr/bin/env bash")]
    assert {"test", "packages", "venv", "bases", "run"} <= {path.name for path in shell}
    for script in shell:
        assert "\nset -euo pipefail\n" in script.read_text(), script
        assert script.stat().st_mode & 0o111 == 0o111, script
        subprocess.run(["bash", "-n", str(script)], check=True)


# -- what a build loads ---------------------------------------------------------------------------------------------

# Modules of the standard library, of dependencies and of ours that a process has loaded by the time it gets to work.
# Loading them is most of what a build with nothing to do takes, so what is not used by every build is loaded late.
ORCHESTRATOR = """
import orchestrator.bootstrap, orchestrator.cli
import orchestrator.flags, orchestrator.plan
from platforms.loading import without
with without("ssl"):
    import asyncio
import orchestrator.command, orchestrator.store_gc, orchestrator.view.quiet
"""
CLIENT = """
import orchestrator.bootstrap, executor.__main__
executor.__main__.preload_registries()
"""
EXECUTOR = f"""{CLIENT}
executor.__main__.preload()
"""
COUNT = """
import sys
sys.dont_write_bytecode = True
before = set(sys.modules)
exec(sys.argv[1])
print(*sorted(name for name, module in sys.modules.items() if module is not None and name not in before))
"""


def loaded_by(program: str) -> set[str]:
    """The modules that ``program`` loads into an interpreter without site-packages' own start-up files."""
    places = [each for each in sys.path if each.endswith("-packages")]
    path = os.pathsep.join((str(ROOT), *places))
    done = subprocess.run(
        [sys.executable, "-S", "-c", COUNT, program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"]},
    )
    return set(done.stdout.split())


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux another process asks registries")
@pytest.mark.parametrize(
    ("program", "most", "idle"),
    [
        (ORCHESTRATOR, 259, {"ssl", "httpx", "rich", "csv", "sqlite3", "tempfile", "shutil", "secrets", "yaml"}),
        (CLIENT, 263, {"asyncio", "anyio", "click", "rich", "yaml", "sqlite3", "orchestrator.cli", "executor.solver"}),
        (EXECUTOR, 399, {"asyncio", "anyio", "click", "rich", "yaml", "tarfile", "orchestrator.cli"}),
    ],
    ids=["orchestrator", "registries", "executor"],
)
def test_a_build_loads_little(program: str, most: int, idle: set[str]) -> None:
    loaded = loaded_by(program)
    assert loaded & idle == set()
    assert len(loaded) <= most, sorted(loaded)
