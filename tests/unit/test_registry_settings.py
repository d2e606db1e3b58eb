"""The registries file, certs.d and the flags."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from executor.registry import registry_settings
from executor.registry.registry_session import TransferOptions
from executor.registry.registry_settings import RegistryCertificates, RegistrySettings, load_settings, with_flags
from executor.retry import RETRYABLE_STATUSES
from platforms.errors import UsageError


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KANIFOLD_REGISTRIES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(registry_settings, "_CERTS_D", (str(tmp_path / "certs.d"),))
    return tmp_path


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_no_file_means_no_settings() -> None:
    assert load_settings() == RegistrySettings()


def test_the_file_says_it_all(tmp_path: Path) -> None:
    written(tmp_path / "config/kanifold/ca.pem", "PEM")
    written(
        tmp_path / "config/kanifold/registries.yaml",
        """
        docker.io:
          mirrors: [https://one.example, "http://two.example:5000/hub/"]
        index.docker.io: {}
        r.example:5000:
          ca: ca.pem
          cert: client.pem
          key: client.key
          token-services: [login.example.net]
        plain.example: {insecure: true}
        localhost:5001: {tls: true}
        """,
    )
    settings = load_settings()
    base = str(tmp_path / "config/kanifold")
    assert settings == RegistrySettings(
        insecure=frozenset({"plain.example"}),
        mirrors=(("docker.io", ("one.example", "http://two.example:5000/hub")),),
        certificates=(RegistryCertificates("r.example:5000", "PEM", f"{base}/client.pem", f"{base}/client.key"),),
        token_services=(("r.example:5000", ("login.example.net",)),),
        tls=frozenset({"localhost:5001"}),
    )
    assert settings.trusts_token_service("r.example:5000", "login.example.net")
    assert not settings.trusts_token_service("plain.example", "login.example.net")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not YAML"),
        ("[]", "not a mapping"),
        ("docker.io: 3", "not a mapping"),
        ("docker.io: {miror: [x]}", "did you mean 'mirrors'"),
        ("docker.io: {mirrors: x}", "not a list"),
        ("docker.io: {mirrors: [3]}", "not a list"),
        ("docker.io: {insecure: maybe}", "true or false"),
        ("r.example: {ca: none.pem}", "No such file"),
        ("r.example: {key: k.pem}", "without 'cert'"),
        ("1: {}", "not a registry"),
        ("r.example: {ca: 1}", "not a path"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = written(tmp_path / "r.yaml", text)
    with pytest.raises(UsageError, match=reason):
        load_settings(str(path))


@pytest.mark.parametrize("name", ["bad host", "-x", ""])
def test_a_registry_that_is_no_host_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        with_flags(RegistrySettings(), [name])


def test_a_file_named_by_the_user_has_to_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANIFOLD_REGISTRIES", str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match=r"none\.yaml"):
        load_settings()


def test_dockers_certificate_directories_are_read(tmp_path: Path) -> None:
    directory = tmp_path / "certs.d/r.example:5000"
    for name, text in (("a.crt", "A\n"), ("b.crt", "B\n"), ("client.cert", "C"), ("client.key", "K")):
        written(directory / name, text)
    written(tmp_path / "certs.d/not a host/a.crt", "X")
    (found,) = load_settings().certificates
    assert found == RegistryCertificates(
        "r.example:5000", "A\nB\n", f"{directory}/client.cert", f"{directory}/client.key"
    )


def test_flags_come_first() -> None:
    settings = RegistrySettings(insecure=frozenset({"a.example"}), mirrors=(("docker.io", ("file.example",)),))
    merged = with_flags(
        settings, ["b.example:5000"], ["one.example", "docker.io=http://two.example", "ghcr.io=m.example"]
    )
    assert merged.insecure == {"a.example", "b.example:5000"}
    assert merged.mirrors_of("docker.io") == ("one.example", "http://two.example", "file.example")
    assert merged.mirrors_of("ghcr.io") == ("m.example",)
    with pytest.raises(UsageError, match="mirror"):
        with_flags(settings, (), ["ftp://x.example"])


def test_times_come_from_the_file_and_from_flags(tmp_path: Path) -> None:
    file = written(tmp_path / "r.yaml", "a.example: {timeout: 1m30s}\nb.example: {timeout: 20}\n")
    settings = load_settings(str(file))
    assert [settings.timeout_of(each) for each in ("a.example", "b.example", "c.example")] == [90.0, 20.0, 0.0]
    one = with_flags(settings, timeouts=["a.example=5s"])
    assert [one.timeout_of(each) for each in ("a.example", "b.example", "c.example")] == [5.0, 20.0, 0.0]
    every = with_flags(settings, timeouts=["10s", "index.docker.io=2.5s"])
    assert [every.timeout_of(each) for each in ("a.example", "docker.io")] == [10.0, 2.5]


@pytest.mark.parametrize("text", ["", "soon", "0s", "-5s", "2h", "nan", "[REGISTRY=]", "a.example=", "a b=5s"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        with_flags(RegistrySettings(), timeouts=[text])
    if text and "=" not in text:
        with pytest.raises(UsageError, match="timeout"):
            load_settings(str(written(tmp_path / "r.yaml", f"a.example: {{timeout: {text!r}}}\n")))


def test_this_machine_is_plain_unless_told_otherwise() -> None:
    settings = RegistrySettings(
        tls=frozenset({"localhost:1"}), certificates=(RegistryCertificates("localhost:2", "PEM"),)
    )
    assert settings.is_plain("localhost:5000")
    assert settings.is_plain("127.0.0.1:5000")
    assert not settings.is_plain("localhost:1")
    assert not settings.is_plain("localhost:2")
    assert not settings.is_plain("r.example")


def test_settings_travel_as_json() -> None:
    settings = with_flags(RegistrySettings(), ["a.example"], ["m.example"], ["20s"])
    assert msgspec.json.decode(msgspec.json.encode(settings), type=RegistrySettings) == settings


def test_nothing_heavy_is_imported_before_a_request() -> None:
    program = (
        "import sys, executor.registry.client as c\n"
        "c.Client().close()\n"
        "heavy = {'httpx', 'yaml', 'asyncio', 'rich', 'click', 'ssl', 'subprocess', 'tarfile', 'email'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_msgspec_comes_without_what_typing_has() -> None:
    program = (
        "import sys, types\n"
        "sys.modules.pop('typing_extensions', None)\n"
        "import platforms\n"
        "print('msgspec' in sys.modules, 'typing_extensions' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_httpx_comes_without_its_command_line() -> None:
    program = (
        "import sys\n"
        "from executor.transport import load_httpx\n"
        "load_httpx()\n"
        "import httpx\n"
        "print(httpx.Client.__name__, 'rich' in sys.modules, 'httpx._main' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Client", "False", "False"]


def test_what_is_said_of_docker_hub_is_said_of_its_api() -> None:
    """Which has another name: it is what a connection is made to."""
    hub = RegistryCertificates("docker.io", ca="PEM")
    settings = RegistrySettings(insecure=frozenset({"docker.io"}), certificates=(hub,))
    assert settings.certificates_for("registry-1.docker.io") == settings.certificates_for("docker.io") == hub
    assert settings.is_insecure("registry-1.docker.io")
    assert settings.certificates_for("auth.docker.io") is None
    assert not settings.is_insecure("auth.docker.io")


def test_the_settings_shown_in_the_documentation_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "registries.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    settings = load_settings(str(written(tmp_path / "r.yaml", example)))
    assert settings.mirrors_of("docker.io") == ("mirror.example.com", "http://cache.example.com:5000/hub")
    assert settings.trusts_token_service("registry.example.com", "login.example.net")
    assert settings.is_insecure("build.example.com:5000")
    assert not settings.is_plain("localhost:5443")


def test_the_numbers_in_the_documentation_are_the_codes() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "registries.md").read_text().split())
    options = TransferOptions()
    policy = options.retry
    statuses = f"{', '.join(map(str, sorted(RETRYABLE_STATUSES)[:-1]))} and {max(RETRYABLE_STATUSES)}"
    assert policy.attempts == 6
    assert f"{statuses} are tried six times" in text
    assert (
        f"up to {policy.longest_delay:.0f} s; `Retry-After` is honoured up to {policy.longest_retry_after:.0f} s"
        in text
    )
    assert f"chunks of {options.chunk >> 20} MiB" in text
    assert f"blobs above {options.whole >> 20} MiB" in text
