// Bindings, and the way from an invocation to the bundle's exports and back.

const json = "application/json";
const encodeArgs = (args) => {
  if (args.length === 0) return [[], undefined];
  if (args.length > 1) return [["content-type", "application/vnd.lode.args+json"], JSON.stringify(args)];
  const a = args[0];
  if (a instanceof ArrayBuffer || ArrayBuffer.isView(a)) return [["content-type", "application/octet-stream"], a];
  return [["content-type", json], JSON.stringify(a)];
};
// ask calls a function or an agent by its address with JSON or bytes.
const ask = async (address, more, args) => {
  const [type, body] = encodeArgs(args);
  const r = await operate(ops.call, [":address", address, ...more, ...type], body);
  const status = Number(head(r[0], ":status") ?? 200), text = () => host.decode(r[1], false);
  if (status >= 400) {
    let p = {};
    try {
      p = JSON.parse(text());
    } catch {} // not problem+json: the status has to do
    const kind = p.kind || { 400: "invalid", 401: "unauthenticated", 403: "denied", 404: "not_found", 409: "conflict", 429: "overloaded", 503: "unavailable", 504: "deadline" }[status];
    throw Object.assign(new LodeError(kind || (status < 500 ? "invalid" : "crashed"), `${address}: ${p.detail || p.title || "status " + status}`, p.hint), { status });
  }
  if (r[1].byteLength === 0) return undefined;
  return /json/.test(head(r[0], "content-type") ?? json) ? JSON.parse(text()) : new Uint8Array(r[1]);
};
const call = (address, handler, args) => ask(address, handler ? [":handler", handler] : [], args);
const put = async (queue, value, { key, delay, delaySeconds } = {}) => {
  const [type, body] = encodeArgs([value]);
  const ms = delaySeconds !== undefined ? delaySeconds * 1000 : delay;
  const r = await operate(ops.queue, [":queue", queue, ...(key ? [":key", key] : []), ...(ms ? [":delay", String(Math.ceil(ms))] : []), ...type], body);
  return head(r[0], ":id");
};

