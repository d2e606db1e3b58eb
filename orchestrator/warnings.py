"""Warnings of a build: findings of build checks, unused named contexts, missing SOURCE_DATE_EPOCH, wrong clocks."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final

import msgspec

from executor import protocol
from executor.dockerfile.suggestions import hint
from executor.store import metadata_cache
from executor.store.store import Store
from orchestrator.outputs import image_options
from orchestrator.plan import BuildPlan
from orchestrator.registries import Registry
from orchestrator.request import BuildRequest
from orchestrator.view import events
from platforms import decoding
from platforms.errors import BuildError, Problem

Findings = tuple[tuple[str, Problem], ...]
_CachedFindings = tuple[Findings, Problem | None]
_MAX_NAMES: Final = 5
"""Maximum number of image names that a warning lists."""
CLOCKS_DIFFER: Final = 300.0
"""Seconds by which clocks may differ without a warning."""
_DAY: Final = 86400
_CACHED_FINDINGS: Final[msgspec.json.Decoder[_CachedFindings]] = msgspec.json.Decoder(_CachedFindings)


def check_warnings(
    request: BuildRequest, plan: BuildPlan, pins: tuple[protocol.Pin, ...], registry: Registry, store: Store
) -> tuple[events.WarningRaised, ...]:
    """Return the findings of the build checks as warnings, cached in the store under everything that they depend on.

    Raises ``BuildError`` if the Dockerfile requests that findings fail the build (``# check=error=true``).
    """
    asked = msgspec.json.encode(
        [
            plan.data,
            request.options.target,
            request.build_args,
            [str(each) for each in request.platforms],
            [[each.name, each.ignore if isinstance(each, protocol.DirectoryContext) else ""] for each in plan.contexts],
            [[pin.name, pin.digest] for pin in pins],
        ]
    )
    key = hashlib.sha256(asked).hexdigest()
    known = metadata_cache.get(store, "checks", key)
    if known is not None:
        found, refusal = decoding.decode(_CACHED_FINDINGS, known)
    else:
        from executor.dockerfile import rules
        from orchestrator import build_checks  # late: mostly the findings are cached

        made = build_checks.check_needed_stages(request, plan, pins, registry, store)
        found = tuple(
            (each.rule.name, each.problem)
            for each in made.violations
            if each.rule is not rules.INVALID_BASE_IMAGE_PLATFORM  # reported by the executor
        )
        refusal = made.refusal
        metadata_cache.put(store, "checks", key, msgspec.json.encode((found, refusal)))
    if refusal is not None:
        raise BuildError.of(refusal)
    return tuple(events.WarningRaised(problem=problem, rule=name) for name, problem in found)


def unused_contexts(plan: BuildPlan, taken: Collection[str]) -> tuple[events.WarningRaised, ...]:
    """Return a warning for each named context that nothing was ``taken`` from."""
    names = [image.name for image in plan.images]
    others = f"; it takes {', '.join(names[:_MAX_NAMES])} from outside" if names else ""
    return tuple(
        events.WarningRaised(
            problem=Problem(
                "UsageError",
                f"--build-context {each.name}: nothing used it",
                why=f"no image, --from or stage that the build needs has this name{others}",
                remedy="name it as the Dockerfile does" + hint(each.name, names),
            ),
            rule="UnusedContext",
        )
        for each in plan.contexts
        if each.name and each.name not in plan.used and each.name not in taken
    )


def missing_epoch(request: BuildRequest, plan: BuildPlan) -> tuple[events.WarningRaised, ...]:
    """Return a warning if timestamps are to be rewritten and there is no SOURCE_DATE_EPOCH, as in BuildKit."""
    if plan.epoch is not None or not any(image_options(each).rewrite_timestamp for each in request.outputs):
        return ()
    return (
        events.WarningRaised(
            problem=Problem(
                "UsageError",
                "--output: rewrite-timestamp has no effect",
                why="the build has no SOURCE_DATE_EPOCH",
                remedy="set it: --build-arg SOURCE_DATE_EPOCH=SECONDS, or in the environment",
            )
        ),
    )


def may_fail(request: BuildRequest, plan: BuildPlan) -> bool:
    """Whether findings may fail the build, so that no step may run before they are known."""
    return bool(plan.dockerfile.check) or request.check_options is not None


def wrong_clock(node: str, ahead: float) -> tuple[events.WarningRaised, ...]:
    """Return a warning if the clock of ``node`` differs much; it is ``ahead`` seconds ahead of this machine's."""
    off = abs(ahead)
    if off < CLOCKS_DIFFER:
        return ()
    # Rounded, so that executors of one node give one warning.
    much = f"{off / 60:.0f} minutes" if off < 2 * 3600 else f"{off / 3600:.0f} hours"
    if off >= 2 * _DAY:
        much = f"{min(off / _DAY, 99999):.0f} days"
    problem = Problem(
        "NodeClock",
        f"the clock of node {node} is {much} {'fast' if ahead > 0 else 'slow'}",
        why="by it the node decides which certificates are valid and how old entries of a cache are",
        remedy="set the time there, or here if it is this machine's that is wrong",
    )
    return (events.WarningRaised(problem=problem, rule=problem.kind),)
