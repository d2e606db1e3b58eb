"""``--check`` and ``--call``: build checks, targets and outlines."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from executor import protocol
from executor.dockerfile import checks, documents, global_scope, ignore, outline, rules
from executor.dockerfile.checks import BaseImage, CheckedBuild, CheckResult
from executor.registry import auth
from executor.registry.client import Client
from executor.solver import builtin_args, graph
from executor.store.store import Store
from orchestrator import base_images
from orchestrator import plan as planning
from orchestrator.base_images import BaseImages
from orchestrator.contexts import FetchOptions
from orchestrator.plan import BuildPlan
from orchestrator.registries import Registry
from orchestrator.request import BuildRequest
from orchestrator.view import wording
from orchestrator.view.build_state import WarningState
from orchestrator.view.problems import render_problem, render_warning
from orchestrator.view.stdout import print_json, print_line
from platforms.errors import BuildError, DockerfileError, Problem, UsageError


def check_needed_stages(
    request: BuildRequest, plan: BuildPlan, pins: tuple[protocol.Pin, ...], registry: Registry, store: Store
) -> CheckResult:
    """Return the findings in the stages that a build needs."""
    stages = _needed(request, plan)
    return _check(request, plan, stages, _bases(request, plan, stages, pins, registry, store))


def _predefined(request: BuildRequest, plan: BuildPlan) -> dict[str, str]:
    target = request.options.target or plan.dockerfile.stages[-1].name
    return builtin_args.platform_arguments(request.build_platform, request.platforms[0], target)


def _needed(request: BuildRequest, plan: BuildPlan) -> tuple[int, ...]:
    """Return the stages that the target needs. Raises ``DockerfileError`` for what no context can make valid."""
    seen = global_scope(plan.dockerfile, dict(request.build_args), _predefined(request, plan))
    needed = graph.plan(plan.dockerfile, request.options.target, seen, plan.named(request.platforms[0])).stages
    for index in needed:
        graph.platform_of(plan.dockerfile, plan.dockerfile.stages[index], seen, request.platforms[0])
    return needed


def _bases(
    request: BuildRequest,
    plan: BuildPlan,
    stages: Iterable[int],
    pins: tuple[protocol.Pin, ...],
    registry: Registry,
    store: Store | None,
) -> dict[int, BaseImage]:
    seen = global_scope(plan.dockerfile, dict(request.build_args), _predefined(request, plan))
    wanted = [plan.dockerfile.stages[index] for index in stages]
    target = request.platforms[0]
    needed = base_images.needed(plan.dockerfile, wanted, seen, target, plan.named(target))
    return BaseImages(pins, registry, store).read(needed)


def _check(
    request: BuildRequest, plan: BuildPlan, stages: Iterable[int], known: Mapping[int, BaseImage]
) -> CheckResult:
    asked = request.check_options
    hidden = next(
        (each.ignore for each in plan.contexts if isinstance(each, protocol.DirectoryContext) and not each.name), ""
    )
    build = CheckedBuild(
        build_args=dict(request.build_args),
        predefined=_predefined(request, plan),
        targets=tuple(str(each) for each in request.platforms),
        stages=frozenset(stages),
        bases=known,
        ignore=ignore.parse(hidden) if hidden else ignore.NOTHING,
    )
    return checks.check(plan.dockerfile, build, None if asked is None else rules.options(asked))


def _check_all(request: BuildRequest, plan: BuildPlan) -> CheckResult:
    """Return the findings in all stages, or in those that ``--target`` needs, and why a build would fail."""
    try:
        stages = _needed_by_any(request, plan)
    except DockerfileError as error:
        found = _check(request, plan, (), {})
        return replace(found, failure=found.failure or error.problem)
    with Client(request.options.registries, auth.docker_keychain()) as registry:
        return _check(request, plan, stages, _bases(request, plan, stages, (), registry, None))


def _needed_by_any(request: BuildRequest, plan: BuildPlan) -> frozenset[int]:
    """Return the stages that ``--target``, or else any target, needs. Raises as ``_needed`` does."""
    if not request.options.target and b"TARGETSTAGE" not in plan.data:  # what FROM sees is the same for all targets
        seen = global_scope(plan.dockerfile, dict(request.build_args), _predefined(request, plan))
        graph.plan_all(plan.dockerfile, seen, plan.named(request.platforms[0]))
        for stage in plan.dockerfile.stages:
            graph.platform_of(plan.dockerfile, stage, seen, request.platforms[0])
        return frozenset(range(len(plan.dockerfile.stages)))
    options = request.options
    targets = [options.target] if options.target else [str(stage.index) for stage in plan.dockerfile.stages]
    requests = [replace(request, options=replace(options, target=each)) for each in targets]
    return frozenset(index for each in requests for index in _needed(each, plan))


def _refuse(request: BuildRequest, plan: BuildPlan) -> None:
    """Raise the error with which a build of the target would begin, as BuildKit does before an outline.

    Base images are read if the result may depend on them: where findings are errors, or something is wrong.
    """
    stages = _needed(request, plan)
    report = _check(request, plan, stages, {})
    if report.failure is not None or report.error:
        with Client(request.options.registries, auth.docker_keychain()) as registry:
            report = _check(request, plan, stages, _bases(request, plan, stages, (), registry, None))
    if report.failure is not None:
        raise DockerfileError.of(report.failure)
    if report.refusal is not None:
        raise BuildError.of(report.refusal)


def call(request: BuildRequest, method: str) -> int:
    """Run ``--call method[,format=json]``; returns the exit status, 1 when checks find anything."""
    name, _, options = method.partition(",")
    as_json = options == "format=json"
    with tempfile.TemporaryDirectory(prefix="kanifold.") as scratch:
        fetch = FetchOptions(scratch)
        source = planning.source(request, fetch)
        match name:
            case "targets":
                return _print_targets(planning.plan(request, (), source, fetch), as_json)
            case "outline":
                plan = planning.plan(request, (), source, fetch)
                _refuse(request, plan)
                return _print_outline(request, plan, as_json)
            case _:
                return _print_checks(request, source, fetch, as_json)


def _print_checks(request: BuildRequest, source: planning.DockerfileSource, fetch: FetchOptions, as_json: bool) -> int:
    try:
        found = _check_all(request, planning.plan(request, (), source, fetch))
    except DockerfileError as error:
        found = _partial_result(request, source, fetch, error.problem)
    _report(request, found)
    if as_json:
        print_json(documents.lint_document(found, source.name, source.data))
    else:
        for each in wording.merge_warnings(WarningState(each.problem, each.rule.name) for each in found.violations):
            render_warning(each.problem, sys.stdout, rule=each.rule)
        if found.failure is not None:
            render_problem(found.failure, sys.stdout)
        if not found.violations and found.failure is None:
            print_line("Check complete, no warnings found.")
        elif found.violations:
            print_line(f"Check complete, {len(found.violations)} warning(s) found.")
    return 1 if found.failure is not None or found.violations else 0


def _report(request: BuildRequest, found: CheckResult) -> None:
    """Write the reports of findings that are asked for. Raises ``UsageError`` for reports that only builds have."""
    wanted = tuple(each for each in request.reports if each.kind != "step-summary")
    if not wanted:
        return
    if any(each.kind != "codequality" for each in wanted):
        raise UsageError("--check has no other --report than codequality", why="the others are about steps and results")
    from orchestrator.reports import code_quality, recording

    findings = [code_quality.QualityIssue("minor", each.rule.name, each.problem) for each in found.violations]
    if found.failure is not None:
        findings.append(code_quality.QualityIssue("blocker", found.failure.kind, found.failure))
    text = code_quality.render_findings(findings, os.environ)
    for each in wanted:
        recording.write(each, text)


def _partial_result(
    request: BuildRequest, source: planning.DockerfileSource, fetch: FetchOptions, problem: Problem
) -> CheckResult:
    """Return the findings in the lines above that of ``problem``, a syntax error, and the problem itself."""
    if problem.where is None:
        return CheckResult((), problem)
    lines = source.data.split(b"\n")[: problem.where.line - 1]
    try:
        plan = planning.plan(request, (), replace(source, data=b"\n".join(lines)), fetch)
        return replace(_check(request, plan, (), {}), failure=problem)
    except DockerfileError:
        return CheckResult((), problem)


def _print_targets(plan: BuildPlan, as_json: bool) -> int:
    found = outline.targets(plan.dockerfile)
    if as_json:
        print_json(documents.targets_document(found, plan.data))
        return 0
    width = max(len(each.name or "-") for each in found)
    for each in found:
        default = " (default)" if each.default else ""
        print_line(f"{each.name or '-':<{width}}  {each.description}{default}".rstrip())
    return 0


def _print_outline(request: BuildRequest, plan: BuildPlan, as_json: bool) -> int:
    predefined = builtin_args.platform_arguments(
        request.build_platform, request.platforms[0], request.options.target or plan.dockerfile.stages[-1].name
    )
    found = outline.outline(plan.dockerfile, request.options.target or None, dict(request.build_args), predefined)
    if as_json:
        print_json(documents.outline_document(found, plan.data))
        return 0
    print_line(f"target  {found.name or 'default'}")
    if found.description:
        print_line(found.description)
    for title, rows in (
        ("BUILD ARG", [(each.name, each.value, each.description) for each in found.arguments]),
        ("SECRET", [(each.name, "required" if each.required else "", "") for each in found.secrets]),
        ("SSH", [(each.name, "required" if each.required else "", "") for each in found.ssh]),
    ):
        if rows:
            print_line()
            print_line(title)
            for name, value, text in rows:
                print_line(f"  {name:<24} {value:<20} {text}".rstrip())
    return 0
