"""Addresses of nodes behind SSH: what they are, and that no part of one can be an option or a shell's word."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.nodes.ssh_address import SSHAddress, parse
from platforms.errors import UsageError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ssh://arm", SSHAddress("", "arm", 0)),
        ("ssh://arm/", SSHAddress("", "arm", 0)),
        ("ssh://ci@build-1.example.com:2222", SSHAddress("ci", "build-1.example.com", 2222)),
        ("ssh://ci@EXAMPLE@host", SSHAddress("ci@EXAMPLE", "host", 0)),
        ("ssh://10.0.0.1:22", SSHAddress("", "10.0.0.1", 22)),
        ("ssh://[2001:db8::1]", SSHAddress("", "2001:db8::1", 0)),
        ("ssh://root@[fe80::1%eth0]:22", SSHAddress("root", "fe80::1%eth0", 22)),
    ],
)
def test_an_address_is_user_host_and_port(url: str, address: SSHAddress) -> None:
    assert parse(url) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("arm", "ssh://"),
        ("docker://arm", "ssh://"),
        ("ssh://", "no host"),
        ("ssh://ci@", "no host"),
        ("ssh://@host", "user"),
        ("ssh://host/path", "follows"),
        ("ssh://host?a=b", "follows"),
        ("ssh://host:", "port"),
        ("ssh://host:0", "port"),
        ("ssh://host:65536", "port"),
        ("ssh://host:ssh", "port"),
        ("ssh://2001:db8::1", "port"),
        ("ssh://[2001:db8::1", "IPv6"),
        ("ssh://[2001:db8::1]x", "port"),
        ("ssh://[host]", "IPv6"),
        ("ssh://[fe80::1%-x y]", "interface"),
        ("ssh://-oProxyCommand=id", "host"),
        ("ssh://-l@host", "user"),
        ("ssh://$(id)@host", "user"),
        ("ssh://a;id", "host"),
        ("ssh://a b", "host"),
        ("ssh://a\nb", "host"),
        ("ssh://host\0", "host"),
        ("ssh://ho\x1b[2Jst", "host"),
        ("ssh://%h", "host"),
    ],
)
def test_anything_else_is_refused_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(url)
    problem = caught.value.problem
    assert why in problem.why
    assert problem.remedy
    assert problem.what.isprintable()


def test_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(UsageError, match="password") as caught:
        parse("ssh://ci:hush@host")
    assert "hush" not in str(caught.value)


@given(st.text(st.sampled_from("a1.-_@:[]%$`'\"\\;&|<> \n\0~*?(){}!#é"), max_size=12))
def test_no_part_is_an_option_or_means_something_to_a_shell(text: str) -> None:
    try:
        address = parse(f"ssh://{text}")
    except UsageError:
        return
    for word in (address.user, address.host):
        assert not word.startswith("-")
        assert not word or shlex.split(word) == [word]
        assert not set(word) & set("$`'\"\\;&|<> \n\0~*?(){}!#")
