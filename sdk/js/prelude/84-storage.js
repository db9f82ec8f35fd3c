// this.ctx.storage: the keys and values of one agent. What a turn writes is
// collected, and told to the host before anything that must see it. What was
// read or written is known from then on, also in later turns, since the host
// says when it is stale: then the whole activation is dropped (88-agent.js).

const mostValue = 1 << 20, mostUnsent = 4 << 20, mostKnown = 64 << 10;

// A key of the program is itself in the store, but one with a dot in front has
// a second one there: other keys with a dot are the SDKs' own.
const outerKey = (k) => {
  if (typeof k !== "string") throw new TypeError(`a key is a string, not ${show(k)}`);
  if (k.length === 0) throw new TypeError("a key is not empty");
  if (k.length > 682 && (k.length > 2048 || utf8(k).length > 2048)) throw new LodeError("too_large", `the key ${show(k.slice(0, 32))}... is over 2,048 bytes`);
  if (!k.isWellFormed()) throw new TypeError("a key has no half surrogate pairs");
  return k.charCodeAt(0) === 46 ? "." + k : k;
};
const border = (k) => (k.charCodeAt(0) === 46 ? "." + k : k);
const sizeOf = (e) => (typeof e === "string" && e.length > mostValue / 3 ? utf8(e).length : e.length);

// A storage does not know its context, so that both are free as soon as the
// activation is dropped: circles wait for the collector.
class Storage {
  constructor() {
    this._known = new Map(); // key -> encoded value, null for one that is not there
    this._dirty = new Set(); // keys of _known that the host does not know of
    this._size = 0; // about the size of _known
    this._unsent = 0; // and of what _dirty stands for
    this._logs = null; // of transactions under way: key -> encoded value before
  }

  // ---- what is there ----

  // _reads refuses what comes from elsewhere than the agent's own turn.
  _reads() {
    if (current.storage !== this || !current._open) throw new LodeError("gone", "the turn is over: await what uses the storage, or give it to ctx.waitUntil");
  }
  _load(k) {
    const e = this._known.get(k);
    if (e !== undefined) return e;
    this._reads();
    const r = blocking(ops.state, [":verb", "get", ":key", k]);
    return this._learn(k, head(r[0], ":found") === "1" ? encodedOf(new Uint8Array(r[1])) : null);
  }
  _learn(k, e) {
    this._known.set(k, e);
    this._size += k.length + (e === null ? 0 : e.length) + 32;
    return e;
  }
  // _loadAll learns of many keys with one operation.
  _loadAll(keys) {
    const missing = keys.filter((k) => !this._known.has(k)).map(utf8);
    if (missing.length === 0) return;
    this._reads();
    const body = new Uint8Array(missing.reduce((n, k) => n + 4 + k.length, 4)), at = new DataView(body.buffer);
    at.setUint32(0, missing.length, true);
    let i = 4;
    for (const k of missing) {
      at.setUint32(i, k.length, true);
      body.set(k, i + 4);
      i += 4 + k.length;
    }
    const out = new Uint8Array(blocking(ops.state, [":verb", "mget"], body)[1]), from = new DataView(out.buffer);
    i = 4;
    for (const k of missing) {
      const n = from.getUint32(i + 1, true);
      this._learn(host.decode(k, false), out[i] === 1 ? encodedOf(out.slice(i + 5, i + 5 + n)) : null);
      i += 5 + n;
    }
  }
  _get(key) {
    if (typeof key === "string") {
      const e = this._load(outerKey(key));
      return e === null ? undefined : decodeValue(e);
    }
    const keys = [...key].map(outerKey), out = new Map();
    this._loadAll(keys);
    keys.forEach((k, i) => {
      const e = this._known.get(k);
      if (e !== null) out.set(key[i], decodeValue(e));
    });
    return out;
  }
  _list({ prefix = "", start = "", startAfter, end = "", limit = Infinity, reverse = false } = {}) {
    this._reads();
    this._flush();
    const out = new Map();
    let from = startAfter !== undefined ? border(startAfter) + "\0" : border(start), to = border(end);
    for (let more = true; more && out.size < limit; ) {
      const pairs = [":verb", "list"];
      if (prefix !== "") pairs.push(":prefix", border(prefix));
      if (from !== "") pairs.push(":start", from);
      if (to !== "") pairs.push(":end", to);
      if (limit !== Infinity) pairs.push(":limit", String(limit - out.size));
      if (reverse) pairs.push(":reverse", "1");
      const r = blocking(ops.state, pairs), last = this._page(new Uint8Array(r[1]), out);
      more = head(r[0], ":more") === "1" && last !== undefined;
      if (reverse) to = last;
      else from = last + "\0";
    }
    return out;
  }
  // _page puts the pairs of a list into a Map; the last key, as the host has it.
  _page(b, out) {
    const at = new DataView(b.buffer);
    let last;
    for (let i = 4, n = at.getUint32(0, true); n > 0; n--) {
      const k = at.getUint32(i, true), v = at.getUint32(i + 4, true), value = i + 8 + k;
      last = host.decode(b.subarray(i + 8, value), false);
      if (last.charCodeAt(0) !== 46) out.set(last, decodeValue(encodedOf(b.slice(value, value + v))));
      else if (last.charCodeAt(1) === 46) out.set(last.slice(1), decodeValue(encodedOf(b.slice(value, value + v))));
      i = value + v;
    }
    return last;
  }

