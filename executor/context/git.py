"""Git repositories as build contexts and ADD sources: resolved to commits, and checked out.

The rules are BuildKit's (source/git/source.go): branches before tags, submodules recursively, files of mode 0644 or
0755 and directories of 0755 whatever the umask. Where BuildKit sets the time of the checkout, files here have the time
of the commit, so that the same commit is the same layer; ``mtime=checkout`` keeps the clock's.

A single commit is fetched, shallowly, by its hash if the server allows that. Submodules are fetched here and not by
``git submodule``, whose handling of names, paths and addresses has had most of git's vulnerabilities. ``gitprogram``
restricts what git may do, and ``gitreference`` what may be asked of it.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote

import msgspec

from executor.context.gitprogram import Access, Git, GitFailed, Output
from executor.context.gitreference import GitReference, check_ref, is_commit, located
from executor.rootfs import moment
from platforms.errors import ContextError, StoreError, printable
from platforms.paths import below

_TOKEN_SECRET: Final = "GIT_AUTH_TOKEN"
_HEADER_SECRET: Final = "GIT_AUTH_HEADER"
_GITHUB: Final = ("https://github.com/", "https://www.github.com/")
_ENTRIES: Final = 5_000_000
"""Maximum number of files of one commit: a tree of a dozen objects can name more than any disk holds."""
_DEPTH: Final = 200
"""Maximum depth of directories."""
_SUBMODULES: Final = 2_000
_SUBMODULE_DEPTH: Final = 20
_LATEST: Final = 1 << 33
"""Seconds since 1970: commits of the year 2242 or later count as having no date."""
_REDIRECTED: Final = re.compile(r"returned error: 30[12378]")
_SERVICE: Final = "/info/refs?service=git-upload-pack"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ResolvedRef(msgspec.Struct, frozen=True):
    """What a reference points to."""

    ref: str
    """The full name: ``refs/heads/main``; "" if a commit was requested by its hash."""
    target: str
    """The hash of the object that it names: a commit or an annotated tag."""
    commit: str
    """The commit; the same as ``target`` if only fetching it can tell."""


class Checkout(msgspec.Struct, frozen=True):
    """The files of a commit on disk."""

    commit: str
    path: str
    """The directory with the requested files: the repository's root or its subdirectory."""
    time: int
    """The time of the commit in seconds since 1970."""


def authorization(reference: GitReference, secret: Callable[[str], bytes | None]) -> str:
    """Return the Authorization header for ``reference`` from the build's secrets; "" if there is none.

    The secrets are, in this order, ``GIT_AUTH_HEADER.host``, ``GIT_AUTH_TOKEN.host``, ``GIT_AUTH_HEADER``,
    ``GIT_AUTH_TOKEN``.
    """
    if reference.scheme not in ("http", "https"):
        return ""
    for name in (f".{reference.host}", ""):
        header, token = (secret(kind + name) for kind in (_HEADER_SECRET, _TOKEN_SECRET))
        if header is not None:
            text = header.decode("latin-1").strip()
            if not text.isprintable():
                raise ContextError(f"cannot use the secret {_HEADER_SECRET}{name}", why="it is not one line of text")
            return text
        if token is not None:
            return "basic " + base64.b64encode(b"x-access-token:" + token.strip()).decode()
    return ""


def identity(reference: GitReference, resolved: ResolvedRef) -> str:
    """Return a text that identifies the files of a checkout: equal texts, equal files. For cache keys."""
    keep = bool(reference.keep_git_dir) and not reference.subdir
    parts = [resolved.target, resolved.ref, reference.remote] if keep else [resolved.commit]
    parts += [reference.subdir, "" if reference.submodules is not False else "no submodules", reference.mtime]
    return "git:" + " ".join(quote(part, safe="/:@", errors="surrogateescape") for part in parts)


def resolve(
    reference: GitReference, directory: str, *, access: Access | None = None, cancel: Future[None] | None = None
) -> ResolvedRef:
    """Resolve ``reference`` by one request, or without any if it names a commit.

    ``directory`` is for git's own use. Raises ``ContextError`` if the repository cannot be reached, has no such branch
    or tag, or has another commit than ``reference.checksum``; ``EnvironmentUnfit`` without git; ``Interrupted``.
    """
    found = _known(reference)
    if found is None:
        with _explained(reference), tempfile.TemporaryDirectory(dir=os.path.abspath(directory)) as home:
            found = _Fetcher(reference, home, access or Access(), None, cancel).resolve()
    _verify(reference, found)
    return found


