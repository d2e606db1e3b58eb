"""Addresses of git repositories in ``ADD``, in named contexts and as build contexts.

The forms are BuildKit's (frontend/dockerfile/dfgitutil, util/gitutil)::

    https://host/path.git   http://…   ssh://[user@]host[:port]/path   git://host/path   user@host:path
    github.com/owner/name       only for contexts: as an ADD source it is a path
    …#REF[:SUBDIR]
    …?ref=&branch=&tag=&subdir=&checksum=&commit=&keep-git-dir=&submodules=&mtime=&fetch-by-commit=

An HTTP address is a repository only if its path ends in ``.git``.

Parts of addresses are passed to git and ssh as arguments. So whatever could be taken for an option, a second line or a
shell's syntax is refused here (CVE-2017-1000117, CVE-2019-13139, CVE-2023-51385).
"""

from __future__ import annotations

import posixpath
import re
from typing import Final

import msgspec
from msgspec.structs import replace

from platforms.errors import ContextError, printable

PROTOCOLS: Final = ("git", "http", "https", "ssh")
"""Protocols for repositories and their submodules: no local paths, bundles or helpers."""

_SCHEME: Final = re.compile(r"([a-zA-Z0-9]+)://")
_SCP: Final = re.compile(r"([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):([^\n]*?)(?:\?([^\n]*?))?(?:#([^\n]*))?")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_SSH_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_NO_REF: Final = re.compile(
    r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|^[./-]|^refs/(?:heads|tags)/-|[./]$|\.lock(?:/|$)|^@$"
)
"""What no ref contains (git-check-ref-format(1)), or only one that is meant as an option."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHECKSUM: Final = re.compile(r"[0-9a-fA-F]{1,64}")
_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})


class GitReference(msgspec.Struct, frozen=True):
    """A repository, and what to take of it."""

    remote: str
    """The address for git: a URL without user and password (ssh keeps its user), or ``user@host:path``."""
    scheme: str
    """``https``, ``http``, ``ssh`` or ``git``."""
    host: str
    """With the port, if given."""
    ref: str = ""
    """A branch, a tag, a full name (``refs/pull/1/head``) or a commit; "": the default branch."""
    subdir: str = ""
    """A clean relative path; "": the whole repository."""
    checksum: str = ""
    """The first digits, in lower case, of the expected commit or annotated tag."""
    keep_git_dir: bool | None = None
    """None, here and for ``submodules``: not specified."""
    submodules: bool | None = None
    mtime: str = ""
    """``checkout``, ``commit``, or "" if not specified."""
    fetch_by_commit: bool = False
    """Use ``checksum`` as the commit, without asking what ``ref`` points to."""
    indistinguishable_from_local: bool = False
    """Whether it is written like a path (``github.com/owner/name``)."""
    protocols: tuple[str, ...] = PROTOCOLS
    """The protocols that git may use, for submodules too."""
    userinfo: tuple[str, str] | None = None
    """User and password of an HTTP URL. Secret."""

    def __repr__(self) -> str:
        return f"GitReference({self.remote!r}, {self.ref!r}, {self.subdir!r})"

    @property
    def name(self) -> str:
        """The repository's name: ``bar`` of ``https://example.com/foo/bar.git``."""
        return self.remote.rpartition("/")[2].removesuffix(".git")

    def __str__(self) -> str:
        """Return the form with a fragment, for display."""
        what = f"#{self.ref}:{self.subdir}" if self.subdir else f"#{self.ref}" if self.ref else ""
        return printable(self.remote + what)


def is_commit(text: str) -> bool:
    """Whether ``text`` is a full commit hash, SHA-1 or SHA-256."""
    return bool(_COMMIT.fullmatch(text))


def parse(text: str) -> GitReference | None:
    """Parse an address; None if it is a path, an image or the URL of a file.

    Raises ``ContextError`` for the address of a repository that is malformed or dangerous.
    """
    if text.startswith(("./", "../")):
        return None
    if text.startswith("github.com/"):
        found = _url("https", text, suffix="")
        return None if found is None else replace(found, indistinguishable_from_local=True)
    scheme = _SCHEME.match(text)
    if scheme is not None:
        protocol = scheme[1].lower()
        return _url(protocol, text[scheme.end() :]) if protocol in PROTOCOLS else None
    return _scp(text)


