# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A page in a real browser: what it loads, what axe-core finds, and how it looks.

The browser is a Chromium of the system (Debian's ``chromium``), driven by playwright.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from lmr_guard.errors import ConfigError

__all__ = ["LOOKS", "Look", "Seen", "chromium", "look_at", "opened", "picture"]

Look = Literal["light", "dark", "print"]
LOOKS: tuple[Look, ...] = ("light", "dark", "print")

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_WIDE, _HIGH = 1000, 800
_SERIOUS = ("serious", "critical")
_COLOURS = 160


def chromium() -> str | None:
    """Where the system keeps a Chromium; None where it has none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def opened() -> Iterator[Browser]:
    """A headless browser.

    Raises:
        ConfigError: There is none.
    """
    program = chromium()
    if program is None:
        raise ConfigError(f"expected a browser, got none of {', '.join(_NAMES)}; install chromium")
    # Chromium's own sandbox does not work for root, as in a container.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What happened on a page.

    Args:
        loaded: Addresses beyond the page itself.
        said: What its console told, and every dialog that a script opened.
        serious: What axe-core calls serious or critical, a line each.
        minor: What it calls moderate or minor.
        picture: The upper part of the page as a PNG, empty where none was asked for.
    """

    loaded: tuple[str, ...]
    said: tuple[str, ...]
    serious: tuple[str, ...]
    minor: tuple[str, ...]
    picture: bytes


def look_at(browser: Browser, path: Path, look: Look, *, high: int = 0) -> Seen:
    """Opens a page in one look and lets axe-core check it.

    Args:
        browser: See ``opened``.
        path: Of the page.
        look: Which one.
        high: Pixels of the picture; 0 takes none.
    """
    # axe-core is a script, which the page's own policy forbids.
    context = browser.new_context(
        bypass_csp=True,
        viewport={"width": _WIDE, "height": _HIGH},
        color_scheme="dark" if look == "dark" else "light",
    )
    page = context.new_page()
    loaded: list[str] = []
    said: list[str] = []
    address = path.resolve().as_uri()
    page.on("request", lambda request: loaded.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: _dismiss(dialog, said))
    page.goto(address)
    if look == "print":
        page.emulate_media(media="print")
    taken = picture(page, high) if high else b""
    found = _violations(page)
    context.close()
    return Seen(
        loaded=tuple(url for url in loaded if url != address and not url.startswith("data:")),
        said=tuple(said),
        serious=tuple(_line(each) for each in found if each["impact"] in _SERIOUS),
        minor=tuple(_line(each) for each in found if each["impact"] not in _SERIOUS),
        picture=taken,
    )


def _dismiss(dialog: Dialog, said: list[str]) -> None:
    said.append(dialog.message)
    dialog.dismiss()


def picture(page: Page, high: int) -> bytes:
    """The upper part of a page as a small PNG."""
    whole = page.evaluate("document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": _WIDE, "height": min(high, whole)}
    taken = page.screenshot(clip=clip, full_page=True)  # type: ignore[arg-type]
    image = Image.open(BytesIO(taken)).convert("RGB")
    file = BytesIO()
    image.quantize(_COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _violations(page: Page) -> list[dict[str, Any]]:
    script = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    page.evaluate(script)
    found: list[dict[str, Any]] = page.evaluate("axe.run().then(found => found.violations)")
    return found


def _line(violation: dict[str, Any]) -> str:
    where = violation["nodes"][0]["target"]
    return f"{violation['id']} ({violation['impact']}): {violation['help']}; first at {where}"
