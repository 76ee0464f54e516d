"""`demo`: a page in the browser that classifies the images that are dropped on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from seedling_hf.arguments import option, parse_arguments
from seedling_hf.errors import InputError, require_package
from seedling_hf.inference.classifier import ClassifierArguments


@dataclass(kw_only=True)
class DemoArguments(ClassifierArguments):
    """Serve a page that classifies the images dropped on it."""

    threshold: float = option(0.5, "probability below which the page says that the model is not sure", least=0, most=1)
    top_k: int = option(5, "classes to show", least=1)
    host: str = option("127.0.0.1", "address to serve; 0.0.0.0 lets other machines in")
    port: int | None = option(None, "port to serve (default: the first free one from 7860)", least=1, most=65535)
    open_browser: bool = option(False, "open the page in this machine's browser")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model → page, until Ctrl-C."""
    arguments = parse_arguments(DemoArguments, argv, prog="demo")
    require_package("gradio", "the page", "demo")

    from seedling_hf.demo import build_demo, launch

    page = build_demo(
        arguments.model_name_or_path,
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
        raise InputError(f"expected a free port at {arguments.host}, found: {error}; change --port") from error
    print(f"The page is at {page.local_url}; Ctrl-C stops it.", flush=True)
    page.block_thread()
