// Text and bytes: encoders, base64, structuredClone.

// view is a Uint8Array over any buffer or view.
const view = (b) => (b instanceof Uint8Array ? b : ArrayBuffer.isView(b) ? new Uint8Array(b.buffer, b.byteOffset, b.byteLength) : new Uint8Array(b));
const utf8 = (s) => new Uint8Array(host.encode(String(s)));

class TextEncoder {
  get encoding() { return "utf-8"; }
  encode(s = "") { return utf8(s); }
  encodeInto(s, into) {
    let read = 0, written = 0;
    for (const c of String(s)) {
      const b = utf8(c);
      if (written + b.length > into.length) break;
      into.set(b, written);
      written += b.length;
      read += c.length;
    }
    return { read, written };
  }
}

const labels = { "utf-8": "utf-8", utf8: "utf-8", "unicode-1-1-utf-8": "utf-8", "utf-16le": "utf-16le", "utf-16": "utf-16le", latin1: "windows-1252", "iso-8859-1": "windows-1252",
  ascii: "windows-1252", "us-ascii": "windows-1252", "windows-1252": "windows-1252" };
const high1252 = "\u20ac\x81\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\x8d\u017d\x8f\x90\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\x9d\u017e\u0178";
class TextDecoder {
  #rest = new Uint8Array(0);
  #begun = false;
  constructor(label = "utf-8", { fatal = false, ignoreBOM = false } = {}) {
    this.encoding = labels[String(label).trim().toLowerCase()];
    if (!this.encoding) throw new RangeError(`the encoding ${label} is not supported`);
    this.fatal = fatal;
    this.ignoreBOM = ignoreBOM;
  }
  decode(input, { stream = false } = {}) {
    let b = input === undefined ? new Uint8Array(0) : view(input);
    if (this.#rest.length) {
      const both = new Uint8Array(this.#rest.length + b.length);
      both.set(this.#rest);
      both.set(b, this.#rest.length);
      b = both;
      this.#rest = new Uint8Array(0);
    }
    let text;
    if (this.encoding === "utf-8") {
      if (stream) {
        const [t, left] = host.decode(b, this.fatal, true);
        text = t;
        this.#rest = b.slice(b.length - left);
      } else text = host.decode(b, this.fatal);
    } else if (this.encoding === "utf-16le") {
      if (stream && b.length % 2) this.#rest = b.slice(b.length - 1);
      text = "";
      for (let i = 0; i + 1 < b.length; i += 2) text += String.fromCharCode(b[i] | (b[i + 1] << 8));
      if (!stream && b.length % 2) text += "\ufffd";
    } else {
      text = "";
      for (const c of b) text += c >= 0x80 && c < 0xa0 ? high1252[c - 0x80] : String.fromCharCode(c);
    }
    if (!this.#begun && !this.ignoreBOM && text.charCodeAt(0) === 0xfeff) text = text.slice(1);
    this.#begun = stream && (this.#begun || text.length > 0);
    return text;
  }
}
global("TextEncoder", TextEncoder);
global("TextDecoder", TextDecoder);

const digits64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const values64 = new Map([...digits64].map((c, i) => [c, i]));
global("btoa", (s) => {
  s = String(s);
  let out = "";
  for (let i = 0; i < s.length; i += 3) {
    const [a, b, c] = [s.charCodeAt(i), s.charCodeAt(i + 1), s.charCodeAt(i + 2)];
    if (a > 255 || b > 255 || c > 255) throw new DOMException("the string has characters outside of Latin1", "InvalidCharacterError");
    const n = (a << 16) | ((b || 0) << 8) | (c || 0);
    out += digits64[n >> 18] + digits64[(n >> 12) & 63] + (i + 1 < s.length ? digits64[(n >> 6) & 63] : "=") + (i + 2 < s.length ? digits64[n & 63] : "=");
  }
  return out;
});
global("atob", (s) => {
  s = String(s).replace(/[\t\n\f\r ]/g, "");
  if (s.length % 4 === 0) s = s.replace(/==?$/, "");
  if (s.length % 4 === 1 || /[^A-Za-z0-9+/]/.test(s)) throw new DOMException("the string is not base64", "InvalidCharacterError");
  let out = "", n = 0, bits = 0;
  for (const c of s) {
    n = (n << 6) | values64.get(c);
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      out += String.fromCharCode((n >> bits) & 255);
    }
    n &= 0xffff;
  }
  return out;
});

const errorTypes = { Error, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError };
const clone = (v, seen) => {
  if (typeof v === "function" || typeof v === "symbol") throw new DOMException(`${String(v)} could not be cloned.`, "DataCloneError");
  if (v === null || typeof v !== "object") return v;
  if (seen.has(v)) return seen.get(v);
  const keep = (x) => (seen.set(v, x), x);
  if (Array.isArray(v)) {
    const out = keep(new Array(v.length));
    for (const k of Object.keys(v)) out[k] = clone(v[k], seen);
    return out;
  }
  if (v instanceof Date) return keep(new Date(v.getTime()));
  if (v instanceof RegExp) return keep(new RegExp(v.source, v.flags));
  if (v instanceof Boolean || v instanceof Number || v instanceof String) return keep(Object(v.valueOf()));
  if (v instanceof ArrayBuffer) return keep(v.slice(0));
  if (v instanceof DataView) return keep(new DataView(clone(v.buffer, seen), v.byteOffset, v.byteLength));
  if (ArrayBuffer.isView(v)) return keep(new v.constructor(clone(v.buffer, seen), v.byteOffset, v.length));
  if (v instanceof Map) {
    const out = keep(new Map());
    for (const [k, x] of v) out.set(clone(k, seen), clone(x, seen));
    return out;
  }
  if (v instanceof Set) {
    const out = keep(new Set());
    for (const x of v) out.add(clone(x, seen));
    return out;
  }
  if (v instanceof Error) {
    const out = keep(new (errorTypes[v.name] || Error)(v.message));
    out.stack = v.stack;
    if ("cause" in v) out.cause = clone(v.cause, seen);
    return out;
  }
  if (v instanceof Promise || v instanceof WeakMap || v instanceof WeakSet || v instanceof WeakRef) {
    throw new DOMException(`${Object.prototype.toString.call(v)} could not be cloned.`, "DataCloneError");
  }
  const out = keep({});
  for (const k of Object.keys(v)) out[k] = clone(v[k], seen);
  return out;
};
global("structuredClone", (v) => clone(v, new Map()));
