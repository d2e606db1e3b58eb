"""Running git on untrusted repositories, outside of any sandbox.

This is the only module that starts git. Its protections, most of them against published vulnerabilities:

1. No configuration of the system, the user or a surrounding repository is read, and the environment is built from
   scratch: no hooks, filters, credential helpers, aliases or ``insteadOf`` (CVE-2022-39253).
2. git may use the given protocols only, for submodules and redirects too (CVE-2017-1000117, ``ext::``).
3. No hooks, wherever they are; no template; no file system monitor (CVE-2024-32002, CVE-2025-48384).
4. It cannot ask anyone: no terminal, no helper, standard input is empty.
5. Credentials are in the environment, which only this user can read, and never on a command line. Because git would
   send them to the target of a redirect, it follows none (see ``git``).
6. ssh reads no configuration and uses no key but those of the given agent.
7. Objects are checked on arrival (``fsckObjects``), which detects known attacks. Complaints about dates, names and
   orders, which old repositories are full of, are ignored.
8. Its output is bounded, as are the size of files that it writes, and the time without output.
"""

from __future__ import annotations

import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

import msgspec

from platforms import debug
from platforms.errors import ContextError, EnvironmentUnfit, Interrupted, printable

SILENCE_SECONDS: Final = 600.0
"""Maximum time without output: a server may have to count and compress objects before the first byte."""
OUTPUT_LIMIT: Final = 64 << 20
"""Maximum size in bytes of output that is kept in memory."""
_COMPLAINT_LIMIT: Final = 64 << 10
_FILE_LIMIT: Final = 64 << 30
"""Maximum size in bytes of a file that git writes."""
_GRACE_SECONDS: Final = 5.0
_LINES: Final = 3
"""Maximum number of lines of git's stderr that are shown."""

_IGNORED: Final = "\n".join(
    f"\t{each} = ignore"
    for each in (
        "badDate",
        "badDateOverflow",
        "badEmail",
        "badName",
        "badTimezone",
        "missingEmail",
        "missingNameBeforeEmail",
        "missingSpaceBeforeDate",
        "missingSpaceBeforeEmail",
        "multipleAuthors",
        "zeroPaddedDate",
        "zeroPaddedFilemode",
    )
)
"""Complaints of git-fsck(1) about commits of old tools, which are harmless for a checkout."""

_CONFIGURATION: Final = f"""\
[advice]
	detachedHead = false
[core]
	attributesFile = /dev/null
	autocrlf = false
	excludesFile = /dev/null
	fsmonitor = false
	hooksPath = /dev/null
	logAllRefUpdates = false
[credential]
	helper =
[fetch]
	fsckObjects = true
	recurseSubmodules = false
[fetch "fsck"]
{_IGNORED}
[gc]
	auto = 0
[http]
	followRedirects = false
[init]
	defaultBranch = master
[maintenance]
	auto = false
[protocol]
	version = 2
[submodule]
	recurse = false
"""
_PASSED_ON: Final = (
    "PATH",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
)

Output = Callable[[str], None]
"""Receives the lines that git prints on stderr, printable."""


class Access(msgspec.Struct, frozen=True):
    """The credentials and hosts that a build may use to reach repositories. ``repr`` shows no secret."""

    authorization: str = ""
    """The HTTP header ``Authorization``, for the repository's own origin."""
    ssh_socket: str = ""
    """Path of the socket of an ssh agent."""
    known_hosts: str = ""
    """A known_hosts file with all hosts that are allowed. Without it the user's own is used, and new hosts are
    accepted."""

    def __repr__(self) -> str:
        return "Access()"


class GitFailed(Exception):
    """git ended with an error; the text is its message."""


