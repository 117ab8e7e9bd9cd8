// Limits: the sum of all nodes against the rate, who takes how much, and how tight the bound is.

import { Chart } from "./chart.js";
import { byId, el, figure, keyed, percent, perSecond, pill, put, show } from "./dom.js";
import { grouped, limitKey } from "./history.js";
import { VERBS, ask } from "./verbs.js";

const HUES = 8; // of the style sheet; more nodes than that begin again

/** `wanted(upstream)` says whether it is to be shown. */
export function showLimits(snapshot, history, wanted) {
  const groups = [...grouped(snapshot.limits, limitKey)]
    .filter(([, group]) => wanted(group[0].upstream))
    .map(([key, group]) => ({ key, group, first: group[0] }));
  const rates = groups.filter(({ first }) => first.rate !== null);
  const slots = groups.filter(({ first }) => first.rate === null);
  keyed(byId("limits"), [...rates, ...slots], ({ key }) => key, make, (card, item) => {
    (item.first.rate === null ? updateSlots : updateRate)(card.parts, item, snapshot, history);
  });
  show(byId("no-limits"), groups.length === 0);
}

function make({ first }) {
  const parts = {
    tags: el("span", { class: "tags muted" }),
    now: el("strong", { class: "big" }),
    of: el("span", { class: "of" }),
    fill: el("span", { class: "pill calm" }),
    facts: el("dl", { class: "facts" }),
  };
  const title = el("h3", {}, el("span", { class: "name", text: first.upstream }),
    el("span", { class: "muted", text: " / " }), el("span", { class: "name", text: first.name }));
  const head = el("header", {}, el("div", {}, title, parts.tags));
  const figures = el("div", { class: "figures" }, parts.now, parts.of, parts.fill);
  const card = el("article", { class: "card limit", "data-limit": limitKey(first) }, head, figures);
  card.parts = parts;
  if (first.rate === null) {
    parts.meter = el("div", { class: "meter" }, el("i"));
    card.append(parts.meter, parts.facts);
    return card;
  }
  const clear = el("button", { type: "button", text: "Clear…",
    "aria-label": `Clear the rows of ${first.upstream} / ${first.name}` });
  clear.addEventListener("click", () => ask(VERBS.clear(first.upstream, first.name)));
  head.append(clear);
  parts.chart = new Chart(
    [
      { name: "own", title: "this node", stack: true },
      { name: "others", title: "others", stack: true },
    ],
    perSecond,
    (points) => summary(first, points),
  );
  parts.shares = el("ul", { class: "shares" });
  parts.bar = el("div", { class: "bar", "aria-hidden": "true" });
  parts.sharesBox = el("div", { class: "shares-box", hidden: "" },
    el("h4", { text: "Per node, the last 10 s" }), parts.bar, parts.shares);
  card.append(el("div", { class: "body" },
    el("div", {}, parts.chart.node, legend()),
    el("div", { class: "side" }, parts.sharesBox, parts.facts)));
  return card;
}

function legend() {
  return el("p", { class: "legend", "aria-hidden": "true" },
    el("span", {}, el("i", { class: "own" }), "this node"),
    el("span", {}, el("i", { class: "others" }), "other nodes"),
    el("span", {}, el("i", { class: "rate" }), "rate in force"),
    el("span", {}, el("i", { class: "band" }), "paused"));
}

function summary(first, points) {
  const known = points.filter((point) => point.own !== null);
  const sums = known.map((point) => point.own + point.others);
  const now = sums.at(-1) ?? null;
  const most = sums.length > 0 ? Math.max(...sums) : null;
  return `${first.upstream} / ${first.name}, the last five minutes: ${perSecond(now)} by all nodes `
    + `now, at most ${perSecond(most)}; the rate is ${first.rate}`;
}

function updateRate(parts, { key, group, first }, snapshot, history) {
  const points = history.of(`limit ${key}`);
  const last = points.at(-1);
  const all = last.own === null ? null : last.own + last.others;
  const keyedRows = first.rows > 1;
  put(parts.tags, tagsOf(first));
  put(parts.now, perSecond(all));
  put(parts.of, keyedRows ? `${figure(first.rows)} rows, ${first.rate} each` : `of ${first.rate}`);
  const inForce = Number.isFinite(last.line) ? last.line : null;
  const share = all === null || !inForce || keyedRows ? null : all / inForce;
  pill(parts.fill, percent(share), share === null ? "calm" : share > 0.98 ? "warn" : "good");
  show(parts.fill, share !== null);
  // A rate of each row is no bound of the sum of all rows.
  parts.chart.update(keyedRows ? points.map((point) => ({ ...point, line: null })) : points);
  showShares(parts, history.shares(group), new Set(group.map((one) => one.node)));
  showFacts(parts.facts, factsOf(group, snapshot));
}

