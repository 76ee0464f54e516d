"""A real browser for tests: the system's Chromium, steered by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless Chromium; skips the test, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[test]'")
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"needs a Chromium on the path ({', '.join(NAMES)})")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def visit(browser: Any, address: str, *, width: int = 1100, height: int = 800) -> tuple[Any, list[str], list[str]]:
    """Opens a page: the page, the addresses that it asked for, and what its console complained about."""
    page = browser.new_page(viewport={"width": width, "height": height})
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address, wait_until="networkidle")
    return page, requests, complaints