def located(address: str, protocols: tuple[str, ...]) -> GitReference:
    """Return the repository at ``address``, in the forms that git itself accepts: without fragment and query; ``.git``
    is not needed.

    For addresses from others: submodules, targets of redirects. Raises ``ContextError`` for one that takes another
    protocol than ``protocols``, or could be taken for something else.
    """
    scheme = _SCHEME.match(address)
    found = None
    if not re.search(r"[?#\x00-\x20\x7f]", address):
        if scheme is None:
            found = _scp(address)
        elif scheme[1] in PROTOCOLS:
            found = _url(scheme[1], address[scheme.end() :], suffix="")
    if found is None or found.scheme not in protocols:
        raise _wrong(address.rpartition("@")[2], f"it is no address that is reached by {', '.join(protocols)}")
    return replace(found, protocols=protocols)


def with_flags(reference: GitReference, *, keep_git_dir: bool | None, checksum: str) -> GitReference:
    """Return ``reference`` with ``--keep-git-dir`` and ``--checksum``, which must not contradict it."""
    keep = reference.keep_git_dir
    if keep_git_dir is not None and keep is not None and keep_git_dir != keep:
        raise _wrong(reference.remote, "inconsistent keep-git-dir configuration")
    checksum = check_checksum(reference.remote, checksum)
    return replace(
        reference,
        keep_git_dir=keep if keep_git_dir is None else keep_git_dir,
        checksum=_single_value(reference, "checksum", checksum, reference.checksum),
    )


def _url(scheme: str, rest: str, *, suffix: str = ".git") -> GitReference | None:
    from urllib.parse import quote, unquote

    web = scheme in ("http", "https")
    rest, _, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    path = slash + path
    if _bad_escapes(path) or _bad_escapes(fragment):
        return None
    plain_path = unquote(path, errors="surrogateescape")
    if web and not plain_path.endswith(suffix):
        return None
    userinfo, _, host = authority.rpartition("@")
    shown = f"{scheme}://{host}{path}"
    for part in (authority, plain_path, query):
        if _CONTROL.search(part):
            raise _wrong(shown, "it holds a control character")
    if not _HOST.fullmatch(host):
        raise _wrong(shown, "its host is none")
    if not plain_path.strip("/"):
        if not suffix:
            return None
        raise _wrong(shown, "it names a host, but no repository there")
    secret = None
    if userinfo and web:
        user, _, password = userinfo.partition(":")
        secret = unquote(user), unquote(password)
        if not all(map(str.isprintable, secret)):
            raise _wrong(shown, "its user or password cannot be sent")
    elif userinfo and (scheme == "git" or not _SSH_USER.fullmatch(userinfo)):
        raise _wrong(
            shown, "its user is none that could be passed on to ssh" if scheme == "ssh" else "git:// has no users"
        )
    user_host = f"{userinfo}@{host}" if userinfo and not web else host
    path = quote(path, safe="%/:@!$&'()*+,;=~", errors="surrogateescape")
    remote = f"{scheme}://{user_host}{path}"
    made = GitReference(remote, scheme, host, userinfo=secret)
    return _with(made, unquote(fragment, errors="surrogateescape"), query)


def _bad_escapes(text: str) -> bool:
    """Whether a percent sign is not followed by two hexadecimal digits: Go's parser refuses such a URL."""
    return bool(re.search(r"%(?![0-9a-fA-F]{2})", text))


def _scp(text: str) -> GitReference | None:
    """Parse the form of scp(1), which means ssh."""
    found = _SCP.fullmatch(text)
    if found is None:
        return None
    user, host, path, query, fragment = found.groups(default="")
    if user.startswith("-") or not _HOST.fullmatch(host):
        raise _wrong(text, "its user or host would be taken for an option of ssh")
    if not path or path.startswith("-"):
        raise _wrong(text, "its path is none" if not path else "its path would be taken for an option")
    if _CONTROL.search(text):
        raise _wrong(text, "it holds a control character")
    return _with(GitReference(f"{user}@{host}:{path}", "ssh", host), fragment, query)