def checkout(
    reference: GitReference,
    resolved: ResolvedRef,
    directory: str,
    *,
    access: Access | None = None,
    output: Output | None = None,
    cancel: Future[None] | None = None,
) -> Checkout:
    """Check out ``resolved`` (of ``reference``) below ``directory``, which is empty and belongs to the caller.

    ``output`` receives git's own messages. Raises as ``resolve`` does; after an error the directory is in any state.
    """
    directory = os.path.abspath(directory)
    tree = os.path.join(directory, "tree")
    keep = bool(reference.keep_git_dir) and not reference.subdir
    git_dir = os.path.join(tree, ".git") if keep else os.path.join(directory, "git")
    with _explained(reference):
        fetcher = _Fetcher(reference, directory, access or Access(), output, cancel)
        try:
            # (1) the repository itself; (2) its submodules; (3) what stays of .git; (4) the part that was asked for.
            os.mkdir(tree, 0o755)
            got = fetcher.fetch(reference, resolved.target, resolved.ref, git_dir, tree)
            if resolved.commit not in (got.commit, resolved.target):
                raise _cannot(reference, f"the tag {resolved.ref} leads to {got.commit}, not to {resolved.commit}")
            if reference.submodules is not False:
                fetcher.submodules(reference, got, keep=keep)
            made = fetcher.commit_time(got.commit, git_dir)
            if keep:
                fetcher.make_usable(reference, resolved, got.commit, git_dir)
            else:
                shutil.rmtree(git_dir)
            path = _below(reference, tree)
            _set_metadata(tree, None if reference.mtime == "checkout" else made)
        finally:
            shutil.rmtree(fetcher.git.home, ignore_errors=True)
    return Checkout(got.commit, path, made)


def _known(reference: GitReference) -> ResolvedRef | None:
    """Return what can be resolved without a request, else None."""
    if is_commit(reference.ref):
        return ResolvedRef("", reference.ref, reference.ref)
    if not reference.fetch_by_commit:
        return None
    if not is_commit(reference.checksum):
        raise _cannot(reference, "fetch-by-commit requires the full commit hash as checksum")
    ref = reference.ref
    return ResolvedRef(ref if not ref or ref.startswith("refs/") else f"refs/heads/{ref}", *2 * (reference.checksum,))


def _verify(reference: GitReference, found: ResolvedRef) -> None:
    wanted = reference.checksum
    if not found.target.startswith(wanted) and not found.commit.startswith(wanted):
        hashes = dict.fromkeys((found.target, found.commit))
        raise _cannot(
            reference,
            f"expected checksum to match {wanted}, got {' or '.join(hashes)}",
            "if the reference was meant to move, change the checksum with it",
        )


# -- one repository after the other ----------------------------------------------------------------------------------


class _Gitlink(msgspec.Struct, frozen=True):
    """A submodule in a commit's tree: its path, and the commit."""

    path: str
    commit: str


class _Fetched(msgspec.Struct, frozen=True):
    """A commit that has been fetched and checked out."""

    commit: str
    git_dir: str
    tree: str
    """The directory with its files."""
    links: tuple[_Gitlink, ...]
    has_modules: bool
    """Whether there is a regular file ``.gitmodules``."""


class _Module(msgspec.Struct, frozen=True):
    """A submodule in ``.gitmodules``."""

    name: str
    url: str
    skipped: bool


