// Kinds of agents, what keeps them between turns, and a turn from its request
// to its answer.

// DurableObject and Agent are what a kind's class extends.
class DurableObject {
  constructor(ctx, env) {
    this.ctx = ctx;
    this.env = env;
  }
}
class Agent extends DurableObject {}

const hex = (buffer) => new Uint8Array(buffer).toHex();

// AgentId is what a binding's idFromName gives: here the key itself.
class AgentId {
  constructor(name) { this.name = String(name); }
  toString() { return this.name; }
  toJSON() { return this.name; }
  equals(other) { return other instanceof AgentId && other.name === this.name; }
}

class AgentContext extends Context {
  constructor(kind, key) {
    super();
    this.id = new AgentId(key);
    this._kind = kind;
    this._read = false; // the turn only reads
    this._open = true; // a turn runs
    this._block = null; // what blockConcurrencyWhile waits for
    this._fault = null; // what abort was given
    this._gone = false; // remove was called
    this._sockets = null;
    this._timer = null;
    this.storage = new Storage();
  }
  get caller() { return host.header(":caller"); }
  blockConcurrencyWhile(f) {
    const p = (async () => f())();
    this._block = this._block === null ? p : Promise.all([this._block, p]);
    this._block.catch(() => {}); // the turn awaits it
    return p;
  }
  abort(reason) {
    this._fault = reason instanceof Error ? reason : new LodeError("crashed", String(reason ?? "ctx.abort()"));
    throw this._fault;
  }
  // _mine refuses what is asked of one agent in the turn of another.
  _mine() { if (current !== this) throw new LodeError("gone", `the turn of ${this._kind.name}/${this.id.name} is over`); }
  get timer() {
    this._mine();
    return (this._timer ??= new Timers());
  }
  // emit tells everybody who listens at the agent's address; how many those are.
  emit(data, { event = "" } = {}) {
    this._mine();
    const raw = typeof data === "string" || data instanceof ArrayBuffer || ArrayBuffer.isView(data);
    const r = blocking(ops.socket, [":verb", "emit", ":type", String(event)], raw ? data : JSON.stringify(data));
    return Number(head(r[0], ":n") ?? 0);
  }
  // remove makes the agent as if it had never been, when the turn ends.
  async remove() {
    this.storage._writes();
    this.storage._forget();
    blocking(ops.state, [":verb", "remove"]);
    this._gone = true;
  }
  get _all() {
    this._mine();
    return (this._sockets ??= new Sockets());
  }
  acceptWebSocket(ws, tags = []) { this._all.accept(ws, tags); }
  getWebSockets(tag = "") { return this._all.list(tag); }
  getTags(ws) { return [...(ws._tags ?? ws._known)]; }
  setWebSocketAutoResponse(pair) { this._all._auto = pair ?? null; }
  getWebSocketAutoResponse() { return this._sockets?._auto ?? null; }
}

class Timers {
  async set(name, { at, after, method, args = [] } = {}) {
    if (typeof method !== "string" || method === "") throw new TypeError("timer.set(name, {at or after, method}): the method is missing");
    if ((at === undefined) === (after === undefined)) throw new TypeError("timer.set(name, {at or after, method}): want one of at and after");
    const [type, body] = encodeArgs(args);
    blocking(ops.timer, [":verb", "set", ":name", name, ...(at !== undefined ? [":at", millis(at)] : [":after", millis(after)]), ":call", method, ...type], body);
  }
  async clear(name) { return head(blocking(ops.timer, [":verb", "clear", ":name", name])[0], ":found") === "1"; }
  async get(name) {
    const r = blocking(ops.timer, [":verb", "get", ":name", name])[0];
    return head(r, ":found") === "1" ? Number(head(r, ":at")) : null;
  }
  async list() { return JSON.parse(host.decode(blocking(ops.timer, [":verb", "list"])[1], false) || "[]"); }
}

// ---- kinds ----

const kinds = new Map(); // name -> {name, cls, methods, live, last}
const mostLive = 256; // activations of a kind that are kept
const kebab = (s) => s.replace(/([a-z0-9])([A-Z])/g, "$1-$2").replace(/([A-Z])([A-Z][a-z])/g, "$1-$2").replace(/[_$]+/g, "-").toLowerCase();
const special = new Set("constructor fetch alarm migrate connect then toString toJSON valueOf webSocketMessage webSocketClose webSocketError".split(" "));

