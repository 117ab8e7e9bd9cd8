"""Chromium without a screen, driven by Selenium: what a page shows, asks for and complains about.

Debian's chromium and chromium-driver (`make browser` installs them); a test is skipped where they
are not there. The browser has a profile of its own that goes with it, and makes no request but for
the page: what Chromium does by itself is switched off, and `hosts` tells whom it asked.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fakes.nodes import until

__all__ = ["Browser", "missing"]

FLAGS = (
    "--headless",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
WIDTH, HEIGHT = 1280, 900
PHONE_WIDTH, PHONE_HEIGHT = 360, 740
SHOWN_SECONDS = 8.0  # a snapshot comes each second, but the machine may be busy


def missing() -> str:
    """Why there is no browser; "" where there is one."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is not installed; `make browser` does that"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    return ""


class Browser:
    """One browser with one page. Use as a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="egressd-browser-")
        self._driver: Any = None
        self.hosts: set[str] = set()
        self.urls: list[str] = []

    def __enter__(self) -> Browser:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={self._folder}", f"--window-size={WIDTH},{HEIGHT}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = Service(str(shutil.which("chromedriver")))
        self._driver = webdriver.Chrome(options=options, service=service)
        return self

    def __exit__(self, *exc: object) -> None:
        self._driver.quit()
        shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, url: str) -> None:
        """Opens a page as somebody who has never seen it; what came before is forgotten."""
        self.complaints()
        self.requests()
        self.hosts.clear()
        self.urls.clear()
        self.size(WIDTH, HEIGHT)
        self.scheme("light")
        self._driver.get(url)

    @contextmanager
    def prepared(self, script: str) -> Iterator[None]:
        """Pages that are opened meanwhile run this before their own scripts."""
        command = "Page.addScriptToEvaluateOnNewDocument"
        made = self._driver.execute_cdp_cmd(command, {"source": script})
        try:
            yield
        finally:
            self._cdp("Page.removeScriptToEvaluateOnNewDocument", made)

    def reload(self) -> None:
        self._driver.refresh()

    def leave(self) -> None:
        """To an empty page, so that no test's page asks on."""
        self._driver.get("about:blank")

    # What it is like.

    def size(self, width: int, height: int) -> None:
        """The viewport; below 600 it is a phone's."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )

    def phone(self) -> None:
        self.size(PHONE_WIDTH, PHONE_HEIGHT)

    def scheme(self, name: str) -> None:
        """ "light" or "dark", as the system's setting."""
        features = [
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self._cdp("Emulation.setEmulatedMedia", {"features": features})

    # What it shows.

    def run(self, script: str, *arguments: object) -> Any:
        """What a function's body returns in the page."""
        return self._driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """The text of the first element that fits and is shown; "" where none is."""
        found: str = self.run(
            "const all = [...document.querySelectorAll(arguments[0])];"
            "const shown = all.find((one) => one.checkVisibility());"
            "return shown === undefined ? '' : shown.textContent;",
            selector,
        )
        return found

    def texts(self, selector: str) -> list[str]:
        """The texts of all that fit and are shown."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((one) => one.checkVisibility()).map((one) => one.textContent);",
            selector,
        )
        return found

    def number(self, selector: str) -> float:
        """The first number of a text: 44.9 of "44.9/s"; -1.0 where there is none."""
        digits = self.text(selector).replace(",", "").partition("/")[0].split(" ")[0]
        try:
            return float(digits)
        except ValueError:
            return -1.0

    def until(
        self, condition: Callable[[], object], what: str, seconds: float = SHOWN_SECONDS
    ) -> None:
        """Looks until it holds; the page's complaints are told where it does not."""
        try:
            until(condition, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page: {self.complaints()}") from None

    def until_text(self, selector: str, wanted: str, seconds: float = SHOWN_SECONDS) -> None:
        self.until(lambda: wanted in self.text(selector), f"{selector} says {wanted!r}", seconds)

    # What is done to it.

    def click(self, selector: str) -> None:
        self._driver.find_element("css selector", selector).click()

    def type(self, keys: str) -> None:
        """Keys to whatever has the focus."""
        self._driver.switch_to.active_element.send_keys(keys)

    def focused(self) -> str:
        """What has the focus: its accessible name, or its text."""
        found: str = self.run(
            "const one = document.activeElement;"
            "return one.ariaLabel ?? one.labels?.[0]?.textContent ?? one.textContent.trim();"
        )
        return found

    # What it did.

    def complaints(self) -> list[str]:
        """What the console got since the last look: errors, warnings, refused policies."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The URLs asked for since the page was opened; `hosts` has whom."""
        for entry in self._driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("data:", "about:", "chrome:")):
                    self.urls.append(url)
                    self.hosts.add(urlsplit(url).netloc)
        return self.urls

    def picture(self, path: Path) -> None:
        """A screenshot of the viewport."""
        self._driver.save_screenshot(str(path))

    def _cdp(self, command: str, arguments: dict[str, Any]) -> None:
        self._driver.execute_cdp_cmd(command, arguments)
