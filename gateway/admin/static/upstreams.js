// Upstreams: what they are asked, how fast they answer, and their breakers with what is left of a
// pause. Countdowns run between snapshots; `tick` moves them.

import { Chart } from "./chart.js";
import { byId, el, figure, keyed, ms, perSecond, pill, put, show } from "./dom.js";
import { grouped } from "./history.js";
import { showFacts } from "./limits.js";
import { VERBS, ask } from "./verbs.js";

const CREDENTIALS_SHOWN = 20;

export function showUpstreams(snapshot, history, wanted) {
  const at = performance.now();
  const breakers = grouped(snapshot.breakers, (one) => one.upstream);
  const items = [...grouped(snapshot.upstreams, (one) => one.name)]
    .filter(([name]) => wanted(name))
    .map(([name, group]) => ({ name, group, breakers: breakers.get(name) ?? [] }));
  keyed(byId("upstreams"), items, ({ name }) => name, make, (card, item) => {
    update(card.parts, item, history, at);
  });
}

/** Moves all countdowns to a time of performance.now(). */
export function tick(now) {
  for (const card of byId("upstreams").children) {
    countDown(card.parts.own, now);
    for (const line of card.parts.credentials.children) countDown(line, now);
  }
}

/** The gravest of what workers say of one breaker, or of what there is to say. */
export function gravest(breakers) {
  const rank = { closed: 0, half_open: 1, open: 2 };
  return breakers.reduce((one, other) =>
    rank[other.state] > rank[one.state]
    || (other.state === one.state && other.remaining_ms > one.remaining_ms) ? other : one);
}

function make({ name }) {
  const parts = {
    origin: el("span", { class: "muted origin" }),
    own: breakerLine(),
    facts: el("dl", { class: "facts" }),
    statuses: el("p", { class: "statuses muted" }),
    credentials: el("ul", { class: "credentials" }),
    pause: button("Pause…", `Pause ${name}`, () => ask(VERBS.pause(name))),
    resume: button("Resume…", `Resume ${name}`, () => ask(VERBS.resume(name, null))),
    auto: button("Automatic…", `Let the breaker of ${name} decide`, () =>
      ask(VERBS.auto(name, null))),
  };
  parts.chart = new Chart(
    [{ name: "p50", title: "p50" }, { name: "p99", title: "p99" }],
    ms,
    (points) => `${name}, time to a response's head in the last five minutes: `
      + `p50 ${ms(points.at(-1).p50)}, p99 ${ms(points.at(-1).p99)} now`,
  );
  parts.chart.node.classList.add("low");
  const actions = el("div", { class: "row" }, parts.pause, parts.resume, parts.auto);
  const card = el("article", { class: "card upstream", "data-upstream": name },
    el("header", {}, el("div", {}, el("h3", {}, el("span", { class: "name", text: name })),
      parts.origin), actions),
    parts.own,
    parts.credentials,
    el("div", { class: "body" },
      el("div", {}, parts.chart.node, legend()),
      el("div", { class: "side" }, parts.facts, parts.statuses)));
  card.parts = parts;
  return card;
}

function legend() {
  return el("p", { class: "legend", "aria-hidden": "true" },
    el("span", {}, el("i", { class: "p50" }), "p50"),
    el("span", {}, el("i", { class: "p99" }), "p99 of the last minute, to a response's head"));
}

function button(text, label, does) {
  const made = el("button", { type: "button", text, "aria-label": label });
  made.addEventListener("click", does);
  return made;
}

function breakerLine(tag = "div") {
  const line = el(tag, { class: "breaker" });
  line.state = el("span", { class: "pill" });
  line.why = el("span", { class: "why" });
  line.left = el("span", { class: "left number" });
  line.bar = el("div", { class: "meter pause", hidden: "" }, el("i"));
  line.append(el("div", { class: "said" }, line.state, line.why, line.left), line.bar);
  line.until = 0;
  line.longest = 0;
  return line;
}