// isKind tells classes of agents: those that extend the base classes, and, as
// Workers had it first, those that extend nothing and have a fetch of their own
// and a constructor with parameters.
const isKind = (c) => {
  if (!isClass(c) || c === Agent || c === DurableObject) return false;
  if (c.prototype instanceof DurableObject) return true;
  return Object.getPrototypeOf(c) === Function.prototype && c.length > 0 && Object.hasOwn(c.prototype, "fetch");
};
const addKind = (exported, cls) => {
  const name = kebab(exported === "default" ? cls.name : exported);
  if (!/^[a-z][a-z0-9-]{0,47}$/.test(name)) throw new LodeError("invalid", `class ${exported}: "${name}" is no name of a kind`, "a kind is named as its class: lower-case letters, digits and dashes");
  if (kinds.has(name)) throw new LodeError("invalid", `two classes are the kind ${name}`);
  const methods = new Set();
  for (let p = cls.prototype; p !== null && p !== Object.prototype && p !== Agent.prototype && p !== DurableObject.prototype; p = Object.getPrototypeOf(p)) {
    for (const m of Object.getOwnPropertyNames(p)) {
      if (!special.has(m) && m[0] !== "_" && m[0] !== "#" && typeof Object.getOwnPropertyDescriptor(p, m).value === "function") methods.add(m);
    }
  }
  const read = cls.read ?? [];
  if (!Array.isArray(read)) throw new LodeError("invalid", `class ${exported}: static read is a list of the names of methods`);
  for (const m of read) {
    if (!methods.has(m)) throw new LodeError("invalid", `class ${exported}: static read names ${show(m, 1)}, which is no method`, `methods: ${[...methods].join(", ")}`);
  }
  kinds.set(name, { name, cls, methods, live: new Map(), last: null });
};
const describeKind = ({ name, cls, methods }) => {
  const has = (m) => typeof cls.prototype[m] === "function";
  const socket = has("webSocketMessage") || has("webSocketClose") || (has("fetch") && /\bacceptWebSocket\b/.test(String(cls)));
  return { name, methods: [...methods], ...(cls.read?.length ? { read: cls.read } : {}), ...(has("fetch") ? { fetch: true } : {}),
    ...(socket ? { socket } : {}), ...(has("migrate") ? { migrate: true } : {}) };
};
const kindOf = (name) => {
  const k = name === "" && kinds.size === 1 ? kinds.values().next().value : kinds.get(name);
  if (k === undefined) throw Object.assign(new LodeError("not_found", name ? `this module has no kind "${name}"` : "this module has several kinds, or none"), { type: "NoHandler" });
  return k;
};

// ---- turns ----

// activated is the agent in memory if that is what it is, else a new one.
const activated = (k, key) => {
  let a = k.live.get(key);
  if (a !== undefined && host.header(":warm") === "1") {
    if (k.last !== a) { // keep the order of use
      k.live.delete(key);
      k.live.set(key, a);
    }
  } else {
    if (a !== undefined) k.live.delete(key);
    a = { key, kind: k, ctx: new AgentContext(k, key), self: null, kept: false };
  }
  k.last = a;
  return a;
};

let now = null; // the turn under way: what comes later from another one is nobody's
const turn = (req) => {
  const a = activated(kindOf(host.header(":class") ?? ""), host.header(":agent") ?? ""), ctx = (current = a.ctx);
  const t = (now = { a, req, how: host.header(":turn") ?? "call" });
  ctx._read = t.how === "read";
  ctx._open = true;
  ctx._waits = ctx._block = null;
  try {
    if (a.self === null) a.self = new a.kind.cls(ctx, env);
    const v = ctx._block === null ? work(t) : ctx._block.then(() => work(t));
    const p = typeof v?.then === "function" ? v.then((v) => settled(t, v)) : settled(t, v);
    if (p !== undefined) p.then(undefined, (e) => failed(t, e));
  } catch (e) {
    failed(t, e);
  }
};

