// Members, workers, queues and the last events: tables that need no history.

import { byId, el, figure, keyed, keyText, ms, octets, percent, pill, put, show } from "./dom.js";
import { grouped } from "./history.js";

const EVENTS_SHOWN = 60;
const SILENT_MS = 5000; // a member that is not heard for so long is worth a look
const STATES = { alive: "good", unheard: "warn", suspect: "warn", dead: "bad", left: "calm" };
const LEVELS = { info: "calm", warning: "warn", error: "bad" };

/** Each member as whoever knows it best sees it: workers of one node all tell of all. */
export function membersOf(snapshot) {
  const rank = { alive: 4, unheard: 3, suspect: 2, left: 1, dead: 0 };
  const groups = grouped(snapshot.members, (one) => one.name);
  return [...groups.values()].map((group) =>
    group.reduce((one, other) => {
      if (one.self !== other.self) return one.self ? one : other;
      return rank[other.state] > rank[one.state] ? other : one;
    }));
}

export function showMesh(snapshot) {
  const members = membersOf(snapshot).sort((one, other) => (one.name < other.name ? -1 : 1));
  show(byId("mesh-card"), members.length > 0);
  show(byId("no-mesh"), members.length === 0);
  const node = snapshot.nodes[0];
  const seen = [node.cluster, `as ${node.node} sees it`].filter(Boolean).join(", ");
  put(byId("mesh-note"), members.length > 0 ? seen : "");
  keyed(byId("members"), members, (one) => one.name, makeMember, (line, one) => {
    const { state, rtt, heard, loss, received, address } = line.parts;
    pill(state, one.state, STATES[one.state] ?? "calm");
    put(address, one.self ? `${one.address} · this node` : one.address);
    put(rtt, one.self ? "–" : ms(one.rtt_ms));
    put(heard, one.self ? "–" : one.heard_ms === null ? "always" : ms(one.heard_ms));
    heard.classList.toggle("wrong", !one.self && one.heard_ms > SILENT_MS);
    put(loss, one.self ? "–" : percent(one.loss, 1));
    put(received, one.self ? "–" : octets(one.bytes_received));
  });
  showWorkers(snapshot.nodes);
}

function makeMember(one) {
  const parts = {
    state: el("span", { class: "pill" }),
    address: el("span", { class: "muted small" }),
    rtt: el("td", { class: "number" }),
    heard: el("td", { class: "number" }),
    loss: el("td", { class: "number" }),
    received: el("td", { class: "number wide" }),
  };
  const name = el("th", { scope: "row" },
    el("span", { class: "name", text: one.name }), parts.address);
  const line = el("tr", { "data-member": one.name },
    name, el("td", {}, parts.state), parts.rtt, parts.heard, parts.loss, parts.received);
  line.parts = parts;
  return line;
}

function showWorkers(nodes) {
  show(byId("workers-box"), nodes.length > 1);
  keyed(byId("workers"), nodes.length > 1 ? nodes : [], (one) => one.node,
    (one) => {
      const cells = ["", "number", "number", "number"].map((name) => el("td", { class: name }));
      const state = el("span", { class: "pill" });
      cells[0].append(state);
      const line = el("tr", { "data-worker": one.node },
        el("th", { scope: "row" }, el("span", { class: "name", text: one.node })), ...cells);
      Object.assign(line, { state, figures: cells.slice(1) });
      return line;
    },
    (line, one) => {
      pill(line.state, ...readiness(one));
      const [connections, waiting, up] = line.figures;
      put(connections, figure(one.connections));
      put(waiting, figure(one.waiting));
      put(up, ms(one.uptime_s * 1000));
    });
}

/** [word, tone] for a node or a worker. */
export function readiness(one) {
  if (one.draining) return ["draining", "warn"];
  return one.ready ? ["ready", "good"] : ["not ready", "bad"];
}

export function showWaits(snapshot) {
  const waits = [...snapshot.waits].sort((one, other) => other.waiting - one.waiting);
  show(byId("waits-card"), waits.length > 0);
  show(byId("no-waits"), waits.length === 0);
  const held = waits.reduce((sum, one) => sum + one.waiting, 0);
  const note = waits.length > 0 ? `${figure(held)} held in ${queues(waits.length)}` : "";
  put(byId("waits-note"), note);
  const key = (one) => [one.node, one.upstream, one.at, one.limit, keyText(one.key)].join(" ");
  keyed(byId("waits"), waits.slice(0, EVENTS_SHOWN), key, makeWait, (line, one) => {
    const [held_, longest, until, client] = line.figures;
    put(held_, figure(one.waiting));
    put(longest, ms(one.first_waited_ms));
    put(until, ms(one.first_until_ms));
    put(client, one.first_client);
  });
}

const queues = (count) => (count === 1 ? "one queue" : `${figure(count)} queues`);

function makeWait(one) {
  const place = { limit: `limit ${one.limit}`, breaker: "a pause", connections: "connections" };
  const figures = ["number", "number", "number", "wide name"].map((kind) =>
    el("td", { class: kind }));
  const where = [place[one.at], keyText(one.key)].filter(Boolean).join(" · ");
  const name = el("th", { scope: "row" },
    el("span", { class: "name", text: one.upstream }),
    el("span", { class: "muted small", text: where }));
  const line = el("tr", { "data-wait": one.upstream }, name, ...figures);
  line.figures = figures;
  return line;
}

export function showRecent(snapshot) {
  const lines = [...snapshot.recent].sort((one, other) => other.wall_ms - one.wall_ms);
  show(byId("no-recent"), lines.length === 0);
  const several = snapshot.nodes.length > 1;
  const counted = new Map(); // two lines may say the same in the same millisecond
  const items = lines.slice(0, EVENTS_SHOWN).map((one) => {
    const key = `${one.wall_ms} ${one.node} ${one.event}`;
    counted.set(key, (counted.get(key) ?? 0) + 1);
    return { ...one, key: `${key} ${counted.get(key)}` };
  });
  keyed(byId("recent"), items, (one) => one.key, (one) => makeEvent(one, several), () => {});
}

function makeEvent(one, several) {
  const at = new Date(one.wall_ms);
  const facts = Object.entries(one.facts).map(([name, value]) => `${name}=${value}`);
  if (several) facts.unshift(one.node);
  const time = el("time", { datetime: at.toISOString(), text: at.toLocaleTimeString("en-GB") });
  const level = el("span", { class: `pill ${LEVELS[one.level] ?? "calm"}`, text: one.level });
  return el("li", {}, time, level,
    el("span", { class: "what" }, el("span", { class: "name", text: one.event }),
      el("span", { class: "muted name", text: facts.length > 0 ? ` ${facts.join("  ")}` : "" })));
}