class Git:
    """git with a home directory of its own below ``directory``, which is private to the build. Ends once ``cancel`` is
    done."""

    def __init__(
        self,
        directory: str,
        protocols: tuple[str, ...],
        access: Access,
        *,
        output: Output | None = None,
        cancel: Future[None] | None = None,
    ) -> None:
        self.program = _found("git", "git")
        self.home = os.path.join(directory, "home")
        self._access = access
        self._said = output
        self._cancel = cancel
        os.mkdir(self.home, 0o700)
        with open(os.path.join(self.home, ".gitconfig"), "x", encoding="utf-8") as file:
            file.write(_CONFIGURATION)
        self._environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
            "GIT_ALLOW_PROTOCOL": ":".join(protocols),
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_CEILING_DIRECTORIES": directory,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_SSH_COMMAND": self._ssh(),
            "GIT_SSH_VARIANT": "ssh",
            "GIT_TERMINAL_PROMPT": "0",
            "HOME": self.home,
            "LC_ALL": "C",
            "TMPDIR": self.home,
            "XDG_CONFIG_HOME": self.home,
        }
        if "SSL_CERT_FILE" in os.environ:
            self._environment.setdefault("GIT_SSL_CAINFO", os.environ["SSL_CERT_FILE"])
        if access.ssh_socket:
            self._environment["SSH_AUTH_SOCK"] = access.ssh_socket

    def _ssh(self) -> str:
        if self._access.known_hosts:
            hosts, unknown = [self._access.known_hosts], "yes"
        else:
            # The first file is where ssh notes whom it has met.
            hosts = [os.path.join(self.home, "known_hosts"), os.path.expanduser("~/.ssh/known_hosts")]
            unknown = "accept-new"
        quoted = " ".join('"' + host.replace('"', "") + '"' for host in hosts)
        options = (
            "BatchMode=yes",
            "ClearAllForwardings=yes",
            "ConnectTimeout=15",
            "IdentityFile=none",
            "LogLevel=ERROR",
            "ServerAliveCountMax=4",
            "ServerAliveInterval=15",
            f"StrictHostKeyChecking={unknown}",
            "UpdateHostKeys=no",
            f"UserKnownHostsFile={quoted}",
        )
        return shlex.join(["ssh", "-F", "/dev/null", *(part for each in options for part in ("-o", each))])

    def reach(self, scheme: str) -> None:
        """Raise unless this machine has what a repository of ``scheme`` takes."""
        if scheme != "ssh":
            return
        _found("ssh", "openssh-client (Alpine, Debian) or openssh-clients (Fedora)")
        if not self._access.ssh_socket:
            raise ContextError(
                "cannot use a git repository over ssh",
                why="the build was given no ssh agent",
                remedy="start ssh-agent, ssh-add a key, and build with --ssh default",
            )

    def text(self, *arguments: str, authorization: str = "", remote: str = "") -> str:
        """Return what git prints; otherwise as ``run``. Raises ``ContextError`` for more than ``OUTPUT_LIMIT``
        bytes."""
        pieces: list[bytes] = []
        held = 0

        def keep(data: bytes) -> None:
            nonlocal held
            held += len(data)
            if held > OUTPUT_LIMIT:
                raise ContextError(f"git {arguments[0]} does not end", why=f"it has printed {OUTPUT_LIMIT} bytes")
            pieces.append(data)

        self.run(*arguments, authorization=authorization, remote=remote, out=keep)
        return os.fsdecode(b"".join(pieces))

    def run(
        self,
        *arguments: str,
        authorization: str = "",
        remote: str = "",
        out: Callable[[bytes], None] | None = None,
    ) -> None:
        """Run ``git arguments``; ``out`` receives what it prints. ``authorization`` is sent to ``remote`` only.

        Raises ``GitFailed``, or ``Interrupted``; what ``out`` raises ends git too.
        """
        environment = dict(self._environment)
        if authorization:
            environment |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"http.{remote}.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: {authorization}",
            }
        if debug.on:
            from executor.context.http import shown

            debug.log("git runs", command=arguments[0], remote=shown(remote))
        process = subprocess.Popen(
            [self.program, *arguments],
            cwd=self.home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            umask=0o022,
        )
        with _Process(process, self._cancel) as watched:
            complaints = watched.listen(out, self._said)
        if process.returncode:
            raise GitFailed(_message(complaints) or f"git {arguments[0]} ended with {process.returncode}")


