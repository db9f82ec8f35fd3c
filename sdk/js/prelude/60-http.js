// Headers, Request, Response, fetch, Blob, File, FormData.

const token = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
class Headers {
  #list; // flat: name, value, name, value; names in lower case
  constructor(init) {
    this.#list = [];
    if (init === undefined || init === null) return;
    if (init instanceof Headers) {
      this.#list = init.#list.slice();
      return;
    }
    const pairs = typeof init[Symbol.iterator] === "function" ? init : Object.entries(init);
    for (const [k, v] of pairs) this.append(k, v);
  }
  // of takes over a flat list whose names are in lower case.
  static _of(list) {
    const h = new Headers();
    h.#list = list;
    return h;
  }
  get _flat() { return this.#list; }
  #name(k) {
    k = String(k);
    if (!token.test(k)) throw new TypeError(`${k} is not a header name`);
    return k.toLowerCase();
  }
  #value(v) {
    v = String(v).replace(/^[\t\n\r ]+|[\t\n\r ]+$/g, "");
    if (/[\0\r\n]/.test(v)) throw new TypeError("a header value has no line breaks");
    return v;
  }
  append(k, v) { this.#list.push(this.#name(k), this.#value(v)); }
  get(k) {
    k = this.#name(k);
    let out = null;
    for (let i = 0; i < this.#list.length; i += 2) if (this.#list[i] === k) out = out === null ? this.#list[i + 1] : out + ", " + this.#list[i + 1];
    return out;
  }
  getSetCookie() {
    const out = [];
    for (let i = 0; i < this.#list.length; i += 2) if (this.#list[i] === "set-cookie") out.push(this.#list[i + 1]);
    return out;
  }
  has(k) { return head(this.#list, this.#name(k)) !== undefined; }
  delete(k) {
    k = this.#name(k);
    const l = this.#list;
    for (let i = l.length - 2; i >= 0; i -= 2) if (l[i] === k) l.splice(i, 2);
  }
  set(k, v) {
    this.delete(k);
    this.append(k, v);
  }
  forEach(fn, self) { for (const [k, v] of this) fn.call(self, v, k, this); }
  *entries() {
    const names = [];
    for (let i = 0; i < this.#list.length; i += 2) names.push(this.#list[i]);
    for (const k of [...new Set(names)].sort()) {
      if (k === "set-cookie") for (const v of this.getSetCookie()) yield [k, v];
      else yield [k, this.get(k)];
    }
  }
  *keys() { for (const [k] of this) yield k; }
  *values() { for (const [, v] of this) yield v; }
  [Symbol.iterator]() { return this.entries(); }
}

class Blob {
  #bytes;
  constructor(parts = [], { type = "" } = {}) {
    this.#bytes = join([...parts].map((p) => (p instanceof Blob ? p.#bytes : typeof p === "string" ? utf8(p) : p instanceof ArrayBuffer || ArrayBuffer.isView(p) ? view(p) : utf8(p))));
    this.type = String(type).toLowerCase();
  }
  get size() { return this.#bytes.length; }
  get _bytes() { return this.#bytes; }
  slice(a, b, type) { return new Blob([this.#bytes.slice(a, b)], { type }); }
  async arrayBuffer() { return this.#bytes.slice().buffer; }
  async bytes() { return this.#bytes.slice(); }
  async text() { return host.decode(this.#bytes, false); }
  stream() { return ReadableStream.from([this.#bytes]); }
}
class File extends Blob {
  constructor(parts, name, options = {}) {
    super(parts, options);
    this.name = String(name);
    this.lastModified = options.lastModified ?? Date.now();
  }
}
// join puts pieces of bytes together; a lone one is not copied.
const join = (list) => {
  if (list.length === 1) return list[0];
  const out = new Uint8Array(list.reduce((n, b) => n + b.length, 0));
  let at = 0;
  for (const b of list) {
    out.set(b, at);
    at += b.length;
  }
  return out;
};

class FormData {
  #list = [];
  append(k, v, name) { this.#list.push([String(k), v instanceof Blob && !(v instanceof File) ? new File([v], name ?? "blob", { type: v.type }) : v instanceof File ? v : String(v)]); }
  delete(k) { this.#list = this.#list.filter((p) => p[0] !== k); }
  get(k) { return this.#list.find((p) => p[0] === k)?.[1] ?? null; }
  getAll(k) { return this.#list.filter((p) => p[0] === k).map((p) => p[1]); }
  has(k) { return this.#list.some((p) => p[0] === k); }
  set(k, v, name) {
    this.delete(k);
    this.append(k, v, name);
  }
  forEach(fn, self) { for (const [k, v] of this.#list) fn.call(self, v, k, this); }
  *entries() { yield* this.#list; }
  *keys() { for (const p of this.#list) yield p[0]; }
  *values() { for (const p of this.#list) yield p[1]; }
  [Symbol.iterator]() { return this.entries(); }
}

const multipart = (form) => {
  const mark = "----lode" + [...new Uint8Array(host.bytes(12))].map((b) => b.toString(16).padStart(2, "0")).join("");
  const quote = (s) => s.replace(/\n/g, "%0A").replace(/\r/g, "%0D").replace(/"/g, "%22");
  const parts = [];
  for (const [k, v] of form) {
    const file = v instanceof Blob ? `; filename="${quote(v.name)}"\r\nContent-Type: ${v.type || "application/octet-stream"}` : "";
    parts.push(utf8(`--${mark}\r\nContent-Disposition: form-data; name="${quote(k)}"${file}\r\n\r\n`), v instanceof Blob ? v._bytes : utf8(v), utf8("\r\n"));
  }
  parts.push(utf8(`--${mark}--\r\n`));
  return [join(parts), "multipart/form-data; boundary=" + mark];
};
const parseForm = (bytes, type) => {
  const form = new FormData();
  if (/^application\/x-www-form-urlencoded/i.test(type)) {
    for (const [k, v] of new URLSearchParams(host.decode(bytes, false))) form.append(k, v);
    return form;
  }
  const m = /^multipart\/form-data.*boundary="?([^";]+)"?/i.exec(type || "");
  if (!m) throw new TypeError(`a body of type ${type} is not a form`);
  // Latin-1 keeps one character for a byte, so that text search finds borders.
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  const border = "--" + m[1];
  for (let at = text.indexOf(border); at >= 0; ) {
    const begin = at + border.length;
    if (text.startsWith("--", begin)) break;
    const next = text.indexOf("\r\n" + border, begin), middle = text.indexOf("\r\n\r\n", begin);
    if (next < 0 || middle < 0) throw new TypeError("the form is cut short");
    const fields = host.decode(bytes.subarray(begin, middle), false);
    const name = /[; ]name="([^"]*)"/i.exec(fields), file = /filename="([^"]*)"/i.exec(fields), kind = /content-type: *([^\r\n]+)/i.exec(fields);
    const data = bytes.slice(middle + 4, next);
    if (name) form.append(name[1], file ? new File([data], file[1], { type: kind ? kind[1] : "" }) : host.decode(data, false));
    at = next + 2;
  }
  return form;
};

// A body is kept as given (string, bytes, stream, "host" for the request's own)
// and becomes a stream only when somebody asks for one.
const incoming = () => new ReadableStream({
  async pull(c) {
    const b = await nextChunk();
    if (b === null) c.close();
    else c.enqueue(new Uint8Array(b));
  },
}, { highWaterMark: 0 });
const nextChunk = async () => {
  for (;;) {
    const b = host.read();
    if (b !== undefined) return b;
    await operate(ops.bodyRead, []);
  }
};
const fromHost = Symbol("host");

class Body {
  _body = null;
  _stream = null;
  _used = false;
  _set(body, headers) {
    let type;
    if (body === null || body === undefined) return;
    if (typeof body === "string") type = "text/plain;charset=UTF-8";
    else if (body instanceof Blob) {
      type = body.type || undefined;
      body = body._bytes;
    } else if (body instanceof URLSearchParams) {
      type = "application/x-www-form-urlencoded;charset=UTF-8";
      body = body.toString();
    } else if (body instanceof FormData) [body, type] = multipart(body);
    else if (body instanceof ArrayBuffer || ArrayBuffer.isView(body)) body = view(body).slice();
    else if (body instanceof ReadableStream || body === fromHost) type = undefined;
    else if (typeof body[Symbol.asyncIterator] === "function") body = ReadableStream.from(body);
    else {
      body = String(body);
      type = "text/plain;charset=UTF-8";
    }
    this._body = body;
    if (type && !headers.has("content-type")) headers._flat.push("content-type", type);
  }
  get body() {
    if (this._body === null) return null;
    if (this._stream) return this._stream;
    const b = this._body;
    this._stream = b instanceof ReadableStream ? b : b === fromHost ? incoming() : ReadableStream.from([typeof b === "string" ? utf8(b) : b]);
    return this._stream;
  }
  get bodyUsed() { return this._used || !!this._stream?.locked; }
  async _all() {
    if (this.bodyUsed) throw new TypeError("the body was read already");
    const b = this._body;
    if (b === null) return new Uint8Array(0);
    this._used = true;
    if (!this._stream && typeof b === "string") return utf8(b);
    if (!this._stream && b instanceof Uint8Array) return b;
    const list = [];
    if (!this._stream && b === fromHost) for (let c; (c = await nextChunk()) !== null; ) list.push(new Uint8Array(c));
    else for await (const c of this.body) list.push(typeof c === "string" ? utf8(c) : view(c));
    return join(list);
  }
  // _quick is the text of a body that is there, undefined for any other.
  _quick() {
    if (this._used || this._stream) return undefined;
    const b = this._body;
    const t = typeof b === "string" ? b : b === fromHost ? host.text() : undefined;
    if (t === undefined) return undefined;
    this._used = true;
    return t.charCodeAt(0) === 0xfeff ? t.slice(1) : t;
  }
  async text() {
    const quick = this._quick();
    if (quick !== undefined) return quick;
    const t = host.decode(await this._all(), false);
    return t.charCodeAt(0) === 0xfeff ? t.slice(1) : t;
  }
  async json() { return JSON.parse(this._quick() ?? (await this.text())); }
  async bytes() { return (await this._all()).slice(); }
  async arrayBuffer() {
    const b = await this._all();
    return b.byteOffset === 0 && b.byteLength === b.buffer.byteLength ? b.buffer : b.slice().buffer;
  }
  async blob() { return new Blob([await this._all()], { type: this.headers.get("content-type") || "" }); }
  async formData() { return parseForm(await this._all(), this.headers.get("content-type")); }
  // _split gives a copy its own body.
  _split(to) {
    if (this.bodyUsed) throw new TypeError("the body was read already");
    if (this._body === null) return to;
    if (!this._stream && (typeof this._body === "string" || this._body instanceof Uint8Array)) to._body = this._body;
    else {
      const [a, b] = this.body.tee();
      this._stream = this._body = a;
      to._body = b;
    }
    return to;
  }
}

// fieldsOf are the header fields of a flat head.
const fieldsOf = (list) => {
  const out = [];
  for (let i = 0; i < list.length; i += 2) if (list[i][0] !== ":") out.push(list[i], list[i + 1]);
  return out;
};
// upgraded are the fields of the invocation's request. The one that asks for a
// WebSocket is of the client's hop, so the host may have kept it.
const upgraded = (list) => {
  const out = fieldsOf(list);
  if (head(list, ":socket") !== undefined && head(out, "upgrade") === undefined) out.push("upgrade", "websocket");
  return out;
};
const internal = Symbol("invocation");
class Request extends Body {
  #signal;
  #headers;
  constructor(input, init = {}) {
    super();
    if (input === internal) return this.#received(init);
    const from = input instanceof Request ? input : null;
    this.url = from ? from.url : new URL(input).href;
    this.method = String(init.method ?? from?.method ?? "GET");
    if (/^(get|head|post|put|delete|options|patch)$/i.test(this.method)) this.method = this.method.toUpperCase();
    this.#headers = new Headers(init.headers ?? from?.headers);
    this.redirect = init.redirect ?? from?.redirect ?? "follow";
    this.#signal = init.signal ?? from?.signal;
    this.cf = init.cf ?? from?.cf;
    if (init.body !== undefined && init.body !== null) {
      if (this.method === "GET" || this.method === "HEAD") throw new TypeError(`a ${this.method} request has no body`);
      this._set(init.body, this.#headers);
    } else if (from && from._body !== null) {
      if (from.bodyUsed) throw new TypeError("the body was read already");
      this._body = from._body;
      this._stream = from._stream;
      from._used = true;
    }
  }
  // received makes the invocation's own request of what begin gave; header
  // fields are fetched when somebody asks for them.
  #received([, , method, path, name, scheme]) {
    this.method = method ?? "POST";
    this.redirect = "follow";
    this.url = (scheme ?? "http") + "://" + (name ?? "localhost") + (path ?? "/");
    if (this.method !== "GET" && this.method !== "HEAD") this._body = fromHost;
    return this;
  }
  get headers() { return (this.#headers ??= Headers._of(upgraded(host.request()))); }
  get signal() { return (this.#signal ??= new AbortController().signal); }
  get _abort() { return this.#signal; }
  clone() {
    return this._split(new Request(this.url, { method: this.method, headers: this.headers, redirect: this.redirect, signal: this.#signal }));
  }
}

const reasons = { 200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified",
  307: "Temporary Redirect", 308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
  410: "Gone", 412: "Precondition Failed", 413: "Content Too Large", 422: "Unprocessable Content", 429: "Too Many Requests", 500: "Internal Server Error", 501: "Not Implemented",
  502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout" };
class Response extends Body {
  constructor(body = null, init = {}) {
    super();
    this.status = init.status ?? 200;
    if (this.status === 101 && init.webSocket) this.webSocket = init.webSocket;
    else if (!(this.status >= 200 && this.status <= 599)) throw new RangeError(`${this.status} is not a status of a response`);
    this.statusText = init.statusText ?? "";
    this.headers = new Headers(init.headers);
    this.url = "";
    this.redirected = false;
    this.type = "default";
    if (body !== null && body !== undefined) {
      if (this.status === 204 || this.status === 205 || this.status === 304) throw new TypeError(`a ${this.status} response has no body`);
      this._set(body, this.headers);
    }
  }
  get ok() { return this.status >= 200 && this.status <= 299; }
  static json(value, init = {}) {
    const text = JSON.stringify(value);
    if (text === undefined) throw new TypeError("the value is not JSON");
    const r = new Response(null, init);
    r._body = text;
    if (!r.headers.has("content-type")) r.headers._flat.push("content-type", "application/json");
    return r;
  }
  static redirect(url, status = 302) {
    if (![301, 302, 303, 307, 308].includes(status)) throw new RangeError(`${status} is not a redirect`);
    return new Response(null, { status, headers: { location: new URL(url).href } });
  }
  static error() {
    const r = new Response();
    r.type = "error";
    r.status = 0;
    return r;
  }
  clone() {
    const r = this._split(new Response(null, { status: this.status, statusText: this.statusText, headers: this.headers }));
    r.url = this.url;
    return r;
  }
}

// answered makes a Response of an operation's result.
const answered = (r, url, signal) => {
  const list = [];
  for (let i = 0; i < r[0].length; i += 2) if (r[0][i][0] !== ":") list.push(r[0][i].toLowerCase(), r[0][i + 1]);
  const status = Number(head(r[0], ":status") ?? 200), handle = head(r[0], ":stream");
  const out = new Response(null, { status: status >= 200 ? status : 200, statusText: reasons[status] ?? "" });
  out.headers = Headers._of(list);
  out.url = url;
  if (handle !== undefined) out._body = outgoing(handle, r[1], signal);
  else if (r[1].byteLength || ![204, 205, 304].includes(status)) out._body = new Uint8Array(r[1]);
  return out;
};
// outgoing streams the rest of a fetched body.
const outgoing = (handle, first, signal) => new ReadableStream({
  start(c) { if (first.byteLength) c.enqueue(new Uint8Array(first)); },
  async pull(c) {
    const r = await operate(ops.streamRead, [":stream", handle, ":max", "65536"], undefined, signal);
    if (r[1].byteLength === 0) c.close();
    else c.enqueue(new Uint8Array(r[1]));
  },
  cancel: () => operate(ops.streamClose, [":stream", handle]).then(() => undefined),
}, { highWaterMark: 0 });

// send is fetch, or a call of a function by its address.
const send = async (request, op, pairs) => {
  const signal = request._abort;
  signal?.throwIfAborted();
  const body = request._body === null ? undefined : await request._all();
  try {
    return answered(await operate(op, [...pairs, ...request.headers._flat], body, signal), request.url, signal);
  } catch (e) {
    if (!(e instanceof LodeError) || op === ops.call) throw e;
    throw Object.assign(new TypeError(`fetch failed: ${e.message}`), { cause: e, kind: e.kind });
  }
};
global("fetch", async (input, init) => {
  const r = new Request(input, init);
  return send(r, ops.fetch, [":method", r.method, ":url", r.url.replace(/#.*/, ""), ":stream", "1", ...(r.redirect === "follow" ? [] : [":redirect", r.redirect])]);
});
Object.entries({ Headers, Blob, File, FormData, Request, Response }).forEach(([k, v]) => global(k, v));
