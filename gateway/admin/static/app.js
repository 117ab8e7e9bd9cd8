// The page: joins the node's events to what is shown, and says when what is shown is old.

import { byId, el, figure, keyed, ms, perSecond, pill, put, show } from "./dom.js";
import { History, grouped } from "./history.js";
import { showLimits } from "./limits.js";
import { membersOf, readiness, showMesh, showRecent, showWaits } from "./mesh.js";
import { Stream, token } from "./stream.js";
import { gravest, showUpstreams, tick } from "./upstreams.js";
import { prepare } from "./verbs.js";

const TICK_MS = 200;
const STALE_MS = 3000; // three snapshots that did not come
const FILTER_FROM = 6; // upstreams; fewer are seen at a glance
const THEME = "egressd.theme";

const history = new History();
let latest = null;
let latestAt = 0;
let link = { kind: "connecting" };
let told = { stale: false, members: new Map(), breakers: new Map() };

/** Says something once to who cannot see it. */
function say(text) {
  const region = byId("live-region");
  region.append(el("p", { text }));
  while (region.children.length > 5) region.firstChild.remove();
}

function take(snapshot) {
  history.add(snapshot);
  latest = snapshot;
  latestAt = performance.now();
  show(byId("figures"), true);
  render();
  announce(snapshot);
  tellLink();
}

function render() {
  const wanted = filter();
  showHead(latest);
  showTiles(latest);
  showLimits(latest, history, wanted);
  showUpstreams(latest, history, wanted);
  showMesh(latest);
  showWaits(latest);
  showRecent(latest);
}

function filter() {
  const names = new Set(latest.upstreams.map((one) => one.name));
  show(byId("filter-box"), names.size >= FILTER_FROM);
  const sought = byId("filter").value.trim().toLowerCase();
  put(byId("limits-note"), latest.truncated
    ? "the first 100 upstreams only; egressd ctl shows all"
    : "what all nodes take together, as means of two seconds");
  return (name) => name.toLowerCase().includes(sought);
}

function showHead(snapshot) {
  const node = snapshot.nodes[0];
  const name = node.name ?? node.node;
  const paused = pausedUpstreams(snapshot).length;
  put(byId("node"), name);
  const workers = snapshot.nodes.length > 1 ? `${snapshot.nodes.length} workers` : null;
  const words = [
    "egressd " + node.version,
    node.build,
    workers,
    `up ${ms(node.uptime_s * 1000)}`,
    `configuration ${node.generation}`,
    node.reload_success ? null : "the last reload was refused",
  ];
  put(byId("about"), words.filter(Boolean).join(" · "));
  const worst = snapshot.nodes.find((one) => one.draining || !one.ready) ?? node;
  show(byId("ready"), true);
  pill(byId("ready"), ...readiness(worst));
  document.title = `${paused > 0 ? `(${paused} paused) ` : ""}${name} · egressd`;
}

function pausedUpstreams(snapshot) {
  const own = snapshot.breakers.filter((one) => one.credential === null);
  return [...grouped(own, (one) => one.upstream).values()]
    .map(gravest)
    .filter((one) => one.state !== "closed");
}

function showTiles(snapshot) {
  const members = membersOf(snapshot);
  const live = members.filter((one) => one.state === "alive").length;
  const counted = members.filter((one) => one.state !== "left").length;
  const names = new Set(snapshot.upstreams.map((one) => one.name));
  const points = [...names].map((name) => history.of(`upstream ${name}`).at(-1));
  const sum = (what) => points.some((one) => one[what] !== undefined)
    ? points.reduce((total, one) => total + (one[what] ?? 0), 0) : null;
  const paused = pausedUpstreams(snapshot).length;
  const slowest = points.map((one) => one.p99).filter((one) => one !== null);
  const waiting = snapshot.nodes.reduce((total, one) => total + one.waiting, 0);
  const connections = snapshot.nodes.reduce((total, one) => total + one.connections, 0);
  const refused = sum("refused") === null ? null : sum("refused") + sum("paused");
  const tiles = [
    ["members", "Members", members.length > 0 ? `${live}/${counted}` : "alone",
      live < counted ? "bad" : ""],
    ["requests", "Asked", perSecond(sum("requests")), ""],
    ["admitted", "Admitted", perSecond(sum("admitted")), ""],
    ["refused", "Refused", perSecond(refused), refused > 0 ? "warn" : ""],
    ["failed", "Failed", perSecond(sum("failed")), sum("failed") > 0 ? "bad" : ""],
    ["waiting", "Waiting", figure(waiting), ""],
    ["connections", "Connections", figure(connections), ""],
    ["paused", "Paused", paused === 0 ? "none" : figure(paused), paused > 0 ? "bad" : ""],
    ["p99", "Slowest p99", ms(slowest.length > 0 ? Math.max(...slowest) : null), ""],
  ];
  keyed(byId("tiles"), tiles, ([name]) => name,
    ([name, title]) => {
      const value = el("strong", { class: "big" });
      const tile = el("li", { class: "tile", "data-tile": name },
        el("span", { class: "muted", text: title }), value);
      tile.shown = value;
      return tile;
    },
    (tile, [, , value, tone]) => {
      put(tile.shown, value);
      tile.className = `tile ${tone}`;
    });
}