class _Fetcher:
    """Fetches one reference: git, the repository, and the credential for it."""

    def __init__(
        self,
        reference: GitReference,
        directory: str,
        access: Access,
        output: Output | None,
        cancel: Future[None] | None,
    ) -> None:
        self.reference = reference
        self.directory = directory
        self.git = Git(directory, reference.protocols, access, output=output, cancel=cancel)
        self._cancel = cancel
        self._credentials = {reference.remote: access.authorization or _basic(reference)}
        self._moved: dict[str, GitReference] = {}
        self._fetched = 0

    # -- reaching servers --------------------------------------------------------------------------------------------

    def _ask(self, place: GitReference, *arguments: str, after: tuple[str, ...] = ()) -> str:
        """Run ``git arguments -- REMOTE after``, with the target of redirects as the remote, if there are any."""
        place = self._moved.get(place.remote, place)
        self.git.reach(place.scheme)
        try:
            return self._at(place, arguments, after)
        except GitFailed as failed:
            if place.scheme not in ("http", "https") or not _REDIRECTED.search(str(failed)):
                raise
        return self._at(self._follow(place), arguments, after)

    def _at(self, place: GitReference, arguments: tuple[str, ...], after: tuple[str, ...]) -> str:
        return self.git.text(
            *arguments,
            "--",
            place.remote,
            *after,
            authorization=self._credentials.get(place.remote, ""),
            remote=place.remote,
        )

    def _follow(self, place: GitReference) -> GitReference:
        """Return the place to which ``place`` redirects. A credential is kept only within its own origin."""
        from executor.context import http

        credential = self._credentials.get(place.remote, "")
        options = http.RequestOptions(credential, self._cancel)
        found, home = http.destination(place.remote + _SERVICE, options)
        if not found.endswith(_SERVICE):
            raise _cannot(self.reference, f"{place.host} redirects to something that is no git repository")
        moved = located(found.removesuffix(_SERVICE), place.protocols)
        self._credentials[moved.remote] = credential if home else ""
        self._moved[place.remote] = moved
        return moved

    # -- what a reference points to ----------------------------------------------------------------------------------

    def resolve(self) -> ResolvedRef:
        """Ask the server what the reference points to."""
        reference = self.reference
        if reference.ref in ("", "HEAD"):
            return self._head(self._ask(reference, "ls-remote", "--symref", after=("HEAD",)))
        return self._chosen(_refs(self._ask(reference, "ls-remote", after=(reference.ref, reference.ref + "^{}"))))

    def _head(self, listed: str) -> ResolvedRef:
        """Return the default branch, or the commit of HEAD if it is on no branch."""
        ref = ""
        for line in listed.splitlines():
            target, _, name = line.partition("\t")
            if name == "HEAD" and target.startswith("ref: "):
                ref = target.removeprefix("ref: ")
                check_ref(self.reference.remote, ref)
        commit = _refs(listed).get("HEAD", "")
        if not is_commit(commit):
            raise _cannot(self.reference, "could not find its default branch", "name a branch, a tag or a commit")
        return ResolvedRef(ref, commit, commit)

    def _chosen(self, refs: dict[str, str]) -> ResolvedRef:
        """Return the ref that is meant: a full name before a branch, a branch before a tag."""
        ref = self.reference.ref
        names = (
            "refs/" + ref.removeprefix("refs/"),
            "refs/heads/" + ref.removeprefix("refs/heads/"),
            "refs/tags/" + ref.removeprefix("refs/tags/"),
        )
        for name in names:
            target = refs.get(name, "")
            if target:
                commit = refs.get(name + "^{}", target)
                if not is_commit(target) or not is_commit(commit):
                    raise _cannot(self.reference, f"the server says that {name} is {printable(target, 80)}")
                return ResolvedRef(name, target, commit)
        raise _cannot(self.reference, f"it has no branch or tag {ref}", "check the name; a commit takes its full hash")

    # -- getting it --------------------------------------------------------------------------------------------------

    def fetch(self, place: GitReference, target: str, ref: str, git_dir: str, tree: str) -> _Fetched:
        """Fetch ``target``, to which ``ref`` points, if any, to ``git_dir``, and check its files out to ``tree``."""
        made = ("--object-format=sha256",) if len(target) == 64 else ()
        self.git.run(f"--git-dir={git_dir}", f"--work-tree={tree}", "init", "--quiet", "--template=", *made)
        self._get(place, target, ref, git_dir)
        try:
            commit = self._in(git_dir, "rev-parse", "--verify", "--quiet", f"{target}^{{commit}}").strip()
        except GitFailed as failed:
            raise _cannot(self.reference, f"there is no commit {target} at {printable(place.remote)}") from failed
        listing = _Listing(self.reference, above=tree.count("/") - self.directory.count("/"))
        self.git.run(f"--git-dir={git_dir}", "ls-tree", "-r", "-z", "--full-tree", commit, out=listing.add)
        self.git.run(
            f"--git-dir={git_dir}",
            f"--work-tree={tree}",
            *("checkout", "--quiet", "--force", "--detach", "--no-recurse-submodules", commit, "--"),
        )
        return _Fetched(commit, git_dir, tree, tuple(listing.links), listing.has_modules)

    def _in(self, git_dir: str, *arguments: str) -> str:
        return self.git.text(f"--git-dir={git_dir}", *arguments)

    def _get(self, place: GitReference, target: str, ref: str, git_dir: str) -> None:
        """Fetch the objects of ``target``, as few as the server allows."""
        fetch = (f"--git-dir={git_dir}", "fetch", "--progress", "--no-recurse-submodules")
        try:
            self._ask(place, *fetch, "--no-tags", "--depth=1", after=(target,))
        except GitFailed as failed:
            why = str(failed)
            if not re.search(
                r"shallow|--depth|not our ref|unadvertised|not allow|no such remote ref|find remote ref", why
            ):
                raise
            # Old servers, and those without a program behind them, give only what they have a name for.
            names = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
            if ref and not ref.startswith(("refs/heads/", "refs/tags/")):
                names.append(f"+{ref}:refs/fetched")
            self._ask(place, *fetch, after=tuple(names))
        _remove(os.path.join(git_dir, "FETCH_HEAD"))

    def commit_time(self, commit: str, git_dir: str) -> int:
        """Return the committer's date of ``commit`` (git-commit-tree(1))."""
        header = self._in(git_dir, "cat-file", "commit", commit).partition("\n\n")[0]
        found = re.search(r"^committer [^\n]*> (\d{1,18}) [+-]\d+$", header, re.MULTILINE)
        seconds = int(found[1]) if found else _LATEST
        return seconds if seconds < _LATEST else moment.SECONDS

    def make_usable(self, place: GitReference, resolved: ResolvedRef, commit: str, git_dir: str) -> None:
        """Make ``git_dir`` a repository to work with: with a remote, and the branch or tag, without a trace of this
        machine."""
        if resolved.ref:
            self.git.run(f"--git-dir={git_dir}", "update-ref", "--no-deref", resolved.ref, resolved.target)
        for key, value in (
            ("remote.origin.url", place.remote),
            ("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
        ):
            self.git.run(f"--git-dir={git_dir}", "config", key, value)
        # Written anew, for the index notes inode numbers and times of files, which differ from one machine to the next.
        os.unlink(os.path.join(git_dir, "index"))
        self.git.run(f"--git-dir={git_dir}", "read-tree", commit)

    # -- submodules --------------------------------------------------------------------------------------------------

    def submodules(self, place: GitReference, got: _Fetched, *, keep: bool, depth: int = 0) -> None:
        """Fetch the submodules of ``got``, recursively."""
        if depth > _SUBMODULE_DEPTH:
            raise _cannot(self.reference, f"its submodules are nested deeper than {_SUBMODULE_DEPTH}")
        modules = self._modules(got.commit, got.git_dir) if got.links and got.has_modules else {}
        for number, link in enumerate(got.links):
            module = modules.get(link.path)
            if module is None:
                raise _cannot(
                    self.reference,
                    f"no url found for submodule path {printable(link.path)!r} in .gitmodules",
                    "leave submodules out: ?submodules=false",
                )
            if module.skipped:
                continue
            self._fetched += 1
            if self._fetched > _SUBMODULES:
                raise _cannot(self.reference, f"it has more than {_SUBMODULES} submodules")
            there = self._submodule_place(place, module)
            inside = _directory_in(got.tree, link.path)
            if inside is None:
                raise _cannot(self.reference, f"submodule path {printable(link.path)!r} is no directory of its own")
            own_git_dir = self._own_git_dir(got.git_dir, module.name if keep else str(number))
            os.makedirs(os.path.dirname(own_git_dir), 0o755, exist_ok=True)
            made = self.fetch(there, link.commit, "", own_git_dir, inside)
            self.submodules(there, made, keep=keep, depth=depth + 1)
            if keep:
                self._join(got.git_dir, own_git_dir, inside, module, there)
                self.make_usable(there, ResolvedRef("", made.commit, made.commit), made.commit, own_git_dir)

    def _own_git_dir(self, git_dir: str, name: str) -> str:
        """Return the repository of the submodule ``name``: a directory of ``git_dir/modules``, and not the one of
        another submodule."""
        try:
            return below(git_dir, "modules", quote(name, safe=""))
        except OSError as error:
            raise _cannot(self.reference, f"it has a submodule of the name {printable(name)!r}") from error

    def _modules(self, commit: str, git_dir: str) -> dict[str, _Module]:
        """Return the submodules in ``.gitmodules`` by path (gitmodules(5))."""
        text = self._in(git_dir, "config", "--null", "--blob", f"{commit}:.gitmodules", "--list")
        settings: dict[str, dict[str, str]] = {}
        for item in text.split("\0"):
            key, _, value = item.partition("\n")
            section, _, rest = key.partition(".")
            name, _, variable = rest.rpartition(".")
            if section == "submodule" and name:
                settings.setdefault(name, {})[variable] = value
        return {
            each["path"]: _Module(name, each["url"], each.get("update") == "none")
            for name, each in settings.items()
            if "path" in each and "url" in each
        }

    def _submodule_place(self, parent: GitReference, module: _Module) -> GitReference:
        """Return the address of a submodule. One that is relative to its parent shares the parent's credential, as in
        git; so do all of GitHub's, as in BuildKit."""
        relative = module.url.startswith(("./", "../"))
        address = _joined(parent.remote, module.url) if relative else module.url
        try:
            place = located(address, parent.protocols)
        except ContextError as error:
            raise _cannot(
                self.reference,
                f"its submodule {printable(module.name)!r} is not to be fetched: {error.problem.why}",
                "leave submodules out: ?submodules=false",
            ) from error
        shared = relative or (parent.remote.startswith(_GITHUB) and place.remote.startswith(_GITHUB))
        inherited = self._credentials.get(parent.remote, "") if shared else ""
        self._credentials.setdefault(place.remote, _basic(place) or inherited)
        return place

    def _join(self, git_dir: str, own_git_dir: str, inside: str, module: _Module, place: GitReference) -> None:
        """Register a submodule that has a .git of its own in its parent (gitsubmodules(7))."""
        if re.search(r"[\x00-\x1f\x7f]", module.name):
            raise _cannot(self.reference, f"it has a submodule of the name {printable(module.name)!r}")
        with open(os.path.join(inside, ".git"), "x", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"gitdir: {os.path.relpath(own_git_dir, inside)}\n")
        for where, key, value in (
            (own_git_dir, "core.worktree", os.path.relpath(inside, own_git_dir)),
            (git_dir, f"submodule.{module.name}.active", "true"),
            (git_dir, f"submodule.{module.name}.url", place.remote),
        ):
            self.git.run(f"--git-dir={where}", "config", key, value)


def _basic(place: GitReference) -> str:
    """Return the Authorization header for the user and password in the URL."""
    if place.userinfo is None:
        return ""
    return "basic " + base64.b64encode(":".join(place.userinfo).encode("utf-8", "surrogateescape")).decode()


def _refs(listed: str) -> dict[str, str]:
    """Parse the names and hashes that ``git ls-remote`` prints."""
    return {name: hash_ for hash_, _, name in (line.partition("\t") for line in listed.splitlines())}


class _Listing:
    """Reads ``git ls-tree -r -z`` piece by piece. Refuses trees that cannot be checked out."""

    def __init__(self, reference: GitReference, *, above: int) -> None:
        self.links: list[_Gitlink] = []
        self.has_modules = False
        self._reference = reference
        self._left = b""
        self._count = 0
        self._depth = _DEPTH - above

    def add(self, data: bytes) -> None:
        """Read the next piece."""
        *records, self._left = (self._left + data).split(b"\0")
        self._count += len(records)
        if self._count > _ENTRIES:
            raise _cannot(self._reference, f"it holds more than {_ENTRIES} files")
        for record in records:
            what, _, path = record.partition(b"\t")
            if path.count(b"/") > self._depth:
                raise _cannot(self._reference, f"its directories are nested deeper than {_DEPTH}")
            if what.startswith(b"160000 "):
                self.links.append(_Gitlink(os.fsdecode(path), what.split()[2].decode()))
            elif path == b".gitmodules" and what.startswith(b"100"):
                self.has_modules = True


def _joined(base: str, relative: str) -> str:
    """Resolve ``relative`` (``./x``, ``../x``) against the repository ``base``, by the rule of git-submodule(1),
    "add"."""
    base = base.rstrip("/")
    mark = "/"
    while relative.startswith(("./", "../")):
        if relative.startswith("../"):
            at = base.rfind("/")
            if at < 0:
                at, mark = base.rfind(":"), ":"
            base = base[: max(at, 0)]
        relative = relative.partition("/")[2]
    return f"{base}{mark}{relative.rstrip('/')}"


# -- on disk ---------------------------------------------------------------------------------------------------------


def _directory_in(tree: str, path: str) -> str | None:
    """Return the directory ``path`` of ``tree``; None unless every component is a directory, and no link."""
    here = os.open(tree, _DIRECTORY)
    try:
        for name in path.split("/") if path else ():
            if name in ("", ".", ".."):
                return None
            try:
                deeper = os.open(name, _DIRECTORY, dir_fd=here)
            except (FileNotFoundError, NotADirectoryError, ValueError):
                return None
            except OSError as error:
                if error.errno == errno.ELOOP:
                    return None
                raise
            os.close(here)
            here = deeper
    finally:
        os.close(here)
    return below(tree, *path.split("/")) if path else tree


def _below(reference: GitReference, tree: str) -> str:
    path = _directory_in(tree, reference.subdir)
    if path is None:
        raise _cannot(
            reference, f"{printable(reference.subdir)!r} is no directory of it", "symbolic links do not count"
        )
    return path


def _set_metadata(tree: str, seconds: int | None) -> None:
    """Set modes, whatever set-group-id bits and access lists ``tree`` has inherited, and times."""
    for directory, directories, files, fd in os.fwalk(tree, topdown=False):
        ours = f"{directory}/".find("/.git/", len(tree)) < 0  # git's own files have their own modes
        for name in (*directories, *files):
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) and ours:
                os.chmod(name, 0o755 if mode & 0o100 else 0o644, dir_fd=fd)
            if seconds is not None and not stat.S_ISDIR(mode):
                os.utime(name, (seconds, seconds), dir_fd=fd, follow_symlinks=False)
        os.fchmod(fd, 0o755)
        if seconds is not None:
            os.utime(fd, (seconds, seconds))


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


