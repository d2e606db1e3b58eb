"""The options of steps: what each of them means for the keys of the cache."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from executor.step_options import ResourceLimits, StepOptions

CHANGED = StepOptions(
    hosts=(("a", "10.0.0.1"),),
    network="none",
    default_network="host",
    shm_size=1 << 20,
    ulimits=(("nofile", 5, 5),),
    limits=ResourceLimits(pids=5),
    cgroup_parent="a",
    allow=("network.host",),
)
"""Each option other than it is by default. Who adds one decides here whether a step can see it."""
SEEN = {"hosts", "shm_size", "ulimits"}


@pytest.mark.parametrize("name", StepOptions.__struct_fields__)
def test_an_option_counts_for_the_key_if_a_step_can_see_it(name: str) -> None:
    """The network does too, but is not among these: a RUN's own comes before it (``RunStep.key``)."""
    value = getattr(CHANGED, name)
    assert value != getattr(StepOptions(), name), "it has no value here that differs from the default"
    options = replace(StepOptions(), **{name: value})
    assert (options.observed != StepOptions().observed) is (name in SEEN)
