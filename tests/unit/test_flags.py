"""From flags to a ``BuildRequest``: what each spelling means, and that every refusal names its flag."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from executor.objects.cache_account import CacheAccount
from executor.protocol import (
    CacheBounds,
    CacheExport,
    CacheInActions,
    CacheInBucket,
    CacheInContainer,
    CacheInDirectory,
    CacheInImage,
    CacheInRegistry,
    Compression,
)
from orchestrator import cli, fields, flags
from orchestrator.cache_accounts import AzureAccount, GivenAccount, WorkflowAccount
from orchestrator.options import Flag
from orchestrator.outputs import OciLayout, Push
from orchestrator.request import Allowed, Annotation, BuildRequest, SecretSource
from platforms import debug
from platforms.errors import KanifoldError, UsageError


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KANIFOLD_REGISTRIES", raising=False)


def ask(*arguments: str) -> BuildRequest:
    """The request that ``kanifold build ARGUMENTS`` makes, by the command line's own parser."""
    with cli.build.make_context("build", list(arguments)) as context:
        return flags.request(context.params)


def test_a_platform_may_have_a_node(tmp_path: Path) -> None:
    found = ask("--platform", "linux/amd64,linux/arm64=arm", "--platform", "arm64", "--node", "arm=ssh://a,local")
    assert [str(each) for each in found.platforms] == ["linux/amd64", "linux/arm64"]
    assert found.nodes is not None
    assert [(str(platform), node) for platform, node in found.nodes.forced] == [("linux/arm64", "arm")]
    assert [each.name for each in found.nodes.entries] == ["arm", "local"]
    assert not found.options.implicit_platform


def test_a_platform_moves_once_unless_the_user_says_how_often() -> None:
    assert [ask().retry, ask("--retry", "0").retry, ask("--retry", "3").retry] == [1, 0, 3]


def test_nothing_but_defaults() -> None:
    found = ask()
    assert found.nodes is None
    assert found.context == "."
    assert len(found.platforms) == 1
    assert found.options.implicit_platform
    assert found.outputs == (OciLayout("oci-layout"),)
    assert (found.audit, found.progress, found.options.compression) == ("warn", "auto", Compression())


def test_platforms_come_as_lists_and_repeats_and_each_once() -> None:
    found = ask("--platform", "linux/amd64,linux/arm64", "--platform", "arm,aarch64")
    assert [str(each) for each in found.platforms] == ["linux/amd64", "linux/arm64", "linux/arm/v7"]
    assert not found.options.implicit_platform


def test_tags_are_completed() -> None:
    assert [str(each) for each in ask("-t", "app", "-t", "reg.example/team/app:1").tags] == [
        "docker.io/library/app:latest",
        "reg.example/team/app:1",
    ]


def test_build_args_take_their_value_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "there")
    monkeypatch.delenv("NOT_SET", raising=False)
    found = ask(
        "--build-arg", "A=1", "--build-arg", "FROM_OUTSIDE", "--build-arg", "NOT_SET", "--build-arg", "E=",
        "--build-arg", "A=x=y",
    )  # fmt: skip
    assert found.build_args == (("A", "x=y"), ("FROM_OUTSIDE", "there"), ("E", ""))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("k=v", [("manifest", "", "k", "v")]),
        ("manifest:k=v", [("manifest", "", "k", "v")]),
        ("index:k=v", [("index", "", "k", "v")]),
        ("index,manifest:k=v", [("index", "", "k", "v"), ("manifest", "", "k", "v")]),
        ("manifest[linux/arm64]:k=v", [("manifest", "linux/arm64", "k", "v")]),
        ("k=a:b=c", [("manifest", "", "k", "a:b=c")]),
        ("manifest:k:l=v", [("manifest", "", "k:l", "v")]),
        (
            "manifest-descriptor[linux/arm64],index-descriptor:k=v",
            [("manifest-descriptor", "linux/arm64", "k", "v"), ("index-descriptor", "", "k", "v")],
        ),
        ("k=", [("manifest", "", "k", "")]),
    ],
)
def test_annotations_have_levels(text: str, meant: list[tuple[str, str, str, str]]) -> None:
    assert ask("--platform", "linux/arm64", "--annotation", text).annotations == tuple(
        Annotation(*each) for each in meant
    )


