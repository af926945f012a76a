"""The app as a browser shows it; the fixture ``browser`` also asserts no console errors and no requests to other hosts."""

import http.client
import re
import urllib.request
from contextlib import contextmanager
from urllib.parse import urlencode

import panel as pn
import pytest
from app_browser import free_port, serving, turn_to
from conftest import TINY
from oauth_provider import providing

from refmotion_nb.cli.app import access_of
from refmotion_nb.cli.parser import parser_for
from refmotion_nb.views.app.opening import Opening
from refmotion_nb.views.app.tabs import TABS

pytestmark = pytest.mark.browser


def field(page, label):
    return page.get_by_label(label, exact=True).first


def enter(page, label, text):
    field(page, label).fill(text)
    field(page, label).press("Enter")


def test_the_owner_opens_the_example_and_who_looks_on_sees_it(app, browser):
    data, app.engine.session = app.engine.session, None
    app.engine.example = Opening("example", {"folder": "made", "settings": TINY})
    owner, other = browser.open(app.owner_url), browser.open(app.url)
    app.until(lambda: len(app.engine.viewers) == 2)
    assert sorted(viewer.may_run for viewer in app.engine.viewers) == [False, True]
    other.get_by_text("No data are open yet").wait_for()
    owner.get_by_role("button", name="Open the example").click()
    owner.get_by_role("progressbar").first.wait_for()
    for page in (owner, other):
        page.get_by_text("24 particles on 2 micrographs").wait_for()
        page.get_by_text("particles, 512 × 512 px").wait_for()
        page.locator("canvas").first.wait_for()  # the picture
    owner.get_by_role("button", name="Next ▶").click()
    owner.get_by_text("2 of 2: 12 particles").wait_for()
    assert other.get_by_text("1 of 2: 12 particles").is_visible()  # each looks where they like
    app.engine.take(data)


def test_who_looks_on_cannot_run_until_the_owner_lets_them(app, owner, browser):
    other = browser.open(app.url)
    other.get_by_role("button", name="Looking on").wait_for()
    other.get_by_text("Open data").click()
    assert other.get_by_role("button", name="Open", exact=True).is_disabled()
    assert field(other, "micrographs").is_disabled()
    turn_to(other, "Settings")
    assert field(other, "seed").is_disabled()
    shade = "one => getComputedStyle(one).backgroundColor"
    assert field(other, "device").evaluate(shade) == field(other, "seed").evaluate(shade)  # both as what is off
    turn_to(other, "Correct")
    other.get_by_text("You are looking on: the owner of this app can give you the right to run.").wait_for()
    turn_to(other, "Settings")
    owner.get_by_role("button", name="viewers").click()
    owner.get_by_role("button", name="Let run").last.click()  # the newest; pages closed before may still be listed
    app.until(lambda: [viewer.may_run for viewer in app.engine.viewers].count(True) > 1)
    owner.get_by_role("button", name="viewers").click()
    other.get_by_role("button", name="Reset all to defaults").wait_for()
    app.until(lambda: field(other, "seed").is_enabled())
    other.reload()
    other.get_by_role("button", name="viewers").wait_for()  # the right is not lost


def test_two_browsers_are_in_step_and_a_new_one_shows_the_present_state(app, owner, browser):
    one, two = browser.open(app.owner_url), owner
    for page in (one, two):
        turn_to(page, "Settings")
    enter(one, "max_strength", "1234")
    two.get_by_text("1 changed").wait_for()
    assert field(two, "max_strength").input_value() == "1234" and app.engine.settings == {"max_strength": 1234}
    enter(two, "window_reach_A", "0.5")
    two.get_by_text("give a number from 1 to 200").wait_for()
    one.context.close()
    new = browser.open(app.url)
    turn_to(new, "Settings")
    new.get_by_text("1 changed").wait_for()
    new.evaluate("scrollTo(0, 200)")
    turn_to(new, "Data")
    new.wait_for_function("scrollY == 0")
    turn_to(new, "Settings")
    new.reload()  # the tab is in the address
    new.get_by_text("1 changed").wait_for()
    two.get_by_role("button", name="Reset all to defaults").click()
    for page in (new, two):
        page.get_by_text("All are at their defaults").wait_for()


