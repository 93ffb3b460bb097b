"""The dashboard in a real headless Chromium: loads without errors, shows and opens the right things, follows, asks."""

from __future__ import annotations

import shutil
import threading

import pytest

pytest.importorskip("dash")
pytest.importorskip("waitress")
selenium = pytest.importorskip("selenium.webdriver")
from selenium.common.exceptions import JavascriptException, StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

from evomerge.dashboard.app import Server  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE_SECONDS = 90  # of a test that will fail; a slow machine is no failure
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--enable-unsafe-swiftshader",
    "--window-size=1280,900",
)
CLICK = """
document.querySelector('#front-figure .js-plotly-plot').emit(
  'plotly_click', {points: [{id: arguments[0], curveNumber: 0, pointNumber: 0, x: 0, y: 0}], event: {}});"""
DRAWN = """
const found = {};
for (const trace of document.querySelector('#front-figure .js-plotly-plot').calcdata) {
  for (const point of trace) { if (point.id !== undefined) { found[point.id] ??= [point.x, point.y]; } }
}
return found;"""

LIBRARY = "return performance.getEntriesByType('resource').filter(e => e.name.endsWith('/plotly.min.js')).length"
SHOWN_AXES = "return [...document.querySelectorAll('label.axis:not([hidden]) button')].map(axis => axis.id)"
NICHES_COLOUR = """
const plot = document.querySelector('#niches .js-plotly-plot');
return plot && plot._fullLayout ? plot._fullLayout.paper_bgcolor : null;"""

COLOUR = "return document.documentElement.dataset.theme"
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
FOCUSED = """
const it = document.activeElement;
return [it.id, it.className, it.getAttribute('role') ?? it.tagName.toLowerCase()].map(String).join(' ');"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver; on Debian: chromium-driver"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(PATIENCE_SECONDS)
    yield driver
    driver.quit()


@pytest.fixture
def serve(storage):
    servers = []

    def start(**arguments):
        server = Server(storage, port=0, **arguments)
        threading.Thread(target=server.run, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def until(browser, condition):
    """Wait for a true value of ``condition()``; the page may be drawn again meanwhile."""
    ignored = (JavascriptException, StaleElementReferenceException)
    return WebDriverWait(browser, PATIENCE_SECONDS, ignored_exceptions=ignored).until(lambda _: condition())


def text(browser, selector):
    return " ".join(element.text for element in browser.find_elements(By.CSS_SELECTOR, selector))


def errors(browser):
    return [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]


def hosts(browser):
    """Hosts that the browser asked for something."""
    import json
    from urllib.parse import urlsplit

    found = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(message["params"]["request"]["url"])
            if url.scheme in ("http", "https", "ws", "wss"):
                found.add(url.hostname)
    return found


def test_from_the_list_to_a_candidate_and_on_while_the_search_grows(browser, serve, finished):
    server = serve()
    browser.get(server.address())
    card = until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "a.card"))[0]
    assert "ja-math" in card.text
    assert "finished" in card.text
    card.click()

    # the front shows what the record says, and nothing else
    results = finished.results
    until(browser, lambda: len(browser.execute_script(DRAWN)) > 20)
    drawn = browser.execute_script(DRAWN)
    assert {int(key) for key in drawn} == {c.number for c in results.candidates if c.state == "measured"}
    names = results.chooser.names
    for key, (x, y) in drawn.items():
        values = results.candidate(int(key)).values("search", names)
        assert (x, y) == pytest.approx((values[0], values[1]), abs=1e-6)

    # the winner is open; a click opens another candidate, and the address names it
    until(browser, lambda: f"--candidate {results.winner.number}" in text(browser, "#candidate"))
    other = next(c for c in results.front if c.number != results.winner.number)
    browser.execute_script(CLICK, str(other.number))
    until(browser, lambda: f"--candidate {other.number} " in text(browser, "#candidate") + " ")
    assert browser.current_url.endswith(f"?candidate={other.number}")
    value = results.estimate(other, "search")["joint"].value
    assert f"{value:.3f}" in text(browser, "#candidate")
    until(browser, lambda: "paired" in text(browser, "#comparison"))

    # something new is recorded: the page follows
    assert f"{results.spent:,} of" in text(browser, "#headline")
    finished.add_candidates(3)
    until(browser, lambda: f"{results.spent + 3:,} of" in text(browser, "#headline"))
    until(browser, lambda: str(len(results.candidates) + 2) in browser.execute_script(DRAWN))

    # a view has as many axes to choose as it shows; a slider says to screen readers what it weighs
    assert browser.execute_script(SHOWN_AXES) == ["axis-x", "axis-y"]
    browser.execute_script("document.querySelectorAll('#view input')[2].click()")
    until(browser, lambda: browser.execute_script(SHOWN_AXES) == [])
    label = "const s = document.querySelector('[role=slider]'); s.focus(); return s.getAttribute('aria-label')"
    assert browser.execute_script(label) == names[0]

    # keyboard: the first tab stop skips to the content; the button switches the colours, of what was asked for too
    browser.execute_script("document.querySelector('#niches-button').click()")
    until(browser, lambda: browser.execute_script(NICHES_COLOUR))
    colour = browser.execute_script(NICHES_COLOUR)
    toggle = browser.find_element(By.ID, "toggle")
    before = browser.execute_script(COLOUR)
    toggle.send_keys("\n")
    until(browser, lambda: browser.execute_script(COLOUR) != before)
    until(browser, lambda: browser.execute_script(NICHES_COLOUR) not in (None, colour))
    assert errors(browser) == []
    assert hosts(browser) == {"127.0.0.1"}


def test_hostile_names_stay_texts(browser, serve, make_search):
    evil = "<img src=x onerror=window.hacked=1>"
    search = make_search(objectives=[{"task": evil}, {"task": "code_small"}])
    search.add_seeds()
    search.add_candidates(10, fail_every=4)
    server = serve()
    browser.get(server.address("ja-math"))
    until(browser, lambda: evil in text(browser, "#candidate"))
    until(browser, lambda: len(browser.execute_script(DRAWN)) > 5)
    assert browser.execute_script(LIBRARY) == 1  # what is loaded ahead is not loaded again
    assert browser.execute_script("return window.hacked") is None
    assert browser.find_elements(By.CSS_SELECTOR, "img[src='x']") == []
    assert errors(browser) == []


def test_the_token_is_asked_for_once(browser, serve, finished):
    server = serve(token="a-long-secret")
    browser.get(server.address().partition("?")[0])
    assert "asks for a token" in text(browser, "body")
    browser.get(server.address("ja-math"))
    until(browser, lambda: "finished" in text(browser, "#headline"))
    assert "token" not in browser.current_url
    browser.get(server.address().partition("?")[0])  # the cookie is enough
    until(browser, lambda: "ja-math" in text(browser, "a.card"))
    assert browser.execute_script("return document.cookie") == ""  # scripts cannot read it


@pytest.fixture
def phone(browser):
    """The browser with the screen of a phone."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("search", [None, "ja-math"], ids=["list", "search"])