def test_outputs_annotate_too() -> None:
    output = "type=oci,dest=x,annotation.a=1,annotation-index.b=2,annotation-manifest[linux/arm64].c=3"
    found = ask("--platform", "linux/arm64", "-o", output)
    assert found.annotations == (
        Annotation("manifest", "", "a", "1"),
        Annotation("index", "", "b", "2"),
        Annotation("manifest", "linux/arm64", "c", "3"),
    )


def test_secrets_are_files_or_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("x")
    monkeypatch.setenv("TOKEN", "y")
    monkeypatch.chdir(tmp_path)
    found = ask(
        "--secret", f"id=a,src={file}", "--secret", "id=b,env=TOKEN", "--secret", "id=TOKEN", "--secret", "id=token",
        "--secret", "type=env,id=c,src=TOKEN",
    )  # fmt: skip
    assert found.secrets == (
        SecretSource("a", str(file)),
        SecretSource("b", variable="TOKEN"),
        SecretSource("TOKEN", variable="TOKEN"),
        SecretSource("token", str(file)),
        SecretSource("c", variable="TOKEN"),
    )


def test_caches() -> None:
    found = ask(
        "--cache-from", "reg.example/c", "--cache-from", "type=local,src=in", "--cache-to", "type=inline",
        "--cache-to", "type=registry,ref=reg.example/c:x,mode=max", "--cache-to", "type=local,dest=out",
    )  # fmt: skip
    assert found.options.cache_from == (
        CacheInRegistry("reg.example/c"),
        CacheInDirectory(os.path.abspath("in")),
    )
    assert found.options.cache_to == (
        CacheExport(CacheInImage()),
        CacheExport(CacheInRegistry("reg.example/c:x"), every_stage=True),
        CacheExport(CacheInDirectory(os.path.abspath("out"))),
    )


def test_kanikos_cache_repo_is_asked_and_told() -> None:
    found = ask("--cache-repo", "reg.example/c", "--cache-ttl", "1d12h")
    assert found.options.cache_from == (CacheInRegistry("reg.example/c"),)
    assert found.options.cache_to == (CacheExport(CacheInRegistry("reg.example/c"), every_stage=True),)
    assert found.options.cache_ttl == 36 * 3600


def test_keys_of_caches_that_say_what_is_so_anyway() -> None:
    text = "type=registry,ref=a,oci-mediatypes=true,image-manifest=true,ignore-error=true,force-compression=true"
    found = ask("--cache-to", text, "--cache-to", "type=local,dest=/d,compression=gzip,force-compression=true")
    assert found.options.cache_to == (CacheExport(CacheInRegistry("a")), CacheExport(CacheInDirectory("/d")))
    assert ask("--compression", "zstd", "--cache-to", "type=registry,ref=a,compression=zstd").options.cache_to
    assert ask("--cache-from", "type=registry,ref=a,compression=zstd").options.cache_from


def test_registries_may_be_named_insecure_where_they_are_used() -> None:
    text = "type=registry,registry.insecure=true,name=one.example/a,dangling-name-prefix=two.example/b"
    cache = "type=registry,ref=three.example/c,registry.insecure=true"
    found = ask("-t", "four.example/d", "-o", text, "--cache-to", cache).options.registries
    for host in ("one.example", "two.example", "three.example", "four.example"):
        assert found.is_insecure(host)
    assert not ask("-t", "four.example/d", "--push").options.registries.is_insecure("four.example")


def test_what_habit_types_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    switched = []
    monkeypatch.setattr(debug, "enable", lambda: switched.append(True))
    assert ask("-D", "--builder", "default").outputs == ask("--debug").outputs == ask().outputs
    assert switched == [True, True]


