"""Challenges, scopes, and which token service belongs to which registry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.registry.token import Challenge, merged, parse_challenges, same_site
from executor.transport import Origin


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("", ()),
        ("Basic", (Challenge("basic"),)),
        ('Basic realm="a, b"', (Challenge("basic", (("realm", "a, b"),)),)),
        (
            'Bearer realm="https://t.example/token",service="r.example",scope="repository:a:pull,push"',
            (
                Challenge(
                    "bearer",
                    (
                        ("realm", "https://t.example/token"),
                        ("service", "r.example"),
                        ("scope", "repository:a:pull,push"),
                    ),
                ),
            ),
        ),
        (
            'BASIC Realm=x, Bearer realm = "y" , error="invalid_token"',
            (Challenge("basic", (("realm", "x"),)), Challenge("bearer", (("realm", "y"), ("error", "invalid_token")))),
        ),
        (r'Bearer realm="say \"hi\""', (Challenge("bearer", (("realm", 'say "hi"'),)),)),
        ('Bearer realm="open', (Challenge("bearer", (("realm", "open"),)),)),
        ("Negotiate, Basic realm=x", (Challenge("negotiate"), Challenge("basic", (("realm", "x"),)))),
        ("=,=", ()),
    ],
)
def test_a_challenge_is_taken_apart(header: str, challenges: tuple[Challenge, ...]) -> None:
    assert parse_challenges(header) == challenges


@given(st.text(alphabet='Bearer ,="\\x', max_size=60))
def test_no_header_breaks_the_parser(header: str) -> None:
    parse_challenges(header)


def test_scopes_are_compared_by_what_they_allow() -> None:
    assert merged("repository:a:push,pull") == merged("repository:a:pull", "repository:a:push")
    assert merged("repository:a:pull", "repository:h:5000/b:pull") == {
        "repository:a:pull",
        "repository:h:5000/b:pull",
    }
    assert merged("", "nonsense") == frozenset()


@pytest.mark.parametrize(
    ("registry", "realm", "answer"),
    [
        ("registry-1.docker.io", "auth.docker.io", True),
        ("registry.gitlab.com", "gitlab.com", True),
        ("registry.corp.example", "sso.corp.example", True),
        ("ghcr.io", "ghcr.io", True),
        ("quay.io", "auth.quay.io", True),
        ("me.azurecr.io", "me.azurecr.io", True),
        ("registry.example.com", "example.com.evil.net", False),
        ("registry.example.com", "evilexample.com", False),
        ("registry.example.com", "com", False),
        ("ghcr.io", "io", False),
        ("ghcr.io", "evil.io", False),
        ("registry.example.com", "attacker.net", False),
        ("registry.co.uk", "evil.co.uk", False),
        ("registry.co.uk", "auth.registry.co.uk", True),
        ("registry.com.au", "com.au", False),
        ("registry.anything.np", "evil.anything.np", False),
        ("registry.np", "evil.np", False),
        ("me.azurecr.io", "evil.azurecr.io", False),
        ("registry.fly.dev", "evil.fly.dev", False),
        ("1.dkr.ecr.eu-west-1.amazonaws.com", "evil.eu-west-1.amazonaws.com", False),
        ("registry.cn-hangzhou.aliyuncs.com", "dockerauth.cn-hangzhou.aliyuncs.com", True),
        ("registry.gitlab.corp.co.uk", "gitlab.corp.co.uk", True),
        ("10.0.0.1", "10.0.0.1", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("localhost", "localhost", False),
        ("::1", "::1", False),
    ],
)
def test_a_site_is_a_host_its_parent_and_what_is_below(registry: str, realm: str, answer: bool) -> None:
    assert same_site(Origin("https", registry, 443), Origin("https", realm, 443)) is answer
