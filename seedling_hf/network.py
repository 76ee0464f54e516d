"""What an error of the network means, in one clause: status codes and tokens, proxies, the cache of downloaded files.

huggingface_hub, transformers and datasets wrap such errors in each other's, with sentences about code, and give them no
common base class.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from seedling_hf.errors import InputError, causes, first_line
from seedling_hf.files import FULL
from seedling_hf.paths import holds_or_lies_in

PERMANENT = frozenset({400, 401, 403, 404, 413})
READING = frozenset({"GET", "HEAD"})
LOGIN = "`hf auth login` or HF_TOKEN"
DISK = FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@contextmanager
def explaining(expected: str, *others: type[Exception]) -> Iterator[None]:
    """Turns an error of the network, or of the types `others`, into an InputError "expected …, found: …".

    Args:
        expected: What is read, and where.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        for cause in causes(error):
            if isinstance(cause, InputError):  # said where it arose
                raise cause from error
        explained = explain_network(error)
        if explained is None and not isinstance(error, others):
            raise
        raise InputError(f"expected {expected}, found: {explained[0] if explained else first_line(error)}") from error


@contextmanager
def without_proxies() -> Iterator[None]:
    """No request of this process goes through a proxy, for a page that asks its own address whether it is there."""
    names = ("no_proxy", "NO_PROXY")
    former = {name: os.environ.get(name) for name in names}
    # Every host, since a proxy that cannot be used is an error even for addresses that need none.
    os.environ.update(dict.fromkeys(names, "*"))
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def explain(error: BaseException) -> tuple[str, bool]:
    """The reason of a failed request as a clause without any token, and whether the failure is permanent."""
    explained = explain_network(error)
    if explained is not None:
        return explained
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return without_token(" ".join(str(error).split())), True
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno == errno.ENOSPC):
        return f"{error.filename or 'the disk'}: {error.strerror}", False
    return without_token(f"the Hub cannot be reached ({type(error).__name__}: {first_line(error)})"), False


def explain_network(error: BaseException) -> tuple[str, bool] | None:
    """As `explain`; None for an error that has nothing to do with the network or the cache of downloaded files."""
    for cause in causes(error):
        found = _explain_one(cause)
        if found is not None:
            return without_token(found[0]), found[1]
    return None