# -- errors ----------------------------------------------------------------------------------------------------------


@contextmanager
def _explained(reference: GitReference) -> Iterator[None]:
    """Translate errors of git and of the disk to errors about ``reference``."""
    try:
        yield
    except GitFailed as failed:
        raise _failure(reference, str(failed)) from failed
    except OSError as error:
        where = f" ({printable(os.fsdecode(error.filename))})" if isinstance(error.filename, str | bytes) else ""
        why = f"{error.strerror or error}{where}"
        raise StoreError(f"cannot check out {reference}", why=why) from error


def _cannot(reference: GitReference, why: str, remedy: str = "") -> ContextError:
    return ContextError(f"cannot use the git repository {reference}", why=why, remedy=remedy)


def _failure(reference: GitReference, why: str) -> ContextError:
    """Return the error for git's message, with a remedy if there is a known one."""
    remedy = ""
    if re.search(r"could not read (Username|Password)|Authentication failed|returned error: 40[13]", why):
        remedy = "give a token for it: --secret id=GIT_AUTH_TOKEN,env=…"
    elif "denied" in why and reference.scheme == "ssh":
        remedy = "check that the agent holds the right key (ssh-add -l), and that it is offered: --ssh default"
    elif "host key" in why.lower():
        remedy = "check the host's key, then correct known_hosts"
    elif "not found" in why:
        remedy = "check the address; if it is private, give a token: --secret id=GIT_AUTH_TOKEN,env=…"
    elif re.search(r"resolve host|connect|timed out|silent", why, re.IGNORECASE):
        remedy = "check the address, the network, and HTTPS_PROXY/NO_PROXY"
    return _cannot(reference, why, remedy)