def test_it_fits_a_phone_in_both_colours(phone, serve, finished, search):
    phone.get(serve().address(search))
    until(phone, lambda: text(phone, "#comparison" if search else "a.card"))
    if search:
        until(phone, lambda: len(phone.execute_script(DRAWN)) > 20)
    assert phone.execute_script("return document.documentElement.clientWidth") == 390
    colour = phone.execute_script(COLOUR)
    assert phone.execute_script(OVERFLOW) <= 0
    phone.find_element(By.ID, "toggle").click()
    until(phone, lambda: phone.execute_script(COLOUR) != colour)
    assert phone.execute_script(OVERFLOW) <= 0


def test_it_needs_no_mouse(browser, serve, finished):
    browser.get(serve().address("ja-math"))
    until(browser, lambda: len(browser.execute_script(DRAWN)) > 20)
    until(browser, lambda: "paired" in text(browser, "#comparison"))

    # the first stop skips to the content; from there every control is reached
    keys = selenium.ActionChains(browser)
    keys.send_keys(Keys.TAB).perform()
    assert "skip" in browser.execute_script(FOCUSED)
    keys.send_keys(Keys.ENTER).perform()
    until(browser, lambda: browser.execute_script(FOCUSED).startswith("page"))
    stops = []
    for _ in range(60):
        keys.send_keys(Keys.TAB).perform()
        stops.append(browser.execute_script(FOCUSED))
    reached = " | ".join(stops)
    for control in ("axis-x", "axis-y", "slider", "first", "second", "objective", "split", "niches-button"):
        assert control in reached, f"{control} is not among {reached}"

    # arrows move a slider, and another model may suit
    shown = browser.find_elements(By.CSS_SELECTOR, "[role=slider]")
    before = shown[0].get_attribute("aria-valuenow")
    shown[0].send_keys(Keys.ARROW_LEFT)
    until(
        browser, lambda: browser.find_element(By.CSS_SELECTOR, "[role=slider]").get_attribute("aria-valuenow") != before
    )
    named = controls(browser)
    assert {"button", "link", "slider", "radio", "spinbutton"} <= {role for role, _ in named}
    assert [role for role, name in named if not name] == []


def controls(browser):
    """What can be operated, as a screen reader is told: roles and names."""
    roles = {"button", "link", "slider", "combobox", "textbox", "radio", "checkbox", "spinbutton"}
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    shown = [node for node in nodes if not node.get("ignored") and node.get("role", {}).get("value") in roles]
    return [(node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in shown]