function tagsOf(first) {
  const reach = { mesh: "all nodes together", local: "each node by itself" };
  const words = [first.algorithm.replace("_", " "), reach[first.sync] ?? first.sync];
  if (first.burst > 0) words.push(`burst ${figure(first.burst)}`);
  if (first.dry_run) words.push("dry run");
  if (first.overridden) words.push(`set by an operator, the file says ${first.rate_in_file}`);
  if (first.differs) words.push("members have different figures");
  if (first.tight) words.push("the burst is small for the members");
  return words.join(" · ");
}

function factsOf(group, snapshot) {
  const first = group[0];
  const sum = (what) => group.reduce((total, one) => total + one[what], 0);
  const most = (what) => Math.max(...group.map((one) => one[what]));
  const own = sum("admitted_own");
  const waiting = snapshot.waits
    .filter((one) => one.upstream === first.upstream && one.limit === first.name)
    .reduce((total, one) => total + one.waiting, 0);
  const facts = [
    ["Taken here", figure(own), "own"],
    ["Taken by all", figure(Math.max(own, most("admitted_mesh"))), "mesh"],
    ["Waiting", figure(waiting), "waiting"],
    [first.dry_run ? "Would refuse" : "Refused here",
      figure(sum(first.dry_run ? "would_refuse" : "refused")), "refused"],
  ];
  if (first.rate_in_force !== null) {
    facts.push(["In force", perSecond(first.rate_in_force), "in-force"]);
  }
  for (const [name, window] of Object.entries(first.windows)) {
    const worst = Math.max(...group.map((one) => one.windows[name]?.peak ?? window.peak));
    facts.push([`Fullest ${name.replace("s", " s")}`, percent(worst, 1), `peak-${name}`]);
  }
  if (first.sync === "mesh") {
    facts.push(["May exceed by", `${figure(most("excess_bound"))} tokens`, "over"]);
  }
  const told = first.advertised;
  if (told !== null) facts.push(["API says left", `${figure(told.remaining)}`, "advertised"]);
  if (most("rows") > most("rows_read")) {
    const rows = `${figure(most("rows_read"))} of ${figure(most("rows"))} rows`;
    facts.push(["Sums are of", rows, "rows"]);
  }
  return facts;
}

export function showFacts(list, facts) {
  keyed(list, facts, ([, , name]) => name,
    ([title, , name]) => {
      const value = el("dd", { "data-fact": name });
      const box = el("div", {}, el("dt", { text: title }), value);
      box.value = value;
      box.title_ = box.firstChild;
      return box;
    },
    (box, [title, value]) => {
      put(box.title_, title);
      put(box.value, value);
    });
}

function showShares(parts, shares, own) {
  const total = shares.reduce((sum, [, rate]) => sum + rate, 0);
  const items = shares.map(([name, rate], index) => ({
    name, rate, hue: index % HUES, share: total > 0 ? rate / total : 0, own: own.has(name),
  }));
  show(parts.sharesBox, items.length > 1 && total > 0);
  keyed(parts.bar, items, ({ name }) => name, () => el("i"), (bit, item) => {
    bit.className = `hue-${item.hue}`;
    bit.style.width = `${100 * item.share}%`;
  });
  keyed(parts.shares, items, ({ name }) => name,
    ({ name }) => {
      const swatch = el("i");
      const rate = el("span", { class: "number" });
      const item = el("li", {}, swatch, el("span", { class: "name", text: name }), rate);
      Object.assign(item, { swatch, rate });
      return item;
    },
    (item, { rate, share, hue, own: isOwn }) => {
      item.swatch.className = `hue-${hue}`;
      put(item.rate, `${perSecond(rate)}, ${percent(share)}${isOwn ? " (here)" : ""}`);
    });
}

function updateSlots(parts, { group, first }, snapshot) {
  const held = group.reduce((total, one) => total + one.level, 0);
  const all = first.sync === "mesh" ? first.quota
    : group.reduce((total, one) => total + one.quota, 0);
  const whose = first.sync === "mesh" ? "all nodes together" : "this node";
  put(parts.tags, `requests under way · ${whose}`);
  put(parts.now, figure(held));
  put(parts.of, `of ${figure(all)}`);
  const share = all > 0 ? held / all : 0;
  pill(parts.fill, percent(share), share >= 1 ? "warn" : "good");
  parts.meter.firstChild.style.width = `${Math.min(100, 100 * share)}%`;
  parts.meter.classList.toggle("full", share >= 1);
  showFacts(parts.facts, [
    ["Refused here", figure(group.reduce((total, one) => total + one.refused, 0)), "refused"],
    ...(first.slots_in_force === null ? []
      : [["Slots here", figure(group.reduce((sum, one) => sum + one.slots_in_force, 0)), "slots"]]),
  ]);
}
