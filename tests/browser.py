"""A headless Chromium for tests of pages; they skip, with the reason, where playwright or a browser is missing."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
COLOURS_IN = """canvas => {
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const found = new Set();
  for (let i = 0; i < data.length; i += 4) if (data[i + 3]) found.add(`${data[i]},${data[i + 1]},${data[i + 2]}`);
  return [...found];
}"""
"""JavaScript: the distinct opaque colours of a canvas."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A running browser of playwright's interface; the system's own, since playwright's build is a download."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[dev]'")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)} on PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page from a file. `complaints`: console messages, script errors, and requests besides the file itself."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        scheme = "dark" if dark else "light"
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(f"console {m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.complaints.append(f"script: {e}"))
        self.page.on("request", lambda r: self.complaints.append(f"request: {r.url}"))
        self.page.on("dialog", lambda d: self.complaints.append(f"dialog: {d.message}"))
        self.page.goto(path.resolve().as_uri())
        self.complaints.remove(f"request: {path.resolve().as_uri()}")


def wait_until(page: Any, expression: str, seconds: float = 10) -> None:
    """Until a JavaScript expression holds; AssertionError where it does not in time.

    Playwright's own waiting evaluates strings inside the page, which the page's security policy forbids.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"{expression} is still false"
        page.wait_for_timeout(20)
