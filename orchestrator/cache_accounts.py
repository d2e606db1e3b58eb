"""Accounts for remote caches: found when an executor asks for one, by the means of the service's own tools.

Of what a build was given, secrets are here alone: they are in no job, no record of the store and no message but the
answer to an executor.
"""

from __future__ import annotations

import os
from typing import ClassVar, Final, assert_never

import msgspec
from msgspec.structs import replace

from executor.objects.cache_account import CacheAccount
from platforms.errors import CacheError

_ASK_AGAIN: Final = 300.0
"""Seconds for which an account that may expire is used: tokens are renewed by then, well before their end."""
_AZURE_SCOPE: Final = "https://storage.azure.com/.default"


class GivenAccount(msgspec.Struct, frozen=True):
    """The account of the cache ``name``, as it was given in the cache's options."""

    name: str
    account: CacheAccount

    @property
    def is_given(self) -> bool:
        """Whether any of it is in the cache's options."""
        return True


class AWSAccount(msgspec.Struct, frozen=True):
    """The account of the cache ``name`` that the tools of AWS would use: the environment, profiles, roles, …."""

    name: str
    is_given: ClassVar[bool] = False


class AzureAccount(msgspec.Struct, frozen=True):
    """The account of the cache ``name`` that the tools of Azure would use."""

    name: str
    is_given: ClassVar[bool] = False


class WorkflowAccount(msgspec.Struct, frozen=True):
    """The account of the cache ``name`` that a workflow of GitHub's has, beside what was ``given``."""

    name: str
    given: CacheAccount = CacheAccount()

    @property
    def is_given(self) -> bool:
        return self.given != CacheAccount()


AccountSource = GivenAccount | AWSAccount | AzureAccount | WorkflowAccount
"""Where the account of a remote cache comes from."""

WORKFLOW_TOKEN: Final = "ACTIONS_RUNTIME_TOKEN"


def find(source: AccountSource) -> CacheAccount:
    """Return the account of ``source``. Raises ``CacheError`` if there is none."""
    match source:
        case GivenAccount():
            return source.account
        case AWSAccount():
            return _of_aws()
        case AzureAccount():
            return _of_azure()
        case WorkflowAccount():
            token = os.environ.get(WORKFLOW_TOKEN, "")
            if not token:
                raise CacheError(
                    "there is no token for the cache service",
                    why=f"{WORKFLOW_TOKEN} is not set",
                    remedy="in a workflow, pass it on to the step (crazy-max/ghaction-github-runtime), or give token=",
                )
            return replace(source.given, token=token)
        case _:
            assert_never(source)


def _of_aws() -> CacheAccount:
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    if key and secret:
        return CacheAccount(key, secret, os.environ.get("AWS_SESSION_TOKEN", ""))
    remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give access_key_id= and secret_access_key="
    try:
        import botocore.exceptions
        import botocore.session
    except ImportError as error:
        raise CacheError(
            "there is no account for AWS",
            why="the environment has none, and profiles and roles need the library botocore",
            remedy=f"{remedy}; or pip install 'kanifold[s3]'",
        ) from error
    try:
        found = botocore.session.get_session().get_credentials()
        frozen = None if found is None else found.get_frozen_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise CacheError("there is no account for AWS", why=str(error), remedy=remedy) from error
    if frozen is None or not frozen.access_key or not frozen.secret_key:
        raise CacheError(
            "there is no account for AWS", why="neither the environment nor a profile or role has one", remedy=remedy
        )
    return CacheAccount(frozen.access_key, frozen.secret_key, frozen.token or "", _ASK_AGAIN)


def _of_azure() -> CacheAccount:
    try:
        import azure.core.exceptions
        import azure.identity
    except ImportError as error:
        raise CacheError(
            "there is no account for Azure",
            why="managed and workload identities need the library azure-identity",
            remedy="pip install 'kanifold[azblob]', or give secret_access_key=",
        ) from error
    try:
        token = azure.identity.DefaultAzureCredential().get_token(_AZURE_SCOPE)
    except azure.core.exceptions.ClientAuthenticationError as error:
        raise CacheError(
            "there is no account for Azure",
            why=error.message.splitlines()[0] if error.message else "no credential was found",
            remedy="log in (az login), give the machine an identity, or give secret_access_key=",
        ) from error
    return CacheAccount(token=token.token, seconds=_ASK_AGAIN)
