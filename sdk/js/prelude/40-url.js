// URL and URLSearchParams, after the URL Standard. Hosts in other scripts are
// turned into their ASCII form without the mapping tables of UTS 46 beyond
// lower case and NFKC.

const ports = { "http:": "80", "https:": "443", "ws:": "80", "wss:": "443", "ftp:": "21", "file:": "" };
// What is encoded beside controls, space and everything outside of ASCII.
const sets = { path: /["#<>?^`{}]/, query: /["#<>]/, special: /["#<>']/, fragment: /["<>`]/, user: /["#<>?^`{}/:;=@[\\\]|]/, none: /[]/, form: /[^*\-.0-9A-Z_a-z]/ };

const percent = (s, set) => {
  let out = "";
  for (const c of s) {
    if (c.length === 1 && c >= "!" && c <= "~" && !set.test(c)) out += c;
    else for (const b of utf8(c)) out += "%" + (b < 16 ? "0" : "") + b.toString(16).toUpperCase();
  }
  return out;
};
const unpercent = (s) => {
  if (!s.includes("%")) return s;
  const b = utf8(s), out = [];
  for (let i = 0; i < b.length; i++) {
    const h = b[i] === 37 ? parseInt(String.fromCharCode(b[i + 1], b[i + 2]), 16) : NaN;
    if (b[i] === 37 && /^[0-9a-fA-F]{2}$/.test(String.fromCharCode(b[i + 1] || 0, b[i + 2] || 0))) {
      out.push(h);
      i += 2;
    } else out.push(b[i]);
  }
  return host.decode(new Uint8Array(out), false);
};

// punycode is a label in its ASCII form (RFC 3492).
const punycode = (label) => {
  const points = [...label].map((c) => c.codePointAt(0));
  let out = points.filter((p) => p < 128).map((p) => String.fromCharCode(p)).join("");
  let n = 128, delta = 0, bias = 72, handled = out.length;
  const basic = handled;
  if (basic) out += "-";
  while (handled < points.length) {
    const next = Math.min(...points.filter((p) => p >= n));
    delta += (next - n) * (handled + 1);
    n = next;
    for (const p of points) {
      if (p < n) delta++;
      if (p !== n) continue;
      let q = delta;
      for (let k = 36; ; k += 36) {
        const t = k <= bias ? 1 : k >= bias + 26 ? 26 : k - bias;
        if (q < t) break;
        const d = t + ((q - t) % (36 - t));
        out += String.fromCharCode(d < 26 ? d + 97 : d + 22);
        q = Math.floor((q - t) / (36 - t));
      }
      out += String.fromCharCode(q < 26 ? q + 97 : q + 22);
      delta = handled === basic ? Math.floor(delta / 700) : delta >> 1;
      delta += Math.floor(delta / (handled + 1));
      let k = 0;
      for (; delta > 455; k += 36) delta = Math.floor(delta / 35);
      bias = Math.floor(k + (36 * delta) / (delta + 38));
      delta = 0;
      handled++;
    }
    delta++;
    n++;
  }
  return "xn--" + out;
};

const bad = (what) => new TypeError("Invalid URL: " + what);

const ipv4 = (h) => {
  const parts = h.replace(/\.$/, "").split(".");
  const last = parts[parts.length - 1];
  if (!/^(0x[0-9a-f]*|[0-9]+)$/i.test(last)) return h;
  if (parts.length > 4) throw bad(h);
  const ns = parts.map((p) => {
    const n = /^0x/i.test(p) ? parseInt(p.slice(2) || "0", 16) : /^0[0-7]+$/.test(p) ? parseInt(p, 8) : /^[0-9]+$/.test(p) ? Number(p) : NaN;
    if (Number.isNaN(n)) throw bad(h);
    return n;
  });
  const tail = ns.pop();
  if (ns.some((n) => n > 255) || tail >= 256 ** (4 - ns.length)) throw bad(h);
  const n = ns.reduce((a, x, i) => a + x * 256 ** (3 - i), tail);
  return [n / 2 ** 24, n / 65536, n / 256, n].map((x) => Math.floor(x) % 256).join(".");
};

const ipv6 = (h) => {
  let text = h;
  const v4 = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  if (v4) text = v4[1] + ((+v4[2] << 8) | +v4[3]).toString(16) + ":" + ((+v4[4] << 8) | +v4[5]).toString(16);
  const halves = text.split("::");
  const side = (s) => (s ? s.split(":") : []);
  const a = side(halves[0]), b = halves.length > 1 ? side(halves[1]) : [];
  const gap = 8 - a.length - b.length;
  if (halves.length > 2 || (halves.length === 1 ? gap !== 0 : gap < 1) || ![...a, ...b].every((x) => /^[0-9a-f]{1,4}$/i.test(x))) throw bad(h);
  const all = [...a, ...Array(halves.length > 1 ? gap : 0).fill("0"), ...b].map((x) => parseInt(x, 16).toString(16));
  let best = [0, 1];
  for (let i = 0; i < 8; i++) {
    let j = i;
    while (j < 8 && all[j] === "0") j++;
    if (j - i > best[1]) best = [i, j - i];
  }
  if (best[1] < 2) return `[${all.join(":")}]`;
  return `[${all.slice(0, best[0]).join(":")}::${all.slice(best[0] + best[1]).join(":")}]`;
};

const hostname = (raw, special) => {
  if (raw.startsWith("[")) {
    if (!raw.endsWith("]")) throw bad(raw);
    return ipv6(raw.slice(1, -1));
  }
  if (!special) {
    if (/[\0\t\n\r #/:<>?@[\\\]^|]/.test(raw)) throw bad(raw);
    return percent(raw, sets.none);
  }
  const h = unpercent(raw).normalize("NFKC").toLowerCase().split(".").map((l) => (/[^\0-\x7f]/.test(l) ? punycode(l) : l)).join(".");
  if (!h || /[\0-\x20"#%/:<>?@[\\\]^`{|}\x7f]/.test(h)) throw bad(raw);
  return ipv4(h);
};

const segments = (path, base, special) => {
  const out = base.slice();
  const list = (special ? path.replace(/\\/g, "/") : path).split("/");
  list.forEach((s, i) => {
    const plain = s.replace(/%2e/gi, ".");
    const last = i === list.length - 1;
    if (plain === "..") {
      out.pop();
      if (last) out.push("");
    } else if (plain === ".") {
      if (last) out.push("");
    } else out.push(percent(s, sets.path));
  });
  return out;
};

// parse fills the parts of a URL record.
const parseURL = (input, base) => {
  input = String(input).replace(/^[\0-\x20]+|[\0-\x20]+$/g, "").replace(/[\t\n\r]/g, "");
  const u = { protocol: "", username: "", password: "", host: null, port: "", path: [], opaque: null, query: null, hash: null };
  let rest = input;
  const cut = (c) => {
    const i = rest.indexOf(c);
    if (i < 0) return null;
    const tail = rest.slice(i + 1);
    rest = rest.slice(0, i);
    return tail;
  };
  const hash = cut("#");
  u.hash = hash === null ? null : percent(hash, sets.fragment);
  const scheme = /^([a-zA-Z][a-zA-Z0-9+.-]*):/.exec(rest);
  if (scheme && !(base && base.protocol === scheme[0].toLowerCase() && base.protocol in ports && !/^[/\\]{2}/.test(rest.slice(scheme[0].length)))) {
    u.protocol = scheme[0].toLowerCase();
    rest = rest.slice(scheme[0].length);
    base = null;
  } else if (base) {
    u.protocol = base.protocol;
    if (scheme) rest = rest.slice(scheme[0].length);
  } else throw bad(input);
  const special = u.protocol in ports;
  const query = cut("?");
  u.query = query === null ? null : percent(query, special ? /[^!$%&(-;=?-~]/ : sets.query);
  if (special) rest = rest.replace(/^[^?#]*/, (p) => p.replace(/\\/g, "/"));
  if (base && base.opaque !== null && rest) throw bad(input);
  const slashes = rest.startsWith("//") || (special && !base && u.protocol !== "file:");
  if (slashes) return authority(u, rest.replace(special && u.protocol !== "file:" ? /^\/+/ : /^\/\//, ""), special, input);
  if (base) {
    Object.assign(u, { username: base.username, password: base.password, host: base.host, port: base.port, opaque: base.opaque });
    if (rest.startsWith("/")) u.path = segments(rest.slice(1), [], special);
    else if (rest) u.path = segments(rest, base.path.slice(0, -1), special);
    else {
      u.path = base.path.slice();
      if (query === null) u.query = base.query;
    }
    return u;
  }
  if (rest.startsWith("/") || u.protocol === "file:") {
    if (u.protocol === "file:") u.host = "";
    u.path = segments(rest.replace(/^\//, ""), [], special);
  } else u.opaque = percent(rest, sets.none);
  return u;
};

const authority = (u, rest, special, input) => {
  const end = rest.indexOf("/");
  let auth = end < 0 ? rest : rest.slice(0, end);
  const path = end < 0 ? "" : rest.slice(end + 1);
  const at = auth.lastIndexOf("@");
  if (at >= 0) {
    const [name, ...pass] = auth.slice(0, at).split(":");
    u.username = percent(name, sets.user);
    u.password = percent(pass.join(":"), sets.user);
    auth = auth.slice(at + 1);
  }
  const port = /:([^\]:]*)$/.exec(auth);
  if (port) {
    auth = auth.slice(0, port.index);
    if (!/^[0-9]*$/.test(port[1]) || +port[1] > 65535) throw bad(input);
    u.port = port[1] === "" || String(+port[1]) === ports[u.protocol] ? "" : String(+port[1]);
  }
  if (!auth && special && u.protocol !== "file:") throw bad(input);
  u.host = auth ? hostname(auth, special) : "";
  if (u.protocol === "file:" && u.host === "localhost") u.host = "";
  u.path = end < 0 && !special ? [] : segments(path, [], special);
  return u;
};

const pathText = (u) => (u.opaque !== null ? u.opaque : u.path.length ? "/" + u.path.join("/") : "");

class URL {
  #u;
  #params = null;
  constructor(input, base) {
    this.#u = parseURL(input, base === undefined ? null : parseURL(base, null));
  }
  static canParse(input, base) { return URL.parse(input, base) !== null; }
  static parse(input, base) {
    try {
      return new URL(input, base);
    } catch {
      return null;
    }
  }
  #set(f) {
    const old = { ...this.#u, path: this.#u.path.slice() };
    try {
      f(this.#u);
    } catch {
      this.#u = old;
    }
  }
  get href() {
    const u = this.#u;
    const login = u.username || u.password ? u.username + (u.password ? ":" + u.password : "") + "@" : "";
    const site = u.host === null ? (u.opaque === null && u.path.length > 1 && u.path[0] === "" ? "/." : "") : "//" + login + this.host;
    return u.protocol + site + pathText(u) + (u.query === null ? "" : "?" + u.query) + (u.hash === null ? "" : "#" + u.hash);
  }
  set href(v) {
    this.#u = parseURL(v, null);
    this.#params?.reset(this.#u.query || "");
  }
  get origin() { return this.#u.protocol in ports && this.#u.protocol !== "file:" ? this.#u.protocol + "//" + this.host : "null"; }
  get protocol() { return this.#u.protocol; }
  set protocol(v) {
    const p = String(v).replace(/:.*/, "").toLowerCase() + ":";
    if (/^[a-z][a-z0-9+.-]*:$/.test(p) && p in ports === this.#u.protocol in ports) {
      this.#u.protocol = p;
      if (this.#u.port === ports[p]) this.#u.port = "";
    }
  }
  get username() { return this.#u.username; }
  set username(v) { if (this.#u.host) this.#u.username = percent(String(v), sets.user); }
  get password() { return this.#u.password; }
  set password(v) { if (this.#u.host) this.#u.password = percent(String(v), sets.user); }
  get host() { return (this.#u.host ?? "") + (this.#u.port ? ":" + this.#u.port : ""); }
  set host(v) {
    this.#set((u) => {
      const t = authority({ ...u, port: "" }, String(v).replace(/[/?#].*/, ""), u.protocol in ports, String(v));
      u.host = t.host;
      if (/:\d+$/.test(v)) u.port = t.port;
    });
  }
  get hostname() { return this.#u.host ?? ""; }
  set hostname(v) { this.#set((u) => (u.host = hostname(String(v).replace(/[/?#:].*/, ""), u.protocol in ports))); }
  get port() { return this.#u.port; }
  set port(v) {
    const n = /^[0-9]*/.exec(String(v))[0];
    if (n === "" && String(v) !== "") return;
    if (+n <= 65535) this.#u.port = n === "" || String(+n) === ports[this.#u.protocol] ? "" : String(+n);
  }
  get pathname() { return pathText(this.#u); }
  set pathname(v) { if (this.#u.opaque === null) this.#u.path = segments(String(v).replace(/^[/]/, "").replace(/[?#]/g, (c) => (c === "?" ? "%3F" : "%23")), [], this.#u.protocol in ports); }
  get search() { return this.#u.query ? "?" + this.#u.query : ""; }
  set search(v) {
    v = String(v);
    this.#u.query = v === "" ? null : percent(v.replace(/^\?/, "").replace(/#/g, "%23"), this.#u.protocol in ports ? sets.special : sets.query);
    this.#params?.reset(this.#u.query || "");
  }
  get searchParams() {
    return (this.#params ??= new URLSearchParams(this.#u.query || "")._tie((s) => (this.#u.query = s || null)));
  }
  get hash() { return this.#u.hash ? "#" + this.#u.hash : ""; }
  set hash(v) { this.#u.hash = String(v) === "" ? null : percent(String(v).replace(/^#/, ""), sets.fragment); }
  toString() { return this.href; }
  toJSON() { return this.href; }
}

const formEncode = (s) => percent(String(s), sets.form).replace(/%20/g, "+");
const formDecode = (s) => unpercent(s.replace(/\+/g, " "));
class URLSearchParams {
  #list = [];
  #changed = () => {};
  constructor(init = "") {
    if (init !== null && typeof init === "object") {
      const pairs = typeof init[Symbol.iterator] === "function" ? init : Object.entries(init);
      for (const p of pairs) {
        const [k, v, ...more] = p;
        if (v === undefined || more.length) throw new TypeError("each pair needs a name and a value");
        this.#list.push([String(k), String(v)]);
      }
    } else this.reset(String(init).replace(/^\?/, ""));
  }
  reset(text) {
    this.#list = text.split("&").filter(Boolean).map((p) => {
      const i = p.indexOf("=");
      return i < 0 ? [formDecode(p), ""] : [formDecode(p.slice(0, i)), formDecode(p.slice(i + 1))];
    });
  }
  _tie(changed) {
    this.#changed = () => changed(this.toString());
    return this;
  }
  get size() { return this.#list.length; }
  get(k) { return this.#list.find((p) => p[0] === String(k))?.[1] ?? null; }
  getAll(k) { return this.#list.filter((p) => p[0] === String(k)).map((p) => p[1]); }
  has(k, v) { return this.#list.some((p) => p[0] === String(k) && (v === undefined || p[1] === String(v))); }
  append(k, v) {
    this.#list.push([String(k), String(v)]);
    this.#changed();
  }
  delete(k, v) {
    this.#list = this.#list.filter((p) => p[0] !== String(k) || (v !== undefined && p[1] !== String(v)));
    this.#changed();
  }
  set(k, v) {
    const i = this.#list.findIndex((p) => p[0] === String(k));
    if (i < 0) this.#list.push([String(k), String(v)]);
    else {
      this.#list[i][1] = String(v);
      this.#list = this.#list.filter((p, j) => j <= i || p[0] !== String(k));
    }
    this.#changed();
  }
  sort() {
    this.#list.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0));
    this.#changed();
  }
  forEach(fn, self) { for (const [k, v] of this.#list) fn.call(self, v, k, this); }
  *entries() { yield* this.#list.map((p) => p.slice()); }
  *keys() { for (const p of this.#list) yield p[0]; }
  *values() { for (const p of this.#list) yield p[1]; }
  [Symbol.iterator]() { return this.entries(); }
  toString() { return this.#list.map(([k, v]) => formEncode(k) + "=" + formEncode(v)).join("&"); }
}
global("URL", URL);
global("URLSearchParams", URLSearchParams);
