"""Build checks: what is allowed in a Dockerfile and is still likely to be a mistake.

``check`` walks the stages as a build would, with the variables that each instruction sees, and builds nothing. The
variables and platforms of base images can be passed in; rules that need them are skipped otherwise. Findings are in
BuildKit's order: rules about the whole file first.

Source: Docker's list of build checks; when each applies is as in BuildKit's frontend. The multi-platform rules are
kanifold's own (``multiplatform``).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.dockerfile import instructions as kinds
from executor.dockerfile import multiplatform, ports, rules, scope, structure
from executor.dockerfile.expansion import expand
from executor.dockerfile.ignore import NOTHING, Patterns
from executor.dockerfile.multiplatform import BaseImage
from executor.dockerfile.rules import Options, Rule, Violation
from executor.dockerfile.scope import global_scope
from executor.dockerfile.split import quoted
from executor.dockerfile.stages import Dockerfile, Stage, find_base
from executor.dockerfile.suggestions import hint
from executor.dockerfile.words import ExpansionBudget, RecordingMapping, expand_words
from executor.dockerfile.words import expand as expand_text
from executor.registry import reference
from platforms import parsing
from platforms.errors import DockerfileError, Location, Problem, UsageError

__all__ = ["BaseImage", "CheckResult", "CheckedBuild", "check"]

_SECRET: Final = re.compile(
    "(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_NO_SECRET: Final = re.compile("(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)
_RESERVED: Final = ("context", "scratch")
_SCANNER_ARGS: Final = ("BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE")
_ALL_OF_IT: Final = ("*", "**", "**/*")


class CheckResult(msgspec.Struct, frozen=True):
    """The result of the build checks of a Dockerfile."""

    violations: tuple[Violation, ...]
    failure: Problem | None = None
    """Why a build of this Dockerfile would fail whatever its context; the checks stop there."""
    error: bool = False
    """Whether findings fail the build, as ``# check=error=true`` requests."""

    @property
    def refusal(self) -> Problem | None:
        """Return the error for findings under ``error=true``."""
        if not self.error or not self.violations:
            return None
        broken = dict.fromkeys(violation.rule.name for violation in self.violations)
        return Problem(
            "BuildError",
            f"lint violation found for rules: {', '.join(broken)}",
            "; ".join(violation.message for violation in self.violations),
            "mend them, or skip rules: # check=skip=RULE",
            self.violations[0].location,
        )


class CheckedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """The build that a Dockerfile is checked for."""

    build_args: Mapping[str, str]
    predefined: Mapping[str, str]
    """The platform ARGs."""
    targets: tuple[str, ...] = ()
    """The platforms to build for."""
    stages: frozenset[int] | None = None
    """The numbers of the stages that the build needs; None for all."""
    bases: Mapping[int, BaseImage] = msgspec.field(default_factory=dict)
    """What is known of the base images, by stage."""
    ignore: Patterns = NOTHING
    """The context's ignore file."""


def check(dockerfile: Dockerfile, build: CheckedBuild, options: Options | None = None) -> CheckResult:
    """Return the findings of all rules that are enabled.

    ``options`` stand in place of the file's ``check`` directive. Raises DockerfileError for an invalid directive.
    """
    walk = _Checker(
        dockerfile,
        dict(build.build_args),
        dict(build.predefined),
        build.targets,
        build.ignore,
        rules.options(dockerfile.check) if options is None else options,
    )
    walk.wanted = frozenset(range(len(dockerfile.stages))) if build.stages is None else build.stages
    failure: Problem | None = None
    try:
        walk.file()
        walk.bases(build.bases)
        for stage in dockerfile.stages:
            if stage.index in walk.wanted:
                walk.stage(stage)
    except DockerfileError as error:
        failure = error.problem
    return CheckResult(tuple(walk.found), failure, walk.options.error)


class _StageState(msgspec.Struct):
    """The state of the checks within a stage."""

    env: dict[str, str]
    env_known: bool
    """False when the variables of the base image are unknown."""
    declared: set[str] = msgspec.field(default_factory=set)
    """The ARGs of this stage and of the stages that it is based on."""
    workdir_set: bool = False
    has_shell: bool = False
    fixed: str = ""
    """``build`` or ``constant`` when the stage's platform does not depend on the target's; else ""."""
    platform: str = ""
    """The platform of a ``constant`` stage."""
    last: dict[str, Location] = msgspec.field(default_factory=dict)
    """The location of the last CMD, ENTRYPOINT and HEALTHCHECK."""