def _with(made: GitReference, fragment: str, query: str) -> GitReference:
    """Return ``made`` with its fragment and its query."""
    ref, _, subdir = fragment.partition(":")
    options = _options(made, query)
    ref = _single_value(made, "ref", ref, options.pop("ref", ""))
    subdir = _single_value(made, "subdir", _clean(subdir), options.pop("subdir", ""))
    tag, branch = options.pop("tag", ""), options.pop("branch", "")
    if tag and branch:
        raise _wrong(made.remote, "it asks for a branch and for a tag")
    for given, prefix in ((tag, "refs/tags/"), (branch, "refs/heads/")):
        if given:
            ref = _single_value(made, "ref", ref, given if given.startswith(prefix) else prefix + given)
    if ref:
        check_ref(made.remote, ref)
    if _CONTROL.search(subdir):
        raise _wrong(made.remote, "its subdirectory holds a control character")
    commit, checksum = options.pop("commit", ""), options.pop("checksum", "")
    mtime = options.pop("mtime", "")
    if mtime not in ("", "checkout", "commit"):
        raise _wrong(made.remote, f"invalid mtime value: {printable(mtime)!r}", 'it is "checkout" or "commit"')
    keep_git_dir, submodules = (_boolean(made, options, key) for key in ("keep-git-dir", "submodules"))
    by_commit = _boolean(made, options, "fetch-by-commit")
    if options:
        known = "ref, tag, branch, subdir, checksum, commit, keep-git-dir, submodules, mtime and fetch-by-commit"
        raise _wrong(made.remote, f"unexpected query {printable(next(iter(options)))!r}", f"known are {known}")
    return replace(
        made,
        ref=ref,
        subdir=_clean(subdir),
        checksum=check_checksum(made.remote, _single_value(made, "checksum", checksum, commit)),
        keep_git_dir=keep_git_dir,
        submodules=submodules,
        mtime=mtime,
        fetch_by_commit=bool(by_commit),
    )


def _options(made: GitReference, query: str) -> dict[str, str]:
    from urllib.parse import parse_qsl

    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, errors="surrogateescape"):
        if key in options:
            raise _wrong(made.remote, f"query {printable(key)!r} has multiple values")
        if not value and key not in ("submodules", "keep-git-dir", "fetch-by-commit"):
            raise _wrong(made.remote, f"query {printable(key)!r} has no value")
        options[key] = value
    return options


def _single_value(made: GitReference, what: str, one: str, other: str) -> str:
    if one and other and one != other:
        raise _wrong(made.remote, f"{what} conflicts: {printable(one)!r} vs {printable(other)!r}")
    return one or other


def _boolean(made: GitReference, options: dict[str, str], key: str) -> bool | None:
    if key not in options:
        return None
    value = options.pop(key)
    if value in _FALSE:
        return False
    if value and value not in _TRUE:
        raise _wrong(made.remote, f"invalid {key} value: {printable(value)!r}", "it is true or false")
    return True


def _clean(subdir: str) -> str:
    """Return the normalised ``subdir``, which must not lead out of the repository."""
    return posixpath.normpath("/" + subdir).lstrip("/")


def check_ref(remote: str, ref: str) -> None:
    """Raise ``ContextError`` unless git allows ``ref`` as the name of a ref, and it cannot be taken for an option."""
    if _NO_REF.search(ref):
        raise _wrong(
            remote, f"invalid git ref {printable(ref)!r}", "it is the name of a branch or tag, or a full commit"
        )


def check_checksum(remote: str, checksum: str) -> str:
    """Return ``checksum`` in lower case. Raises ``ContextError`` unless it can be the beginning of a commit hash."""
    if checksum and not _CHECKSUM.fullmatch(checksum):
        why = f"invalid checksum {printable(checksum)!r}"
        raise _wrong(remote, why, "for a git repository, it is a commit hash or the beginning of one")
    return checksum.lower()


def _wrong(remote: str, why: str, remedy: str = "") -> ContextError:
    return ContextError(f"cannot use the git repository {printable(remote)}", why=why, remedy=remedy)