def test_a_permission_of_the_command_s_own_is_no_entitlement() -> None:
    assert ask("--allow", "buildx.local.delete,security.insecure").options.steps.allow == ("security.insecure",)
    assert ask("--allow", "network.host", "--allow", "device=nvidia.com/gpu").options.steps.allow[0] == "network.host"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("--compression", "zstd", "--compression-level", "3"), Compression("zstd", 3)),
        (("-o", "type=oci,dest=x,compression=zstd,compression-level=9"), Compression("zstd", 9)),
        (("--compression", "gzip", "-o", "type=oci,dest=x,compression=gzip"), Compression("gzip")),
        (("--compression", "uncompressed"), Compression("uncompressed")),
    ],
)
def test_a_build_has_one_compression(arguments: tuple[str, ...], meant: Compression) -> None:
    assert ask(*arguments).options.compression == meant


def test_hosts_are_written_either_way() -> None:
    found = ask("--add-host", "a:10.0.0.1", "--add-host", "b=::1", "--add-host", "c:[::1]")
    assert found.options.steps.hosts == (("a", "10.0.0.1"), ("b", "::1"), ("c", "::1"))


def test_the_audits_exceptions_may_name_a_platform() -> None:
    found = ask("--audit-allow", "/opt/**", "--audit-allow", "linux/arm64:/usr/lib/x86/*")
    assert found.audit_allow == (Allowed("/opt/**"), Allowed("/usr/lib/x86/*", "linux/arm64"))


def test_caches_at_services_are_named_without_their_secrets() -> None:
    place = "type=s3,bucket=b,region=r,prefix=/ci/,name=x;y,endpoint_url=https://s3.example/,use_path_style=true"
    found = ask("--cache-to", f"{place},access_key_id=id,secret_access_key=hush,mode=max,max_age=7d,max_size=1g")
    name = "https://s3.example/b/ci/kanifold/steps/x;ci/kanifold/steps/y"
    location = CacheInBucket(
        name, "b", "r", "ci/kanifold/steps", ("x", "y"), "ci/kanifold/blobs", "https://s3.example", path_style=True
    )
    assert found.options.cache_to == (CacheExport(location, every_stage=True, bounds=CacheBounds(1 << 30, 7 * 86400)),)
    assert found.cache_accounts == (GivenAccount(name, CacheAccount("id", "hush")),)
    assert "hush" not in repr(found)
    azure = ask("--cache-from", "type=azblob,account_url=https://acc.blob.core.windows.net,timeout=5m")
    (cache,) = azure.options.cache_from
    assert isinstance(cache, CacheInContainer)
    assert (cache.account, cache.container, cache.pace.patience) == ("acc", "buildkit-cache", 300)
    assert azure.cache_accounts == (AzureAccount(cache.name),)


def test_caches_whose_objects_are_elsewhere_have_other_names() -> None:
    bucket, container = "type=s3,bucket=b,region=r", "type=azblob,account_url=https://a.example"
    ways = (
        "", ",prefix=a", ",name=a", ",manifests_prefix=a", ",blobs_prefix=a", ",manifests_prefix=a,blobs_prefix=b",
        ",prefix=a/b,name=c", ",prefix=a,name=b/c", ",name=b/c;d", ",name=b/c;b/d",
        ",manifests_prefix=kanifold/steps/b",
    )  # fmt: skip
    service = "type=gha,token=t"
    places = [
        *(f"{place}{way}" for place in (bucket, container) for way in ways),
        *(f"{service}{way}" for way in (",url=https://a.example", ",url_v2=https://b.example", ",scope=a")),
    ]
    names = [ask("--cache-from", each).cache_accounts[0].name for each in places]
    assert len(set(names)) == len(places)