def _found(program: str, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise EnvironmentUnfit(
            f"{program} is not installed",
            why="a git repository is fetched by the program of that name",
            remedy=f"install the package {package}",
        )
    return path


def _message(complaints: bytes) -> str:
    """Return the lines in which git says what is wrong, else the last lines."""
    lines = [line for line in re.split(r"[\r\n]+", complaints.decode(errors="replace")) if line.strip()]
    marked = [line for line in lines if re.match("fatal:|error:|remote: |ssh:|.*(denied|verification failed)", line)]
    return "; ".join(printable(line.removeprefix("fatal: ")) for line in (marked or lines)[-_LINES:])


class _Process:
    """A running git; the ``with`` block ends it and all its children."""

    def __init__(self, process: subprocess.Popen[bytes], cancel: Future[None] | None) -> None:
        self._process = process
        self._cancel = cancel
        self._lock = threading.Lock()
        self._woken, self._wake = os.pipe()
        for fd in (self._woken, self._wake):
            os.set_blocking(fd, False)

    def __enter__(self) -> _Process:
        if sys.platform == "linux":  # elsewhere a process has limits from itself and its parent alone
            import resource

            with suppress(OSError):  # it may have ended already
                resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (_FILE_LIMIT, _FILE_LIMIT))
        if self._cancel is not None:
            self._cancel.add_done_callback(self._stop)
        return self

    def _stop(self, _: Future[None]) -> None:
        with self._lock:
            if self._wake >= 0:
                os.write(self._wake, b"\0")

    def __exit__(self, kind: object, *_: object) -> None:
        process = self._process
        if kind is not None:
            self._end()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()
        with self._lock:
            os.close(self._wake)
            os.close(self._woken)
            self._wake = -1

    def _end(self) -> None:
        """End git and its children: with SIGTERM, so that it removes its lock files, then with SIGKILL."""
        for order in (signal.SIGTERM, signal.SIGKILL):
            # As long as the process is not waited for, its number, and so the group's, is nobody else's.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, order)
            if order is signal.SIGTERM:
                with suppress(subprocess.TimeoutExpired):
                    self._wait(_GRACE_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Wait for the end of git: on Linux without reaping it, so that its process group is not reused."""
        if sys.platform != "linux":
            self._process.wait(seconds)
            return
        fd = os.pidfd_open(self._process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(fd, selectors.EVENT_READ)
                selector.select(seconds)
        finally:
            os.close(fd)

    def listen(self, out: Callable[[bytes], None] | None, output: Output | None) -> bytes:
        """Pass on git's output until it ends; return the end of its stderr."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        complaints = b""
        lines = _Lines(output)
        with selectors.DefaultSelector() as selector:
            for stream in (self._process.stdout, self._process.stderr):
                selector.register(stream, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while len(selector.get_map()) > 1:
                ready = selector.select(SILENCE_SECONDS)
                if not ready:
                    raise GitFailed(f"it fell silent for {SILENCE_SECONDS:.0f} s")
                for key, _ in ready:
                    if key.fd == self._woken:
                        raise Interrupted("fetching a git repository was stopped")
                    data = os.read(key.fd, 64 << 10)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is self._process.stdout:
                        if out is not None:
                            out(data)
                    else:
                        complaints = (complaints + data)[-_COMPLAINT_LIMIT:]
                        lines.add(data)
        return complaints


class _Lines:
    """Joins pieces of text to lines. A line that overwrites the one before it (progress) is dropped."""

    def __init__(self, output: Output | None) -> None:
        self._said = output
        self._left = b""

    def add(self, data: bytes) -> None:
        """Read the next piece."""
        if self._said is None:
            return
        *lines, self._left = (self._left + data)[-_COMPLAINT_LIMIT:].split(b"\n")
        for line in lines:
            text = printable(line.rpartition(b"\r")[2].decode(errors="replace"))
            if text:
                self._said(text)