class _Checker(msgspec.Struct):
    dockerfile: Dockerfile
    build_args: dict[str, str]
    predefined: dict[str, str]
    targets: tuple[str, ...]
    ignore: Patterns
    options: Options
    found: list[Violation] = msgspec.field(default_factory=list)
    told: set[Violation] = msgspec.field(default_factory=set)
    """The findings so far, as a set."""
    scope: dict[str, str] = msgspec.field(default_factory=dict)
    known: Mapping[int, BaseImage] = msgspec.field(default_factory=dict)
    scenes: dict[int, _StageState] = msgspec.field(default_factory=dict)
    meter: ExpansionBudget = msgspec.field(default_factory=ExpansionBudget)
    expanded: dict[int, kinds.From] = msgspec.field(default_factory=dict)
    wanted: frozenset[int] = frozenset()
    """The numbers of the stages that are checked."""
    answers: frozenset[Location] | None = None
    """The cached result of ``machine_answers``."""

    def note(self, rule: Rule, location: Location, *facts: str, comments: tuple[str, ...] = ()) -> None:
        """Report a finding, unless its rule is disabled or it was reported before."""
        if self.options.and_for(comments).wants(rule):
            violation = rule.at(location, *facts)
            if violation not in self.told:
                self.told.add(violation)
                self.found.append(violation)

    def take(self, violations: Iterable[Violation], comments: tuple[str, ...] = ()) -> None:
        options = self.options.and_for(comments)
        taken = [violation for violation in violations if options.wants(violation.rule)]
        self.told.update(taken)
        self.found += taken

    # -- the file as text ---------------------------------------------------------------------------------------

    def file(self) -> None:
        """Rules that need no variables."""
        for place in self.dockerfile.empty_continuations:
            self.note(rules.NO_EMPTY_CONTINUATION, place)
        for instruction in self.instructions():
            self.words(instruction)
        self.stage_names()
        self.casing()
        if self.options.wants(rules.READ_DIFFERENTLY_ELSEWHERE):
            self.take(structure.differences(self.dockerfile))

    def instructions(self) -> Iterator[kinds.Instruction]:
        yield from self.dockerfile.args
        for stage in self.dockerfile.stages:
            yield stage.base
            yield from stage.instructions

    def words(self, instruction: kinds.Instruction) -> None:
        comments = instruction.comments
        match instruction:
            case kinds.Maintainer():
                self.note(rules.MAINTAINER_DEPRECATED, instruction.location, comments=comments)
            case kinds.From(alias=(word, name)) if name:
                if name != name.lower():
                    self.note(rules.STAGE_NAME_CASING, instruction.location, name, comments=comments)
                keyword = instruction.keyword
                if (keyword.islower() and not word.islower()) or (keyword.isupper() and not word.isupper()):
                    self.note(rules.FROM_AS_CASING, instruction.location, keyword, word, comments=comments)
                self.description(instruction, "FROM", (instruction.name,))
            case kinds.Arg():
                self.description(instruction, "ARG", tuple(name for name, _ in instruction.assignments))

    def description(self, instruction: kinds.Instruction, keyword: str, names_: tuple[str, ...]) -> None:
        comments = instruction.comments
        if comments and comments[-1].split(" ")[0] not in names_:
            example = names_[0] if len(names_) == 1 else f"<{keyword.lower()}_key>"
            self.note(rules.INVALID_DEFINITION_DESCRIPTION, instruction.location, keyword, example, comments=comments)

    def stage_names(self) -> None:
        seen: set[str] = set()
        for stage in self.dockerfile.stages:
            if stage.name in _RESERVED:
                self.note(rules.RESERVED_STAGE_NAME, stage.location, stage.name)
            if stage.name in seen:
                self.note(rules.DUPLICATE_STAGE_NAME, stage.location, stage.name)
            if stage.name:
                seen.add(stage.name)

    def casing(self) -> None:
        body = [instruction for stage in self.dockerfile.stages for instruction in (stage.base, *stage.instructions)]
        lower = sum(instruction.keyword.islower() for instruction in body)
        upper = sum(instruction.keyword.isupper() for instruction in body)
        for instruction in body:
            keyword = instruction.keyword
            fits = keyword.islower() if lower > upper else keyword.isupper()
            if not fits:
                case = "lower" if lower > upper else "upper"
                self.note(rules.CONSISTENT_INSTRUCTION_CASING, instruction.location, keyword, case)

    # -- FROM ---------------------------------------------------------------------------------------------------

    def bases(self, known: Mapping[int, BaseImage]) -> None:
        """Check the FROMs, and set the global scope for what follows."""
        self.known = known
        self.default_images()
        self.scope = global_scope(self.dockerfile, self.build_args, self.predefined)
        for arg in self.dockerfile.args:
            self.take(multiplatform.platform_defaults(arg, multiplatform.PLATFORM_ARGS), arg.comments)
        declared = {name for arg in self.dockerfile.args for name, _ in arg.assignments} | self.scope.keys()
        names_ = sorted(declared)
        for stage in self.dockerfile.stages:
            self.base(stage, names_)

    def default_images(self) -> None:
        """Check the images that FROM gets without build args. An invalid default is reported by the build, not here."""
        stages = self.dockerfile.stages
        predefined = {name: self.build_args.get(name, value) for name, value in self.predefined.items()}
        try:
            defaults = global_scope(self.dockerfile, {}, predefined)
            images = [expand_text(stage.base.image, defaults, escape=self.dockerfile.escape) for stage in stages]
        except DockerfileError:
            return
        for stage, image in zip(stages, images, strict=True):
            if not _is_reference(image):
                self.note(rules.INVALID_DEFAULT_ARG_IN_FROM, stage.location, stage.base.image)

    def base(self, stage: Stage, declared: list[str]) -> None:
        base = stage.base
        image, platform = RecordingMapping(self.scope), RecordingMapping(self.scope)
        try:
            expand_text(base.image, image, escape=self.dockerfile.escape)
            value = expand_text(base.platform, platform, escape=self.dockerfile.escape)
        finally:
            for name in (*image.missing, *platform.missing):
                if name not in declared:
                    self.note(
                        rules.UNDEFINED_ARG_IN_FROM, base.location, name, hint(name, declared), comments=base.comments
                    )
        self.expanded[stage.index] = expand(base, self.scope, self.dockerfile.escape)
        if not value or platform.missing:
            return
        if [*platform.used] == ["TARGETPLATFORM"] and value == self.scope["TARGETPLATFORM"]:
            self.note(rules.REDUNDANT_TARGET_PLATFORM, base.location, base.platform, comments=base.comments)
        elif not platform.used and not _names_platform(base.name, value):
            self.note(rules.FROM_PLATFORM_FLAG_CONST_DISALLOWED, base.location, value, comments=base.comments)

    # -- stages -------------------------------------------------------------------------------------------------

    def stage(self, stage: Stage) -> None:
        """Check a stage with the variables that its instructions see."""
        scene = self.enter(stage)
        self.scenes[stage.index] = scene
        for instruction in stage.instructions:
            self.take(self.multiplatform_findings(scene, stage, instruction), instruction.comments)
            if isinstance(instruction, kinds.Arg):
                self.arg(scene, instruction)
                continue
            env = RecordingMapping(self.meter.over(scene.env))
            try:
                done = expand(instruction, env, self.dockerfile.escape)
            finally:
                self.undefined(scene, instruction, env)
            self.instruction(scene, instruction, done)

    def enter(self, stage: Stage) -> _StageState:
        """Return the state at the start of a stage."""
        base = self.expanded[stage.index]
        parent = find_base(self.dockerfile, stage.index, base.image)
        fixed = _fixed(stage.base, self.predefined)
        if parent is not None and parent.index in self.scenes:
            above = self.scenes[parent.index]
            self.without_effect(stage, base, fixed, above)
            return replace(above, env=dict(above.env), declared=set(above.declared), last={})
        if base.image == "scratch":
            self.without_effect(stage, base, fixed, _StageState({}, True))
            fixed = ""
        known = self.known.get(stage.index)
        env = dict(known.env) if known is not None else {}
        env.setdefault("PATH", "")
        if known is not None:
            self.base_image(stage, base, known, bool(fixed))
        return _StageState(
            env,
            known is not None or base.image == "scratch",
            has_shell=known is not None and known.has_shell,
            fixed=fixed,
            platform=base.platform if fixed == "constant" else "",
        )

    def without_effect(self, stage: Stage, base: kinds.From, fixed: str, above: _StageState) -> None:
        """Report a ``--platform`` that the base stage, with the state ``above``, already has or overrides."""
        if not base.platform or not (fixed or "TARGET" in stage.base.platform):
            return  # no platform, or one that depends on a variable
        build = self.predefined.get("BUILDPLATFORM", "")
        meant = {
            target: base.platform if fixed == "constant" else build if fixed else target for target in self.targets
        }
        given = {
            target: above.platform if above.fixed == "constant" else build if above.fixed else target
            for target in self.targets
        }
        other = next((target for target in self.targets if not multiplatform.alike(meant[target], given[target])), None)
        if other is not None:
            what = "no image" if base.image == "scratch" else "a stage"
            self.note(
                rules.PLATFORM_WITHOUT_EFFECT,
                stage.location,
                stage.base.platform,
                base.image,
                what,
                given[other],
                comments=stage.base.comments,
            )

    def base_image(self, stage: Stage, base: kinds.From, known: BaseImage, fixed: bool) -> None:
        wanted = base.platform or self.predefined.get("TARGETPLATFORM", "")
        if known.platform and wanted and not multiplatform.alike(known.platform, wanted):
            self.note(rules.INVALID_BASE_IMAGE_PLATFORM, stage.location, base.image, known.platform, wanted)
        if not fixed:
            self.take(multiplatform.single_platform_digest(stage, base.image, known, self.targets), stage.base.comments)

    def multiplatform_findings(
        self, scene: _StageState, stage: Stage, instruction: kinds.Instruction
    ) -> Iterator[Violation]:
        if scene.fixed == "build":
            if multiplatform.asks_machine(instruction) and instruction.location in self.machine_answers():
                yield from multiplatform.build_machine(instruction)
        elif not scene.fixed:
            yield from multiplatform.single_platform_urls(instruction, stage.name, self.targets)
        if isinstance(instruction, kinds.Arg):
            yield from multiplatform.platform_defaults(instruction, scene.declared)

    def machine_answers(self) -> frozenset[Location]:
        """Return the location of each RUN that queries the build machine and whose output reaches the target."""
        if self.answers is None:
            build = self.predefined.get("BUILDPLATFORM", "")
            others = [
                each for each in self.targets if not multiplatform.alike(each, build) and not each.startswith("windows")
            ]
            on_builder: set[int] = set()
            named: dict[str, int] = {}
            parents: dict[int, int] = {}
            for stage in self.dockerfile.stages:
                image = self.expanded[stage.index].image
                parent = named.get(image.lower())
                if parent is not None:
                    parents[stage.index] = parent
                if stage.name:
                    named[stage.name] = stage.index
                known = self.known.get(stage.index)
                if parent is not None:
                    here = parent in on_builder
                elif image == "scratch" or (known is not None and known.platform.startswith("windows")):
                    here = False
                else:
                    here = _fixed(stage.base, self.predefined) == "build"
                if here:
                    on_builder.add(stage.index)
            self.answers = (
                multiplatform.machine_answers(self.dockerfile, self.wanted, parents, on_builder)
                if others and not multiplatform.for_windows(self.dockerfile)
                else frozenset()
            )
        return self.answers

    def undefined(self, scene: _StageState, instruction: kinds.Instruction, env: RecordingMapping) -> None:
        if not scene.env_known or isinstance(instruction, kinds.Expose):  # BuildKit does not look at EXPOSE
            return
        for name in env.missing:
            if name not in scene.declared and name not in _SCANNER_ARGS:
                suggestion = hint(name, scene.env).replace("mean ", "mean $")
                self.note(rules.UNDEFINED_VAR, instruction.location, name, suggestion, comments=instruction.comments)

    def secret(self, keyword: str, name: str, instruction: kinds.Instruction) -> None:
        if _SECRET.search(name) and not _NO_SECRET.search(name):
            self.note(
                rules.SECRETS_USED_IN_ARG_OR_ENV, instruction.location, keyword, name, comments=instruction.comments
            )

    def arg(self, scene: _StageState, arg: kinds.Arg) -> None:
        for name, default in arg.assignments:
            self.secret("ARG", name, arg)
            env = RecordingMapping(self.meter.over(scene.env))
            one = msgspec.structs.replace(arg, assignments=((name, default),))
            ((_, value),) = scope.declared(one, env, self.build_args, self.scope, self.dockerfile.escape)
            self.undefined(scene, arg, env)
            if value is not None and name not in _SCANNER_ARGS:
                scene.env[name] = value
            scene.declared.add(name)

    def instruction(self, scene: _StageState, written: kinds.Instruction, done: kinds.Instruction) -> None:
        """Check one instruction, as ``written`` and as expanded (``done``), and update the state for the next."""
        place, comments = written.location, written.comments
        match done:
            case kinds.Env() | kinds.Label() if done.legacy:
                self.note(rules.LEGACY_KEY_VALUE_FORMAT, place, done.keyword, comments=comments)
            case kinds.Cmd() | kinds.Entrypoint() | kinds.Healthcheck():
                self.only_once(scene, done)
                if not isinstance(done, kinds.Healthcheck) and done.shell and not scene.has_shell:
                    self.note(rules.JSON_ARGS_RECOMMENDED, place, done.keyword, comments=comments)
            case kinds.Workdir():
                if not scene.workdir_set and not multiplatform.is_absolute(done.path, self.targets):
                    self.note(rules.WORKDIR_RELATIVE_PATH, place, quoted(done.path), comments=comments)
                scene.workdir_set = True
            case kinds.Shell():
                scene.has_shell = True
            case kinds.Copy(from_="") | kinds.Add():
                for source in done.sources:
                    self.ignored(done, source)
        if isinstance(done, kinds.Env):
            for name, value in done.pairs:
                self.secret("ENV", name, done)
                scene.env[name] = value
        if isinstance(written, kinds.Expose):
            self.ports(scene, written)

    def only_once(self, scene: _StageState, instruction: kinds.Instruction) -> None:
        kind = type(instruction).__name__
        if kind in scene.last:
            self.note(
                rules.MULTIPLE_INSTRUCTIONS_DISALLOWED,
                scene.last[kind],
                instruction.keyword,
                comments=instruction.comments,
            )
        scene.last[kind] = instruction.location

    def ports(self, scene: _StageState, expose: kinds.Expose) -> None:
        for port in expose.ports:
            for word in expand_words(port, scene.env, escape=self.dockerfile.escape):
                found = ports.parse(word)
                if found.protocol != found.protocol.lower():
                    self.note(rules.EXPOSE_PROTO_CASING, expose.location, word, comments=expose.comments)
                if found.mapped:
                    self.note(rules.EXPOSE_INVALID_FORMAT, expose.location, word, comments=expose.comments)

    def ignored(self, instruction: kinds.Copy | kinds.Add, source: str) -> None:
        """Report a source that the ignore file excludes. Not reported when the file has exceptions."""
        if not self.ignore or self.ignore.has_exceptions or "://" in source:
            return
        path = posixpath.normpath(source)
        if path in (".", "/") and not any(rule.pattern in _ALL_OF_IT for rule in self.ignore.rules):
            return
        if path in (".", "/") or self.ignore.excludes(path):
            self.note(
                rules.COPY_IGNORED_FILE,
                instruction.location,
                type(instruction).__name__,
                path,
                comments=instruction.comments,
            )


def _fixed(base: kinds.From, predefined: Mapping[str, str]) -> str:
    """Return ``build`` for a FROM of the build platform, ``constant`` for one of another fixed platform, else ""."""
    env = RecordingMapping(predefined)
    platform = expand_text(base.platform, env)
    if any(name.startswith("BUILD") for name in (*env.used, *env.missing)):
        return "build"
    return "constant" if platform and not env.used and not env.missing else ""


def _is_reference(image: str) -> bool:
    try:
        reference.parse(image)
    except UsageError:
        return False
    return True


def _names_platform(stage: str, platform: str) -> bool:
    """Whether the name of a stage names ``platform``. An invalid platform is reported elsewhere."""
    try:
        found = parsing.parse(platform)
    except UsageError:
        return True
    return found.os in stage or found.architecture in stage
