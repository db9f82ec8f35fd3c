// Each export is one test of the web API: it answers "ok" or throws.
const same = (got: any, want: any) => {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  if (a !== b) throw new Error(`${a}, want ${b}`);
  return "ok";
};
const hex = (b: ArrayBuffer) => [...new Uint8Array(b)].map((x) => x.toString(16).padStart(2, "0")).join("");
const throws = async (f: () => any) => {
  try {
    await f();
  } catch (e: any) {
    return e.name;
  }
  return "nothing";
};

export function url() {
  const u = new URL("HTTP://User:p%40ss@EXAMPLE.com:80/a/./b/../c%20d?x=1&y=a b#f g");
  return same([u.href, u.origin, u.host, u.pathname, u.search, u.hash, u.username, u.password],
    ["http://User:p%40ss@example.com/a/c%20d?x=1&y=a%20b#f%20g", "http://example.com", "example.com", "/a/c%20d", "?x=1&y=a%20b", "#f%20g", "User", "p%40ss"]);
}
export function urlRelative() {
  const r = (i: string, b = "http://a.b/c/d?q#h") => new URL(i, b).href;
  return same([r("e"), r("/e"), r("//x.y/z"), r("?k"), r("#n"), r("../../e"), r(""), r("https://q/"), r("http:e"), r("a\\b"), r("%2e%2e/x")],
    ["http://a.b/c/e", "http://a.b/e", "http://x.y/z", "http://a.b/c/d?k", "http://a.b/c/d?q#n", "http://a.b/e", "http://a.b/c/d?q", "https://q/", "http://a.b/c/e", "http://a.b/c/a/b", "http://a.b/x"]);
}
export function urlHosts() {
  const h = (s: string) => (URL.canParse(s) ? new URL(s).host : "bad");
  return same([h("http://127.1/"), h("http://0x7f.0.0.1/"), h("http://[::1]:8080/"), h("http://[2001:db8:0:0:1:0:0:1]/"), h("http://bücher.de/"), h("http://a b/"), h("http://1.2.3.256/"), h("http://x:99999/"), h("x"), h("http://")],
    ["127.0.0.1", "127.0.0.1", "[::1]:8080", "[2001:db8::1:0:0:1]", "xn--bcher-kva.de", "bad", "bad", "bad", "bad", "bad"]);
}
export function urlSetters() {
  const u = new URL("http://a/b?c=1");
  u.searchParams.append("d", "e f&");
  u.port = "8080";
  u.pathname = "/x y";
  u.hash = "z";
  u.hostname = "q.r";
  u.protocol = "https";
  return same([u.href, new URL("mailto:a@b").pathname, new URL("data:text/plain,hi").href, new URL("file:///etc/x").href], ["https://q.r:8080/x%20y?c=1&d=e+f%26#z", "a@b", "data:text/plain,hi", "file:///etc/x"]);
}
export function params() {
  const p = new URLSearchParams("?a=1&b=2&a=3&c=%C3%A9+x");
  p.delete("b");
  p.set("a", "9");
  p.append("z", "ü");
  p.sort();
  return same([p.toString(), p.getAll("a"), p.get("c"), p.has("q"), [...new URLSearchParams({ k: "v" })], p.size], ["a=9&c=%C3%A9+x&z=%C3%BC", ["9"], "é x", false, [["k", "v"]], 3]);
}
export function headers() {
  const h = new Headers({ "X-B": " 2 ", "x-a": "1" });
  h.append("x-a", "3");
  h.append("Set-Cookie", "a=1");
  h.append("Set-Cookie", "b=2");
  return same([[...h], h.get("X-A"), h.get("nope"), h.getSetCookie()], [[["set-cookie", "a=1"], ["set-cookie", "b=2"], ["x-a", "1, 3"], ["x-b", "2"]], "1, 3", null, ["a=1", "b=2"]]);
}
export function text() {
  const e = new TextEncoder(), d = new TextDecoder();
  const s = new TextDecoder();
  const split = s.decode(new Uint8Array([0xe2, 0x98]), { stream: true }) + s.decode(new Uint8Array([0x83, 0x61]), { stream: true }) + s.decode();
  return same([hex(e.encode("aé☃😀").buffer), d.decode(new Uint8Array([0xef, 0xbb, 0xbf, 0x61, 0xff, 0xe2, 0x98])), split, new TextDecoder("latin1").decode(new Uint8Array([0xe9, 0x80])), hex(e.encode("\ud800").buffer)],
    ["61c3a9e29883f09f9880", "a\ufffd\ufffd", "☃a", "é€", "efbfbd"]);
}
export function base64() {
  return same([btoa("\x00a\xff"), atob("AGH/"), atob(" Y Q == "), btoa("")], ["AGH/", "\x00a\xff", "a", ""]);
}
export async function digests() {
  const b = new TextEncoder().encode("abc");
  const d = async (n: string) => hex(await crypto.subtle.digest(n, b)).slice(0, 16);
  return same([await d("SHA-1"), await d("SHA-256"), await d("SHA-384"), await d("SHA-512"), hex(await crypto.subtle.digest("SHA-256", new Uint8Array(119))).slice(0, 8)],
    ["a9993e364706816a", "ba7816bf8f01cfea", "cb00753f45a35e8b", "ddaf35a193617aba", "f616b0d5"]);
}
export async function hmac() {
  const enc = new TextEncoder();
  const key = await crypto.subtle.importKey("raw", enc.encode("key"), { name: "HMAC", hash: "SHA-256" }, false, ["sign", "verify"]);
  const data = enc.encode("The quick brown fox jumps over the lazy dog");
  const sig = await crypto.subtle.sign("HMAC", key, data);
  return same([hex(sig), await crypto.subtle.verify("HMAC", key, sig, data), await crypto.subtle.verify("HMAC", key, sig, enc.encode("other")), await throws(() => crypto.subtle.encrypt("AES-GCM", key, data))],
    ["f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8", true, false, "NotSupportedError"]);
}
export function random() {
  const u = crypto.randomUUID(), v = crypto.getRandomValues(new Uint8Array(16)), r = [Math.random(), Math.random()];
  return same([/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(u), v.some((x) => x), r.every((x) => x >= 0 && x < 1) && r[0] !== r[1]], [true, true, true]);
}
export async function streams() {
  const rs = new ReadableStream({ start(c) { ["a", "b", "c"].forEach((x) => c.enqueue(x)); c.close(); } });
  const [x, y] = rs.pipeThrough(new TransformStream({ transform: (v, c) => c.enqueue(v.toUpperCase()), flush: (c) => c.enqueue("!") })).tee();
  const read = async (s: any) => { const out = []; for await (const v of s) out.push(v); return out.join(""); };
  const wrote: string[] = [];
  const text = new Response("é☃").body!.pipeThrough(new TextDecoderStream());
  await ReadableStream.from(["p", "q"]).pipeTo(new WritableStream({ write: (v) => void wrote.push(v) }));
  return same([await read(x), await read(y), wrote, await read(text)], ["ABC!", "ABC!", ["p", "q"], "é☃"]);
}
export async function bodies() {
  const r = new Response("hi", { status: 201, headers: { a: "b" } }), c = r.clone();
  const f = new FormData();
  f.append("k", "v");
  f.append("file", new File(["data"], "a.txt", { type: "text/plain" }));
  const back = await new Response(f).formData();
  const urlForm = await new Request("http://x/", { method: "POST", body: new URLSearchParams("a=1&b=2") }).formData();
  return same([await r.text(), await c.text(), r.bodyUsed, await throws(() => r.text()), back.get("k"), (back.get("file") as File).name, await (back.get("file") as File).text(), urlForm.get("b"),
    Response.json({ a: 1 }).headers.get("content-type"), await throws(() => new Response("x", { status: 204 })), (await new Blob(["ab", "c"]).slice(1).text())],
  ["hi", "hi", true, "TypeError", "v", "a.txt", "data", "2", "application/json", "TypeError", "bc"]);
}
export async function fetching() {
  const many = await Promise.all([...Array(10).keys()].map((i) => fetch("http://example.com/" + i, { method: "POST", body: "b" + i })));
  const c = new AbortController();
  const slow = fetch("http://example.com/slow", { signal: c.signal }).catch((e) => e.name);
  c.abort();
  return same([await Promise.all(many.map((r) => r.text())), many[3].status, many[3].headers.get("x-url"), many[3].ok, await slow, await fetch("http://example.com/slow", { signal: AbortSignal.timeout(2) }).catch((e) => e.name)],
    [[...Array(10).keys()].map((i) => "b" + i), 201, "http://example.com/3", true, "AbortError", "TimeoutError"]);
}
export async function timers() {
  const out: number[] = [];
  let n = 0;
  const t = setTimeout(() => out.push(99), 1);
  clearTimeout(t);
  await new Promise<void>((done) => { const i = setInterval(() => { out.push(++n); if (n === 3) { clearInterval(i); done(); } }, 1); });
  await new Promise((r) => setTimeout(r, 1));
  queueMicrotask(() => out.push(7));
  await null;
  return same(out, [1, 2, 3, 7]);
}
export function events() {
  const t = new EventTarget(), seen: string[] = [];
  t.addEventListener("x", (e: any) => seen.push(e.type + e.detail), { once: true });
  t.dispatchEvent(new CustomEvent("x", { detail: 1 }));
  t.dispatchEvent(new CustomEvent("x", { detail: 2 }));
  return same([seen, AbortSignal.abort("why").reason, AbortSignal.any([AbortSignal.abort(3)]).aborted], [["x1"], "why", true]);
}
export function clones() {
  const a: any = { d: new Date(5), m: new Map([[1, { x: [1] }]]), s: new Set([1]), b: new Uint8Array([1, 2]) };
  a.self = a;
  const c = structuredClone(a);
  let thrown = "";
  try { structuredClone(() => 1); } catch (e: any) { thrown = e.name; }
  return same([c.d.getTime(), c.m.get(1).x, c.s.has(1), [...c.b], c.self === c, c.m !== a.m, thrown], [5, [1], true, [1, 2], true, true, "DataCloneError"]);
}
export async function bindings(_: any, env: any) {
  const missing = await throws(() => env.NOBODY.call(1));
  return same([env.MODE, env.TOKEN, env.UNSET === undefined, "MODE" in env, await env.UP_CASE.call("abc"), await (await env.UP_CASE.fetch("http://x/y", { method: "POST", body: "q" })).text(), missing, await env.ORDERS.send({ a: 1 })],
    ["fast", "s3cret", true, true, "ABC", "Q", "LodeError", 'orders{"a":1}']);
}
export function modern() {
  class A { #x = 1; static y = 2; get x() { return this.#x; } }
  const o: any = { a: { b: null } };
  return same([new A().x, A.y, o?.a?.b ?? "d", [3, 1, 2].toSorted(), [1, [2, [3]]].flat(Infinity), Object.groupBy([1, 2, 3], (n: number) => (n % 2 ? "odd" : "even")), "a-b".replaceAll("-", "+"), 2n ** 70n > 1n, new Intl_().ok],
    [1, 2, "d", [1, 2, 3], [1, 2, 3], { odd: [1, 3], even: [2] }, "a+b", true, true]);
}
class Intl_ { ok = typeof (globalThis as any).Intl === "undefined" || true; }
