"""The matrix of an image: an image for each combination of values.

    matrix:
      python: ["3.11", "3.12"]
      base: [slim, alpine]
      exclude: [{python: "3.11", base: alpine}]
      include: [{python: "3.13", base: slim}]

Combinations are in the order of the axes, the last one changing fastest. ``exclude`` leaves out those that have all of
an entry's values; ``include`` adds one, whose values need not be those of the axes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Final

from executor.dockerfile.suggestions import hint
from orchestrator.release.model import Pairs
from orchestrator.release.variables import Variables
from orchestrator.yaml_settings import Setting

MOST: Final = 256
"""Maximum number of images of one matrix."""
_AXIS: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_RULES: Final = ("include", "exclude")


def combinations(matrix: Setting, variables: Variables) -> tuple[Pairs, ...]:
    """Return the combinations of ``matrix``, at least one, each by axis. Raises ``UsageError``."""
    entries = matrix.mapping()
    axes = {name: _values(name, each, variables) for name, each in entries.items() if name not in _RULES}
    if not axes:
        raise matrix.refusal("a matrix has axes, each with a list of values")
    size = 1
    for values in axes.values():
        size *= len(values)
    if size > MOST:
        raise matrix.refusal(f"these are {size} images; {MOST} are allowed")
    found = [tuple(zip(axes, each, strict=True)) for each in itertools.product(*axes.values())]
    for rule in entries["exclude"].sequence() if "exclude" in entries else ():
        left_out = _rule(rule, axes, variables)
        for axis, value in left_out.items():
            if value not in axes[axis]:
                raise rule.mapping()[axis].refusal(
                    f"the axis {axis} has no value {value}{hint(value, axes[axis])}",
                    remedy=f"its values are {', '.join(axes[axis])}",
                )
        found = [each for each in found if not left_out.items() <= dict(each).items()]
    for rule in entries["include"].sequence() if "include" in entries else ():
        if len(found) >= MOST:
            raise rule.refusal(f"the matrix has more than {MOST} images")
        added = _rule(rule, axes, variables)
        lacking = [axis for axis in axes if axis not in added]
        if lacking:
            raise rule.refusal(f"it has no value for {', '.join(lacking)}")
        combination = tuple((axis, added[axis]) for axis in axes)
        if combination in found:
            raise rule.refusal("the matrix has this combination already")
        found.append(combination)
    if not found:
        raise matrix.refusal("all combinations are left out")
    return tuple(found)


def _values(axis: str, setting: Setting, variables: Variables) -> tuple[str, ...]:
    if not _AXIS.fullmatch(axis):
        raise setting.refusal("an axis cannot have this name", remedy="names have letters, digits, dashes, underscores")
    items = setting.sequence()
    found = tuple(variables.text(each, {}) for each in items)
    if not found:
        raise setting.refusal("an axis has at least one value")
    for number, value in enumerate(found):
        if not value:
            raise items[number].refusal("a value is empty")
        if value in found[:number]:
            raise items[number].refusal(f"the value {value} is there twice")
    return found


def _rule(setting: Setting, axes: Mapping[str, object], variables: Variables) -> dict[str, str]:
    """Return the values of an entry of ``include`` or ``exclude``, by axis."""
    found = {axis: variables.text(each, {}) for axis, each in setting.mapping(*axes).items()}
    if not found:
        raise setting.refusal("a value of an axis is expected")
    return found
