"""How long a browser waits for the app: from opening a page to its tabs, and from a click on each tab to an answer.

python benchmarks/first_paint.py [--loads 20]

Each load is a Chromium started anew, with nothing in its cache. An answer is what is seen first: the tab, or that it opens.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from app_browser import CHROMIUM, FLAGS, serving

TABS = ("Priors", "Search", "Dose", "Correct", "Results", "Compare", "Settings", "Data")
ANSWERED = """tab => new Promise(done => {
    const all = root => [...root.querySelectorAll("*")].flatMap(one => [one, ...(one.shadowRoot ? all(one.shadowRoot) : [])]);
    const button = all(document).find(one => one.tagName == "BUTTON" && one.textContent.trim() == tab);
    const parts = one => ["rm-card", "rm-words", "rm-empty"].some(name => one.classList.contains(name));
    const seen = () => all(document).filter(one => (parts(one) || one.tagName == "H3") && one.checkVisibility())
        .filter(one => one.getBoundingClientRect().height > 0).map(one => (one.shadowRoot ?? one).textContent).join("|");
    const before = seen(), start = performance.now();
    button.click();
    const look = () => seen() != before ? done(performance.now() - start) : requestAnimationFrame(look);
    look();
})"""


def load(playwright: Any, chromium: str, url: str) -> tuple[float, float, dict[str, list[float]]]:
    """Return the seconds to the first paint and to the tabs, and the seconds of each answer: first time, second time."""
    browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
    page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
    begun = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.get_by_role("button", name="Data", exact=True).wait_for()
    tabs = time.perf_counter() - begun
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000")
    page.wait_for_timeout(1500)  # let the first tab come
    answers: dict[str, list[float]] = {tab: [] for tab in TABS}
    for _ in range(2):
        for tab in TABS:
            answers[tab].append(page.evaluate(ANSWERED, tab) / 1000)
            page.wait_for_timeout(1500)
    browser.close()
    return paint, tabs, answers


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=20)
    loads = parser.parse_args().loads
    chromium = next(filter(None, map(shutil.which, CHROMIUM)))
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as served, sync_playwright() as playwright:
        load(playwright, chromium, served.owner_url)  # the server's own first time
        measured = [load(playwright, chromium, served.owner_url) for _ in range(loads)]
    print(f"{loads} loads in a new Chromium: median, 95th percentile (s)")
    rows = {"first paint": [one[0] for one in measured], "tabs are there": [one[1] for one in measured]}
    for i, when in enumerate(("first", "again")):
        rows |= {f"{tab}, {when}": [one[2][tab][i] for one in measured] for tab in TABS}
    for what, seconds in rows.items():
        print(f"{what:18s} {np.median(seconds):6.2f} {np.percentile(seconds, 95):6.2f}")


if __name__ == "__main__":
    main()