def test_an_account_of_a_cache_is_given_once_for_reading_and_writing() -> None:
    place, given = "type=s3,bucket=b,region=r", ",access_key_id=id,secret_access_key=hush"
    for source, target in ((place, place + given), (place + given, place), (place + given, place + given)):
        (found,) = ask("--cache-from", source, "--cache-to", target).cache_accounts
        assert isinstance(found, GivenAccount)
    (workflow,) = ask("--cache-from", "type=gha,ghtoken=t,repository=o/r", "--cache-to",
                      "type=gha,repository=o/r").cache_accounts  # fmt: skip
    assert isinstance(workflow, WorkflowAccount)
    assert workflow.given.secret == "t"
    with pytest.raises(UsageError, match="has two accounts") as caught:
        ask("--cache-from", f"{place},access_key_id=id,secret_access_key=other", "--cache-to", place + given)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("place", ["type=s3,bucket=b,region=r", "type=azblob,account_url=https://a.example"])
def test_caches_at_services_need_their_extra(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="needs the library obstore") as caught:
        ask("--cache-from", place)
    assert "pip install 'kanifold[" in caught.value.problem.remedy


def test_a_misspelt_secret_is_not_shown() -> None:
    with pytest.raises(UsageError) as caught:
        ask("--cache-to", "type=s3,bucket=b,region=r,secret_acces_key=hush")
    assert "hush" not in str(caught.value)
    assert "did you mean secret_access_key?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "environment", "url", "version"),
    [
        ("type=gha", {"ACTIONS_RESULTS_URL": "https://r/", "ACTIONS_CACHE_SERVICE_V2": "true"}, "https://r", 2),
        ("type=gha", {"ACTIONS_RESULTS_URL": "https://r/", "ACTIONS_CACHE_URL": "https://c/"}, "https://c", 1),
        ("type=gha", {"ACTIONS_RESULTS_URL": "https://r/"}, "https://r", 2),
        (
            "type=gha",
            {"ACTIONS_RESULTS_URL": "https://r.actions.githubusercontent.com", "ACTIONS_CACHE_URL": "https://c/"},
            "https://r.actions.githubusercontent.com",
            2,
        ),
        ("type=gha,version=2", {"ACTIONS_RESULTS_URL": "https://r/", "ACTIONS_CACHE_URL": "https://c"}, "https://r", 2),
        ("type=gha,url_v2=https://x", {"ACTIONS_CACHE_URL": "https://c/"}, "https://x", 2),
        ("type=gha,url=https://x", {"ACTIONS_RESULTS_URL": "https://r/"}, "https://x", 1),
        ("type=gha", {}, "", 2),
    ],
)
def test_the_cache_service_of_a_workflow(
    monkeypatch: pytest.MonkeyPatch, text: str, environment: dict[str, str], url: str, version: int
) -> None:
    for name in ("ACTIONS_RESULTS_URL", "ACTIONS_CACHE_URL", "ACTIONS_CACHE_SERVICE_V2", "ACTIONS_RUNTIME_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (cache,) = ask("--cache-from", f"{text},scope=s,timeout=2m,token=t").options.cache_from
    assert isinstance(cache, CacheInActions)
    assert (cache.url, cache.version, cache.scope, cache.pace.patience) == (url, version, "s", 120)


def test_stages_without_cache_come_as_lists_and_repeats() -> None:
    assert ask("--no-cache-filter", "a,b", "--no-cache-filter", "c").options.no_cache_stages == ("a", "b", "c")


class Noted(dict[str, object]):
    """What click gives, and which of it is looked at."""

    def __init__(self, given: Mapping[str, object]) -> None:
        super().__init__(given)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> object:
        self.read.add(name)
        return super().__getitem__(name)


def test_no_flag_is_forgotten() -> None:
    """Each has a say in the request, but for those that are another command."""
    with cli.build.make_context("build", []) as context:
        given = Noted(context.params)
        flags.request(given)
    assert set(given) - given.read == {"check", "call"}
    declared = {name for name, flag in vars(flags.BuildFlags).items() if isinstance(flag, Flag)}
    assert declared - set(given) == {"pull", "debug"}, "these have no value"


def test_quiet_is_a_progress() -> None:
    assert ask("-q").progress == "quiet"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--platform", "linux/amd46/v9/x"), "linux/amd46/v9/x"),
        (("--platform", "windoze/arm"), "windoze"),
        (("-t", "UPPER"), "UPPER"),
        (("-t", "app@sha256:" + "0" * 64), "--tag"),
        (("--build-arg", "=x"), "--build-arg"),
        (("--build-context", "name"), "--build-context"),
        (("--build-context", "a=.", "--build-context", "A=."), "--build-context"),
        (("--label", "=x"), "--label"),
        (("--annotation", "x"), "--annotation"),
        (("--annotation", "layer:k=v"), "--annotation"),
        (("--annotation", "manifest-descripter:k=v"), "did you mean manifest-descriptor?"),
        (("--platform", "linux/amd64", "--annotation", "manifest[linux/arm64]:k=v"), "linux/arm64, which is not built"),
        (("--platform", "linux/amd64", "--annotation", "manifest-descriptor[linux/s390x]:k=v"), "linux/s390x"),
        (("--platform", "linux/amd64", "-o", "type=oci,dest=x,annotation[linux/arm64].k=v"), "linux/arm64"),
        (("--annotation", "index:k=v", "-o", "type=oci,dest=x,oci-mediatypes=false"), "OCI media types"),
        (("--secret", "src=/etc/hostname"), "--secret"),
        (("--secret", "id=a,src=/no/such/file"), "/no/such/file"),
        (("--secret", "id=a,src=/etc/hostname,env=B"), "--secret"),
        (("--secret", "id=a,path=/etc/hostname"), "--secret"),
        (("--add-host", "a:not-an-address"), "--add-host"),
        (("--add-host", ":10.0.0.1"), "--add-host"),
        (("--shm-size", "big"), "--shm-size"),
        (("--shm-size", "64x"), "--shm-size"),
        (("--ulimit", "nofile"), "--ulimit"),
        (("--ulimit", "nofiles=1"), "nofile"),
        (("--ulimit", "nofile=2:1"), "soft"),
        (("--ulimit", "nofile=-1:1"), "soft"),
        (("--cache-ttl", "soon"), "--cache-ttl"),
        (("--cache-from", "type=registry"), "--cache-from"),
        (("--cache-from", "type=inline"), "--cache-from"),
        (("--cache-to", "type=local"), "--cache-to"),
        (("--cache-to", "type=s3,bucket=x"), "type=s3 needs region="),
        (("--cache-to", "type=s3,region=x"), "type=s3 needs bucket="),
        (("--cache-to", "type=s3,bucket=x,region=y,access_key_id=z"), "go together"),
        (("--cache-to", "type=s3,bucket=x,region=y,endpoint_url=https://a:b@c"), "more than a host and a path"),
        (("--cache-to", "type=s3,bucket=x,region=y,endpoint_url=c:9000"), "is not an http or https URL"),
        (("--cache-to", "type=s3,bucket=x,region=y,prefix=a/../b"), "is not a path"),
        (("--cache-to", "type=s3,bucket=x,region=y z"), "region='y z' is not a name"),
        (("--cache-to", "type=azblob,account_url=https://a,account_name=b\tc"), "account_name='b\\tc' is not a name"),
        (("--cache-to", "type=s3,bucket=x,region=y,endpoint_url=https://a\t"), "is not an http or https URL"),
        (("--cache-to", "type=s3,bucket=x,region=y,timeout=soon"), "timeout='soon' is not a time"),
        (("--cache-to", "type=s3,bucket=x,region=y,account_url=z"), "unexpected 'account_url=z'"),
        (("--cache-from", "type=azblob,name=x"), "type=azblob needs account_url="),
        (("--cache-from", "type=gha,scope=a,version=3"), "version='3' is neither 1 nor 2"),
        (("--cache-from", '"type=gha","scope=a,b"'), "no comma"),
        (("--cache-from", "type=gha,ghtoken=x,repository=../x"), "needs repository="),
        (("--cache-to", "type=registry,ref=a,mode=most"), "--cache-to"),
        (("--cache-to", "type=registry,ref=a,oci-mediatypes=false"), "oci-mediatypes"),
        (("--cache-to", "type=registry,ref=a,image-manifest=false"), "image-manifest"),
        (("--cache-to", "type=registry,ref=a,ignore-error=perhaps"), "ignore-error"),
        (("--cache-to", "type=registry,ref=a,force-compression=perhaps"), "force-compression"),
        (("--cache-to", "type=registry,ref=a,compression=zstd"), "compression"),
        (("--cache-to", "type=registry,ref=a,compression-level=3"), "compression"),
        (("--cache-to", "type=registry,ref=a,oci-mediatype=true"), "did you mean oci-mediatypes?"),
        (("--cache-from", "type=regsitry,ref=a"), "did you mean registry?"),
        (("--builder", "big"), "--builder"),
        (("--platform", "linux/arm64="), "--platform linux/arm64=: no node is named"),
        (("--platform", "linux/arm64=a,arm64=b"), "--platform: linux/arm64 is to be built on two nodes, a and b"),
        (("--platform", "linux/arm64=nowhere"), "there is no node nowhere"),
        (("--node", "nowhere"), "--node: there is no node nowhere"),
        (("--allow", "securty.insecure"), "did you mean security.insecure?"),
        (("--allow", "network.host=yes"), "--allow"),
        (("-o", "type=registry,name=a,dangling-name-prefix=b:1"), "dangling-name-prefix"),
        (
            ("-t", "a", "-o", "type=oci,dest=x,rewrite-timestamp=true", "-o", "type=registry,rewrite-timestamp=false"),
            "rewrite-timestamp",
        ),
        (("--compression-level", "10"), "--compression-level"),
        (("--compression", "zstd", "--compression-level", "23"), "--compression-level"),
        (("--compression", "gzip", "-o", "type=oci,dest=x,compression=zstd"), "compression"),
        (("--compression", "zstd", "-o", "type=oci,dest=x,oci-mediatypes=false"), "zstd"),
        (("--push",), "--tag"),
        (("-o", "type=oci,dest=x,annotation-layer.k=v"), "--output"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_makes_no_sense_is_refused_by_name(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        ask(*arguments)
    assert words in f"{caught.value} {caught.value.problem.remedy}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "meant"),
    [("0", 0), ("512", 512), ("64k", 1 << 16), ("64M", 64 << 20), ("1.5g", 3 << 29), ("2TiB", 2 << 40)],
)
def test_sizes(text: str, meant: int) -> None:
    assert fields.size(text, "--x") == meant


@pytest.mark.parametrize(("text", "meant"), [("90s", 90), ("90m", 5400), ("1h30m", 5400), ("2w", 1209600)])
def test_ages(text: str, meant: int) -> None:
    assert fields.age(text, "--x") == meant


@pytest.mark.parametrize("text", ["", "1", "m", "1y", "-1h", "1h 5"])
def test_no_ages(text: str) -> None:
    with pytest.raises(KanifoldError):
        fields.age(text, "--x")


def test_pushing_by_digest_is_a_push_without_tags() -> None:
    (output,) = ask("-t", "reg.example/app:1", "--push-by-digest").outputs
    assert isinstance(output, Push)
    assert output.by_digest
    found = ask(
        "-t", "reg.example/app:1", "--push-by-digest", "-o", "type=image,name=reg.example/b", "-o", "out"
    ).outputs
    assert [getattr(each, "by_digest", None) for each in found] == [True, None]
    with pytest.raises(UsageError, match="nothing says where to push to"):
        ask("--push-by-digest")
