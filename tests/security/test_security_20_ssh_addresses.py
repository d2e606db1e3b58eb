"""Attack 20 (CVE-2017-1000117, CVE-2023-51385): an address is an option of ssh, or syntax of the shell behind it.

``ssh`` here is a script that notes what it is started with and then runs the other side's command on this machine.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from git_server import Repository

from executor.context.git import checkout, resolve
from executor.context.gitprogram import Access
from executor.context.gitreference import located, parse
from platforms.errors import ContextError


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the script notes its arguments, one a line."""
    log = tmp_path / "ssh.log"
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "ssh"
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >> {log}\nenv >> {log}.env\nfor last; do :; done\nexec sh -c "$last"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return log


HOSTILE = [
    "ssh://-oProxyCommand=touch%20canary/x.git",
    "ssh://-oProxyCommand=touch${IFS}canary/x.git",
    "ssh://%2doProxyCommand=x/x.git",
    "ssh://-oX@example.com/x.git",
    "ssh://user@-oX/x.git",
    "ssh://us`id`er@example.com/x.git",
    "ssh://us$(id)er@example.com/x.git",
    "ssh://us%0aer@example.com/x.git",
    "ssh://us er@example.com/x.git",
    "ssh://us;id@example.com/x.git",
    "ssh://a@b@example.com/x.git",
    "ssh://user:password@example.com/x.git",
    "ssh://`id`/x.git",
    "ssh://$(id)/x.git",
    "ssh://exam'ple.com/x.git",
    'ssh://exam"ple.com/x.git',
    "ssh://exam|ple.com/x.git",
    "ssh://exam\nple.com/x.git",
    "ssh://example.com:22x/x.git",
    "ssh://example.com:-oX/x.git",
    "ssh://example.com/x%0a.git",
    "ssh:///x.git",
    "ssh://example.com",
    "-oProxyCommand@example.com:x.git",
    "git@-oProxyCommand:x.git",
    "git@.example.com:x.git",
    "git@example.com:-oX",
    "git@example.com:--upload-pack=x",
    "git@example.com:",
    "git@example.com:x\ty.git",
    "git://-x/y.git",
    "git://user@example.com/y.git",
    "https://-x/y.git",
    "https://$(id)/y.git",
]


@pytest.mark.parametrize("address", HOSTILE)
def test_such_an_address_is_refused_before_anything_starts(address: str) -> None:
    with pytest.raises(ContextError) as caught:
        parse(address)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "address", [*HOSTILE, "-oX", "--upload-pack=x", "u`id`@example.com:x", "$(id)@h:x", "ext::sh", "/x"]
)
def test_neither_may_a_submodule_or_a_redirect_be_there(address: str) -> None:
    with pytest.raises(ContextError):
        located(address, ("git", "http", "https", "ssh"))


@pytest.mark.parametrize("address", ["us`id`er@example.com:x.git", "us$er@h:x", "a@b`id`:x", "a@$(id):x", "a b@h:x"])
def test_what_is_no_short_form_is_a_path(address: str) -> None:
    assert parse(address) is None


@pytest.mark.parametrize(
    "name", ["x.git", "a b.git", "$(touch canary).git", "`touch canary`.git", "a'b.git", "a;b.git"]
)
def test_the_path_reaches_the_other_side_as_it_is(tmp_path: Path, ssh: Path, name: str) -> None:
    repo = Repository.make(tmp_path / "served" / name)
    commit = repo.commit({"f": ""})
    out = tmp_path / "out"
    out.mkdir()
    reference = parse(f"git@example.com:{repo.path}")
    assert reference is not None
    access = Access(ssh_socket="/agent")
    got = checkout(reference, resolve(reference, str(out), access=access), str(out), access=access)
    assert got.commit == commit
    assert not list(tmp_path.rglob("canary"))
    assert "git@example.com" in ssh.read_text().splitlines()


def test_ssh_is_told_to_trust_nothing_of_the_users(tmp_path: Path, ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/the/users/own")
    monkeypatch.setenv("GIT_SSH_COMMAND", "touch canary;")
    monkeypatch.setenv("GIT_SSH", "false")
    repo = Repository.make(tmp_path / "served/x.git")
    repo.commit({"f": ""})
    out = tmp_path / "out with a space"
    out.mkdir()
    reference = parse(f"ssh://git@example.com:2222{repo.path}")
    assert reference is not None
    resolve(reference, str(out), access=Access(ssh_socket="/given/to the build", known_hosts="/known hosts"))
    said = ssh.read_text().splitlines()
    assert said[:2] == ["-F", "/dev/null"]
    for option in (
        "BatchMode=yes",
        "IdentityFile=none",
        "StrictHostKeyChecking=yes",
        'UserKnownHostsFile="/known hosts"',
    ):
        assert option in said
    assert said[said.index("-p") + 1] == "2222"
    environment = Path(f"{ssh}.env").read_text().splitlines()
    assert "SSH_AUTH_SOCK=/given/to the build" in environment
    names = {line.partition("=")[0] for line in environment}
    allowed = {"PATH", "HOME", "PWD", "OLDPWD", "SHLVL", "_", "LC_ALL", "TMPDIR", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK"}
    proxies = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"}
    assert {name for name in names if not name.startswith("GIT_")} <= allowed | proxies | {p.lower() for p in proxies}
