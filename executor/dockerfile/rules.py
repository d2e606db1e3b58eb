"""The rules of the build checks as data: name, reason, and the message of a finding.

BuildKit's rules have BuildKit's names, so that ``# check=skip=…`` works as in BuildKit. The multi-platform rules are
kanifold's own.

Source: Dockerfile reference, "check" (parser directive), and Docker's list of build checks.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from platforms.errors import DockerfileError, Location, Problem


class Rule(msgspec.Struct, frozen=True):
    """One build check."""

    name: str
    description: str
    message: str
    """The message of a finding; each ``{}`` is replaced by an argument."""
    experimental: bool = False
    """Whether it is off by default."""
    documented: bool = True
    """Whether Docker's list of build checks has a page for it."""

    @property
    def url(self) -> str:
        """Return the URL of that page, "" if there is none."""
        words = re.sub("([a-z])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3-\2\4", self.name).lower()
        return f"https://docs.docker.com/go/dockerfile/rule/{words}/" if self.documented else ""

    def at(self, location: Location, *facts: str) -> Violation:
        """Return a violation at ``location``; ``facts`` fill the message."""
        return Violation(self, self.message.format(*facts), location)


class Violation(msgspec.Struct, frozen=True):
    """A finding: a rule that was violated, and where."""

    rule: Rule
    message: str
    location: Location

    @property
    def problem(self) -> Problem:
        """Return the finding as an error for the protocol and for display."""
        return Problem("Check", self.message, self.rule.description, where=self.location)


STAGE_NAME_CASING: Final = Rule(
    "StageNameCasing",
    "Stage names are case-insensitive: write them in lower case.",
    "Stage name '{}' should be lowercase",
)
FROM_AS_CASING: Final = Rule(
    "FromAsCasing",
    "FROM and AS belong together: write both in upper or both in lower case.",
    "'{1}' and '{0}' keywords' casing do not match",
)
NO_EMPTY_CONTINUATION: Final = Rule(
    "NoEmptyContinuation",
    "Empty lines inside of a continued instruction are deprecated: remove them, or make them comments.",
    "Empty continuation line",
)
CONSISTENT_INSTRUCTION_CASING: Final = Rule(
    "ConsistentInstructionCasing",
    "All instructions of a Dockerfile should be in upper or all in lower case.",
    "Command '{}' should match the case of the command majority ({}case)",
)
DUPLICATE_STAGE_NAME: Final = Rule(
    "DuplicateStageName",
    "Of several stages with one name only the last can be reached from below.",
    'Duplicate stage name "{}", stage names should be unique',
)
RESERVED_STAGE_NAME: Final = Rule(
    "ReservedStageName",
    "scratch and context mean something of their own and should not name a stage.",
    'Stage name should not use the same name as reserved stage "{}"',
)
JSON_ARGS_RECOMMENDED: Final = Rule(
    "JSONArgsRecommended",
    "In shell form a shell is process 1 and keeps signals from the program: use the JSON form.",
    "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
)
MAINTAINER_DEPRECATED: Final = Rule(
    "MaintainerDeprecated",
    "MAINTAINER is deprecated: use LABEL org.opencontainers.image.authors.",
    "Maintainer instruction is deprecated in favor of using label",
)
UNDEFINED_ARG_IN_FROM: Final = Rule(
    "UndefinedArgInFrom",
    "FROM sees only ARGs that stand before the first FROM, and the platform ARGs.",
    "FROM argument '{}' is not declared{}",
)
WORKDIR_RELATIVE_PATH: Final = Rule(
    "WorkdirRelativePath",
    "A relative WORKDIR depends on the base image's: start with an absolute one.",
    "Relative workdir {} can have unexpected results if the base image changes",
)
UNDEFINED_VAR: Final = Rule(
    "UndefinedVar",
    "A variable should be set by ARG or ENV, or by the base image, before it is used.",
    "Usage of undefined variable '${}'{}",
)
MULTIPLE_INSTRUCTIONS_DISALLOWED: Final = Rule(
    "MultipleInstructionsDisallowed",
    "Of several CMD, ENTRYPOINT or HEALTHCHECK in one stage only the last has an effect.",
    "Multiple {} instructions should not be used in the same stage because only the last one will be used",
)
LEGACY_KEY_VALUE_FORMAT: Final = Rule(
    "LegacyKeyValueFormat",
    "The form without = takes one name per line and is deprecated.",
    '"{0} key=value" should be used instead of legacy "{0} key value" format',
)
INVALID_BASE_IMAGE_PLATFORM: Final = Rule(
    "InvalidBaseImagePlatform",
    "The base image is for another platform than the stage.",
    'Base image {} was pulled with platform "{}", expected "{}" for current build',
    documented=False,
)
REDUNDANT_TARGET_PLATFORM: Final = Rule(
    "RedundantTargetPlatform",
    "A stage is built for the target platform anyway: leave --platform out.",
    "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
)
SECRETS_USED_IN_ARG_OR_ENV: Final = Rule(
    "SecretsUsedInArgOrEnv",
    "What ARG and ENV hold stays in the image's configuration and history: use RUN --mount=type=secret.",
    'Do not use ARG or ENV instructions for sensitive data ({} "{}")',
)
INVALID_DEFAULT_ARG_IN_FROM: Final = Rule(
    "InvalidDefaultArgInFrom",
    "Without build arguments, the ARGs' defaults should give a valid image name.",
    "Default value for ARG {} results in empty or invalid base image name",
)
FROM_PLATFORM_FLAG_CONST_DISALLOWED: Final = Rule(
    "FromPlatformFlagConstDisallowed",
    "A constant platform makes one platform's image for all targets: use $BUILDPLATFORM, or name the stage for it.",
    'FROM --platform flag should not use constant value "{}"',
)
COPY_IGNORED_FILE: Final = Rule(
    "CopyIgnoredFile",
    "What .dockerignore excludes is not in the context.",
    'Attempting to {} file "{}" that is excluded by .dockerignore',
)
INVALID_DEFINITION_DESCRIPTION: Final = Rule(
    "InvalidDefinitionDescription",
    "A comment right above ARG or a named stage describes it, and should begin with its name; "
    "an empty comment line between the two keeps it a mere comment.",
    "Comment for {} should follow the format: `# {} <description>`",
    experimental=True,
)
EXPOSE_PROTO_CASING: Final = Rule(
    "ExposeProtoCasing",
    "Protocols are written in lower case.",
    "Defined protocol '{}' in EXPOSE instruction should be lowercase",
)
EXPOSE_INVALID_FORMAT: Final = Rule(
    "ExposeInvalidFormat",
    "EXPOSE names ports of the container; addresses and ports of the host belong to docker run.",
    "EXPOSE instruction should not define an IP address or host-port mapping, found '{}'",
)