/** Changes of state, for a screen reader; figures that move each second are not announced. */
function announce(snapshot) {
  const members = new Map(membersOf(snapshot).map((one) => [one.name, one.state]));
  const paused = pausedUpstreams(snapshot);
  const breakers = new Map(paused.map((one) => [one.upstream, one]));
  for (const [name, state] of members) {
    const before = told.members.get(name);
    if (before !== undefined && before !== state) say(`Member ${name} is ${state}.`);
  }
  for (const [name, one] of breakers) {
    if (told.breakers.has(name)) continue;
    say(`${name} is paused${one.remaining_ms > 0 ? ` for ${ms(one.remaining_ms)}` : ""}.`);
  }
  for (const name of told.breakers.keys()) {
    if (!breakers.has(name)) say(`${name} goes on.`);
  }
  told = { ...told, members, breakers };
}

function tellLink() {
  const now = performance.now();
  const age = now - latestAt;
  const cut = link.kind === "lost" || link.kind === "mute";
  const stale = latest !== null && (cut || age > STALE_MS);
  if (link.kind === "live" && !stale) pill(byId("link"), "live", "good");
  else if (cut || stale) pill(byId("link"), "not live", "bad");
  else pill(byId("link"), link.kind === "token" ? "token needed" : "connecting", "warn");
  show(byId("stale"), stale || cut);
  if (stale || cut) put(byId("stale-text"), staleText(now, age));
  show(byId("retry"), link.kind === "lost");
  document.body.classList.toggle("old", stale);
  if (stale !== told.stale) {
    say(stale ? "The figures are old: no news from the node." : "The figures are live again.");
    told.stale = stale;
  }
}

function staleText(now, age) {
  const words = [];
  if (link.kind === "lost") words.push(`No connection: ${link.why}.`);
  if (link.kind === "mute") words.push("No worker of the node answers.");
  if (latest !== null) words.push(`What is shown is ${ms(Math.max(1000, age))} old.`);
  if (link.kind === "lost") {
    words.push(`Next try in ${Math.max(0, Math.ceil((link.againAt - now) / 1000))} s.`);
  }
  return words.join(" ");
}

const stream = new Stream(take, (state) => {
  link = state;
  if (state.kind === "token") askToken();
  if (state.kind === "live") {
    show(byId("token-form"), false);
    show(byId("forget-token"), token.get() !== null);
  }
  tellLink();
});

function askToken() {
  const refused = token.get() !== null;
  token.forget();
  show(byId("figures"), false);
  show(byId("forget-token"), false);
  show(byId("token-form"), true);
  put(byId("token-wrong"), refused ? "The node does not accept this token." : "");
  byId("token").value = "";
  byId("token").focus();
}

function useToken(event) {
  event.preventDefault();
  const value = byId("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(value)) {
    put(byId("token-wrong"), "A token has no spaces and only ASCII characters.");
    return;
  }
  token.set(value);
  put(byId("token-wrong"), "");
  stream.now();
}

function applyTheme() {
  const theme = localStorage.getItem(THEME) ?? "auto";
  document.documentElement.dataset.theme = theme;
  put(byId("theme"), `Theme: ${theme}`);
}

function nextTheme() {
  const order = { auto: "light", light: "dark", dark: "auto" };
  localStorage.setItem(THEME, order[localStorage.getItem(THEME) ?? "auto"] ?? "auto");
  applyTheme();
}

function begin() {
  applyTheme();
  prepare();
  byId("theme").addEventListener("click", nextTheme);
  byId("retry").addEventListener("click", () => stream.now());
  byId("token-form").addEventListener("submit", useToken);
  byId("forget-token").addEventListener("click", () => {
    token.forget();
    stream.now();
  });
  byId("filter").addEventListener("input", () => latest !== null && render());
  window.addEventListener("online", () => link.kind === "lost" && stream.now());
  setInterval(() => {
    tick(performance.now());
    tellLink();
  }, TICK_MS);
  stream.now();
}

begin();
