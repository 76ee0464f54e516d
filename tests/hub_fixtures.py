"""A Hub for each test, and a client that is logged in to it."""

from collections.abc import Iterator

import pytest
from hub_client import TOKENS, Client, Repository, free_port
from local_hub import LocalHub


@pytest.fixture
def hub(tmp_path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub", tokens=dict(TOKENS), port=free_port()) as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path) -> Client:
    return Client(hub, tmp_path / "home")


@pytest.fixture
def repository(hub) -> Repository:
    return Repository(hub, "alice/seedlings")
