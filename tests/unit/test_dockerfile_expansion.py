"""Where words are expanded and where not; mounts, ports and signals; the scopes of ARG and ENV."""

from __future__ import annotations

from typing import Any

import pytest

from executor.dockerfile import declared, expand, global_scope, parse
from executor.dockerfile.instructions import Arg
from platforms.errors import DockerfileError

ENV = {"A": "foo", "E": "", "W": "two words", "T": "cache", "PORT": "80", "PAIR": "81 82"}


def one(text: str, env: dict[str, str] | None = None) -> Any:
    """The instruction ``text``, expanded."""
    (instruction,) = parse(f"FROM scratch\n{text}\n".encode()).stages[0].instructions
    return expand(instruction, ENV if env is None else env)


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("COPY $A ${W} /$A/", "sources", ("foo", "two words")),
        ("COPY $A /$A/", "destination", "/foo/"),
        ("COPY '$A' \\$A /b", "sources", ("$A", "$A")),
        ('COPY ["$A", "/b"]', "sources", ("foo",)),
        ("COPY --chown=$A:$A a /b", "chown", "foo:foo"),
        ("COPY --chmod=${M:-755} a /b", "chmod", "755"),
        ("COPY --exclude=$A a /b", "exclude", ("$A",)),
        (f"ADD --checksum=${{N:-sha256:{'1' * 64}}} https://h/$A /b", "checksum", f"sha256:{'1' * 64}"),
        ("ADD https://x/$A.tar /b", "sources", ("https://x/foo.tar",)),
        ("ENV X=$A Y=$X $A=z", "pairs", (("X", "foo"), ("Y", ""), ("foo", "z"))),
        ("ENV X a $A 'b'", "pairs", (("X", "a foo b"),)),
        ("ENV X='$A' Y=\"$A b\" Z=a\\ b", "pairs", (("X", "$A"), ("Y", "foo b"), ("Z", "a b"))),
        ('LABEL "$A"="$W" b=$A', "pairs", (("foo", "two words"), ("b", "foo"))),
        ("USER $A", "user", "foo"),
        ("WORKDIR /x/$A", "path", "/x/foo"),
        ("VOLUME /$A '/b'", "paths", ("/foo", "/b")),
        ('VOLUME ["/$A"]', "paths", ("/foo",)),
        ("STOPSIGNAL ${S:-SIGINT}", "signal", "SIGINT"),
        ("STOPSIGNAL 9", "signal", "9"),
        ("STOPSIGNAL sigrtmin+3", "signal", "sigrtmin+3"),
        # not expanded:
        ("RUN echo $A", "command", ("echo $A",)),
        ('CMD ["$A"]', "command", ("$A",)),
        ("ENTRYPOINT $A", "command", ("$A",)),
        ("HEALTHCHECK CMD $A", "command", ("$A",)),
        ('SHELL ["$A"]', "command", ("$A",)),
        ("ONBUILD COPY $A /b", "expression", "COPY $A /b"),
        ("MAINTAINER $A", "name", "$A"),
    ],
)
def test_where_words_are_expanded(text: str, field: str, expected: object) -> None:
    assert getattr(one(text), field) == expected


def test_here_documents_expand_unless_quoted() -> None:
    body = 'it\'s $A \\$A ${E:-"none"}\n'
    plain, quoted = one(f"COPY <<P <<'Q' /x/\n{body}P\n{body}Q").heredocs
    assert plain.content == 'it\'s foo $A "none"\n'
    assert quoted.content == body
    assert one(f"RUN <<P\n{body}P").heredocs[0].content == body


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("EXPOSE 443 80", ("443/tcp", "80/tcp")),
        ("EXPOSE 53/UDP 9/sctp", ("53/udp", "9/sctp")),
        ("EXPOSE 1-3/udp", ("1/udp", "2/udp", "3/udp")),
        ("EXPOSE $PORT $PAIR/tcp", ("81/tcp", "82/tcp", "80/tcp")),
        ("EXPOSE 8080:80 [::1]:1:2 127.0.0.1::3", ("3/tcp", "80/tcp", "2/tcp")),
        ("EXPOSE 7-7", ("7/tcp",)),
    ],
)
def test_ports(text: str, ports: tuple[str, ...]) -> None:
    assert one(text).ports == ports


