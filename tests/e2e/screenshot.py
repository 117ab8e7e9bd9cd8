"""The picture in README, from the demo's own processes: `make screenshot`.

Three nodes, a strict origin and too much load, as `egressd demo` has them; the page is one of the
nodes'. The picture is taken a while after the origin's 429, so that the pause is in the lines.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from fakes.browser import Browser, missing

from gateway.demo.display import make_display
from gateway.demo.scene import Scene

FIGURES = Path(__file__).resolve().parent / "figures"
SECONDS = 25.0  # of load before the 429 and after it
PICTURES = (
    ("dashboard-light", "light", (1280, 1290)),
    ("dashboard-dark", "dark", (1280, 1290)),
    ("dashboard-phone", "light", (360, 780)),
)


async def play() -> None:
    """Plays the demo up to its pause, and takes the pictures."""
    with tempfile.TemporaryDirectory(prefix="egressd-screenshot-") as folder:
        scene = Scene(Path(folder), make_display(True))
        # A browser that starts takes the processors away for a second: not while the load rises.
        with Browser() as browser:
            try:
                await scene.start()
                url = f"http://127.0.0.1:{scene.nodes[0].ports.admin}/"
                await asyncio.to_thread(browser.open, url)
                await scene.watch("steady", SECONDS)
                await scene.pause()
                await scene.watch("after", SECONDS)
                if scene.findings.refused_unasked:
                    raise SystemExit("the origin refused unasked: the machine is too busy")
                await asyncio.to_thread(pictures, browser)
            finally:
                await scene.stop()


def pictures(browser: Browser) -> None:
    """On a desk in light and dark, and on a phone."""
    for name, scheme, size in PICTURES:
        browser.scheme(scheme)
        browser.size(*size)
        browser.until_text("#link", "live")
        browser.picture(FIGURES / f"{name}.png")
    complaints = browser.complaints()
    assert not complaints, complaints


if __name__ == "__main__":
    if missing():
        raise SystemExit(missing())
    FIGURES.mkdir(exist_ok=True)
    asyncio.run(play())
