"""The table of docs/kubernetes.md: which setting of Pods gives which isolation, and what Pod Security says of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cluster_builds import Farm

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kubernetes.md"
LEVELS = ("restricted", "baseline", "privileged")
"""Of Pod Security, the strictest first."""
ROWS = re.findall(
    r"^\| `(\w+)`(, seccomp RuntimeDefault)? \| (\w+) \| .* \| (?:`(\w+)`|none) \|$", PAGE.read_text(), re.M
)
RUNTIME_DEFAULT = "spec: {securityContext: {seccompProfile: {type: RuntimeDefault}}}\n"

pytestmark = pytest.mark.slow


def test_the_table_has_all_profiles() -> None:
    assert [row[0] for row in ROWS] == ["baseline", "baseline", "restricted", "userns", "unconfined"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0] + row[1].replace(", ", "-").replace(" ", "-"))
def test_a_profile_has_the_isolation_of_the_table(farm: Farm, row: tuple[str, str, str, str]) -> None:
    profile, seccomp, level, mode = row
    options = {"profile": profile}
    if seccomp:
        template = farm.kanifold.home / "template.yaml"
        template.write_text(RUNTIME_DEFAULT)
        options["template"] = str(template)
    enforce(farm, level)
    done = farm.build("FROM {base}\nRUN arch >/arch\n", **options)
    assert (done.code == 0) == bool(mode), done.said
    if mode:
        assert re.search(rf"executor \S+, \S+, {mode}$", done.err, re.M), done.err
    farm.assert_nothing_is_left()
    stricter = LEVELS.index(level) - 1
    if stricter >= 0:
        enforce(farm, LEVELS[stricter])
        refused = farm.build("FROM {base}\nRUN arch >/again\n", "--retry=0", name="again", **options)
        assert refused.code != 0
        assert f'violates PodSecurity "{LEVELS[stricter]}:' in refused.err
        farm.assert_nothing_is_left()


def enforce(farm: Farm, level: str) -> None:
    """Refuse Pods that are not of this level of Pod Security."""
    label = f"pod-security.kubernetes.io/enforce={level}"
    farm.cluster.kubectl("label", "--overwrite", "namespace", farm.namespace, label)
