"""Filters of steps that are made before the steps are forked."""

from __future__ import annotations

import pytest

from executor.sandbox import Spec, seccomp
from executor.sandbox.spec import SecretFile
from executor.snapshotter.rootfs import Directory
from executor.supervised import answered_filter, answered_step, chroot_step
from platforms import syscalls


def refuse(**_how: object) -> bytes:
    raise AssertionError("a filter was made")


@pytest.mark.parametrize("traced", [False, True])
def test_a_step_in_a_chroot_makes_no_filter(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    chroot_step.prepare(traced=traced)
    monkeypatch.setattr(seccomp, "program", refuse)
    step = Spec(Directory("/nowhere"), ("true",))
    assert chroot_step.filter_of(step, traced=traced)


def test_a_step_with_secrets_or_without_network_has_another_filter() -> None:
    root = Directory("/nowhere")
    plain, secret, offline = (
        chroot_step.filter_of(each)
        for each in (
            Spec(root, ("true",)),
            Spec(root, ("true",), mounts=(SecretFile("/secret", b""),)),
            Spec(root, ("true",), network="none"),
        )
    )
    assert len({plain, secret, offline}) == 3


def test_a_step_whose_calls_are_answered_makes_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    answered_filter.program.cache_clear()
    answered_step.prepare()
    monkeypatch.setattr(seccomp, "program", refuse)
    assert answered_step._filter("host", syscalls.landlock_version())
    assert answered_step._filter("isolated", syscalls.landlock_version())
