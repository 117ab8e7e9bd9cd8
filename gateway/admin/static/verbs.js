// What an operator may do from here, each behind a question that says whom it concerns.

import { byId, el, put, show } from "./dom.js";
import { headers, problemOf } from "./stream.js";

const TOAST_MS = 8000;
const PAUSES = [
  ["10 seconds", 10_000],
  ["1 minute", 60_000],
  ["5 minutes", 300_000],
  ["15 minutes", 900_000],
  ["1 hour", 3_600_000],
];

const path = (...parts) => ["api/v1", ...parts.map(encodeURIComponent)].join("/");

export const VERBS = {
  pause: (upstream) => ({
    title: `Pause ${upstream}?`,
    text: "All nodes of the mesh stop sending to it, as after a 429 of its own.",
    yes: "Pause",
    choice: true,
    call: (forMs) => ["POST", path("upstreams", upstream, "pause"), { for_ms: forMs }],
  }),
  resume: (upstream, credential) => ({
    title: `Let ${upstream} go on?`,
    text: credential === null
      ? "Ends the pause before its time, on all nodes. The first request goes as a trial."
      : `Ends the pause of credential ${credential.slice(0, 8)} before its time, on all nodes.`,
    yes: "Resume",
    call: () => [
      "POST", path("upstreams", upstream, "resume"), credential === null ? {} : { credential },
    ],
  }),
  auto: (upstream, credential) => ({
    title: `Let the breaker of ${upstream} decide again?`,
    text: "An operator holds it now. This concerns the node that you look at and no other.",
    yes: "Make automatic",
    call: () => [
      "PUT",
      path("breakers", upstream),
      credential === null ? { state: "auto" } : { state: "auto", credential },
    ],
  }),
  clear: (upstream, limit) => ({
    title: `Forgive all rows of ${upstream} / ${limit}?`,
    text: "What this node counts as used is free again at once. What other nodes hold of a "
      + "mesh-wide limit comes back unless it is cleared there too.",
    yes: "Clear",
    call: () => ["POST", path("tables", upstream, limit, "clear"), {}],
  }),
};

let asked = null;

/** Asks, and does it on yes. */
export function ask(verb) {
  asked = verb;
  put(byId("confirm-title"), verb.title);
  put(byId("confirm-text"), verb.text);
  put(byId("confirm-yes"), verb.yes);
  show(byId("confirm-choice"), verb.choice === true);
  byId("confirm").showModal();
  byId(verb.choice === true ? "confirm-for" : "confirm-no").focus();
}

/** Joins the dialog's buttons to what they do; once. */
export function prepare() {
  const dialog = byId("confirm");
  byId("confirm-for").append(
    ...PAUSES.map(([text, value]) => el("option", { value: String(value), text })),
  );
  byId("confirm-for").value = "60000";
  byId("confirm-no").addEventListener("click", () => dialog.close());
  byId("confirm-yes").addEventListener("click", () => {
    dialog.close();
    run(asked.call(Number(byId("confirm-for").value)));
  });
}

async function run([method, url, body]) {
  try {
    const answer = await fetch(url, {
      method,
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify(body),
      credentials: "omit",
    });
    if (!answer.ok) {
      toast(`Not done: ${await problemOf(answer)}`, true);
      return;
    }
    const { done, reach } = await answer.json();
    toast(`${done} (${reach === "mesh" ? "all nodes" : "this node"})`, false);
  } catch {
    toast("Not done: the node cannot be reached", true);
  }
}

let timer = 0;

function toast(text, bad) {
  const node = byId("toast");
  node.classList.toggle("bad", bad);
  show(node, true);
  put(node, text);
  clearTimeout(timer);
  timer = setTimeout(() => show(node, false), TOAST_MS);
}