// methods are what any name can do; whether it is a function, a kind of agents,
// a queue or a dataset shows when one is used.
const methods = (name) => ({
  getByName: (key) => agent(name, key),
  idFromName: (key) => new AgentId(key),
  idFromString: (key) => new AgentId(key),
  newUniqueId: () => new AgentId(hex(host.bytes(16))),
  get: (...args) => (args[0] instanceof AgentId ? agent(name, args[0].name) : call(name, "get", args)),
  fetch(input, init) {
    const r = input instanceof Request ? new Request(input, init) : new Request(new URL(String(input), `http://${name}/`), init);
    const at = r.url.indexOf("/", r.url.indexOf("//") + 2);
    return send(r, ops.call, [":address", name, ":method", r.method, ":path", at < 0 ? "/" : r.url.slice(at).replace(/#.*/, "")]);
  },
  call: (...args) => call(name, "", args),
  send: (value, options) => put(name, value, options),
  sendBatch: (list) => Promise.all([...list].map((m) => put(name, m.body, m))),
  manifest: async () => JSON.parse(host.decode((await operate(ops.data, [":dataset", name, ":verb", "show"]))[1], false)),
  async shard(i, offset = 0, length = 8 << 20) {
    return new Uint8Array((await operate(ops.data, [":dataset", name, ":verb", "read", ":shard", String(i), ":offset", String(offset), ":length", String(length)]))[1]);
  },
});
const binding = (name) => new Proxy(methods(name), {
  get: (m, k) => (typeof k === "symbol" || k === "then" || k === "toJSON" ? undefined : k in m ? m[k] : (...args) => call(name, k, args)),
});

let values = null; // the function's variables, which a revision never changes; read when first asked for
let secrets = null; // those that this invocation has asked for
const bound = new Map();
const lookup = (name) => {
  if (typeof name !== "string") return undefined;
  if (values === null) values = JSON.parse(host.decode(blocking(ops.config, [":key", ""])[1], false) || "{}");
  if (Object.hasOwn(values, name)) return values[name];
  let to = bound.get(name);
  if (to === undefined && (needs.includes(name) || kinds.has(kebab(name)))) {
    bound.set(name, (to = binding(kinds.has(kebab(name)) ? kebab(name) : name.toLowerCase().replace(/_/g, "-"))));
  }
  if (to !== undefined) return to;
  if (secrets !== null && Object.hasOwn(secrets, name)) return secrets[name];
  try {
    return ((secrets ??= {})[name] = host.decode(blocking(ops.secret, [":key", name])[1], false));
  } catch (e) {
    if (e.kind === "denied" || e.kind === "not_found" || e.kind === "unavailable") return undefined;
    throw e;
  }
};
const env = new Proxy({}, {
  get: (_, k) => lookup(k),
  has: (_, k) => lookup(k) !== undefined,
  ownKeys: () => (lookup(""), [...new Set([...Object.keys(values), ...needs])]),
  getOwnPropertyDescriptor: (_, k) => (lookup(k) === undefined ? undefined : { value: lookup(k), enumerable: true, configurable: true }),
});

// ---- exports of the bundle ----

const functions = new Map(); // name -> {triggers, run(begin, kind, ctx): value or promise}
const jobs = new Map();
const isClass = (f) => typeof f === "function" && Object.getOwnPropertyDescriptor(f, "prototype")?.writable === false;
global("__lode_load", (ns) => {
  const d = ns.default;
  if (isClass(d) && d.prototype instanceof DurableObject) addKind(d.name, d);
  else if (isClass(d) && d.prototype && typeof d.prototype.fetch === "function") {
    functions.set("", worker((ctx) => new d(ctx, env), d.prototype));
  } else if (typeof d === "function") functions.set("", typed(d));
  else if (d && typeof d === "object") {
    const w = worker(() => d, d);
    if (w.triggers.length) functions.set("", w);
    else ns = { ...d, ...ns }; // module.exports = {name: function}
  }
  for (const name of Object.keys(ns)) {
    const x = ns[name];
    if (name === "default") continue;
    if (isKind(x)) addKind(name, x);
    else if (isClass(x)) continue;
    else if (typeof x === "function") functions.set(name, typed(x));
    else if (x && typeof x === "object" && typeof x.map === "function" && !Array.isArray(x)) jobs.set(name === "job" ? "" : name, x);
    else if (x && typeof x === "object" && typeof x.fetch === "function") functions.set(name, worker(() => x, x));
  }
});

const worker = (make, shape) => ({
  triggers: [...(typeof shape.fetch === "function" ? ["http", "call"] : []), ...(typeof shape.scheduled === "function" ? ["schedule"] : []), ...(typeof shape.queue === "function" ? ["queue"] : [])],
  run(req, kind, ctx) {
    const w = make(ctx);
    if (kind === "http" && typeof w.fetch === "function") return w.fetch(new Request(internal, req), env, ctx);
    if (kind === "schedule" && typeof w.scheduled === "function") {
      const time = Date.parse(host.header(":schedule") || "") || Date.now();
      return Promise.resolve(w.scheduled({ type: "scheduled", scheduledTime: time, cron: host.header(":cron") ?? "" }, env, ctx)).then(() => undefined);
    }
    if (kind === "queue" && typeof w.queue === "function") return batch(w, ctx);
    if (typeof w.fetch !== "function") throw new LodeError("invalid", `this module has no handler for ${kind}: its default export has no fetch`);
    return w.fetch(new Request(internal, req), env, ctx);
  },
});

const typed = (fn) => ({
  triggers: ["http", "call", "schedule", "queue"],
  run(req, kind, ctx) {
    const type = req[6] ?? "", request = new Request(internal, req);
    if (type.startsWith("application/octet-stream")) return request._all().then((b) => fn(b, env, ctx));
    const quick = request._body === null ? "" : request._quick();
    if (quick === undefined) return request.text().then((t) => typedCall(fn, type, t, ctx));
    return typedCall(fn, type, quick, ctx);
  },
});
const typedCall = (fn, type, text, ctx) => {
  let arg;
  try {
    if (text !== "") arg = JSON.parse(text);
  } catch (e) {
    return new Response(JSON.stringify({ type: "about:blank", title: "the request is not valid", status: 400, detail: `the request body is not JSON: ${e.message}` }),
      { status: 400, headers: { "content-type": "application/problem+json" } });
  }
  return type.startsWith("application/vnd.lode.args+json") && Array.isArray(arg) ? fn(...arg) : fn(arg, env, ctx);
};

const batch = async (w, ctx) => {
  const body = JSON.parse(await incomingRequest().text());
  const again = new Set();
  const messages = body.messages.map((m) => {
    const raw = Uint8Array.from(atob(m.body ?? ""), (c) => c.charCodeAt(0));
    const content = /json/.test(m.type || json) ? JSON.parse(host.decode(raw, false) || "null") : /^text\//.test(m.type) ? host.decode(raw, false) : raw;
    return { id: m.id, attempts: m.attempt, timestamp: new Date(m.time), body: content, ack: () => void again.delete(m.id), retry: () => void again.add(m.id) };
  });
  await w.queue({ queue: body.queue, messages, ackAll: () => again.clear(), retryAll: () => messages.forEach((m) => again.add(m.id)) }, env, ctx);
  return { retry: [...again] };
};

const incomingRequest = () => new Request(internal, []);

// ---- one invocation ----

// answer writes what a handler gave: at once and undefined for what is short,
// a promise for what takes its time.
const answer = (v) => {
  if (!(v instanceof Response)) {
    if (v === undefined) return begun(host.respond([":status", "204"]));
    if (v instanceof ArrayBuffer || ArrayBuffer.isView(v)) v = new Response(v, { headers: { "content-type": "application/octet-stream" } });
    else if (v instanceof ReadableStream) v = new Response(v);
    else {
      const text = JSON.stringify(v);
      if (text === undefined) throw new TypeError("the handler's value is not JSON");
      if (text.length < 21000) return begun(host.respond(jsonHead, text));
      v = Response.json(v);
    }
  }
  if (v.bodyUsed) throw new TypeError("the response's body was read already");
  if (v.webSocket && v.webSocket._peer?.readyState !== 1) throw new TypeError("the response's WebSocket was not accepted: this.ctx.acceptWebSocket(server) comes first");
  const flat = v.headers._flat, pairs = v.status === 200 ? flat : [":status", String(v.status), ...flat];
  let body = v._body;
  if (body === null || (!v._stream && typeof body === "string" && body.length < 21000)) return begun(host.respond(pairs, body));
  if (!v._stream && typeof body === "string") body = utf8(body);
  if (!v._stream && body instanceof Uint8Array && body.length <= 65536) return begun(host.respond(pairs, body));
  begun(host.respond(pairs));
  if (!v._stream && body instanceof Uint8Array) return write(body);
  return copy(v.body);
};
const jsonHead = ["content-type", json];
const copy = async (stream) => {
  for await (const c of stream) await write(typeof c === "string" ? utf8(c) : view(c));
};
const begun = (rc) => {
  if (rc < 0) throw new TypeError("the response's head is not valid");
};
const write = async (b) => {
  if (unsent !== null) unsent._flush();
  for (let at = 0; at < b.length; ) {
    const n = host.write(b, at);
    if (n < 0) throw new LodeError("cancelled", "nobody reads the answer any more");
    at += n;
    if (at < b.length) await operate(ops.bodyWrite, []);
  }
};

// shardOf lays a job's shard into memory; for a dataset of files it asks for
// their names and ends.
const shardOf = async () => {
  const list = host.request();
  const bytes = new Uint8Array(host.shard(Number(head(list, ":shard-bytes") ?? 0))), form = head(list, ":records") || "lines";
  const dataset = head(list, ":dataset") ?? "", version = head(list, ":version") ?? "", index = Number(head(list, ":shard") ?? 0);
  let files = { names: [dataset], ends: [bytes.length] };
  if (form === "files") {
    files = JSON.parse(host.decode((await operate(ops.data, [":dataset", dataset, ":version", version, ":verb", "index", ":shard", String(index)]))[1], false));
  }
  const size = form.startsWith("fixed:") ? Number(form.slice(6)) : 0;
  return {
    bytes, index, dataset, version: Number(version),
    text: () => host.decode(bytes, false),
    *files() {
      for (let i = 0, at = 0; i < files.names.length; at = files.ends[i++]) yield [files.names[i], bytes.subarray(at, files.ends[i])];
    },
    *records() {
      if (form === "files") for (const [, b] of this.files()) yield host.decode(b, false);
      else if (size) for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
      else yield* lines(bytes, form === "csv");
    },
  };
};
const lines = function* (bytes, csv) {
  for (let at = 0; at < bytes.length; ) {
    let end = csv ? csvEnd(bytes, at) : bytes.indexOf(10, at);
    if (end < 0) end = bytes.length;
    yield host.decode(bytes.subarray(at, end > at && bytes[end - 1] === 13 && end < bytes.length ? end - 1 : end), false);
    at = end + 1;
  }
};
const csvEnd = (b, at) => {
  for (let i = at, quoted = false; i < b.length; i++) {
    if (b[i] === 34) quoted = !quoted;
    else if (b[i] === 10 && !quoted) return i;
  }
  return -1;
};
const merge = async (job) => {
  const b = await incomingRequest()._all(), n = new DataView(b.buffer, b.byteOffset).getUint32(0, true);
  const part = (x) => (x.length ? JSON.parse(host.decode(x, false)) : undefined);
  return job.merge(part(b.subarray(4, 4 + n)), part(b.subarray(4 + n)));
};

// route finds what answers a request.
const route = (req, ctx) => {
  const kind = req[0] ?? "http", name = req[1] ?? "";
  if (kind === "job" || kind === "merge") {
    const job = jobs.get(name);
    if (job && kind === "job") return shardOf().then((s) => job.map(s, env, ctx));
    if (job && typeof job.merge === "function") return merge(job);
    if (kind === "merge") throw new LodeError("not_found", `this module has no job "${name}" with a merge`);
  }
  const f = functions.get(name);
  if (!f) throw Object.assign(new LodeError("not_found", name ? `this module has no handler "${name}"` : "this module has no default handler"), { type: "NoHandler" });
  return f.run(req, kind, ctx);
};

class Context {
  _waits = null;
  props = {};
  waitUntil(p) { (this._waits ??= []).push(Promise.resolve(p).catch((e) => host.log(8, "waitUntil: " + show(e)))); }
  passThroughOnException() {}
}
let current = new Context();
const drain = async (ctx) => {
  while (ctx._waits.length) await ctx._waits.shift();
  host.done(0);
};
const finished = () => (current._waits === null ? host.done(0) : drain(current));
const reply = (v) => {
  const later = answer(v);
  return later === undefined ? finished() : later.then(finished);
};
global("__lode_invoke", () => {
  began = -1;
  secrets = null;
  forget();
  try {
    const req = host.begin();
    if (req[0] === "agent") return turn(req);
    const ctx = (current = new Context());
    const v = route(req, ctx), p = typeof v?.then === "function" ? v.then(reply) : reply(v);
    if (p !== undefined) p.then(undefined, failure);
  } catch (e) {
    failure(e);
  }
});
global("__lode_complete", complete);

global("__lode_describe", () => {
  if (!functions.size && !jobs.size && !kinds.size) {
    throw new LodeError("invalid", "the module exports nothing to run: export default {fetch}, a function, const job = {map, merge}, or a class that extends Agent");
  }
  const all = { sdk: "js 1", abi: 1, functions: [], jobs: [] };
  if (kinds.size) all.kinds = [...kinds.values()].map(describeKind);
  for (const [name, f] of functions) all.functions.push({ name, triggers: f.triggers });
  for (const [name, j] of jobs) all.jobs.push({ name, ...(typeof j.merge === "function" ? { reduce: "guest" } : {}) });
  const b = utf8(JSON.stringify(all));
  for (let at = 0; at < b.length; ) at += host.write(b, at);
});

// warm runs what nearly every invocation runs, without the bundle's code, and
// without a call of the host.
global("__lode_warm", () => {
  const r = new Request("http://localhost/warm?a=1", { method: "POST", headers: { "content-type": json } });
  const u = new URL(r.url);
  u.searchParams.get("a");
  r.headers.get("content-type");
  const out = Response.json(JSON.parse('{"a":[1,2,{"b":"c"}],"d":1.5}'), { headers: { "x-warm": u.pathname } });
  new Response("text", { status: 201 }).headers.set("x-a", "b");
  Promise.resolve(out.text()).then(async (t) => utf8(t).length);
});

// ---- failures ----

const elsewhere = new Set(("process Buffer require module exports __dirname __filename global setImmediate clearImmediate XMLHttpRequest document window localStorage " +
  "sessionStorage indexedDB Worker MessageChannel BroadcastChannel CompressionStream DecompressionStream Intl WebAssembly SharedArrayBuffer caches HTMLRewriter").split(" "));

// decodeMap reads the mappings of a source map: by line, [column, source, line,
// column] with numbers from 0.
const decodeMap = (text) => {
  const value = (c) => values64.get(c);
  let source = 0, line = 0, column = 0;
  return text.split(";").map((l) => {
    let at = 0;
    return l.split(",").filter(Boolean).map((s) => {
      const fields = [];
      for (let i = 0, n = 0, shift = 0; i < s.length; i++) {
        const d = value(s[i]);
        n += (d & 31) * 2 ** shift;
        shift += 5;
        if (d & 32) continue;
        fields.push(n & 1 ? -Math.floor(n / 2) : n / 2);
        n = shift = 0;
      }
      at += fields[0];
      if (fields.length < 4) return [at, -1, 0, 0];
      source += fields[1];
      line += fields[2];
      column += fields[3];
      return [at, source, line, column];
    });
  });
};
const mapped = (stack) => {
  const text = host.map(), map = text ? JSON.parse(text) : null, table = map ? decodeMap(map.mappings) : [];
  const out = [];
  for (const l of String(stack || "").split("\n")) {
    const m = /^\s*at (?:(.*?) \()?(.*?)(?::(\d+))?(?::(\d+))?\)?$/.exec(l);
    if (!m || m[2] === "lode:prelude" || m[2] === "native") continue;
    let where = m[2] + (m[3] ? ":" + m[3] : "");
    if (m[2] === "lode:bundle" && m[3] && table[m[3] - 1]) {
      const col = Number(m[4] ?? 1) - 1;
      const hit = table[m[3] - 1].filter((e) => e[0] <= col && e[1] >= 0).pop() ?? table[m[3] - 1].find((e) => e[1] >= 0);
      if (hit) where = `${map.sources[hit[1]]}:${hit[2] + 1}:${hit[3] + 1}`;
    }
    out.push(m[1] && m[1] !== "<anonymous>" ? `${m[1]} (${where})` : where);
  }
  return out;
};
const failure = (e) => {
  let type = "Error", message = show(e), stack = [];
  if (e instanceof Error || (e && typeof e.message === "string")) {
    type = e.type || e.name || "Error";
    message = String(e.message);
    const m = /^'?([A-Za-z_$][\w$]*)'? is not defined/.exec(message);
    if (e instanceof ReferenceError && m && elsewhere.has(m[1])) message += `: the JavaScript here has no ${m[1]}; Node itself comes in a later version`;
    stack = mapped(e.stack);
  }
  host.fail(JSON.stringify({ type, message, stack }));
  host.done(1);
};
global("__lode_failure", failure);
