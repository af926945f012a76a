"""The app as a browser shows it."""

import pytest

pytestmark = pytest.mark.browser


def test_the_owner_runs_and_others_look_on(app, browser):
    owner, other = browser.open(app.owner_url), browser.open(app.url)
    app.until(lambda: len(app.engine.viewers) == 2)
    assert sorted(viewer.may_run for viewer in app.engine.viewers) == [False, True]
    owner.get_by_text("24 particles on 2 micrographs").wait_for()
    other.get_by_role("button", name="Looking on").wait_for()
