"""`demo`: a page in the browser that classifies the images that are dropped on it."""

import errno
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from seedling_hf.arguments import option, parse_arguments
from seedling_hf.errors import InputError, require_package
from seedling_hf.inference.classifier_arguments import ClassifierArguments
from seedling_hf.network import without_proxies
from seedling_hf.progress import idling
from seedling_hf.signals import Terminated


@dataclass(kw_only=True)
class DemoArguments(ClassifierArguments):
    """Serve a page that classifies the images dropped on it.

    Examples:
        seedling-hf demo
        seedling-hf demo --model_name_or_path outputs/quickstart --threshold 0.7
    """

    _takes_several = True

    threshold: float | None = option(
        None,
        "probability below which the page says that the model is not sure (default: the confidence_threshold of the "
        "model, or else 0.5)",
        least=0,
        most=1,
    )
    top_k: int = option(5, "classes to show", least=1)
    host: str = option("127.0.0.1", "address to serve; 0.0.0.0 lets other machines in")
    port: int | None = option(None, "port to serve (default: the first free one from 7860)", least=1, most=65535)
    open_browser: bool = option(False, "open the page in this machine's browser")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model → page, until Ctrl-C or SIGTERM."""
    arguments = parse_arguments(DemoArguments, argv, prog="demo")
    with uploads():
        with without_proxies():  # gradio makes its clients when it is imported
            require_package("gradio", "the page")
        serve(arguments)


def serve(arguments: DemoArguments) -> None:
    """Serves the page until it is interrupted."""
    from seedling_hf.demo.page import build_demo, launch

    check_address(arguments.host, arguments.port)
    page = build_demo(
        arguments.members,
        name=arguments.model_name,
        revision=arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
        threshold=arguments.threshold,
        top_k=arguments.top_k,
    )
    try:
        launch(
            page,
            server_name=arguments.host,
            server_port=arguments.port,
            inbrowser=arguments.open_browser,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise InputError(
            f"expected a free port at {arguments.host}, found all from 7860 on taken; choose one with --port"
        ) from error
    try:
        print(f"The page is at {page.local_url}; Ctrl-C stops it.", flush=True)
        with idling():
            threading.Event().wait()
    finally:
        page.close(verbose=False)


def check_address(host: str, port: int | None) -> None:
    """Refuses an address that cannot be served, before a model is loaded.

    Raises:
        InputError: names the flag.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
            tried.bind(address)
            tried.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"expected a free --port, found {port} taken by another program; choose another, or leave --port out "
                "for the first free one"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise InputError(f"expected a --port that you may serve, found {port}; choose one above 1023") from error
        raise InputError(f"expected an address of this machine as --host, found {host}; leave it out") from error


@contextmanager
def uploads() -> Iterator[None]:
    """A folder for what is dropped on the page, which goes with the command."""
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="demo-", dir=parent, ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when gradio is imported
        try:
            yield
        except Terminated:
            raise
        except KeyboardInterrupt:
            print("stopped", flush=True)
        finally:
            if parent is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = parent