  // ---- what becomes of it ----

  _writes() {
    this._reads();
    if (current._read) throw new LodeError("denied", "this method only reads", "take it out of the class's static read");
  }
  // _set keeps an encoded value under an outer key; null deletes it.
  _set(k, e) {
    this._writes();
    const size = e === null ? 0 : sizeOf(e);
    if (size > mostValue) throw new LodeError("too_large", `the value of ${show(k)} has ${size} bytes, over 1 MiB`, "split it over several keys");
    if (this._logs !== null) this._log(k);
    this._learn(k, e);
    this._dirty.add(k);
    unsent = this;
    if ((this._unsent += k.length + size) > mostUnsent) this._flush();
  }
  _log(k) {
    let before;
    for (const log of this._logs) if (!log.keys.has(k)) log.keys.set(k, before === undefined ? (before = this._load(k)) : before);
  }
  _put(key, value) {
    if (typeof key === "string") {
      if (value === undefined) throw new TypeError("put() of undefined: delete() removes a key");
      return this._set(outerKey(key), encodeValue(value));
    }
    const all = Object.entries(key).map(([k, v]) => [outerKey(k), encodeValue(v)]);
    for (const [k, e] of all) this._set(k, e);
  }
  _delete(key) {
    if (typeof key !== "string") {
      const keys = [...key].map(outerKey);
      this._loadAll(keys);
      return keys.filter((k) => this._remove(k)).length;
    }
    return this._remove(outerKey(key));
  }
  _remove(k) {
    if (this._known.has(k) || this._logs !== null) {
      if (this._load(k) === null) return false;
      this._set(k, null);
      return true;
    }
    this._writes();
    const r = blocking(ops.state, [":verb", "delete", ":key", k]);
    this._learn(k, null);
    return head(r[0], ":found") === "1";
  }
  _clear() {
    this._writes();
    if (this._logs !== null) return void this._delete([...this._list().keys()]);
    this._forget();
    blocking(ops.state, [":verb", "clear"]);
  }
  _forget() {
    this._known.clear();
    this._dirty.clear();
    this._size = this._unsent = 0;
    if (unsent === this) unsent = null;
  }
  // _flush tells the host what was written.
  _flush() {
    if (unsent === this) unsent = null;
    const dirty = this._dirty;
    if (dirty.size === 0) return;
    if (dirty.size > 1) blocking(ops.state, [":verb", "write"], this._batch());
    else {
      for (const k of dirty) {
        const e = this._known.get(k);
        if (e === null) blocking(ops.state, [":verb", "delete", ":key", k]);
        else blocking(ops.state, [":verb", "put", ":key", k], e);
      }
    }
    dirty.clear();
    this._unsent = 0;
  }
  _batch() {
    const parts = [];
    let size = 4, i = 4;
    for (const k of this._dirty) {
      const key = utf8(k), e = this._known.get(k), value = e === null ? null : typeof e === "string" ? utf8(e) : e;
      parts.push(key, value);
      size += 9 + key.length + (value === null ? 0 : value.length);
    }
    const out = new Uint8Array(size), at = new DataView(out.buffer);
    at.setUint32(0, this._dirty.size, true);
    for (let p = 0; p < parts.length; p += 2) {
      const key = parts[p], value = parts[p + 1];
      out[i] = value === null ? 2 : 1;
      at.setUint32(i + 1, key.length, true);
      at.setUint32(i + 5, value === null ? 0 : value.length, true);
      out.set(key, i + 9);
      i += 9 + key.length;
      if (value === null) continue;
      out.set(value, i);
      i += value.length;
    }
    return out;
  }
  // _end is called when a turn has taken its course.
  _end() {
    this._logs = null;
    if (this._size > mostKnown) this._forget();
  }

