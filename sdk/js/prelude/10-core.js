// Operations, promises of the host, timers, console. All files of this folder
// are one script, in the order of their names, inside one function that is
// given `host` (engine/shim.c) and `needs` (the bindings that the bundle uses).

const ops = { call: 1, send: 2, receive: 3, state: 4, timer: 5, data: 6, config: 8, secret: 9, fetch: 10, queue: 11, group: 12, self: 13, bodyRead: 14, bodyWrite: 15,
  streamRead: 16, streamClose: 17, sleep: 18, socket: 19 };
const statuses = ["", "invalid", "unauthenticated", "denied", "not_found", "bad_method", "conflict", "gone", "precondition", "too_large", "misdirected",
  "key_reused", "overloaded", "cancelled", "internal", "crashed", "unavailable", "deadline", "full", "damaged"];

// LodeError is a failed operation; `kind` is the word of the platform's errors.
class LodeError extends Error {
  constructor(kind, message, hint) {
    super(message || kind);
    this.kind = kind;
    if (hint) this.hint = hint;
  }
}
Object.defineProperty(LodeError.prototype, "name", { value: "LodeError" });

// global defines a web API by its name, as a browser has it.
const global = (name, value) => Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });

const pending = new Map(); // id of an operation -> {resolve, reject}

// head finds a value in a flat list of keys and values.
const head = (list, key) => {
  for (let i = 0; i < list.length; i += 2) if (list[i] === key) return list[i + 1];
  return undefined;
};

// unsent is the storage of the agent whose turn has written what the host does
// not know yet (84-storage.js). The host has to know before anything leaves the
// turn that must not leave unless the turn takes effect.
let unsent = null;
const leaves = [];
for (const op of [ops.call, ops.fetch, ops.queue, ops.group, ops.bodyWrite, ops.socket]) leaves[op] = true;

const start = (op, pairs, body) => {
  if (unsent !== null && leaves[op]) unsent._flush();
  const id = host.submit(op, pairs, body);
  if (id > 0) return id;
  if (id === -3) throw new LodeError("overloaded", "1,024 operations are under way in this invocation");
  if (id === -5) throw new LodeError("unavailable", "this node does not know the operation");
  throw new LodeError("invalid", "the operation's request is not valid: over 16 MiB, or a field over 64 KiB");
};

// result takes a completed operation: [flat head, ArrayBuffer].
const result = (id, status, length) => {
  const r = host.take(id, length);
  if (status === 0) return r;
  const e = new LodeError(head(r[0], ":error") || statuses[status] || "internal", head(r[0], ":detail"), head(r[0], ":hint")), missing = head(r[0], ":missing");
  if (missing !== undefined) e.missing = JSON.parse(missing);
  throw e;
};

