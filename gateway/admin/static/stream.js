// The node's server-sent events, read by fetch: EventSource sends no Authorization field, and a
// token does not belong in a URL, where logs and histories keep it.
//
// A connection that ends, or that has been silent for SILENCE_MS, is made again after a while that
// doubles up to AGAIN_MS_MAX; a quarter of chance keeps many pages from coming back all at once.

const SILENCE_MS = 8000; // a snapshot comes each second
const AGAIN_MS = 500;
const AGAIN_MS_MAX = 15000;
const EVENT_CHARACTERS_MAX = 32 * 1024 * 1024; // 100 upstreams with all that can be are some 2 MiB
const TOKEN = "egressd.token";

const LISTS = [
  "nodes", "members", "upstreams", "limits", "breakers", "waits", "recent", "head_bounds_ms",
];

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/** The fields that every request carries. */
export function headers(more = {}) {
  const known = token.get();
  return known === null ? more : { ...more, Authorization: `Bearer ${known}` };
}

/** What an answer that is none of 2xx says, in a sentence. */
export async function problemOf(answer) {
  try {
    const document = await answer.json();
    return document.detail ?? `status ${answer.status}`;
  } catch {
    return `status ${answer.status}`;
  }
}

/** Whether it has what the page reads: a proxy in between, or another version, may differ. */
function isSnapshot(value) {
  return Number.isFinite(value?.now_ns) && LISTS.every((name) => Array.isArray(value[name]));
}

/** Calls `onSnapshot(snapshot)` for each one and `onState(state)` when the connection changes.
 *
 * A state is {kind: "connecting" | "live" | "mute" | "lost" | "token", why, againAt}; `againAt` is
 * on the clock of performance.now(). At "mute" no worker of the node answers, at "token" nothing is
 * tried until `now()` is called.
 */
export class Stream {
  constructor(onSnapshot, onState) {
    this.onSnapshot = onSnapshot;
    this.onState = onState;
    this.attempt = 0;
    this.timer = 0;
    this.control = null;
  }

  /** Connects at once, whatever was planned. */
  now() {
    clearTimeout(this.timer);
    this.control?.abort();
    this.run();
  }

  async run() {
    const control = new AbortController();
    this.control = control;
    this.tell({ kind: "connecting" });
    let why = "the node ended the stream";
    try {
      const answer = await fetch("api/v1/events", {
        headers: headers(),
        signal: control.signal,
        cache: "no-store",
        credentials: "omit",
      });
      if (answer.status === 401) {
        this.tell({ kind: "token" });
        return;
      }
      if (answer.ok) await this.read(answer.body, control);
      else why = await problemOf(answer);
    } catch (error) {
      why = control.silent ? "the node has gone silent" : "the node cannot be reached";
      if (error instanceof SyntaxError) why = "the node sent what is no snapshot";
    }
    if (this.control === control) this.again(why);
  }

  async read(body, control) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    let silence = 0;
    const listen = () => {
      clearTimeout(silence);
      silence = setTimeout(() => {
        control.silent = true;
        control.abort();
      }, SILENCE_MS);
    };
    listen();
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        listen();
        text += value;
        if (text.length > EVENT_CHARACTERS_MAX) throw new SyntaxError("an event without end");
        for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
          this.take(text.slice(0, end));
          text = text.slice(end + 2);
        }
      }
    } finally {
      clearTimeout(silence);
      control.abort();
    }
  }

  take(event) {
    const lines = event.split("\n");
    if (!lines.includes("event: snapshot")) return;
    const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
    const snapshot = JSON.parse(data.join("\n"));
    if (!isSnapshot(snapshot)) throw new SyntaxError("no snapshot");
    if (snapshot.nodes.length === 0) {
      this.tell({ kind: "mute" });
      return;
    }
    this.attempt = 0;
    this.tell({ kind: "live" });
    try {
      this.onSnapshot(snapshot);
    } catch (error) {
      reportError(error); // a fault of the page is none of the connection
    }
  }

  again(why) {
    const wait = Math.min(AGAIN_MS_MAX, AGAIN_MS * 2 ** this.attempt) * (0.75 + Math.random() / 2);
    this.attempt += 1;
    this.tell({ kind: "lost", why, againAt: performance.now() + wait });
    this.timer = setTimeout(() => this.run(), wait);
  }

  tell(state) {
    this.onState(state);
  }
}
