"""The connection to the Hub: login, and time limits, since by default huggingface_hub waits forever for a response."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_token, set_client_factory

# Private: requests need its hooks, and a factory that only changes the timeout has no public name.
from huggingface_hub.utils._http import default_client_factory

from seedling_hf.errors import HubError, InputError
from seedling_hf.network import explain

REQUEST_TIMEOUT_S = 60.0


def limit_waiting(seconds: float = REQUEST_TIMEOUT_S) -> None:
    """Sets a time limit for each request of this process to the Hub; the default is none."""

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
