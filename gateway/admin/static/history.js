// What the page remembers: rates are differences of a node's counters over the node's own clock, so
// neither the network nor a missed snapshot falsifies them. Nothing here touches the document.

export const SPAN_S = 300;
const MEAN_S = 1.9; // a point is a mean over two snapshots: gossip brings news in lumps
const SHARE_S = 10; // of nodes
const LATENCY_S = 60;
const GAP_S = 5; // a hole in the line instead of a line over what nobody saw
const SECOND_NS = 1e9;

const UNIT_S = { ms: 0.001, s: 1, min: 60, m: 60, h: 3600, d: 86400 };

/** Tokens a second of a rate as the file has it ("45/s", "100/5min"); null for what is none. */
export function rateOf(text) {
  const found = /^(\d+)\/(\d*)(ms|s|min|m|h|d)$/.exec(text ?? "");
  return found === null ? null : Number(found[1]) / (Number(found[2] || 1) * UNIT_S[found[3]]);
}

/** Groups a list by a key, in the order of first occurrence. */
export function grouped(items, keyOf) {
  const groups = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (groups.has(key)) groups.get(key).push(item);
    else groups.set(key, [item]);
  }
  return groups;
}

export const limitKey = (one) => `${one.upstream} ${one.name}`;

/** The quantile of times counted in classes, in ms; spread evenly inside a class, as Prometheus
 * does. null where nothing was counted. */
export function quantile(counts, bounds, share) {
  const rank = share * counts.reduce((sum, count) => sum + count, 0);
  if (rank <= 0) return null;
  let low = 0;
  let seen = 0;
  for (const [index, bound] of bounds.entries()) {
    const count = counts[index];
    if (count > 0 && seen + count >= rank) return low + ((bound - low) * (rank - seen)) / count;
    low = bound;
    seen += count;
  }
  return low;
}

const grown = (now, before, key) =>
  before === undefined ? 0 : Math.max(0, now[key] - before[key]); // a restart counts from 0 again

/** One snapshot, as far as it is needed later. */
class Sample {
  constructor(snapshot) {
    this.t = snapshot.now_ns / SECOND_NS;
    this.limits = new Map();
    for (const one of snapshot.limits) {
      this.limits.set(`${one.node} ${limitKey(one)}`, {
        own: one.admitted_own,
        mesh: one.admitted_mesh,
        by: { ...one.admitted_peers, [one.node]: one.admitted_own },
      });
    }
    this.upstreams = new Map();
    for (const one of snapshot.upstreams) {
      const { requests, admitted, refused, paused, failed, heads } = one;
      this.upstreams.set(`${one.node} ${one.name}`, {
        requests, admitted, refused, paused, failed, heads,
      });
    }
  }
}

export class History {
  constructor() {
    this.samples = [];
    this.points = new Map(); // of a limit or an upstream
  }

  /** Takes a snapshot in and derives everything's newest point from it. */
  add(snapshot) {
    const sample = new Sample(snapshot);
    const last = this.samples.at(-1);
    if (last !== undefined && sample.t <= last.t) this.samples = []; // the host was restarted
    this.samples.push(sample);
    while (this.samples[0].t < sample.t - LATENCY_S - 2) this.samples.shift();
    const opened = new Set(
      snapshot.breakers
        .filter((one) => one.credential === null && one.state !== "closed")
        .map((one) => one.upstream),
    );
    for (const [key, group] of grouped(snapshot.limits, limitKey)) {
      this.extend(`limit ${key}`, this.limitPoint(group, sample, opened));
    }
    for (const [name, group] of grouped(snapshot.upstreams, (one) => one.name)) {
      this.extend(`upstream ${name}`, this.upstreamPoint(group, sample, snapshot, opened));
    }
    for (const [key, points] of this.points) {
      if (points.at(-1).t < sample.t - SPAN_S) this.points.delete(key); // it left the file
    }
  }