def test_help_is_reached_by_keys_and_shown(app, browser):
    owner = browser.open(app.owner_url)  # in which nothing is under way that could take the focus
    turn_to(owner, "Settings")
    field(owner, "max_strength").focus()
    owner.keyboard.press("Shift+Tab")
    icon = owner.get_by_label("Help on max_strength")
    assert icon.evaluate("one => one.matches(':focus')")
    owner.get_by_text("Maximum total prior strength").wait_for()
    assert "Maximum total prior strength" in icon.get_attribute("aria-description")
    assert owner.get_by_role("spinbutton", name="max_strength", exact=True).count() <= 1
    owner.keyboard.press("Tab")
    owner.get_by_text("Maximum total prior strength").wait_for(state="hidden")


def test_no_tab_is_wider_than_a_narrow_page(owner):
    owner.set_viewport_size({"width": 700, "height": 768})
    owner.locator("canvas").first.wait_for()
    for tab in (kind.title for kind in TABS):
        turn_to(owner, tab)
        owner.get_by_text("opening …").wait_for(state="hidden")
        assert owner.evaluate("document.documentElement.scrollWidth") == 700, tab


def test_a_long_path_does_not_break_the_top(app, owner, monkeypatch):
    monkeypatch.setattr(app.engine, "out", app.engine.roots.folders[0] / ("x" * 90) / "last")
    owner.set_viewport_size({"width": 860, "height": 768})  # what 1366 px leave while something runs
    line = owner.locator(".rm-header")
    line.locator("code[title$='/last']").wait_for()
    assert line.bounding_box()["height"] < 30
    switch = owner.get_by_role("button", name="☾ Dark").bounding_box()
    assert switch["y"] < 30 and switch["x"] + switch["width"] <= 1040


def test_paths_outside_are_refused_where_they_were_entered(app, owner):
    owner.get_by_role("heading", name="Open data").click()
    enter(owner, "micrographs", "../../../etc/passwd")
    for label in ("particles", "half map 1", "half map 2"):
        enter(owner, label, "/etc/passwd")
    owner.get_by_role("button", name="Check", exact=True).click()
    owner.get_by_text("is outside the folders that this app may use").first.wait_for()
    assert app.engine.checked.result is None


def test_controls_are_reached_by_keys_and_say_what_they_are(app, browser):
    owner = browser.open(app.owner_url)
    search = owner.get_by_role("button", name="Search", exact=True)
    search.focus()
    assert search.get_attribute("aria-pressed") == "false"
    owner.keyboard.press("Tab")
    dose = owner.get_by_role("button", name="Dose", exact=True)
    assert dose.evaluate("one => one.matches(':focus-visible') && getComputedStyle(one).outlineStyle") == "solid"
    owner.keyboard.press("Space")
    owner.get_by_text("Change the weights by hand").or_(owner.get_by_text("Signal and weights")).first.wait_for()
    assert dose.get_attribute("aria-pressed") == "true"
    owner.get_by_role("button", name="Dose weights of another run").press("Enter")
    field(owner, "dose_weights_last_frequency_per_A").wait_for()
    owner.get_by_role("button", name="Browse", exact=True).press("Enter")
    owner.get_by_label("what is in it").wait_for()


def test_a_run_goes_on_without_the_browser_that_started_it(app, browser):
    page = browser.open(app.owner_url)
    page.get_by_text("24 particles on 2 micrographs").wait_for()
    app.engine.change(spatial_strength=1.5, correlation_distance=3000.0, acceleration_strength=2.0)
    run = app.engine.run("dose-weights")
    page.context.close()
    run.wait(600)
    page = browser.open(app.owner_url, color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 26)"
    page.get_by_role("button", name="☀ Light").click()
    page.get_by_role("button", name="☾ Dark").wait_for()


