# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Pages in a real browser: nothing serious for axe-core, nothing loaded, nothing run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from modules import ROOT
from PIL import Image
from playwright.sync_api import Browser
from test_release_page import FULL, HOSTILE, NOTHING, REFUSED, written_by

from examples.lab.pages import browser
from examples.lab.pages.__main__ import RESULTS
from examples.lab.pages.runs import NAMES
from lmr_guard.release import page
from lmr_guard.release.records import Outcome
from lmr_guard.release.report import Report

PICTURES = ROOT / "docs" / "report"
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(browser.chromium() is None, reason="this system has no Chromium"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.opened() as opened:
        yield opened


class TestInABrowser:
    pytestmark = needs_browser

    @pytest.mark.parametrize("look", browser.LOOKS)
    @pytest.mark.parametrize("report", [FULL, REFUSED, NOTHING, written_by(HOSTILE)])
    def test_a_page_has_nothing_serious_and_does_nothing(
        self, chromium: Browser, tmp_path: Path, report: Report, look: browser.Look
    ) -> None:
        place = tmp_path / "report.html"
        page.write(report, place)
        seen = browser.look_at(chromium, place, look)
        assert (seen.serious, seen.minor, seen.loaded, seen.said) == ((), (), (), ())

    def test_what_is_wrong_with_a_page_is_seen(self, chromium: Browser, tmp_path: Path) -> None:
        place = tmp_path / "bad.html"
        place.write_text(
            "<html><title>x</title><img src='https://127.0.0.1:9/x.png'>"
            "<p style='color:#ddd;background:#fff'>pale</p><script>alert('ran')</script></html>"
        )
        seen = browser.look_at(chromium, place, "light", high=300)
        told = " ".join(seen.serious)
        assert "image-alt" in told
        assert "color-contrast" in told
        assert seen.loaded == ("https://127.0.0.1:9/x.png",)
        assert "ran" in seen.said
        assert seen.picture.startswith(b"\x89PNG")

    def test_the_policy_of_a_page_stops_what_an_injection_would_do(
        self, chromium: Browser, tmp_path: Path
    ) -> None:
        """Were escaping to fail, the page's own policy would still let no script run."""
        place = tmp_path / "report.html"
        injected = "</main><script>document.title = 'ran'</script>"
        place.write_text(page.html(FULL).replace("</main>", injected), "utf-8")
        opened = chromium.new_page()
        opened.goto(place.as_uri())
        assert opened.title().startswith("Passed: ")
        opened.close()

    def test_the_keyboard_reaches_the_wide_tables_and_opens_the_checks(
        self, chromium: Browser, tmp_path: Path
    ) -> None:
        place = tmp_path / "report.html"
        page.write(FULL, place)
        opened = chromium.new_page()
        opened.goto(place.as_uri())
        reached = []
        for _ in range(30):
            opened.keyboard.press("Tab")
            reached.append(
                opened.evaluate("document.activeElement.getAttribute('aria-label') ?? ''")
            )
            if opened.evaluate("document.activeElement.tagName") == "SUMMARY":
                opened.keyboard.press("Enter")
                break
        assert "Variants by triggers" in reached
        assert opened.evaluate("document.querySelectorAll('details[open]').length") == 1
        opened.close()

    def test_closed_parts_are_printed(self, chromium: Browser, tmp_path: Path) -> None:
        place = tmp_path / "report.html"
        page.write(FULL, place)
        opened = chromium.new_page()
        opened.goto(place.as_uri())
        high = "document.querySelector('details').getBoundingClientRect().height"
        before = opened.evaluate(high)
        opened.emulate_media(media="print")
        assert opened.evaluate(high) > 2 * before
        opened.close()


def test_the_committed_reports_are_one_of_each_verdict() -> None:
    found = {Report.read(RESULTS / f"{name}.json").verdict for name in NAMES}
    assert found == set(Outcome)


def test_the_pictures_in_the_documents_are_there_and_small() -> None:
    names = {f"{verdict.word}-{look}.png" for verdict in Outcome for look in browser.LOOKS}
    assert {path.name for path in PICTURES.glob("*.png")} == names
    for name in names:
        assert (PICTURES / name).stat().st_size < 150_000
        with Image.open(PICTURES / name) as image:
            assert image.width == 1000