  of(key) {
    return this.points.get(key) ?? [];
  }

  extend(key, point) {
    let points = this.points.get(key);
    const last = points?.at(-1);
    if (last === undefined || point.t <= last.t) {
      points = [];
      this.points.set(key, points);
    }
    point.gap = last !== undefined && point.t - last.t > GAP_S;
    points.push(point);
    while (points[0].t < point.t - SPAN_S) points.shift();
  }

  /** The youngest sample that is at least so old, or the oldest one; null for the first. */
  before(sample, seconds) {
    const older = this.samples.filter((one) => one.t < sample.t);
    return older.findLast((one) => sample.t - one.t >= seconds) ?? older[0] ?? null;
  }

  limitPoint(group, sample, opened) {
    const first = group[0];
    const line = first.rate === null
      ? group.reduce((sum, one) => sum + (one.slots_in_force ?? one.quota), 0)
      : Math.min(...group.map((one) => one.rate_in_force ?? rateOf(one.rate) ?? Infinity));
    const point = { t: sample.t, line, open: opened.has(first.upstream), own: null, others: null };
    if (first.rate === null) {
      point.own = group.reduce((sum, one) => sum + one.level, 0);
      point.others = 0;
      return point;
    }
    const before = this.before(sample, MEAN_S);
    if (before === null || sample.t - before.t > GAP_S) return point;
    const span = sample.t - before.t;
    const keys = group.map((one) => `${one.node} ${limitKey(one)}`);
    const moved = (key, what) => grown(sample.limits.get(key), before.limits.get(key), what);
    // Workers of a node each see the sum of all; what they took themselves is to be added up.
    point.own = keys.reduce((sum, key) => sum + moved(key, "own"), 0) / span;
    const all = Math.max(...keys.map((key) => moved(key, "mesh"))) / span;
    point.others = Math.max(0, all - point.own);
    return point;
  }

  upstreamPoint(group, sample, snapshot, opened) {
    const point = { t: sample.t, open: opened.has(group[0].name), p50: null, p99: null };
    const keys = group.map((one) => `${one.node} ${one.name}`);
    const before = this.before(sample, MEAN_S);
    if (before !== null && sample.t - before.t <= GAP_S) {
      for (const what of ["requests", "admitted", "refused", "paused", "failed"]) {
        const sum = keys.reduce(
          (total, key) =>
            total + grown(sample.upstreams.get(key), before.upstreams.get(key), what), 0);
        point[what] = sum / (sample.t - before.t);
      }
    }
    const minute = this.before(sample, LATENCY_S);
    if (minute !== null) {
      const counts = snapshot.head_bounds_ms.map(() => 0).concat(0);
      for (const key of keys) {
        const now = sample.upstreams.get(key).heads;
        const then = minute.upstreams.get(key)?.heads ?? now;
        for (const index of counts.keys()) counts[index] += Math.max(0, now[index] - then[index]);
      }
      point.p50 = quantile(counts, snapshot.head_bounds_ms, 0.5);
      point.p99 = quantile(counts, snapshot.head_bounds_ms, 0.99);
    }
    return point;
  }

  /** What each node took of a limit in the last SHARE_S: [[name, tokens a second], …], by name. */
  shares(group) {
    const sample = this.samples.at(-1);
    const before = this.before(sample, SHARE_S);
    if (before === null) return [];
    const taken = new Map();
    for (const one of group) {
      const key = `${one.node} ${limitKey(one)}`;
      const then = before.limits.get(key)?.by;
      if (then === undefined) continue;
      for (const [name, tokens] of Object.entries(sample.limits.get(key).by)) {
        const more = Math.max(0, tokens - (then[name] ?? tokens)) / (sample.t - before.t);
        taken.set(name, Math.max(taken.get(name) ?? 0, more));
      }
    }
    return [...taken].sort(([one], [other]) => (one < other ? -1 : 1));
  }
}
