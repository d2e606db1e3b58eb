"""What a URL says before anybody is asked: names of files, what may be shown, which secrets are for it."""

from __future__ import annotations

import pytest

from executor.context.http import Validators, authorization, file_name, http_date, shown
from platforms.errors import ContextError


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.com/foobar", "foobar"),
        ("https://example.com/a/b.tar.gz?token=x#part", "b.tar.gz"),
        ("https://example.com/a/b/", "b"),
        ("https://example.com/a%20b", "a b"),
        ("https://example.com/a%2Fb", "b"),
        ("https://example.com/%D1%82", "т"),
        ("https://example.com/%ff", "\udcff"),
        ("https://example.com", "__unnamed__"),
        ("https://example.com/", "__unnamed__"),
        ("https://example.com//", "__unnamed__"),
        ("https://example.com/.", "__unnamed__"),
        ("https://example.com?x=/y", "__unnamed__"),
        ("https://[bad/x", "__unnamed__"),
        ("https://example.com/..", "download"),
        ("https://example.com/%2e%2e", "download"),
        ("https://example.com/%20", "download"),
        ("https://example.com/a%00b", "download"),
        ("https://example.com/a%0ab", "download"),
        ("https://example.com/a%C2%85b", "download"),
    ],
)
def test_a_file_is_called_like_the_end_of_its_path(url: str, name: str) -> None:
    assert file_name(url) == name


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://example.com/a", "https://example.com/a"),
        ("https://user:pass@example.com/a", "https://example.com/a"),
        ("https://us@er:p@ss@example.com/a@b", "https://example.com/a@b"),
        ("https://example.com/a?X-Signature=secret&b=c#d", "https://example.com/a?…"),
        ("https://example.com/a\x1b[31m", "https://example.com/a [31m"),
        ("https://user:secret@", "https://"),
    ],
)
def test_what_may_be_secret_is_not_shown(url: str, text: str) -> None:
    assert shown(url) == text


SECRETS = {"HTTP_AUTH_TOKEN_a.example": b"t0ken\n", "HTTP_AUTH_HEADER_b.example": b"Basic eDp5"}


@pytest.mark.parametrize(
    ("url", "header"),
    [
        ("https://a.example/x", "Bearer t0ken"),
        ("https://a.example:8443/x", "Bearer t0ken"),
        ("https://user@A.example/x", "Bearer t0ken"),
        ("https://b.example/x", "Basic eDp5"),
        ("https://c.example/?a.example", ""),
        ("https://a.example.evil/x", ""),
        ("https://[bad/x", ""),
    ],
)
def test_a_secret_is_for_its_host(url: str, header: str) -> None:
    assert authorization(url, SECRETS.get) == header


def test_a_token_counts_for_more_than_a_header() -> None:
    both = {"HTTP_AUTH_TOKEN_h": b"new", "HTTP_AUTH_HEADER_h": b"old"}
    assert authorization("http://h/", both.get) == "Bearer new"


@pytest.mark.parametrize("name", ["HTTP_AUTH_TOKEN_h", "HTTP_AUTH_HEADER_h"])
def test_a_secret_cannot_add_headers(name: str) -> None:
    with pytest.raises(ContextError) as caught:
        authorization("http://h/", {name: b"x\r\nHost: y"}.get)
    assert "\n" not in str(caught.value)
    assert "Host" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        ("Sun Nov  6 08:49:37 1994", 784111777),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("", None),
        ("yesterday", None),
        ("Sun, 06 Nov 1994 08:49:37 +0200", None),
        ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Foo 1994 08:49:37 GMT", None),
    ],
)
def test_dates_are_read_in_the_three_forms_of_http(text: str, seconds: int | None) -> None:
    assert http_date(text) == seconds


def test_a_length_alone_validates_nothing() -> None:
    assert not Validators(length="7")
    assert Validators(etag='"a"')
    assert Validators(last_modified="Sun, 06 Nov 1994 08:49:37 GMT")