def mount(options: str) -> dict[str, Any]:
    (found,) = one(f"RUN --mount={options} true").mounts
    plain = {"text": options, "type": "bind", "readonly": True}
    return {
        name: value
        for name in found.__struct_fields__
        if (value := getattr(found, name)) not in ("", None, 0, False, plain.get(name))
        or (name == "readonly" and value is False)
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("target=/a", {"target": "/a"}),
        ("type=bind,dst=/a,src=b,from=c,rw", {"target": "/a", "source": "b", "from_": "c", "readonly": False}),
        ("TYPE=Cache,destination=/a", {"type": "cache", "target": "/a", "readonly": False}),
        ("type=$T,target=/$A,id=${A}x", {"type": "cache", "target": "/foo", "id": "foox", "readonly": False}),
        (
            "type=cache,target=/a,sharing=Locked,uid=1,gid=2,mode=0750,ro",
            {"type": "cache", "target": "/a", "sharing": "locked", "uid": 1, "gid": 2, "mode": 0o750},
        ),
        ("type=tmpfs,target=/a,size=64m", {"type": "tmpfs", "target": "/a", "size": 64 << 20, "readonly": False}),
        ("type=tmpfs,size=1.5GiB,target=/a", {"type": "tmpfs", "target": "/a", "size": 3 << 29, "readonly": False}),
        ("type=secret,id=s,required,env=S", {"type": "secret", "id": "s", "required": True, "env": "S"}),
        ("type=secret,id=s,required=0,mode=400", {"type": "secret", "id": "s", "mode": 0o400}),
        ("type=ssh,required=true,target=/s", {"type": "ssh", "required": True, "target": "/s"}),
        ("target=/a,readonly=false", {"target": "/a", "readonly": False}),
        ("target=/a,readwrite=false", {"target": "/a"}),
        (r"target=\"/a\,b\"", {}),
    ],
)
def test_mounts(options: str, expected: dict[str, Any]) -> None:
    if options.startswith("target=\\"):
        with pytest.raises(DockerfileError, match="a quote stands inside a field"):
            mount(options)
        return
    assert mount(options) == expected