function update(parts, { name, group, breakers }, history, at) {
  const first = group[0];
  put(parts.origin, `${first.origin} · ${first.protocol} · ${first.provider}`);
  const own = breakers.filter((one) => one.credential === null);
  const said = gravest(own);
  updateBreaker(parts.own, said, at);
  show(parts.resume, said.state !== "closed" && said.forced === null);
  show(parts.auto, own.some((one) => one.forced !== null));
  show(parts.pause, said.forced === null);
  updateCredentials(parts.credentials, name, breakers, at);
  const last = history.of(`upstream ${name}`).at(-1);
  parts.chart.update(history.of(`upstream ${name}`));
  const refused = last.refused === undefined ? null : last.refused + last.paused;
  const sum = (what) => group.reduce((total, one) => total + one[what], 0);
  const most = (share) => {
    const known = group.map((one) => one.latency_ms[share]).filter((one) => one !== null);
    return known.length > 0 ? Math.max(...known) : null;
  };
  showFacts(parts.facts, [
    ["Asked", perSecond(last.requests), "requests"],
    ["Admitted", perSecond(last.admitted), "admitted"],
    ["Refused", perSecond(refused), "refused"],
    ["Waiting", figure(sum("waiting")), "waiting"],
    ["p50, a minute", ms(last.p50), "p50"],
    ["p99, a minute", ms(last.p99), "p99"],
    ["p50 since start", ms(most("p50")), "p50-ever"],
    ["p99 since start", ms(most("p99")), "p99-ever"],
    ["Throttled", figure(sum("throttled")), "throttled"],
    ["Failed", figure(sum("failed")), "failed"],
  ]);
  const answers = Object.keys(first.responses)
    .map((kind) => [kind, group.reduce((total, one) => total + one.responses[kind], 0)])
    .filter(([, count]) => count > 0)
    .map(([kind, count]) => `${figure(count)} × ${kind}`);
  put(parts.statuses, answers.length > 0 ? `Answers: ${answers.join(", ")}` : "No answers yet");
}

function updateCredentials(list, name, breakers, at) {
  const told = breakers.filter((one) => one.credential !== null);
  const groups = grouped(told, (one) => one.credential);
  const items = [...groups.values()]
    .map(gravest)
    .filter((one) => one.state !== "closed" || one.forced !== null)
    .slice(0, CREDENTIALS_SHOWN);
  keyed(list, items, (one) => one.credential,
    (one) => {
      const line = breakerLine("li");
      const short = one.credential.slice(0, 8);
      const text = `credential ${short}`;
      line.prepend(el("span", { class: "name", text, title: one.credential }));
      line.auto = button("Automatic…", `Let the breaker of credential ${short} decide`, () =>
        ask(VERBS.auto(name, one.credential)));
      line.resume = button("Resume…", `Resume credential ${short} at ${name}`, () =>
        ask(VERBS.resume(name, one.credential)));
      line.append(el("div", { class: "row" }, line.resume, line.auto));
      return line;
    },
    (line, one) => {
      updateBreaker(line, one, at);
      show(line.resume, one.state !== "closed" && one.forced === null);
      show(line.auto, one.forced !== null);
    });
}

function updateBreaker(line, one, at) {
  const [text, tone, why] = wordsOf(one);
  pill(line.state, text, tone);
  put(line.why, why);
  const counts = one.state === "open" && one.forced === null && one.remaining_ms > 0;
  const until = counts ? at + one.remaining_ms : 0;
  if (until === 0) line.longest = 0;
  else if (until > line.until + 1000) line.longest = one.remaining_ms; // a new or a longer pause
  line.until = until;
  countDown(line, performance.now());
}

function countDown(line, now) {
  const left = Math.max(0, line.until - now);
  show(line.bar, left > 0);
  put(line.left, left > 0 ? `${ms(Math.ceil(left / 100) * 100)} left` : "");
  if (left > 0) line.bar.firstChild.style.width = `${Math.min(100, (100 * left) / line.longest)}%`;
}

/** [what it is, how grave, why] of a breaker. */
function wordsOf(one) {
  const cause = one.cause === "throttle" ? "the API asked for less" : "the API failed";
  if (one.forced === "open") return ["held open", "bad", "by an operator"];
  if (one.forced === "closed") return ["held closed", "warn", "by an operator"];
  if (one.state === "open") return [one.cause === "throttle" ? "paused" : "open", "bad", cause];
  if (one.state === "half_open") return ["trial", "warn", "one request goes first"];
  return ["closed", "good", "requests go through"];
}