// work runs what the turn asks for.
const work = (t) => {
  const { req, a } = t, { self, kind } = a;
  switch (t.how) {
    case "fetch":
      if (typeof self.fetch !== "function") return refuse(404, "not_found", `kind ${kind.name} answers no HTTP requests: its class has no fetch`);
      return self.fetch(new Request(internal, req));
    case "socket": return socketTurn(self, a.ctx._all, req);
    case "migrate": return nothing(self.migrate?.(revision(":from"), revision(":to")));
  }
  const verb = host.header(":verb") ?? "";
  if (verb === "alarm" && t.how === "timer" && typeof self.alarm === "function") return self.alarm(alarmInfo());
  if (!kind.methods.has(verb)) return refuse(404, "not_found", `kind ${kind.name} has no method "${verb}"`, `methods: ${[...kind.methods].join(", ")}`);
  const type = req[6];
  if (type !== undefined && !type.startsWith(json) && !type.startsWith(jsonArgs)) {
    return new Request(internal, req)._all().then((b) => (b.length ? self[verb](b.slice()) : self[verb]()));
  }
  const text = host.text();
  return text !== undefined ? method(self, verb, type, text) : new Request(internal, req).text().then((t) => method(self, verb, type, t));
};
const jsonArgs = "application/vnd.lode.args+json";
const method = (self, verb, type, text) => {
  if (text === "") return self[verb]();
  let v;
  try {
    v = JSON.parse(text);
  } catch (e) {
    return refuse(400, "invalid", `the arguments of ${verb} are not JSON: ${e.message}`);
  }
  return Array.isArray(v) && type !== undefined && type.startsWith(jsonArgs) ? self[verb](...v) : self[verb](v);
};
const nothing = (v) => (typeof v?.then === "function" ? v.then(() => undefined) : undefined);
const revision = (key) => {
  const r = host.header(key) ?? "", n = Number(r.slice(r.lastIndexOf("@") + 1));
  return Number.isInteger(n) ? n : r;
};
const alarmInfo = () => {
  const attempt = Number(host.header(":attempt") ?? 1);
  return { retryCount: attempt - 1, isRetry: attempt > 1, scheduledTime: Number(host.header(":due") ?? 0) };
};

const socketTurn = (self, sockets, req) => {
  const ws = sockets.of(host.header(":socket") ?? ""), run = (name, ...args) => (typeof self[name] === "function" ? self[name](ws, ...args) : undefined);
  switch (host.header(":event")) {
    case "close":
      sockets.gone(ws);
      return nothing(run("webSocketClose", Number(host.header(":code") ?? 1005), host.header(":reason") ?? "", /^(1|true)$/.test(host.header(":clean") ?? "")));
    case "error":
      sockets.gone(ws);
      return nothing(run("webSocketError", new LodeError("unavailable", host.header(":reason") || "the connection broke")));
  }
  const body = new Request(internal, req);
  if (host.header(":type") === "binary") return body.arrayBuffer().then((b) => nothing(run("webSocketMessage", b.slice(0))));
  const said = (text) => (sockets._auto?.request === text ? ws.send(sockets._auto.response) : nothing(run("webSocketMessage", text)));
  const text = body._quick();
  return text !== undefined ? said(text) : body.text().then(said);
};

// refuse answers what the program was not asked: nothing of the agent changes.
const refuse = (status, kind, detail, hint) => new Response(JSON.stringify({ type: "urn:lode:error:" + kind, title: detail, status, detail, kind, ...(hint ? { hint } : {}) }),
  { status, headers: { "content-type": "application/problem+json" } });

// explain answers beside a failure, so that the caller learns its kind.
const statusOf = { invalid: 400, unauthenticated: 401, denied: 403, not_found: 404, bad_method: 405, conflict: 409, gone: 410, precondition: 412, too_large: 413, misdirected: 421, key_reused: 422,
  overloaded: 429, cancelled: 499, crashed: 502, unavailable: 503, deadline: 504, full: 507 };
const explain = (e) => {
  if (!(e instanceof LodeError)) return;
  const r = refuse(statusOf[e.kind] ?? 500, e.kind, e.message, e.hint);
  host.respond([":status", String(r.status), ...r.headers._flat], r._body);
};

