"""The connection to the Hub: login, time limits, and what an error of huggingface_hub means.

Its errors have no common base class, some of its calls retry and others do not, and by default it waits forever for a
response.
"""

import errno
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from huggingface_hub import HfApi, get_token, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled

# Private: requests need its hooks, and a factory that only changes the timeout has no public name.
from huggingface_hub.utils._http import default_client_factory

from seedling_hf.errors import HubError, InputError

REQUEST_TIMEOUT_S = 60.0
PERMANENT = frozenset({400, 401, 403, 404, 413})
MEANINGS = {
    401: "the token is missing or not valid; run `hf auth login` or set HF_TOKEN",
    403: "this token has no write access",
    404: "the repository does not exist, or this token has no access to it",
    412: "another process is pushing to the repository",
}


def limit_waiting(seconds: float = REQUEST_TIMEOUT_S) -> None:
    """Sets a time limit for each request of this process to the Hub; the default is none."""
    # One log line per request helps nobody, and URLs may be signed.
    logging.getLogger("httpx2").setLevel(logging.WARNING)

    def factory():
        client = default_client_factory()
        client.timeout = seconds
        return client

    set_client_factory(factory)


def require_login() -> None:
    """Raises InputError without a token of huggingface_hub's own login."""
    if get_token() is None:
        raise InputError("expected a login to the Hub, found none; run `hf auth login` or set HF_TOKEN")


@contextmanager
def hub_session() -> Iterator[None]:
    """What a command does on the Hub: requires a login, limits waiting, and turns any error into one `HubError`."""
    require_login()
    limit_waiting()
    try:
        yield
    except Exception as error:
        reason, permanent = explain(error)
        raise HubError(reason if permanent else f"{reason}; run this command again to continue") from error


def full_repo_id(repo_id: str) -> str:
    """`user/name` of a repository; the user defaults to the owner of the token."""
    return repo_id if "/" in repo_id else f"{HfApi().whoami()['name']}/{repo_id}"


def explain(error: BaseException) -> tuple[str, bool]:
    """The reason of a failed request as a clause without any token, and whether the failure is permanent."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", True
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if response is not None:
        status = response.status_code
        meaning = MEANINGS.get(status)
        if meaning is None:
            meaning = getattr(error, "server_message", None) or HTTPStatus(status).phrase
        return _without_token(f"the Hub answered {status}: {_first_line(meaning)}"), status in PERMANENT
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return _without_token(" ".join(str(error).split())), True
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno == errno.ENOSPC):
        return f"{error.filename or 'the disk'}: {error.strerror}", False
    return _without_token(f"the Hub cannot be reached ({type(error).__name__}: {_first_line(error)})"), False


def _without_token(text: str) -> str:
    token = get_token()
    return text.replace(token, "…") if token else text


def _first_line(text: object) -> str:
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "no reason given")
