"""What can be judged of a page without eyes: contrast, names, order, width. In the page's words."""

from __future__ import annotations

from fakes.browser import Browser

__all__ = ["faults", "looks_right"]

# WCAG 2.2: 1.4.3 (contrast 4.5, large text 3), 1.1.1 and 4.1.2 (names), 1.3.1 (structure), 2.5.8
# (24 px targets), 1.4.10 (no scrolling in two directions).
_SCRIPT = r"""
const faults = [];
const shown = (one) => one.checkVisibility({ opacityProperty: true, visibilityProperty: true });
const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const rgba = (text) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (rgb) => {
  const [r, g, b] = rgb.slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (node) => {
  for (let one = node; one !== null; one = one.parentElement) {
    const colour = rgba(getComputedStyle(one).backgroundColor);
    if (colour[3] > 250) return colour;
  }
  return [255, 255, 255, 255];
};
const unseen = (node) => node.closest(".unseen, .skip") !== null;

let texts = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  const text = walker.currentNode.textContent.trim();
  if (text === "" || !shown(node) || unseen(node)) continue;
  texts += 1;
  const style = getComputedStyle(node);
  const [one, other] = [light(rgba(style.color)), light(ground(node))].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (other + 0.05);
  const large = parseFloat(style.fontSize) >= 24
    || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 600);
  if (ratio < (large ? 3 : 4.5)) faults.push(`contrast ${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
}
if (texts < 5) faults.push(`only ${texts} texts are shown`);

for (const one of document.querySelectorAll("button, input, select, a[href], [role]")) {
  if (!shown(one)) continue;
  const by = one.getAttribute("aria-labelledby");
  const name = one.ariaLabel ?? (by === null ? null : document.getElementById(by)?.textContent)
    ?? one.labels?.[0]?.textContent ?? one.textContent;
  const silent = ["status", "alert"].includes(one.getAttribute("role"));
  if (name.trim() === "" && !silent) faults.push(`no name: ${one.outerHTML.slice(0, 80)}`);
  const box = one.getBoundingClientRect();
  if (one.matches("button, input, select") && (box.width < 24 || box.height < 24)) {
    faults.push(`smaller than a finger: ${name}`);
  }
}
for (const one of document.querySelectorAll("img:not([alt])")) faults.push("an image without alt");
const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
for (const id of ids.filter((one, at) => ids.indexOf(one) !== at)) faults.push(`two have id ${id}`);
for (const one of document.querySelectorAll("th:not([scope])")) faults.push("a th without scope");
let level = 0;
for (const one of document.querySelectorAll("h1, h2, h3, h4")) {
  if (!shown(one)) continue;
  const now = Number(one.tagName[1]);
  if (now > level + 1) faults.push(`a heading is skipped before "${one.textContent}"`);
  level = now;
}
if (document.documentElement.lang === "") faults.push("no language");
if (document.querySelectorAll("main").length !== 1) faults.push("not one main");
if (document.title === "") faults.push("no title");
const wide = document.documentElement.scrollWidth;
if (wide > innerWidth) {
  const out = [...document.querySelectorAll("body *")]
    .filter((one) => shown(one) && !unseen(one))
    .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
    .map((one) => `${one.tagName}.${one.className}`).slice(0, 5);
  faults.push(`${wide} px wide in ${innerWidth}: ${out.join(", ")}`);
}
for (const one of document.querySelectorAll("td, th, dd, dt, .pill, .big, button")) {
  if (!shown(one)) continue;
  const box = one.getBoundingClientRect();
  if (box.right > innerWidth + 1 && one.closest(".scroll") === null) {
    faults.push(`cut off: ${one.textContent.slice(0, 40)}`);
  }
}
return faults;
"""


def faults(browser: Browser) -> list[str]:
    """What is wrong with the page as it looks now, a sentence each."""
    found: list[str] = browser.run(_SCRIPT)
    return found


def looks_right(browser: Browser) -> None:
    """In light and dark, on a desk and on a phone."""
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        browser.phone()
        assert faults(browser) == [], f"{scheme}, phone"
        browser.size(1280, 900)
        assert faults(browser) == [], f"{scheme}, desk"
