"""What an error of the network means: from the outermost answer, with the variable or the token that is at fault."""

import errno
import os

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from seedling_hf.errors import InputError
from seedling_hf.network import explain, explain_network, explaining, without_proxies


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No proxy, and a token in HF_TOKEN."""
    for name in ("all", "http", "https", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


def answer(status: int, code: str = "", method: str = "GET", path: str = "/api/models/a/b") -> HfHubHTTPError:
    request = httpx2.Request(method, f"https://hub{path}")
    response = httpx2.Response(status, headers={"X-Error-Code": code} if code else {}, request=request)
    return HfHubHTTPError("no good", response=response)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answer(401), "the token is not valid or has expired (from HF_TOKEN)"),
        (answer(401, "GatedRepo"), "restricted"),
        (answer(403), "this token has no read access (from HF_TOKEN)"),
        (answer(403, method="POST"), "this token has no write access (from HF_TOKEN)"),
        (answer(403, path="/api/models/a/b/auth-check/write"), "this token has no write access"),
        (answer(403, "GatedRepo"), "restricted"),
        (answer(404), "the repository does not exist, or this token has no access to it"),
        (answer(404, "RevisionNotFound"), "no such branch, tag or commit"),
        (answer(404, "EntryNotFound", path="/a/b/resolve/main/config.json"), "the repository has no file config.json"),
        (answer(407), "the proxy wants a user and a password"),
        (answer(418), "I'm a Teapot"),
    ],
)
def test_an_answer_of_the_hub_is_explained(error, words):
    reason, permanent = explain(error)
    assert reason.startswith(f"the Hub answered {error.response.status_code}: ")
    assert words in reason
    assert permanent == (error.response.status_code in {401, 403, 404})


def test_without_a_token_a_missing_repository_may_be_private(monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert "does not exist, or is private" in explain(answer(401))[0]


def test_a_saved_login_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_saved")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert f"from the saved login in {tmp_path / 'token'}" in explain(answer(401))[0]


def test_the_answer_is_found_behind_the_sentence_of_another_library():
    try:
        try:
            raise answer(404)  # answered already
        except HfHubHTTPError:
            raise answer(403, method="POST")  # noqa: B904
    except HfHubHTTPError as error:
        assert "403" in explain(error)[0]
        wrapped = OSError("There was a specific connection error:\n")
        wrapped.__context__ = error
    with pytest.raises(InputError, match=r"^expected a model, found: the Hub answered 403: "), explaining("a model"):
        raise wrapped


def test_a_sentence_is_never_cut_at_a_colon():
    with pytest.raises(InputError, match=r"found: this failed: because of that$"), explaining("a model", OSError):
        raise OSError("this failed:\n\n  because of that\nand more")
    with pytest.raises(KeyError), explaining("a model", OSError):
        raise KeyError("none of ours")


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_is_named_without_its_password(monkeypatch, variable):
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub")
    monkeypatch.setenv(variable, "http://me:password@proxy:3128")
    reason, permanent = explain(httpx2.ConnectError("refused"))
    assert f"the proxy http://…@proxy:3128 of {variable}" in reason
    assert "password" not in reason
    assert not permanent
    monkeypatch.setenv("NO_PROXY", "hub")
    assert explain(httpx2.ConnectError("refused"))[0] == "the Hub cannot be reached (ConnectError: refused)"


def test_a_proxy_without_its_package_or_of_no_known_kind_is_named(monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://proxy:1")
    assert "all_proxy" in explain(ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."))[0]
    monkeypatch.setenv("all_proxy", "ftp://me:password@proxy:1")
    reason, _ = explain(ValueError("Unknown scheme for proxy URL URL('ftp://proxy:1')"))
    assert reason.startswith("ftp://…@proxy:1 as the proxy in all_proxy; ")


def test_a_cache_that_cannot_be_written_names_its_variable(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    reason, _ = explain_network(OSError(errno.EROFS, "Read-only", str(tmp_path / "hub" / "models")))
    assert "set HF_HOME to another folder" in reason
    assert str(tmp_path / "hub" / "models") in reason
    assert "set HF_HOME" in explain_network(OSError(errno.ENOSPC, "No space left on device"))[0]
    assert explain_network(OSError(errno.EACCES, "Permission denied", "/elsewhere")) is None


def test_no_proxy_is_used_while_the_page_starts(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.com")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ImportError):
        httpx2.Client()
    with without_proxies():
        httpx2.Client().close()
    assert (os.environ["no_proxy"], "NO_PROXY" in os.environ) == ("example.com", False)