PLATFORM_ARG_DEFAULT: Final = Rule(
    "PlatformArgDefault",
    "A default given to a platform ARG wins over the platform that is being built for.",
    'ARG {} has the default "{}", which all platforms get: write ARG {} alone',
    documented=False,
)
BUILD_MACHINE_ASKED: Final = Rule(
    "BuildMachineAsked",
    "In a stage of the build platform, programs that ask the machine hear of the builder, not of the target.",
    "'{}' tells the build platform in this stage: use $TARGETARCH or $TARGETPLATFORM",
    documented=False,
)
PLATFORM_WITHOUT_EFFECT: Final = Rule(
    "PlatformWithoutEffect",
    "A stage that is built on another stage has its platform, and one FROM scratch has the target's.",
    "--platform={} has no effect: {} is {}, so this stage is for {}",
    documented=False,
)
SINGLE_PLATFORM_URL: Final = Rule(
    "SinglePlatformURL",
    "A URL that names one architecture gives every platform that architecture's file.",
    "{} names {}, and this stage is built for {} too: use $TARGETARCH",
    documented=False,
)
SINGLE_PLATFORM_DIGEST: Final = Rule(
    "SinglePlatformDigest",
    "A digest of one platform's manifest pins the base to that platform: pin the index's digest.",
    "{} is pinned to a manifest for {}, and {} is needed too",
    documented=False,
)
READ_DIFFERENTLY_ELSEWHERE: Final = Rule(
    "ReadDifferentlyElsewhere",
    "Tools that read Dockerfiles line by line (dockerfile-parse) see other instructions in this place.",
    "Other tools see {} here, where this is {}",
    documented=False,
)

RULES: Final = tuple(value for value in dict(globals()).values() if isinstance(value, Rule))

_BOOLEANS: Final = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)


class Options(msgspec.Struct, frozen=True):
    """Which rules are enabled. ``all`` in a set stands for every rule."""

    skip: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error: bool = False
    """Whether findings fail the build."""

    def wants(self, rule: Rule) -> bool:
        """Whether ``rule`` is enabled."""
        if rule.experimental:
            return not self.experimental.isdisjoint(("all", rule.name))
        return self.skip.isdisjoint(("all", rule.name))

    def and_for(self, comments: tuple[str, ...]) -> Options:
        """Return these options combined with those of the first ``# check=…`` comment above an instruction."""
        for comment in comments:
            key, equals, value = comment.partition("=")
            if key.strip().lower() == "check" and equals and value.strip():
                try:
                    here = options(value.strip().partition(" ")[0])
                except DockerfileError:
                    return self
                return Options(self.skip | here.skip, self.experimental | here.experimental, self.error)
        return self


def options(text: str) -> Options:
    """Parse ``skip=A,B;error=true;experimental=C``, the value of the ``check`` directive. Raises DockerfileError."""
    found: dict[str, frozenset[str]] = {}
    error = False
    for part in text.split(";", 2) if text.strip() else ():
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or key not in ("skip", "experimental", "error") or (key == "error" and value not in _BOOLEANS):
            raise DockerfileError(
                f'invalid check option "{part}"',
                remedy="Write # check=skip=RULE,RULE;error=true;experimental=RULE, or all for the rules.",
            )
        if key == "error":
            error = _BOOLEANS[value]
        else:
            found[key] = frozenset(name.strip() for name in value.split(","))
    return Options(found.get("skip", frozenset()), found.get("experimental", frozenset()), error)