// settled ends a turn whose handler is done: what it gave to waitUntil comes
// first, then what it has written, then the answer.
const settled = (t, v) => {
  if (t !== now) return;
  const ctx = t.a.ctx;
  return ctx._waits === null && ctx._block === null ? conclude(t, v) : drained(ctx).then(() => conclude(t, v));
};
const drained = async (ctx) => {
  while (ctx._waits?.length || ctx._block !== null) {
    const block = ctx._block;
    ctx._block = null;
    await block;
    while (ctx._waits?.length) await ctx._waits.shift();
  }
};
const conclude = (t, v) => {
  if (t !== now) return;
  if (t.a.ctx._fault !== null) throw t.a.ctx._fault;
  if (t.a.ctx._gone) t.a.ctx.storage._forget();
  if (unsent !== null) unsent._flush();
  const later = answer(v);
  return later === undefined ? close(t) : later.then(() => close(t));
};
const close = (t) => {
  if (t !== now) return;
  const { a } = t, k = a.kind;
  if (unsent !== null) unsent._flush(); // of a streamed answer
  now = null;
  a.ctx._open = false;
  a.ctx.storage._end();
  if (a.ctx._gone) k.live.delete(a.key);
  else if (!a.kept) {
    a.kept = true;
    k.live.set(a.key, a);
    if (k.live.size > mostLive) k.live.delete(k.live.keys().next().value);
  }
  host.done(0);
};
const failed = (t, e) => {
  if (t !== now) return;
  now = unsent = null;
  t.a.ctx._open = false;
  t.a.kind.live.delete(t.a.key);
  if (t.a.kind.last === t.a) t.a.kind.last = null;
  explain(e);
  failure(e);
};

// ---- the ways to other agents ----

const addressOf = (to) => (typeof to === "string" ? to : String(to?.$address ?? to));
const askAgent = (address, verb, args, key) => ask(address, key ? [":verb", verb, ":key", key] : [":verb", verb], args);
const post = async (address, verb, args = [], { delay, key } = {}) => {
  if (!Array.isArray(args)) throw new TypeError("send(address, method, args): args is a list");
  const [type, body] = encodeArgs(args);
  const r = await operate(ops.send, [":address", addressOf(address), ":verb", verb, ...(delay ? [":delay", String(Math.ceil(delay))] : []), ...(key ? [":key", key] : []), ...type], body);
  return head(r[0], ":id");
};
const fetchFrom = (address, input, init) => {
  const r = input instanceof Request ? new Request(input, init) : new Request(new URL(String(input), "http://agent/"), init), at = r.url.indexOf("/", r.url.indexOf("//") + 2);
  return send(r, ops.call, [":address", address, ":method", r.method, ":path", at < 0 ? "/" : r.url.slice(at).replace(/#.*/, "")]);
};

// A stub answers to every name with a method of its agent, but for these.
class Stub {
  constructor(address, key) {
    this.$address = address;
    this.id = new AgentId(key);
    this.name = key;
  }
  get fetch() { return (input, init) => fetchFrom(this.$address, input, init); }
  get $send() { return (verb, args, options) => post(this.$address, verb, args, options); }
  get $call() { return (verb, args = [], options = {}) => askAgent(this.$address, verb, args, options.key); }
}
const stubs = {
  get(stub, k) {
    if (typeof k === "symbol" || k === "then" || k === "toJSON") return undefined;
    if (k === "toString") return () => stub.$address;
    if (k in stub && !(k in Object.prototype)) return stub[k];
    return (...args) => askAgent(stub.$address, k, args);
  },
};
// agent gives the stub of kind and key, or of an address kind/key.
const agent = (kind, key) => {
  if (key === undefined) {
    const at = String(kind).indexOf("/");
    if (at < 1 || at + 1 === kind.length) throw new TypeError(`${show(kind, 1)} is no address of an agent: want kind/key`);
    key = kind.slice(at + 1);
    kind = kind.slice(0, at);
  }
  if (key === "") throw new TypeError(`an agent of kind ${kind} has a key`);
  return new Proxy(new Stub(kind + "/" + key, String(key)), stubs);
};