  // ---- the alarm ----

  _alarm() {
    this._reads();
    const r = blocking(ops.timer, [":verb", "get", ":name", "alarm"]);
    return head(r[0], ":found") === "1" ? Number(head(r[0], ":at")) : null;
  }
  _setAlarm(at) {
    this._writes();
    if (this._logs !== null) for (const log of this._logs) if (log.alarm === undefined) log.alarm = this._alarm();
    if (at === null) return blocking(ops.timer, [":verb", "clear", ":name", "alarm"]);
    if (typeof current._kind.cls.prototype.alarm !== "function") throw new TypeError(`the class of ${current._kind.name} has no method alarm() that an alarm could run`);
    blocking(ops.timer, [":verb", "set", ":name", "alarm", ":at", millis(at), ":call", "alarm"]);
  }

  // ---- transactions ----

  _begin() {
    const log = { keys: new Map(), alarm: undefined, open: true };
    (this._logs ??= []).push(log);
    return log;
  }
  _commit(log) {
    log.open = false;
    if (this._logs === null) return;
    this._logs = this._logs.filter((l) => l !== log);
    if (this._logs.length === 0) this._logs = null;
  }
  _rollback(log) {
    if (!log.open) return;
    this._commit(log);
    for (const [k, e] of log.keys) this._set(k, e);
    if (log.alarm !== undefined) this._setAlarm(log.alarm);
  }

  // ---- what programs call ----

  get(key) {
    try {
      return Promise.resolve(this._get(key));
    } catch (e) {
      return Promise.reject(e);
    }
  }
  put(key, value) {
    try {
      return Promise.resolve(this._put(key, value));
    } catch (e) {
      return Promise.reject(e);
    }
  }
  async delete(key) { return this._delete(key); }
  async list(options) { return this._list(options); }
  async deleteAll() { this._clear(); }
  async getAlarm() { return this._alarm(); }
  async setAlarm(at) { this._setAlarm(at); }
  async deleteAlarm() { this._setAlarm(null); }
  async sync() {
    this._reads();
    this._flush();
    await operate(ops.state, [":verb", "sync"]);
  }
  async transaction(f) {
    const log = this._begin(), txn = { rollback: () => this._rollback(log) };
    for (const m of ["get", "put", "delete", "list", "deleteAll", "getAlarm", "setAlarm", "deleteAlarm"]) txn[m] = (...args) => this[m](...args);
    try {
      const v = await f(txn);
      this._commit(log);
      return v;
    } catch (e) {
      this._rollback(log);
      throw e;
    }
  }
  transactionSync(f) {
    const log = this._begin();
    try {
      const v = f();
      this._commit(log);
      return v;
    } catch (e) {
      this._rollback(log);
      throw e;
    }
  }
  // kv is the same without promises.
  get kv() { return { get: (k) => this._get(k), put: (k, v) => this._put(k, v), delete: (k) => this._delete(k), list: (o) => this._list(o).entries() }; }
  get sql() { throw new LodeError("unavailable", "this.ctx.storage.sql: agents have keys and values here, no SQL", "use get, put, list and delete of this.ctx.storage"); }
}

// millis is a point in time as the host takes it.
const millis = (at) => {
  const ms = at instanceof Date ? at.getTime() : Number(at);
  if (!Number.isFinite(ms)) throw new TypeError(`${show(at)} is no time: want milliseconds since 1970, or a Date`);
  return String(Math.max(0, Math.ceil(ms)));
};
