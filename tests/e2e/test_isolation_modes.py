"""``--isolation`` and ``$KANIFOLD_ISOLATION``: one mode is asked for, and no other is taken."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from oci_layout import image_manifests

from executor.sandbox import isolation
from executor.sandbox.isolation import IsolationMode
from orchestrator.values import ISOLATION
from platforms import syscalls

Context = Callable[[Mapping[str, str | bytes]], Path]


def test_every_mode_can_be_asked_for() -> None:
    assert ("auto", *IsolationMode) == ISOLATION


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for whom every mode works")
@pytest.mark.parametrize("mode", IsolationMode)
def test_the_mode_that_was_asked_for_is_the_one_that_is_used(
    kanifold: Kanifold, busybox: Base, context: Context, mode: str
) -> None:
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN wc -l </proc/self/uid_map && chown 5:6 /tmp\n"})
    given = ("--isolation", mode) if mode != "mapped" else ()
    by_variable = {} if given else {"KANIFOLD_ISOLATION": mode}
    said = kanifold("build", folder, *given, "--progress", "plain", **by_variable).said
    assert f", {mode}\n" in said


def test_a_mode_that_cannot_be_used_is_an_error_for_steps_alone(
    kanifold_as_bare_user: Kanifold, busybox: Base, context: Context
) -> None:
    without = context({"Dockerfile": f"FROM {busybox.ref}\nCOPY Dockerfile /\n"})
    kanifold_as_bare_user("build", without, "--isolation", "namespaces")
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN true\n"})
    refused = kanifold_as_bare_user.run("build", folder, "--isolation", "namespaces")
    assert refused.code == 3
    assert "cannot isolate build steps here: namespaces: this is not root\n" in refused.said


def test_a_mode_that_does_not_exist_is_wrong_usage(kanifold: Kanifold, context: Context) -> None:
    folder = context({"Dockerfile": "FROM scratch\n"})
    for arguments, variables in ((("--isolation", "oci"), {}), ((), {"KANIFOLD_ISOLATION": "oci"})):
        refused = kanifold.run("build", folder, *arguments, **variables)
        assert refused.code == 2, refused.said
        assert "namespaces" in refused.said
    assert kanifold.run("doctor", KANIFOLD_ISOLATION="oci").code == 2


def test_doctor_names_the_mode_in_use_and_why_no_better_one_is(kanifold_as_bare_user: Kanifold) -> None:
    said = kanifold_as_bare_user("doctor").out
    assert "ok single  <- in use\n" in said
    assert "-- namespaces: this is not root\n" in said
    assert "-- mapped: this user has no range of ids in /etc/subuid\n" in said
    asked = kanifold_as_bare_user.run("doctor", KANIFOLD_ISOLATION="mapped")
    assert asked.code == 3
    assert "KANIFOLD_ISOLATION allows no other mode than mapped\n" in asked.out


def test_a_yama_setting_that_forbids_reading_memory_rules_out_a_single_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The supervisor that records owners reads the paths that a step passes to the kernel."""
    (tmp_path / "ptrace_scope").write_text("3\n")
    monkeypatch.setattr(isolation, "_YAMA", str(tmp_path / "ptrace_scope"))
    with pytest.raises(isolation.ModeUnavailableError, match=r"kernel\.yama\.ptrace_scope is 3"):
        isolation.climb(IsolationMode.SINGLE)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for whom every mode works")
def test_steps_see_owners_that_another_mode_has_recorded_in_the_same_store(
    kanifold: Kanifold, busybox: Base, context: Context, tmp_path: Path
) -> None:
    dockerfile = (
        f"FROM {busybox.ref} AS one\nCOPY --chown=5:6 file /file\nRUN chown 7:8 /bin/awk\n"
        "FROM one\nRUN stat -c %u:%g /file /bin/awk > /seen; cp -a /file /copy; mv /file /moved\n"
    )
    folder = context({"Dockerfile": dockerfile, "file": "x"})

    def build(store: str, out: str, *arguments: str) -> str:
        dest = f"type=oci,tar=false,dest={tmp_path / out}"
        told = ("build", folder, "--platform", "linux/amd64", "--root", tmp_path / store, "-o", dest, *arguments)
        assert kanifold.run(*told, SOURCE_DATE_EPOCH="1").code == 0
        return str(image_manifests(tmp_path / out)["linux/amd64"]["digest"])

    alone = build("alone", "all", "--isolation", "namespaces")
    build("shared", "one", "--target", "one", "--isolation", "single")
    assert build("shared", "two", "--isolation", "namespaces") == alone


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose capabilities are given up")
def test_root_whose_calls_are_answered_sees_what_belongs_to_others(
    kanifold: Kanifold, busybox: Base, context: Context
) -> None:
    dockerfile = f"FROM {busybox.ref}\nCOPY --chown=42 --chmod=700 file /locked/file\nRUN stat -c %a-%u /locked/file\n"
    folder = context({"Dockerfile": dockerfile, "file": "read"})
    built = kanifold("build", folder, "--platform", "linux/amd64", "--isolation", "answered", "-o", "type=cacheonly")
    assert "700-42" in built.said


@pytest.mark.parametrize(
    ("scope", "remedy"), [("2", "sysctl kernel.yama.ptrace_scope=1"), ("3", "have the host start")]
)
def test_a_yama_setting_that_forbids_tracing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scope: str, remedy: str
) -> None:
    (tmp_path / "ptrace_scope").write_text(f"{scope}\n")
    monkeypatch.setattr(isolation, "_YAMA", str(tmp_path / "ptrace_scope"))
    monkeypatch.setattr(isolation, "in_child", _without_tracing)
    monkeypatch.setattr(syscalls, "capget", lambda: ((1 << 19) - 1, 0, 0))  # without CAP_SYS_PTRACE
    for mode in (IsolationMode.ANSWERED, *([IsolationMode.CHROOT] if os.geteuid() == 0 else [])):
        with pytest.raises(isolation.ModeUnavailableError, match=rf"kernel\.yama\.ptrace_scope is {scope}") as raised:
            isolation.climb(mode)
        assert remedy in raised.value.remedy


def _without_tracing(check: Callable[[], None]) -> str:
    """As ``isolation.in_child`` where nothing but tracing is refused."""
    return os.strerror(errno.EPERM) if check is isolation._trace else ""
