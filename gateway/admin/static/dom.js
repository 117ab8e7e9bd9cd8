// The few things that are done with the document, and how figures are written.
//
// What a node tells contains names that others chose: upstreams, clients, keys, members. They come
// into the page as text nodes and nothing else; the page's policy (trusted types) forbids the rest.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element: `el("p", {class: "muted", text: "…"}, ...children)`; null children are left out. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Changes a text only where it differs, so that no selection or screen reader is disturbed. */
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, on) {
  if (node.hidden === on) node.hidden = !on;
}

/** A pill's text and tone: "good", "warn", "bad" or "calm". */
export function pill(node, text, tone) {
  put(node, text);
  const wanted = `pill ${tone}`;
  if (node.className !== wanted) node.className = wanted;
}

/** Makes the children of `parent` the items, in order; a child stays the same node for a key.
 *
 * `make(item)` gives a new child, `update(child, item)` brings one up to date. A focused button
 * thus stays focused while its figures change.
 */
export function keyed(parent, items, keyOf, make, update) {
  const known = (parent.known ??= new Map());
  const gone = new Set(known.keys());
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    if (child === undefined) {
      child = make(item);
      known.set(key, child);
    }
    gone.delete(key);
    if (child === place) place = place.nextSibling;
    else parent.insertBefore(child, place);
    update(child, item);
  }
  for (const key of gone) {
    known.get(key).remove();
    known.delete(key);
  }
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", {
  minimumFractionDigits: 1,
  maximumFractionDigits: 1,
});

/** A count, or a figure of which only three digits matter. */
export function figure(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) || Math.abs(value) >= 100) return whole.format(value);
  return tenth.format(value);
}

/** Something a second; a tenth is shown below a hundred. */
export function perSecond(value) {
  if (value === null || value === undefined) return "–";
  return `${Math.abs(value) >= 100 ? whole.format(value) : tenth.format(value)}/s`;
}

export function percent(share, digits = 0) {
  if (share === null || share === undefined) return "–";
  return `${(100 * share).toFixed(digits)} %`;
}

/** A duration, in the unit that suits it. */
export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} ms`;
  if (value < 1000) return `${Math.round(value)} ms`;
  if (value < 60_000) return `${(value / 1000).toFixed(1)} s`;
  const minutes = Math.floor(value / 60_000);
  if (minutes < 60) return `${minutes} min ${Math.floor((value % 60_000) / 1000)} s`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

export function octets(value) {
  if (value < 10_000) return `${value} B`;
  if (value < 10_000_000) return `${Math.round(value / 1000)} kB`;
  return `${Math.round(value / 1_000_000)} MB`;
}

export function keyText(key) {
  return Object.entries(key)
    .map(([part, value]) => `${part}=${value === null ? "(none)" : value}`)
    .join(", ");
}