def without_token(text: str) -> str:
    """The text without the token of the login, if it holds it."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "…") if token else text


def _explain_one(error: BaseException) -> tuple[str, bool] | None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", True
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) is not None:
        return _explain_status(error, response), response.status_code in PERMANENT
    if isinstance(error, (ImportError, ValueError)):
        return _explain_proxy_setting(error)
    # Of httpx or httpx2, whichever the library uses.
    if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
        reason = f"{type(error).__name__}: {first_line(error)}"
        proxy = _proxy_in_use()
        if proxy is None:
            return f"the Hub cannot be reached ({reason})", False
        variable, address = proxy
        return (
            f"the Hub cannot be reached through the proxy {address} of {variable} ({reason}); correct or unset "
            f"{variable}, or name the Hub's host in NO_PROXY"
        ), False
    if isinstance(error, OSError) and error.errno in DISK:
        return _explain_cache(error)
    return None


def _explain_status(error: BaseException, response: object) -> str:
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    address = str(getattr(response, "url", ""))
    reads = getattr(response.request, "method", "GET") in READING and "/auth-check" not in address
    message = getattr(error, "server_message", None) or response.headers.get("X-Error-Message")
    meaning = {
        401: lambda: _explain_401(code),
        403: lambda: _explain_403(code, reads),
        404: lambda: _explain_404(code, address),
        407: _explain_407,
        412: lambda: "another process is pushing to the repository",
    }.get(status)
    text = meaning() if meaning else message or (HTTPStatus(status).phrase if status in _STATUSES else "")
    return f"the Hub answered {status}: {first_line(text or 'no reason given')}"


def _explain_401(code: str) -> str:
    source = _token_source()
    if code == "GatedRepo":
        return f"access to the repository is restricted; ask for it on its page, and log in with {LOGIN}"
    if source is None:
        return f"the repository does not exist, or is private; check its name, or log in with {LOGIN}"
    return (
        f"the token is not valid or has expired ({source}); make a new one and set it with {LOGIN}, or remove it: a "
        "public repository can be read without one"
    )


def _explain_403(code: str, reads: bool) -> str:
    source = _token_source() or "none is set"
    if code == "GatedRepo":
        return (
            f"access to the repository is restricted; ask for it on its page with the account of this token, {source}"
        )
    if reads:
        return f"this token has no read access ({source}); use one that may read this repository"
    return f"this token has no write access ({source}); use one that may write to this repository"


def _explain_404(code: str, address: str) -> str:
    if code == "RevisionNotFound":
        return "the repository has no such branch, tag or commit"
    if code == "EntryNotFound":
        return f"the repository has no file {urlsplit(address).path.split('/resolve/')[-1].partition('/')[2]}"
    access = "this token has no access to it" if _token_source() else f"is private; log in with {LOGIN}"
    return f"the repository does not exist, or {access}"


def _explain_407() -> str:
    proxy = _proxy_in_use()
    which = f"the proxy {proxy[1]} of {proxy[0]}" if proxy else "the proxy"
    return f"{which} wants a user and a password; write them into its address"


def _token_source() -> str | None:
    """Where the token comes from; None without one."""
    from huggingface_hub import constants, get_token

    token = get_token()
    if token is None:
        return None
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable, "").strip() == token:
            return f"from {variable}"
    return f"from the saved login in {constants.HF_TOKEN_PATH}"


def _explain_proxy_setting(error: BaseException) -> tuple[str, bool] | None:
    """A proxy that cannot be used at all, whatever is asked for."""
    text = str(error)
    if isinstance(error, ImportError):
        if "socksio" not in text:
            return None
        for variable, value in _proxy_variables():
            if value.startswith("socks"):
                return (
                    f"a SOCKS proxy in {variable}, without the package that it needs; install it with "
                    f'pip install "httpx[socks]", or unset {variable}'
                ), True
        return None
    if "proxy URL" not in text and "proxy protocol" not in text.lower():
        return None
    for variable, value in _proxy_variables():
        if urlsplit(value).scheme not in ("http", "https", "socks5", "socks5h"):
            return (
                f"{_without_password(value)} as the proxy in {variable}; write it as http://host:port or "
                f"socks5://host:port, or unset {variable}"
            ), True
    return None


def _proxy_variables() -> Iterator[tuple[str, str]]:
    """The variables that name a proxy, in the order in which one of two spellings counts."""
    for scheme in ("all", "https", "http"):
        for variable in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY"):
            if value := os.environ.get(variable):
                yield variable, value


def _proxy_in_use() -> tuple[str, str] | None:
    """The variable and address of the proxy between this machine and the Hub; None without one."""
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    proxies = getproxies()
    address = proxies.get(hub.scheme) or proxies.get("all")
    if not address or proxy_bypass(hub.hostname or ""):
        return None
    variable = next((name for name, value in _proxy_variables() if value == address), "the system's settings")
    return variable, _without_password(address)


def _without_password(address: str) -> str:
    head, at, tail = address.rpartition("@")
    scheme = head.split("://")[0] + "://" if "://" in head else ""
    return f"{scheme}…@{tail}" if at else address


def _explain_cache(error: OSError) -> tuple[str, bool] | None:
    """A folder of downloaded files that cannot be written."""
    from huggingface_hub import constants

    home = os.path.abspath(constants.HF_HOME)
    folders = {
        "HF_HOME": home,
        "HF_HUB_CACHE": os.path.abspath(constants.HF_HUB_CACHE),
        "HF_XET_CACHE": os.path.abspath(constants.HF_XET_CACHE),
        "HF_DATASETS_CACHE": os.path.abspath(os.environ.get("HF_DATASETS_CACHE") or home),
    }
    file = os.path.abspath(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
    if file is None and error.errno in FULL:  # a write that fails does not know its file
        variable, reason = "HF_HOME", os.strerror(error.errno)
    else:
        variable = next((name for name, folder in folders.items() if file and holds_or_lies_in(file, folder)), None)
        reason = f"{file}: {os.strerror(error.errno)}"
    if variable is None:
        return None
    return (
        f"the cache of downloaded files in {folders[variable]} cannot be written ({reason}); make room or allow "
        f"writing there, or set {variable} to another folder"
    ), False


_STATUSES = {status.value for status in HTTPStatus}
