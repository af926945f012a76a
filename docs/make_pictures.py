"""Take the pictures of the app, ``python docs/make_pictures.py FOLDER``: two minutes, with a Chromium and the extra ``test``.

The app opens the example in FOLDER, whose path is in the pictures, searches and corrects there; what is drawn is what people see.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
WAIT_MS = 300_000


@contextmanager
def slowed(process: subprocess.Popen[str]) -> Iterator[None]:
    """Let a process run for a tenth of the time only."""
    over = Event()

    def hold() -> None:
        while not over.wait(0.03):
            process.send_signal(signal.SIGSTOP)
            over.wait(0.27)
            process.send_signal(signal.SIGCONT)

    thread = Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def take(page: Page, link: str, app: subprocess.Popen[str]) -> None:
    """Open the example, search until rays have retired, correct, and take a picture of each."""
    page.goto(link)
    page.get_by_role("button", name="Open the example").click()
    page.get_by_text("144 particles on 4 micrographs").first.wait_for()
    page.get_by_role("button", name="Search", exact=True).first.click()
    page.get_by_role("button", name="Start search").click()
    with slowed(app):  # all that there is to see passes within a second
        page.get_by_text(re.compile("still walking, [3-7] retired")).wait_for()
        page.screenshot(path=IMAGES / "app_search.png")
    page.get_by_text("Rays, the best first").wait_for()
    page.get_by_role("button", name="Correct", exact=True).first.click()
    page.get_by_role("button", name="Correct and validate").click()
    page.get_by_role("button", name="Results", exact=True).first.click()
    page.set_viewport_size({"width": 1100, "height": 1640})
    page.get_by_role("cell", name="trajectories, empirical weights").wait_for()
    page.get_by_text("144 of 144 particles written").wait_for()
    page.locator(".rm-figure canvas").nth(17).wait_for()  # curves, 2 maps, 15 particles
    page.wait_for_timeout(2000)
    page.screenshot(path=IMAGES / "app_results.png")


def main() -> None:
    """Serve the app to a browser of its own."""
    (folder,) = sys.argv[1:]
    app = subprocess.Popen([sys.executable, "-m", "refmotion_nb", "app", "--browse", folder, "--port", "5099"],
                           stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert app.stderr is not None
        link = next(word for line in app.stderr for word in line.split() if "key=" in word)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1366, "height": 940})
            page.set_default_timeout(WAIT_MS)
            take(page, link, app)
            browser.close()
    finally:
        app.terminate()
        app.wait()


if __name__ == "__main__":
    main()
