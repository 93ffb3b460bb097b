"""What a browser sees of the dashboard, and when: pages of a server of its own in headless Chromium.

Times are those of the browser's own clock, which starts when it is told to go to an address. Every load has a new
server and a new profile, so nothing is cached; `again` is the same page opened a second time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE_SECONDS = 120
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
)
# Looks at every frame, and writes down when each thing is there for the first time.
WATCH = """
(() => {
  const seen = window.seen = {};
  const note = (name, there) => { if (there && !(name in seen)) { seen[name] = performance.now() / 1000; } };
  const filled = (id) => document.getElementById(id)?.childElementCount > 0;
  const points = (id) => (document.querySelector(`#${id} .js-plotly-plot`)?.calcdata ?? [])
    .reduce((count, trace) => count + trace.length, 0);
  const look = () => {
    note("list", document.querySelector("a.card"));
    note("front", points("front-figure") >= POINTS);
    note("whole page", ["headline", "picked", "candidate", "comparison", "tested", "costs"].every(filled)
      && points("front-figure") >= POINTS && points("progress-figure") > 0);
    requestAnimationFrame(look);
  };
  look();
})();
"""


def first_load(storage: str, path: str, *, points: int, until: str) -> dict[str, float]:
    """Return the seconds until each thing of a page is there, on the first visit and ``again``.

    Args:
        storage: of the record that is shown.
        path: of the page.
        points: that the figure of the front shall have.
        until: what comes last: ``list`` or ``whole page``.
    """
    with _browser(points) as browser, _server(storage) as address:  # the server is the younger one
        first = _visit(browser, address + path, until)
        again = _visit(browser, address + path, until)
    return {**first, **{f"{name} again": seconds for name, seconds in again.items()}}


@contextmanager
def _server(storage: str) -> Iterator[str]:
    """A dashboard's address, as soon as it is printed."""
    command = [sys.executable, "-m", "evomerge", "dashboard", "--storage", storage, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().split()[1].rstrip("/")
        finally:
            process.terminate()


@contextmanager
def _browser(points: int) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        raise SystemExit("no Chromium with chromedriver; on Debian: apt install chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            source = WATCH.replace("POINTS", str(points))
            browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
            yield browser
        finally:
            browser.quit()


def _visit(browser: Any, address: str, until: str) -> dict[str, float]:
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(address)
    WebDriverWait(browser, PATIENCE_SECONDS).until(lambda _: until in browser.execute_script("return window.seen"))
    return {name: round(seconds, 2) for name, seconds in browser.execute_script("return window.seen").items()}