def test_a_field_with_a_comma_is_quoted() -> None:
    (found,) = one(r"RUN --mount=\"target=/a\,b\",ro true").mounts
    assert found.target == "/a,b"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("RUN --mount=type=bnd,target=/a x", 'unsupported mount type "bnd" (did you mean bind?)'),
        ("RUN --mount=type=cache,trget=/a x", "unexpected key 'trget' in 'trget=/a' (did you mean target?)"),
        ("RUN --mount=type=cache,target x", "invalid field 'target' must be a key=value pair"),
        ("RUN --mount=type=cache,required x", "unexpected key 'required' for mount type 'cache'"),
        ("RUN --mount=required,type=secret,id=a x", "unexpected key 'required' for mount type 'bind'"),
        ("RUN --mount=size=1,type=tmpfs x", "unexpected key 'size' for mount type 'bind'"),
        ("RUN --mount=type=tmpfs,size=big x", "invalid value for size: big"),
        ("RUN --mount=type=cache,sharing=lock x", 'unsupported sharing value "lock" (did you mean locked?)'),
        ("RUN --mount=type=bind,sharing=locked x", "invalid cache sharing set for bind mount"),
        ("RUN --mount=uid=0 x", 'uid not allowed for "bind" type mounts'),
        ("RUN --mount=type=cache,mode=9 x", "invalid value 9 for mode"),
        ("RUN --mount=type=cache,uid=-1 x", "invalid value -1 for uid"),
        ("RUN --mount=ro=perhaps x", "invalid value for ro: perhaps"),
        ("RUN --mount=type=secret x", "invalid secret mount. one of source, target required"),
        ("RUN --mount=type=secret,id=a,source=b x", "both source and id can't be set"),
        ("RUN --mount=type=secret,id=a,from=b x", "secret mount should not have a from"),
        ("RUN --mount=type=secret,id=a,sharing=shared x", "secret mount should not define sharing"),
        ("RUN --mount=type=ssh,source=a x", "ssh does not support source"),
        ("EXPOSE x", "invalid containerPort: x"),
        ("EXPOSE 70000", "invalid containerPort: 70000"),
        ("EXPOSE 3-1", "invalid containerPort: 3-1"),
        ("EXPOSE 80/icmp", 'invalid port: "80/icmp": invalid proto: icmp'),
        ("EXPOSE /tcp", 'invalid port: "/tcp": no port specified'),
        ("EXPOSE 300.0.0.1:1:2", "invalid IP address: 300.0.0.1"),
        ("EXPOSE 1-2:3-5", "invalid ranges specified for container and host Ports: 3-5 and 1-2"),
        ("STOPSIGNAL SIGNOTHING", "invalid signal: SIGNOTHING"),
        ("STOPSIGNAL 0", "invalid signal: 0"),
        ("VOLUME $U", "VOLUME specified can not be an empty string"),
        ("WORKDIR ${U:?is needed}", 'failed to process "${U:?is needed}": U: is needed'),
        ("USER 'x", 'failed to process "\'x": unexpected end of statement while looking for matching single-quote'),
        ("COPY --exclude=[a b /c", 'syntax error in pattern: "[a"'),
    ],
)
def test_what_only_expansion_can_refuse(text: str, why: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        one(text)
    problem = caught.value.problem
    assert problem.what == why
    assert problem.remedy
    assert problem.where is not None
    assert problem.where.line == 2


def bases(source: str, build_args: dict[str, str] | None = None) -> list[tuple[str, str]]:
    dockerfile = parse(source.encode())
    scope = global_scope(dockerfile, build_args or {}, {"BUILDPLATFORM": "linux/amd64", "TARGETARCH": "arm64"})
    found = [expand(stage.base, scope, dockerfile.escape) for stage in dockerfile.stages]
    return [(base.image, base.platform) for base in found]


@pytest.mark.parametrize(
    ("source", "build_args", "expected"),
    [
        ("ARG V=1\nFROM a:$V", {}, ("a:1", "")),
        ("ARG V=1\nFROM a:$V", {"V": "2"}, ("a:2", "")),
        ("ARG V\nFROM a:${V:-3}", {}, ("a:3", "")),
        ("ARG V=1\nARG V\nFROM a:$V", {}, ("a:1", "")),
        ("ARG V=1\nARG V=2\nFROM a:$V", {}, ("a:2", "")),
        ("ARG V=1 W=${V}x\nARG X=$W$U\nFROM a:$X", {}, ("a:1x", "")),
        ("ARG V='1 2'\nFROM a:$V", {}, ("a:1 2", "")),
        ("FROM --platform=$BUILDPLATFORM a-$TARGETARCH", {}, ("a-arm64", "linux/amd64")),
        ("FROM a-$TARGETARCH", {"TARGETARCH": "s390x"}, ("a-s390x", "")),
        ("ARG TARGETARCH=amd64\nFROM a-$TARGETARCH", {}, ("a-amd64", "")),
        ("FROM a-$UNDECLARED", {"UNDECLARED": "x"}, ("a-", "")),
    ],
)
def test_from_sees_the_global_scope_only(source: str, build_args: dict[str, str], expected: tuple[str, str]) -> None:
    assert bases(source, build_args) == [expected]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("FROM $V", "base name ($V) should not be blank"),
        (
            "ARG VARIABLE=1\nFROM --platform=$VARIBLE a",
            "empty platform value from expression $VARIBLE (did you mean VARIABLE?)",
        ),
        ("FROM --platform=$V a", "empty platform value from expression $V"),
        ("FROM a:${V", "failed to process \"a:${V\": syntax error: missing '}'"),
        ("ARG V=${W:?needed}\nFROM a:$V", 'failed to process "${W:?needed}": W: needed'),
    ],
)
def test_from_without_a_base(source: str, why: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        bases(source)
    assert caught.value.problem.what == why
    assert caught.value.problem.where is not None


@pytest.mark.parametrize(
    ("text", "build_args", "expected"),
    [
        ("ARG V", {}, (("V", None),)),
        ("ARG V", {"V": "b"}, (("V", "b"),)),
        ("ARG V=1", {}, (("V", "1"),)),
        ("ARG V=1", {"V": ""}, (("V", ""),)),
        ("ARG V=", {}, (("V", ""),)),
        ("ARG G", {}, (("G", "global"),)),
        ("ARG G", {"G": "b"}, (("G", "b"),)),
        ("ARG G=1", {}, (("G", "1"),)),
        ("ARG V=$A W=${V}y", {}, (("V", "foo"), ("W", "fooy"))),
        ("ARG V=$G", {}, (("V", ""),)),
        ("ARG V=${U:?no}", {"V": "b"}, (("V", "b"),)),
        ("ARG 'V'=1", {}, (("'V'", "1"),)),
    ],
)
def test_an_arg_of_a_stage(text: str, build_args: dict[str, str], expected: object) -> None:
    (arg,) = parse(f"FROM scratch\n{text}".encode()).stages[0].instructions
    assert isinstance(arg, Arg)
    assert declared(arg, ENV, build_args, {"G": "global"}) == expected


def test_an_arg_that_cannot_be_expanded_names_its_line() -> None:
    (arg,) = parse(b"FROM scratch\nARG V=${U:?no}").stages[0].instructions
    assert isinstance(arg, Arg)
    with pytest.raises(DockerfileError, match="U: no") as caught:
        declared(arg, ENV, {}, {})
    assert caught.value.problem.where == arg.location
