// A line chart of the last five minutes, as SVG: colours come from the style sheet, so light and
// dark need no drawing anew, and what is shown can be read out.

import { el, put, show, svg } from "./dom.js";
import { SPAN_S } from "./history.js";

const HEIGHT = 100;
const SPANS_S = [60, 120, SPAN_S]; // a page that was just opened has no five minutes to show
const HEADROOM = 1.12; // a sum at its limit is not at the chart's edge

/** `series`: [{name, title, stack: true for an area on top of the ones before}, …]; a value is
 * point[name]. Points with `open` are shaded, `line` is dashed. `text(value)` writes a value. */
export class Chart {
  constructor(series, text, summary) {
    this.series = series;
    this.text = text;
    this.summary = summary;
    this.points = [];
    this.visible = false;
    this.span = SPAN_S;
    this.bands = svg("g");
    this.grid = svg("path", { class: "grid", d: "" });
    this.paths = series.map((one) =>
      svg("path", { class: `${one.stack ? "area" : "line"} ${one.name}` }));
    this.sum = svg("path", { class: "line sum" });
    this.rate = svg("path", { class: "line rate" });
    this.cross = svg("path", { class: "cross", d: "" });
    this.svg = svg(
      "svg",
      { viewBox: `0 0 ${SPAN_S} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      this.bands, this.grid, ...this.paths, this.sum, this.rate, this.cross,
    );
    this.top = el("span", { class: "y top" });
    this.at = el("span", { class: "y at" });
    this.tip = el("span", { class: "tip", hidden: "" });
    const plot = el("div", { class: "plot" }, this.svg, this.top, this.at, this.tip);
    this.begin = el("span");
    this.node = el("div", { class: "chart" }, plot,
      el("div", { class: "x", "aria-hidden": "true" }, this.begin, el("span", { text: "now" })));
    plot.addEventListener("pointermove", (event) => this.point(event));
    plot.addEventListener("pointerleave", () => this.leave());
    this.node.chart = this;
    watcher.observe(this.node);
  }

  update(points) {
    this.points = points;
    if (this.visible) this.draw();
  }

  draw() {
    const points = this.points;
    if (points.length === 0) return;
    const end = points.at(-1).t;
    this.span = SPANS_S.find((span) => points[0].t >= end - span) ?? SPAN_S;
    const x = (point) => this.x(point);
    const high = highest(points, this.series);
    const y = (value) => HEIGHT - (HEIGHT * value) / high;
    const base = points.map(() => 0);
    for (const [index, one] of this.series.entries()) {
      const path = this.paths[index];
      const tops = points.map((point, at) => (point[one.name] ?? null) === null
        ? null : point[one.name] + (one.stack ? base[at] : 0));
      path.setAttribute("d", one.stack ? area(points, tops, base, x, y) : line(points, tops, x, y));
      if (one.stack) tops.forEach((top, at) => { base[at] = top; });
    }
    if (this.series[0].stack) this.sum.setAttribute("d", line(points, base, x, y));
    put(this.begin, `${this.span / 60} min ago`);
    const lines = points.map((point) => Number.isFinite(point.line) ? point.line : null);
    this.rate.setAttribute("d", line(points, lines, x, y));
    this.grid.setAttribute("d", [25, 50, 75].map((at) => `M0 ${at}H${SPAN_S}`).join(""));
    this.shade(points, x);
    put(this.top, this.mark(high));
    const now = lines.at(-1);
    show(this.at, now !== null);
    if (now !== null) {
      put(this.at, this.mark(now));
      this.at.style.top = `${y(now)}%`;
    }
    const summary = this.summary(points);
    if (this.svg.getAttribute("aria-label") !== summary) {
      this.svg.setAttribute("aria-label", summary);
    }
  }

  /** A value at an axis: without a tenth that says nothing. */
  mark(value) {
    return this.text(value).replace(".0", "");
  }

  /** Where a point stands, in the picture's units. */
  x(point) {
    return SPAN_S * (1 - (this.points.at(-1).t - point.t) / this.span);
  }

  /** A band over each stretch with an open breaker. */
  shade(points, x) {
    const bands = [];
    let from = null;
    for (const [index, point] of points.entries()) {
      if (point.open && from === null) from = x(point);
      const ends = from !== null && (!point.open || index === points.length - 1);
      if (ends) {
        bands.push([from, Math.max(1, x(point) - from)]);
        from = null;
      }
    }
    while (this.bands.childNodes.length > bands.length) this.bands.lastChild.remove();
    while (this.bands.childNodes.length < bands.length) {
      this.bands.append(svg("rect", { class: "band", y: 0, height: HEIGHT }));
    }
    for (const [index, [left, width]] of bands.entries()) {
      this.bands.childNodes[index].setAttribute("x", left);
      this.bands.childNodes[index].setAttribute("width", width);
    }
  }

  point(event) {
    if (this.points.length === 0) return;
    const box = this.svg.getBoundingClientRect();
    const end = this.points.at(-1).t;
    const wanted = end - this.span * (1 - (event.clientX - box.left) / box.width);
    const distance = (point) => Math.abs(point.t - wanted);
    const near = this.points.reduce((one, other) =>
      distance(other) < distance(one) ? other : one);
    const ago = Math.round(end - near.t);
    const values = this.series.map((one) => `${one.title} ${this.text(near[one.name] ?? null)}`);
    put(this.tip, [`${ago} s ago`, ...values].join(" · "));
    show(this.tip, true);
    this.cross.setAttribute("d", `M${this.x(near)} 0V${HEIGHT}`);
  }

  leave() {
    show(this.tip, false);
    this.cross.setAttribute("d", "");
  }
}

// A hundred upstreams have hundreds of charts, of which a screen shows five.
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = entry.target.chart;
    chart.visible = entry.isIntersecting;
    if (chart.visible) chart.draw();
  }
}, { rootMargin: "200px" });

function highest(points, series) {
  let high = 0;
  for (const point of points) {
    let stacked = 0;
    for (const one of series) {
      const value = point[one.name] ?? 0;
      stacked = one.stack ? stacked + value : Math.max(stacked, value);
    }
    high = Math.max(high, stacked, Number.isFinite(point.line) ? point.line : 0);
  }
  return rounded(high * HEADROOM);
}

/** The next of 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, times a power of ten. */
function rounded(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((one) => one * power >= value);
  return step * power;
}

/** Runs of points without a gap and with a value, as lists of indices. */
function runs(points, values) {
  const found = [];
  let run = [];
  for (const [index, point] of points.entries()) {
    if (point.gap || values[index] === null) {
      if (run.length > 0) found.push(run);
      run = [];
    }
    if (values[index] !== null) run.push(index);
  }
  if (run.length > 0) found.push(run);
  return found;
}

const at = (x, y) => `${x.toFixed(2)} ${y.toFixed(2)}`;

function line(points, values, x, y) {
  return runs(points, values)
    .map((run) => "M" + run.map((index) => at(x(points[index]), y(values[index]))).join("L"))
    .join("");
}

function area(points, tops, base, x, y) {
  return runs(points, tops)
    .map((run) => {
      const there = run.map((index) => at(x(points[index]), y(tops[index])));
      const back = run.toReversed().map((index) => at(x(points[index]), y(base[index])));
      return `M${there.join("L")}L${back.join("L")}Z`;
    })
    .join("");
}
