// The values of an agent's storage as bytes; README.md has them to the byte.
// An encoded value is a string, if its bytes are that JSON text, or a
// Uint8Array that begins with one of the two marks.

const markTagged = 1, markBytes = 2;
const notCloned = (v, why) => new DOMException(`${show(v)} could not be cloned${why || "."}`, "DataCloneError");

// plain tells whether JSON keeps v as it is. What is too deep to be sure of is
// left to pack, which finds circles.
const plain = (v, depth) => {
  switch (typeof v) {
    case "string": case "boolean": return true;
    case "number": return v === 0 ? 1 / v > 0 : v - v === 0;
    case "object": break;
    default: return false;
  }
  if (v === null) return true;
  if (depth > 100) return false;
  if (Array.isArray(v)) {
    for (let i = 0; i < v.length; i++) if (!plain(v[i], depth + 1)) return false;
    return true;
  }
  const proto = Object.getPrototypeOf(v);
  if (proto !== Object.prototype && proto !== null) return false;
  for (const k of Object.keys(v)) if (!plain(v[k], depth + 1)) return false;
  return true;
};

let tagged = false; // pack has made a tag
const tag = (...parts) => {
  tagged = true;
  return { $: parts };
};
const bytesOf = (b) => view(b).toBase64();

// pack makes of v what JSON keeps: what it does not have becomes a tag.
const pack = (v, path) => {
  switch (typeof v) {
    case "string": case "boolean": return v;
    case "number": return v - v === 0 && (v !== 0 || 1 / v > 0) ? v : tag("number", v === 0 ? "-0" : String(v));
    case "undefined": return tag("undefined");
    case "bigint": return tag("bigint", String(v));
    case "object": break;
    default: throw notCloned(v);
  }
  if (v === null) return null;
  if (v instanceof Date) return tag("date", v.getTime());
  if (v instanceof RegExp) return tag("regexp", v.source, v.flags);
  if (v instanceof ArrayBuffer) return tag("buffer", bytesOf(v));
  if (ArrayBuffer.isView(v)) return v instanceof Uint8Array ? tag("bytes", bytesOf(v)) : tag("view", v[Symbol.toStringTag] ?? "DataView", bytesOf(v));
  if (v instanceof Boolean || v instanceof Number || v instanceof String) return pack(v.valueOf(), path);
  if (v instanceof Error) return tag("error", String(v.name), String(v.message), String(v.stack ?? ""));
  if (v instanceof Promise || v instanceof WeakMap || v instanceof WeakSet || v instanceof WeakRef) throw notCloned(v);
  if (path.includes(v)) throw notCloned(v, ": it contains itself.");
  path.push(v);
  const out = packed(v, path);
  path.pop();
  return out;
};
const packed = (v, path) => {
  if (Array.isArray(v)) return Array.from({ length: v.length }, (_, i) => pack(v[i], path));
  if (v instanceof Map) return tag("map", [...v].map(([k, x]) => [pack(k, path), pack(x, path)]));
  if (v instanceof Set) return tag("set", [...v].map((x) => pack(x, path)));
  const out = Object.create(null), keys = Object.keys(v);
  for (const k of keys) out[k] = pack(v[k], path);
  return keys.length === 1 && keys[0] === "$" ? tag("object", out) : out;
};

const views = { Int8Array, Uint8ClampedArray, Int16Array, Uint16Array, Int32Array, Uint32Array, Float32Array, Float64Array, BigInt64Array, BigUint64Array, DataView };
const unpack = (v) => {
  if (v === null || typeof v !== "object") return v;
  if (Array.isArray(v)) {
    for (let i = 0; i < v.length; i++) v[i] = unpack(v[i]);
    return v;
  }
  const keys = Object.keys(v);
  if (keys.length === 1 && keys[0] === "$") return untag(...v.$);
  for (const k of keys) v[k] = unpack(v[k]);
  return v;
};
const untag = (type, a, b, c) => {
  switch (type) {
    case "undefined": return undefined;
    case "number": return Number(a);
    case "bigint": return BigInt(a);
    case "date": return new Date(a === null ? NaN : a);
    case "regexp": return new RegExp(a, b);
    case "bytes": return Uint8Array.fromBase64(a);
    case "buffer": return Uint8Array.fromBase64(a).buffer;
    case "view": return new (Object.hasOwn(views, a) ? views[a] : Uint8Array)(Uint8Array.fromBase64(b).buffer);
    case "map": return new Map(a.map(([k, x]) => [unpack(k), unpack(x)]));
    case "set": return new Set(a.map(unpack));
    case "error": return Object.assign(new (Object.hasOwn(errorTypes, a) ? errorTypes[a] : Error)(b), { stack: c });
    case "object": return { $: unpack(a.$) };
  }
  throw new TypeError(`unknown tag ${show(type)}`);
};

const marked = (mark, bytes) => {
  const out = new Uint8Array(bytes.length + 1);
  out[0] = mark;
  out.set(bytes, 1);
  return out;
};
// encodeValue is v as it is kept.
const encodeValue = (v) => {
  if (plain(v, 0)) return JSON.stringify(v);
  if (v instanceof Uint8Array) return marked(markBytes, v);
  tagged = false;
  const text = JSON.stringify(pack(v, []));
  return tagged ? marked(markTagged, utf8(text)) : text;
};

// decodeValue makes a new value of each call. Bytes that no JavaScript wrote
// and that are not JSON are given as they are.
const decodeValue = (e) => {
  if (typeof e === "string") {
    try {
      return JSON.parse(e);
    } catch {
      return utf8(e);
    }
  }
  if (e[0] === markBytes) return e.slice(1);
  if (e[0] !== markTagged) return e.slice();
  let v;
  try {
    v = JSON.parse(host.decode(e.subarray(1), true));
  } catch {
    return e.slice();
  }
  try {
    return unpack(v);
  } catch (e) {
    throw new LodeError("damaged", `a stored value has a tag that this version does not know: ${e.message}`);
  }
};

// encodedOf is the encoded value that the bytes of the host are.
const encodedOf = (bytes) => {
  if (bytes.length === 0 || bytes[0] <= markBytes) return bytes;
  try {
    return host.decode(bytes, true);
  } catch {
    return bytes;
  }
};
