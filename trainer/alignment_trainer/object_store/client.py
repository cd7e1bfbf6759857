"""The client of an S3 store, from the standard AWS environment, and what its errors mean for a job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from alignment_trainer.process.errors import UserError, describe

_CONNECT_SECONDS, _READ_SECONDS, _TRIES = 10, 60, 6
"""For a request; between tries the pause doubles, up to 20 s. AWS_MAX_ATTEMPTS has precedence."""
_REFUSALS = frozenset(("AuthorizationHeaderMalformed", "ExpiredToken", "InvalidToken", "XAdminUserNotFound"))
"""Codes by which a store says that these credentials may not, where its status is not 401 or 403."""
_OF_THE_CLOCK = frozenset(("RequestExpired", "RequestTimeTooSkewed"))
"""Codes of status 403 that tell of this machine's clock alone: another machine's may be right."""
_ABSENT = frozenset(("404", "NoSuchKey", "NotFound"))
_VARIABLES = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_WHERE = "in a Secret that spec.credentials names; on a laptop in the environment"


class NotReached(ConnectionError):
    """A store did not answer: it is away, or its address is wrong."""


def connect(field: str) -> Any:
    """A client; nothing is sent yet.

    field: of the manifest, that names a bucket. Raises UserError for an address that is none, and half a credential.
    """
    import boto3  # type: ignore[import-untyped]  # half a second
    import botocore.session  # type: ignore[import-untyped]
    from botocore.config import Config  # type: ignore[import-untyped]
    from botocore.exceptions import PartialCredentialsError  # type: ignore[import-untyped]

    tries = int(os.environ.get("AWS_MAX_ATTEMPTS", _TRIES))
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": tries},
    )
    session = botocore.session.get_session()
    session.register_component("data_loader", _models())
    try:
        return boto3.session.Session(botocore_session=session).client("s3", config=config)
    except PartialCredentialsError as error:
        raise UserError("CredentialsMissing", f"{field}: {describe(error)}; give {_VARIABLES}, {_WHERE}") from error
    except ValueError as error:
        raise UserError("StoreNotReached", f"{field}: AWS_ENDPOINT_URL: {describe(error)}") from error


@cache
def _models() -> Any:
    """What botocore reads of services, shared by every client: each would read a quarter of a second long."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


@dataclass(frozen=True)
class Errors:
    """What is told of a bucket that a field of the manifest names."""

    field: str
    bucket: str
    endpoint: str

    @contextmanager
    def told(self, key: str) -> Iterator[None]:
        """Errors of the client while it asks for a key, as ours: UserError for what only the user can mend,
        FileNotFoundError, NotReached, and OSError for the rest."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise self._refused(error, key) from error
        except BotoCoreError as error:
            raise self._failed(error, key) from error

    def _refused(self, error: Any, key: str) -> Exception:
        code, where = str(error.response.get("Error", {}).get("Code", "unknown")), f"s3://{self.bucket}/{key}"
        if code == "NoSuchBucket":
            advice = "write the name of one that exists, or make it; AWS_ENDPOINT_URL names the store"
            return UserError("BucketNotFound", f"{self.field}: {self.endpoint} has no bucket `{self.bucket}`; {advice}")
        is_forbidden = error.response["ResponseMetadata"]["HTTPStatusCode"] in (401, 403)
        if code in _REFUSALS or (is_forbidden and code not in _OF_THE_CLOCK):
            advice = f"give {_VARIABLES} of who may (and AWS_REGION, if it is not the store's), {_WHERE}"
            return UserError(
                "StoreAccessRefused",
                f"{self.field}: {self.endpoint} refuses {error.operation_name} of `{where}` ({code}); {advice}",
            )
        if code in _ABSENT:
            return FileNotFoundError(f"{where}: there is no such object at {self.endpoint}")
        return OSError(f"{self.field}: {error.operation_name} of `{where}` at {self.endpoint}: {code}")

    def _failed(self, error: Exception, key: str) -> Exception:
        from botocore import exceptions

        where = f"s3://{self.bucket}/{key}"
        if isinstance(error, exceptions.NoCredentialsError | exceptions.CredentialRetrievalError):
            message = f"{self.field}: there are no credentials for `{where}`; give {_VARIABLES}, {_WHERE}"
            return UserError("CredentialsMissing", message)
        told = f"{self.field}: `{where}` at {self.endpoint}: {describe(error)}"
        broken = (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError)
        return NotReached(told) if isinstance(error, broken) else OSError(told)
