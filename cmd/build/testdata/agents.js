// Kinds of agents for the tests of the JavaScript SDK.
import { Agent, LodeError, agent, call, group, receive, run, self, send } from "lode";
import { DurableObject } from "cloudflare:workers";

const text = (v) => JSON.stringify(v, (k, x) => (x instanceof Map ? [...x] : x instanceof Set ? { set: [...x] } : x instanceof Uint8Array ? "bytes:" + [...x] : typeof x === "bigint" ? x + "n" : x));

export class Cart extends Agent {
  static read = ["total", "cheat"];
  made = 0;
  async add(item, n) {
    const q = ((await this.ctx.storage.get(item)) ?? 0) + n;
    await this.ctx.storage.put(item, q);
    return q;
  }
  async fill() {
    await this.ctx.storage.put({ a: 1, b: "\u00e4", c: [1, { d: null }], bytes: new Uint8Array([0, 255]), ".dot": true });
    await this.ctx.storage.delete("a");
    return (await this.ctx.storage.list()).size;
  }
  async total() {
    let n = 0;
    for (const v of (await this.ctx.storage.list()).values()) n += typeof v === "number" ? v : 0;
    return n;
  }
  count() { return ++this.made; }
  async cheat() { await this.ctx.storage.put("x", 1); }
  async boom(item) {
    await this.ctx.storage.put(item, 1);
    await this.ctx.storage.list();
    throw new Error("no " + item);
  }
  async missing() {
    await this.ctx.storage.put("m", 1);
    throw new LodeError("not_found", "no such book", "look elsewhere");
  }
  bytes(b) { return new Uint8Array([...b].reverse()); }
  nothing() {}
  never() { return new Promise(() => {}); }
  late() { this.ctx.waitUntil(new Promise((r) => setTimeout(r, 1)).then(() => this.ctx.storage.put("late", 1))); }
  floating() { void (async () => { for (let i = 0; i < 9; i++) await null; await this.ctx.storage.put("floating", 1); })().catch((e) => console.log(e.kind)); }
  async alarm(info) {
    await this.ctx.storage.put("rang", info);
    return info.retryCount;
  }
  async clock() {
    const s = this.ctx.storage;
    await s.setAlarm(1000);
    await this.ctx.timer.set("later", { after: 50, method: "add", args: ["pen", 1] });
    const all = await this.ctx.timer.list(), at = await s.getAlarm();
    await s.deleteAlarm();
    return [all.map((t) => [t.name, t.method]), at, await s.getAlarm(), await this.ctx.timer.clear("later"), await this.ctx.timer.clear("later")];
  }
  who() { return [this.ctx.id.name, String(this.ctx.id), this.ctx.caller, self().agent, this.env.MODE]; }
  async gone() {
    await this.ctx.storage.put("x", 1);
    await this.ctx.remove();
  }
  async others() {
    const b = this.env.CART.getByName("bob"), c = agent("order-flow/7");
    return [await b.add("book", 2), await this.env.CART.get(this.env.CART.idFromName("eve")).count(), await call("cart/carl", "total"), await c.step(), await b.$send("add", ["pen", 1], { delay: 5 }),
      await send(b, "add", ["ink"], { key: "k" }), await (await b.fetch("http://x/y?z=1", { method: "POST", body: "hi" })).text(), b.name, typeof b.then];
  }
  _hidden() {}
  #secret() {}
  get accessor() { return 1; }
  set accessor(v) { this.#secret(v); }
}

// Base's methods are those of the classes under it.
class Base extends DurableObject {
  inherited() { return "base"; }
}
export class OrderFlow extends Base {
  constructor(ctx, env) {
    super(ctx, env);
    ctx.blockConcurrencyWhile(async () => {
      await new Promise((r) => setTimeout(r, 1));
      this.steps = (await ctx.storage.get("steps")) ?? 0;
    });
  }
  async step() {
    await this.ctx.storage.put("steps", ++this.steps);
    return this.steps;
  }
  migrate(from, to) { return this.ctx.storage.put("moved", [from, to]); }
}

let kept; // of another agent, as no program should
export class Store extends DurableObject {
  async values() {
    const s = this.ctx.storage, now = new Date(86400000), out = [];
    const all = [undefined, null, 0, -0, NaN, -Infinity, 12n ** 20n, "x", "\ud800", now, /a.b/gi, new Uint8Array([1, 2]), new Uint8Array([3]).buffer, new Float32Array([1.5]), new Map([["k", new Set([1n])]]),
      [1, , 3], { a: undefined }, { $: 1 }, { $: ["date", 1] }, { x: { $: [new Date(5)] } }, { d: now, $: 1 }, JSON.parse('{"__proto__": 1, "d": null}'), new RangeError("r"), new (class P { x = 1; toJSON() { return 7; } })()];
    const same = (a, b) => {
      if (Object.is(a, b)) return true;
      if (a === null || b === null || typeof a !== "object" || typeof b !== "object") return false;
      if (a instanceof Date) return b instanceof Date && a.getTime() === b.getTime();
      if (a instanceof RegExp || a instanceof Error) return b.constructor === a.constructor && String(a) === String(b);
      if (a instanceof ArrayBuffer) return b instanceof ArrayBuffer && same(new Uint8Array(a), new Uint8Array(b));
      if (a instanceof Map || a instanceof Set) return b.constructor === a.constructor && same([...a], [...b]);
      if (Array.isArray(a) !== Array.isArray(b) || (ArrayBuffer.isView(a) && b.constructor !== a.constructor)) return false;
      const keys = Object.keys(Array.isArray(a) ? [...a] : a);
      return keys.length === Object.keys(b).length && keys.every((k) => same(a[k], b[k]));
    };
    for (const [i, v] of all.entries()) {
      await s.put("v" + i, { v });
      if (v !== undefined) await s.put("w" + i, v);
    }
    await s.list(); // the host knows them now, so that they come back as bytes
    s._forget();
    for (const [i, v] of all.entries()) {
      if (!same({ v }, await s.get("v" + i)) || (v !== undefined && !same(v, await s.get("w" + i)))) out.push(i);
    }
    const list = await s.list();
    if (![...all.entries()].every(([i, v]) => same({ v }, list.get("v" + i)))) out.push("list");
    const circle = {};
    circle.circle = circle;
    for (const bad of [circle, () => 1, Symbol("s"), Promise.resolve(), { f() {} }]) {
      try {
        await s.put("bad", bad);
        out.push("stored");
      } catch (e) {
        if (e.name !== "DataCloneError") out.push(String(e));
      }
    }
    return out;
  }
  async copies() {
    const s = this.ctx.storage, v = { n: 1 };
    await s.put("v", v);
    v.n = 2;
    (await s.get("v")).n = 3;
    return s.get("v");
  }
  async lists() {
    const s = this.ctx.storage;
    for (const k of ["a", "b1", "b2", "b3", "c", ".", ".x", "\u00e4"]) await s.put(k, k.length);
    const keys = async (o) => [...(await s.list(o)).keys()].join();
    return [await keys(), await keys({ prefix: "b" }), await keys({ start: "b2", end: "c" }), await keys({ startAfter: "b2" }), await keys({ limit: 3 }), await keys({ reverse: true, limit: 2 }),
      await keys({ prefix: "." }), await keys({ start: ".a", limit: 2 }), text(await s.get(["c", "none", ".x"])), await s.delete(["a", "none", "."]), await s.delete("a"), await s.delete("c"), await keys({ end: "b3" })];
  }
  async foreign() { return text([await this.ctx.storage.get("json"), await this.ctx.storage.get("text"), await this.ctx.storage.get("raw"), await this.ctx.storage.get("empty"), [...(await this.ctx.storage.list()).keys()]]); }
  async transactions() {
    const s = this.ctx.storage, out = [];
    await s.put({ a: 1, b: 1 });
    await s.setAlarm(5000);
    const caught = async (f) => out.push(await s.transaction(f).catch((e) => e.message));
    await caught(async (txn) => {
      await txn.put("a", 2);
      await txn.delete("b");
      await txn.put("c", 3);
      await txn.setAlarm(6000);
      out.push((await txn.list()).size);
      throw new Error("no");
    });
    out.push(text(await s.list()), await s.getAlarm());
    await caught(async (txn) => {
      await txn.put("a", 3);
      await s.transaction(async () => {
        await s.put("a", 4);
        await s.deleteAll();
        throw new Error("inner");
      }).catch(() => {});
      return txn.get("a");
    });
    await caught(async (txn) => {
      await txn.put("a", 9);
      txn.rollback();
      return txn.get("a");
    });
    try {
      s.transactionSync(() => {
        s.kv.put("a", 10);
        throw new Error("sync");
      });
    } catch (e) {
      out.push(e.message);
    }
    out.push(s.kv.get("a"), text([...s.kv.list()]));
    return out;
  }
  alarm() {}
  async clear() {
    const s = this.ctx.storage;
    await s.put({ a: 1, b: 2 });
    await s.deleteAll();
    await s.put("c", 3);
    return [...(await s.list()).keys(), await s.get("a")];
  }
  async order() {
    await this.ctx.storage.put("a", 1);
    await this.ctx.storage.put("b", 1);
    this.ctx.emit({ n: 1 }, { event: "tick" });
    await this.ctx.storage.put("c", 1);
    await this.ctx.storage.sync();
    await this.ctx.storage.put("d", 1);
  }
  async many() {
    for (let i = 0; i < 10; i++) await this.ctx.storage.put("big" + i, "x".repeat(1 << 20 - 1));
    return this.ctx.storage.put("big", "\u00e4".repeat(600 << 10)).catch((e) => e.kind);
  }
  keep() { kept = this.ctx; }
  async steal() {
    const caught = (f) => f().catch((e) => e.kind);
    return [await caught(() => kept.storage.get("book")), await caught(() => kept.storage.put("book", 9)), await caught(async () => kept.emit("x")), await caught(async () => kept.timer.list())];
  }
  bad(what) {
    const s = this.ctx.storage;
    const f = { key: () => s.put("", 1), long: () => s.put("k".repeat(2049), 1), number: () => s.get(7n), half: () => s.put("\ud800", 1), undef: () => s.put("x", undefined), sql: () => s.sql.exec("select 1"),
      alarm: () => this.ctx.timer.set("x", { at: 1, after: 2, method: "m" }), accept: () => this.ctx.acceptWebSocket(new WebSocketPair()[1]), socket: () => new WebSocket("ws://x"), abort: () => this.ctx.abort("enough") };
    return f[what]();
  }
}

export class Room extends DurableObject {
  constructor(ctx, env) {
    super(ctx, env);
    ctx.setWebSocketAutoResponse(new WebSocketRequestResponsePair("ping", "pong"));
  }
  async fetch(request) {
    if (request.headers.get("Upgrade") !== "websocket") return Response.json({ url: request.url, body: await request.text(), n: this.ctx.getWebSockets().length });
    const { 0: client, 1: server } = new WebSocketPair();
    if (new URL(request.url).pathname !== "/early") this.ctx.acceptWebSocket(server, ["all", "red"]);
    server.readyState === 1 && server.serializeAttachment({ at: new Date(7) });
    await this.ctx.storage.put("joined", 1);
    return new Response(null, { status: 101, webSocket: client });
  }
  async webSocketMessage(ws, message) {
    if (message === "bye") return ws.close(4000, "as you like");
    const from = ws.deserializeAttachment(), tags = this.ctx.getTags(ws);
    for (const other of this.ctx.getWebSockets("red")) other.send(typeof message === "string" ? `${from.at.getTime()} ${tags}: ${message}` : message);
  }
  async webSocketClose(ws, code, reason, clean) { await this.ctx.storage.put("closed", [code, reason, clean, ws.readyState]); }
  stream() {
    const s = this.ctx.storage;
    return new ReadableStream({ async start(c) {
      c.enqueue("a");
      await s.put("streamed", 1);
      c.enqueue("b");
      c.close();
    } });
  }
}

// Old is a class as Workers had it first: it extends nothing.
export class Old {
  constructor(state) { this.state = state; }
  async fetch() { return new Response(String(await this.state.storage.get("steps"))); }
}

export default {
  async fetch(request, env) {
    const stub = env.CART.getByName("alice");
    return Response.json({ total: await stub.add("book", 2), kinds: [typeof env.ORDER_FLOW.getByName, typeof env.OrderFlow?.getByName] });
  },
};
export const talk = async () => {
  const at = await run(), m = await receive();
  return [at, m.method, m.args, m.waits, await m.reply({ ok: 1 })];
};
export const grouped = async () => {
  const g = await group.join("g", 1, 2);
  const sum = await g.allReduce("sum", new Float32Array([1, 2])), parts = await g.exchange("part");
  await g.barrier();
  await g.leave();
  const all = await group.gather(["cart/a", agent("cart/b")], "total");
  return [[...sum], parts.map((p) => new TextDecoder().decode(p)), all, await g.barrier().catch((e) => [e.kind, e.missing])];
};