// operate starts an operation; a promise of [flat head, ArrayBuffer].
const operate = (op, pairs, body, signal) => {
  let id;
  try {
    id = start(op, pairs, body);
  } catch (e) {
    return Promise.reject(e);
  }
  return new Promise((resolve, reject) => {
    pending.set(id, { resolve, reject });
    if (!signal) return;
    const stop = () => {
      if (pending.has(id)) host.cancel(id);
      reject(signal.reason);
    };
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
};

const complete = (id, status, length) => {
  const p = pending.get(id);
  pending.delete(id);
  let r;
  try {
    r = result(id, status, length);
  } catch (e) {
    if (p) p.reject(e);
    return;
  }
  if (p) p.resolve(r);
};

// blocking waits for one operation while nothing else runs: for what the
// module-Worker shape wants at once (env.NAME), and the host answers at once.
const blocking = (op, pairs, body) => {
  const id = start(op, pairs, body);
  for (;;) {
    const w = host.wait();
    if (w === null) throw new LodeError("internal", "the operation got lost");
    if (w[0] === id) return result(id, w[1], w[2]);
    Promise.resolve(w).then(late); // it may run the program's code, which is not to run in here
  }
};
const late = (w) => complete(w[0], w[1], w[2]);

// forget drops what an invocation before, in the same sandbox, left under way.
const forget = () => {
  if (pending.size) pending.clear();
  if (timers.size) timers.clear();
  unsent = null;
};

// ---- timers ----

const timers = new Map(); // handle -> id of the sleep
let lastTimer = 0;

const arm = (handle, ms, fire) => {
  const id = start(ops.sleep, [":ns", String(Math.max(0, Math.round((+ms || 0) * 1e6)))]);
  timers.set(handle, id);
  pending.set(id, { resolve: () => timers.get(handle) === id && fire(), reject: () => timers.delete(handle) });
};

global("setTimeout", (fn, ms, ...args) => {
  const handle = ++lastTimer;
  arm(handle, ms, () => {
    timers.delete(handle);
    fn(...args);
  });
  return handle;
});
global("setInterval", (fn, ms, ...args) => {
  const handle = ++lastTimer;
  const again = () => {
    arm(handle, Math.max(ms, 1), again);
    fn(...args);
  };
  arm(handle, Math.max(ms, 1), again);
  return handle;
});
const clear = (handle) => {
  const id = timers.get(handle);
  if (id === undefined) return;
  timers.delete(handle);
  host.cancel(id);
};
global("clearTimeout", clear);
global("clearInterval", clear);
global("queueMicrotask", (fn) => void Promise.resolve().then(fn));

// ---- console ----

// show is how console prints a value.
const show = (v, depth = 0, seen = new Set()) => {
  if (typeof v === "string") return depth ? JSON.stringify(v) : v;
  if (typeof v === "bigint") return v + "n";
  if (typeof v === "symbol") return v.toString();
  if (typeof v === "function") return `[Function: ${v.name || "anonymous"}]`;
  if (v === null || typeof v !== "object") return String(v);
  if (v instanceof Error) return `${v.name}: ${v.message}${depth || !v.stack ? "" : "\n" + v.stack.trimEnd()}`;
  if (seen.has(v)) return "[Circular]";
  if (v instanceof Date || v instanceof RegExp) return v instanceof Date ? v.toISOString() : String(v);
  if (ArrayBuffer.isView(v) || v instanceof ArrayBuffer) return `${v.constructor.name}(${v.length ?? v.byteLength})`;
  if (depth > 3) return Array.isArray(v) ? "[Array]" : "[Object]";
  seen.add(v);
  const one = (x) => show(x, depth + 1, seen);
  let out;
  if (Array.isArray(v)) out = `[${v.slice(0, 100).map(one).join(", ")}${v.length > 100 ? ", ..." : ""}]`;
  else if (v instanceof Map) out = `Map {${[...v].map(([k, x]) => `${one(k)} => ${one(x)}`).join(", ")}}`;
  else if (v instanceof Set) out = `Set {${[...v].map(one).join(", ")}}`;
  else {
    const name = v.constructor && v.constructor !== Object ? v.constructor.name + " " : "";
    out = `${name}{${Object.keys(v).map((k) => `${k}: ${one(v[k])}`).join(", ")}}`;
  }
  seen.delete(v);
  return out;
};

const format = (args) => {
  if (typeof args[0] !== "string" || !args[0].includes("%")) return args.map((a) => show(a)).join(" ");
  let i = 1;
  const text = args[0].replace(/%([sdifjoOc%])/g, (m, c) => {
    if (c === "%") return "%";
    if (i >= args.length) return m;
    const a = args[i++];
    if (c === "c") return "";
    if (c === "d" || c === "i") return String(c === "i" ? parseInt(a) : Number(a));
    return c === "f" ? String(parseFloat(a)) : c === "j" ? JSON.stringify(a) : c === "s" ? String(a) : show(a, 1);
  });
  return [text, ...args.slice(i).map((a) => show(a))].join(" ");
};
const printer = (level) => (...args) => host.log(level, format(args));
const counts = new Map(), clocks = new Map();
global("console", {
  debug: printer(-4), trace: printer(-4), log: printer(0), info: printer(0), dir: printer(0), table: printer(0), group: printer(0), warn: printer(4), error: printer(8),
  groupEnd() {},
  assert(ok, ...args) { if (!ok) host.log(8, "assertion failed: " + format(args)); },
  count(l = "default") { counts.set(l, (counts.get(l) || 0) + 1); host.log(0, `${l}: ${counts.get(l)}`); },
  time(l = "default") { clocks.set(l, host.now()); },
  timeEnd(l = "default") { host.log(0, `${l}: ${(host.now() - clocks.get(l)).toFixed(3)} ms`); },
});

let began = -1; // the monotonic clock when this invocation first looked at it
const elapsed = () => host.now() - (began < 0 ? (began = host.now()) : began);
global("performance", { now: elapsed, get timeOrigin() { return Date.now() - elapsed(); }, mark() {}, measure() {} });
Math.random = () => host.random();
global("self", globalThis);
global("navigator", { userAgent: "Lode" });
