"""No word from outside becomes a path of this machine but through ``platforms.paths``, which takes one component.

A word of a Dockerfile, an image, a cache, an archive or a registry that is joined to a directory leads out of it by
``..``, by a slash, by being absolute. What is joined by other means is therefore written out in the source.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from packages import SOURCES, parsed, violations

from platforms import paths

JOINS = {"os.path.join", "posixpath.join", "path.join"}
OPENS = {
    "open", "io.open", "io.FileIO", "tempfile.mkdtemp", "tempfile.TemporaryDirectory",
    *(f"os.{name}" for name in (
        "open", "mkdir", "makedirs", "unlink", "remove", "rmdir", "removedirs", "rename", "renames", "replace", "link",
        "symlink", "readlink", "mknod", "mkfifo", "stat", "lstat", "access", "chmod", "lchmod", "chown", "lchown",
        "utime", "truncate", "listdir", "scandir", "walk", "chdir", "chroot", "setxattr", "getxattr", "listxattr",
        "removexattr", "execv", "execve", "posix_spawn", "statvfs",
    )),
    *(f"os.path.{name}" for name in (
        "exists", "lexists", "isfile", "isdir", "islink", "ismount", "realpath", "getsize", "getmtime",
    )),
    *(f"shutil.{name}" for name in ("rmtree", "copy", "copy2", "copyfile", "copytree", "move", "chown")),
}  # fmt: skip
"""Calls whose arguments are paths of this machine."""


def is_written_out(node: ast.expr) -> bool:
    """Whether ``node`` is text that stands in the source: a literal, or a constant by its name."""
    if isinstance(node, ast.Attribute):
        return node.attr.isupper()
    if isinstance(node, ast.Name):
        return node.id.lstrip("_").isupper()
    if isinstance(node, ast.Subscript):
        return is_written_out(node.value)
    if isinstance(node, ast.JoinedStr):
        return all(is_written_out(each) for each in node.values)
    if isinstance(node, ast.FormattedValue):
        return is_written_out(node.value)
    return isinstance(node, ast.Constant)


def puts_together(node: ast.expr) -> bool:
    """Whether ``node`` puts a word after a slash: by an f-string, by ``+`` or by ``%``."""
    if isinstance(node, ast.JoinedStr):
        if isinstance(node.values[0], ast.Constant) and str(node.values[0].value).startswith("/proc/"):
            return False  # the kernel's own, by a number
        slash = False
        for part in node.values:
            if isinstance(part, ast.Constant):
                slash = slash or "/" in str(part.value)
            elif slash and not is_written_out(part):
                return True
        return False
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = list(flat(node))
        slashes = [
            index for index, part in enumerate(parts) if isinstance(part, ast.Constant) and "/" in text_of(part.value)
        ]
        return bool(slashes) and any(not is_written_out(part) for part in parts[slashes[0] + 1 :])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant):
        text = text_of(node.left.value)
        return "/" in text.partition("%")[2] or ("/" in text.partition("%")[0] and not text.startswith("/proc/"))
    return False


def text_of(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def flat(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from flat(node.left)
        yield from flat(node.right)
    else:
        yield node


def words_made_paths(source: str) -> list[str]:
    """The calls in ``source`` that join a word to a directory, or that open what was put together from words."""
    tree = parsed(source)
    found = [f"line {node.lineno}: pathlib" for node in ast.walk(tree) if imports_pathlib(node)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    made: dict[ast.AST, dict[str, list[ast.expr]]] = {}
    for scope in functions:
        names = made.setdefault(scope, {})
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        names.setdefault(target.id, []).append(node.value)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in JOINS and not all(map(is_written_out, node.args[1:])):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif called in OPENS:
            around = [scope for scope in functions if scope.lineno <= node.lineno <= (scope.end_lineno or 0)]
            for argument in (*node.args, *(word.value for word in node.keywords)):
                values = [argument]
                if isinstance(argument, ast.Name):
                    values += [each for scope in around for each in made[scope].get(argument.id, ())]
                if any(map(puts_together, values)):
                    found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return sorted(set(found), key=lambda each: int(each.split(":")[0].removeprefix("line ")))


def imports_pathlib(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name == "pathlib" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and node.module == "pathlib"


EXEMPT = {
    "platforms/paths.py: os.path.join(directory, os.path.expanduser(path))": "what the user has written",
    "executor/solver/copying.py: posixpath.join('/', directory, path)": "a path within an image, for its tree",
    "executor/solver/windows_paths.py: posixpath.join('/', _without_drive(directory), _without_drive(path))": "too",
    "platforms/process_numbers.py: os.open(f'self/fdinfo/{pidfd}', os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)": (
        "the kernel's own, by a number"
    ),
    "executor/snapshotter/diff.py: os.listdir(self._upper + b'/' + path)": "a walk of real directories, from the top",
    "executor/snapshotter/diff.py: os.lstat(host)": "the same walk",
    "executor/snapshotter/layers.py: os.lstat(host)": "the same walk, in the layers below",
    "executor/snapshotter/plain.py: os.lstat(host)": "a path that a walk of real directories has come to",
    "executor/snapshotter/plain.py: os.link(host, kept, follow_symlinks=False)": "the same path",
    "executor/snapshotter/apply.py: os.setxattr(b'/proc/self/fd/%d/%b' % (parent, name), key, value, "
    "follow_symlinks=False)": ("a component of a path that was split, below a directory's descriptor"),
}
"""What is put together by other means all the same, and why that is safe."""
SANDBOX = ("executor/sandbox/", "executor/supervised/")
"""Works in the namespace or the chroot of a step, where a path is the step's own, and with numbers in /proc;
``targets`` resolves what comes from an image."""


def rule_breakers(module: str, source: str) -> list[str]:
    """What breaks the rule in ``source``, which is ``module``."""
    return [
        each
        for each in words_made_paths(source)
        if f"{module}: {each.partition(': ')[2]}" not in EXEMPT
        and not (module.startswith(SANDBOX) and not any(join in each for join in JOINS))
    ]


def test_words_become_paths_through_one_door() -> None:
    assert violations(rule_breakers) == {}, "platforms.paths.below joins names to a directory"


def test_what_is_exempt_is_there() -> None:
    for each in EXEMPT:
        module, _, call = each.partition(": ")
        assert call in {found.partition(": ")[2] for found in words_made_paths(SOURCES[module])}


@pytest.mark.parametrize(
    ("source", "blamed"),
    [
        ("os.path.join(directory, self.name)", ["os.path.join(directory, self.name)"]),
        ("os.path.join(directory, name.lstrip('/'))", ["os.path.join(directory, name.lstrip('/'))"]),
        ("os.path.join(root, *digest.split(':'))", ["os.path.join(root, *digest.split(':'))"]),
        ("from pathlib import Path", ["pathlib"]),
        ("def f(d, name):\n    path = f'{d}/{name}'\n    open(path, 'wb')", ["open(path, 'wb')"]),
        ("os.mkdir(directory + '/' + name)", ["os.mkdir(directory + '/' + name)"]),
        ("os.unlink('%s/%s' % (directory, name))", ["os.unlink('%s/%s' % (directory, name))"]),
        ("os.rename(here, f'{there}/{name}')", ["os.rename(here, f'{there}/{name}')"]),
        ("os.path.join(directory, 'blobs', _INDEX)", []),
        ("open(f'{directory}/index.json')", []),
        ("open(f'/proc/self/fd/{fd}')", []),
        ("open(below(directory, name))", []),
    ],
)
def test_the_rule_blames_what_it_should(source: str, blamed: list[str]) -> None:
    assert [each.partition(": ")[2] for each in words_made_paths(source)] == blamed


@pytest.mark.parametrize("word", ["", ".", "..", "a/b", "/etc", "a\0b", "../x", "a/"])
def test_the_door_takes_the_name_of_one_file(word: str) -> None:
    with pytest.raises(OSError, match="not the name of a file"):
        paths.below("/directory", word)
    with pytest.raises(OSError, match="not the name of a file"):
        paths.below("/directory", "blobs", word)


def test_the_door_leads_below_the_directory() -> None:
    assert paths.below("/directory", "blobs", "..a b\n\udc80") == "/directory/blobs/..a b\n\udc80"
    assert paths.below("/", "a") == "/a"
    with pytest.raises(OSError, match="no directory"):
        paths.below("", "a")