def test_a_login_is_asked_for_where_it_is_set(browser, tmp_path):
    with serving(tmp_path, login={"basic_auth": "sesame"}) as served:
        page = browser.blank()
        page.goto(served.owner_url)
        page.wait_for_url("**/login**")
        assert not served.engine.numbers
        for address in ("", "files/report.html"):
            assert "/login?next=" in urllib.request.urlopen(served.url + address).url
        page.locator("input[name=username]").fill("ann")
        page.locator("input[name=password]").fill("sesame")
        page.locator("input[type=submit], button[type=submit]").first.click()
        page.get_by_role("button", name="Data", exact=True).wait_for()
        served.until(lambda: served.engine.viewers)
        assert [(viewer.name, viewer.owner) for viewer in served.engine.viewers] == [("ann", True)]
        page.context.close()  # else it asks for the rest of its files when nobody answers any more


def live(served, page):
    """Return the answer to a browser that asks for live updates with the cookies of ``page``."""
    cookies = "; ".join(f"{one['name']}={one['value']}" for one in page.context.cookies())
    host, path = served.url.removeprefix("http://").split("/", 1)
    asked = http.client.HTTPConnection(host, timeout=10)
    asked.request("GET", f"/{path}ws", headers={
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Origin": f"http://{host}",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Cookie": cookies})  # fmt: skip
    status = asked.getresponse().status
    asked.close()
    return status


@contextmanager
def behind_a_provider(folder, prefix=""):
    """Serve an app whose people log in through a provider; ann is the owner."""
    with providing() as provider:
        port = free_port()
        provider.back = f"http://127.0.0.1:{port}" + (f"/{prefix}/login" if prefix else "")
        options = ["app", "--port", str(port), "--prefix", prefix, "--owner", "ann", *provider.options]
        with serving(folder, **vars(access_of(parser_for("app").parse_args(options)))) as served:
            yield served


def test_a_provider_tells_who_logs_in(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(pn.state, "encryption", None)
    with behind_a_provider(tmp_path) as served:
        ann, bob = browser.blank(), browser.blank()
        assert live(served, ann) == 403
        bob.goto(served.url)
        bob.get_by_role("button", name="Deny").click()
        bob.get_by_text("The login failed. access_denied: The person does not want to.").wait_for()
        assert all("401" in line for line in browser.wrong)
        browser.wrong.clear()
        bob.get_by_text("Try again").click()
        ann.goto(served.url)
        for page, name in ((ann, "ann"), (bob, "bob")):
            page.get_by_label("Name").fill(name)
            page.get_by_role("button", name="Allow").click()
            page.get_by_role("button", name="Data", exact=True).wait_for()
        bob.get_by_role("button", name="Looking on").wait_for()
        ann.get_by_role("button", name="2 viewers").click()
        ann.get_by_text("ann (you): owner").wait_for()
        ann.get_by_text("bob: looks on").wait_for()
        assert live(served, ann) == 101
        assert max(len(one["value"]) for one in ann.context.cookies()) < 200, "the token is kept"
        ann.goto(served.url + "logout")
        ann.get_by_text("Log in again").click()
        ann.get_by_role("button", name="Allow").wait_for()
        assert live(served, ann) == 403
        for page in (ann, bob):
            page.context.close()


def test_a_login_finds_back_behind_a_prefix(tmp_path, monkeypatch):
    monkeypatch.setattr(pn.state, "encryption", None)
    with behind_a_provider(tmp_path, "cryo") as served:
        person = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        asked = person.open(served.url.rstrip("/"))  # whoever leaves out the last slash is led to the login, too
        state = re.search(r'name="state" type="hidden" value="(.*?)"', asked.read().decode())[1]
        answer = person.open(asked.url, urlencode({"state": state, "name": "ann"}).encode())
        assert answer.url == served.url and "The app needs JavaScript" in answer.read().decode()


def test_a_page_says_that_it_is_cut_off(browser, tmp_path):
    with serving(tmp_path) as served:
        page = browser.open(served.owner_url)
        lost = page.get_by_text("The connection to the app is lost")
        assert not lost.is_visible()
    lost.wait_for()
    page.get_by_role("link", name="Reload the page").wait_for()
