"""Build checks and the other questions that a Dockerfile answers without being built: ``--check``, ``--call``."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from typing import Final

import msgspec

from executor.build import graph, scope
from executor.dockerfile import checks, documents, global_scope, ignore, outline
from executor.dockerfile.checks import Report
from executor.store import facts
from executor.store.store import Store
from orchestrator import plan as planning
from orchestrator.contexts import Means
from orchestrator.plan import Plan
from orchestrator.request import Request
from orchestrator.view import events, render_problem, render_warning
from platforms import host
from platforms.errors import BuildError, Problem

Cautions = tuple[tuple[str, Problem], ...]
_NOTED: Final[msgspec.json.Decoder[tuple[Cautions, bool]]] = msgspec.json.Decoder(tuple[Cautions, bool])


def report(request: Request, plan: Plan) -> Report:
    """What the build checks find in what ``request`` builds."""
    dockerfile = plan.dockerfile
    given = dict(request.build_args)
    predefined = scope.platform_arguments(
        host.default_platform(), request.platforms[0], request.target or dockerfile.stages[-1].name
    )
    named = [each.name for each in plan.contexts if each.name]
    needed = graph.plan(dockerfile, request.target, global_scope(dockerfile, given, predefined), named).stages
    hidden = next((each.ignore for each in plan.contexts if not each.name), "")
    return checks.check(
        dockerfile,
        build_args=given,
        predefined=predefined,
        targets=[str(each) for each in request.platforms],
        stages=needed,
        ignore=ignore.parse(hidden) if hidden else ignore.NOTHING,
    )


def cautions(request: Request, plan: Plan, store: Store) -> tuple[events.Cautioned, ...]:
    """The findings as warnings of a build, remembered for as long as nothing that they depend on changes.

    Raises ``BuildError`` when the Dockerfile wants findings to fail the build (``# check=error=true``).
    """
    asked = json.dumps(
        [
            plan.data.decode("latin-1"),
            request.target,
            request.build_args,
            [str(each) for each in request.platforms],
            [[each.name, each.ignore] for each in plan.contexts],
        ]
    )
    key = hashlib.sha256(asked.encode()).hexdigest()
    known = facts.get(store, "checks", key)
    if known is not None:
        found, fails = _NOTED.decode(known)
    else:
        made = report(request, plan)
        found = tuple((each.rule.name, each.problem) for each in made.violations)
        fails = made.error and bool(found)
        facts.put(store, "checks", key, msgspec.json.encode((found, fails)))
    if fails:
        raise BuildError(
            "lint violation found for rules: " + ", ".join(dict.fromkeys(name for name, _ in found)),
            why="; ".join(problem.what for _, problem in found),
            remedy="mend them, or skip rules: # check=skip=RULE",
            where=found[0][1].where,
        )
    return tuple(events.Cautioned(problem=problem, rule=name) for name, problem in found)


def call(request: Request, method: str) -> int:
    """Answer ``--call method[,format=json]``; the exit status is 1 when checks fail."""
    name, _, options = method.partition(",")
    as_json = options == "format=json"
    with tempfile.TemporaryDirectory(prefix="kanifold.") as scratch:
        plan = planning.read(request, request.platforms, Means(scratch))
    match name:
        case "targets":
            return _print_targets(plan, as_json)
        case "outline":
            return _print_outline(request, plan, as_json)
        case _:
            return _print_checks(request, plan, as_json)


def _print_checks(request: Request, plan: Plan, as_json: bool) -> int:
    found = report(request, plan)
    if as_json:
        print(json.dumps(documents.lint_document(found, plan.name, plan.data), indent=2))
    else:
        for each in found.violations:
            render_warning(each.problem, sys.stdout, rule=each.rule.name)
        if found.failure is not None:
            render_problem(found.failure, sys.stdout)
        if not found.violations and found.failure is None:
            print("Check complete, no warnings found.")
        elif found.violations:
            print(f"Check complete, {len(found.violations)} warning(s) found.")
    return 1 if found.fails or found.violations else 0


def _print_targets(plan: Plan, as_json: bool) -> int:
    found = outline.targets(plan.dockerfile)
    if as_json:
        print(json.dumps(documents.targets_document(found, plan.data), indent=2))
        return 0
    width = max(len(each.name or "-") for each in found)
    for each in found:
        default = " (default)" if each.default else ""
        print(f"{each.name or '-':<{width}}  {each.description}{default}".rstrip())
    return 0


def _print_outline(request: Request, plan: Plan, as_json: bool) -> int:
    predefined = scope.platform_arguments(
        host.default_platform(), request.platforms[0], request.target or plan.dockerfile.stages[-1].name
    )
    found = outline.outline(plan.dockerfile, request.target or None, dict(request.build_args), predefined)
    if as_json:
        print(json.dumps(documents.outline_document(found, plan.data), indent=2))
        return 0
    print(f"target  {found.name or 'default'}")
    if found.description:
        print(found.description)
    for title, rows in (
        ("BUILD ARG", [(each.name, each.value, each.description) for each in found.arguments]),
        ("SECRET", [(each.name, "required" if each.required else "", "") for each in found.secrets]),
        ("SSH", [(each.name, "required" if each.required else "", "") for each in found.ssh]),
    ):
        if rows:
            print(f"\n{title}")
            for name, value, text in rows:
                print(f"  {name:<24} {value:<20} {text}".rstrip())
    return 0
