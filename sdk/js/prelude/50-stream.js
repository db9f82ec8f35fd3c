// Streams: ReadableStream with default readers, WritableStream,
// TransformStream, after the Streams Standard in what programs can see; no
// byte-by-own-buffer readers.

const deferred = () => {
  const d = {};
  d.promise = new Promise((resolve, reject) => Object.assign(d, { resolve, reject }));
  d.promise.catch(() => {});
  return d;
};

class ReadableStreamDefaultController {
  #s;
  constructor(s) { this.#s = s; }
  get desiredSize() { return this.#s.state === "errored" ? null : this.#s.state === "closed" ? 0 : this.#s.mark - this.#s.size; }
  enqueue(chunk) {
    const s = this.#s;
    if (s.state !== "readable" || s.closing) throw new TypeError("the stream is closed");
    if (s.waiting.length) s.waiting.shift().resolve({ value: chunk, done: false });
    else {
      const n = s.measure(chunk);
      s.queue.push([chunk, n]);
      s.size += n;
    }
    pull(s);
  }
  close() {
    const s = this.#s;
    if (s.state !== "readable" || s.closing) throw new TypeError("the stream is closed");
    s.closing = true;
    if (!s.queue.length) finish(s);
  }
  error(e) { fault(this.#s, e); }
}

const finish = (s) => {
  s.state = "closed";
  for (const w of s.waiting.splice(0)) w.resolve({ value: undefined, done: true });
  s.ended.resolve();
};
const fault = (s, e) => {
  if (s.state !== "readable") return;
  s.state = "errored";
  s.error = e;
  s.queue = [];
  for (const w of s.waiting.splice(0)) w.reject(e);
  s.ended.reject(e);
};
// pull asks the source for more, once at a time.
const pull = (s) => {
  if (s.state !== "readable" || s.closing || !s.started || !s.source.pull) return;
  if (!s.waiting.length && s.size >= s.mark) return;
  if (s.pulling) {
    s.again = true;
    return;
  }
  s.pulling = true;
  let p;
  try {
    p = s.source.pull(s.controller);
  } catch (e) {
    return fault(s, e);
  }
  Promise.resolve(p).then(() => {
    s.pulling = false;
    if (s.again) {
      s.again = false;
      pull(s);
    }
  }, (e) => fault(s, e));
};
const take = (s) => {
  if (s.queue.length) {
    const [value, n] = s.queue.shift();
    s.size -= n;
    if (s.closing && !s.queue.length) finish(s);
    else pull(s);
    return Promise.resolve({ value, done: false });
  }
  if (s.state === "closed") return Promise.resolve({ value: undefined, done: true });
  if (s.state === "errored") return Promise.reject(s.error);
  const d = deferred();
  s.waiting.push(d);
  pull(s);
  return d.promise;
};

const inner = new WeakMap(); // ReadableStream -> its state
class ReadableStream {
  constructor(source = {}, strategy = {}) {
    const s = { source, state: "readable", queue: [], size: 0, waiting: [], ended: deferred(), closing: false, started: false, pulling: false, again: false, reader: null,
      mark: strategy.highWaterMark ?? 1, measure: strategy.size ?? (() => 1), error: undefined };
    inner.set(this, s);
    s.controller = new ReadableStreamDefaultController(s);
    const go = () => {
      s.started = true;
      pull(s);
    };
    const r = source.start?.(s.controller);
    if (r && typeof r.then === "function") r.then(go, (e) => fault(s, e));
    else Promise.resolve().then(go);
  }
  static from(list) {
    const it = list[Symbol.asyncIterator]?.() ?? list[Symbol.iterator]();
    return new ReadableStream({
      async pull(c) {
        const { value, done } = await it.next();
        if (done) c.close();
        else c.enqueue(await value);
      },
      async cancel(r) { await it.return?.(r); },
    }, { highWaterMark: 0 });
  }
  get locked() { return inner.get(this).reader !== null; }
  getReader(options) {
    if (options?.mode === "byob") throw new TypeError("readers with their own buffers are not supported");
    return new ReadableStreamDefaultReader(this);
  }
  cancel(reason) {
    if (this.locked) return Promise.reject(new TypeError("the stream is locked"));
    return cancel(inner.get(this), reason);
  }
  tee() {
    const reader = this.getReader(), out = [];
    let reading = false;
    const more = async () => {
      if (reading) return;
      reading = true;
      try {
        const { value, done } = await reader.read();
        reading = false;
        for (const c of out) done ? c.close() : c.enqueue(value);
      } catch (e) {
        for (const c of out) c.error(e);
      }
    };
    const branch = () => new ReadableStream({ start: (c) => void out.push(c), pull: more });
    return [branch(), branch()];
  }
  async pipeTo(to, { preventClose = false, preventAbort = false, preventCancel = false, signal } = {}) {
    const reader = this.getReader(), writer = to.getWriter();
    try {
      for (;;) {
        signal?.throwIfAborted();
        const { value, done } = await reader.read();
        if (done) break;
        await writer.ready;
        await writer.write(value);
      }
      if (!preventClose) await writer.close();
    } catch (e) {
      if (!preventAbort) await writer.abort(e).catch(() => {});
      if (!preventCancel) await reader.cancel(e).catch(() => {});
      throw e;
    } finally {
      reader.releaseLock();
      writer.releaseLock();
    }
  }
  pipeThrough({ readable, writable }, options) {
    this.pipeTo(writable, options).catch(() => {});
    return readable;
  }
  async *values({ preventCancel = false } = {}) {
    const reader = this.getReader();
    let ended = false;
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) {
          ended = true;
          return;
        }
        yield value;
      }
    } finally {
      if (!ended && !preventCancel) await reader.cancel();
      reader.releaseLock();
    }
  }
  [Symbol.asyncIterator](options) { return this.values(options); }
}
const cancel = async (s, reason) => {
  if (s.state === "errored") throw s.error;
  if (s.state === "closed") return;
  s.queue = [];
  finish(s);
  await s.source.cancel?.(reason);
};

class ReadableStreamDefaultReader {
  #s;
  constructor(stream) {
    const s = inner.get(stream);
    if (s.reader) throw new TypeError("the stream is locked");
    this.#s = s;
    s.reader = this;
  }
  get closed() { return this.#s.ended.promise; }
  read() { return this.#s ? take(this.#s) : Promise.reject(new TypeError("the reader was released")); }
  cancel(reason) { return this.#s ? cancel(this.#s, reason) : Promise.reject(new TypeError("the reader was released")); }
  releaseLock() {
    if (!this.#s) return;
    for (const w of this.#s.waiting.splice(0)) w.reject(new TypeError("the reader was released"));
    this.#s.reader = null;
    this.#s = null;
  }
}

class WritableStream {
  constructor(sink = {}, strategy = {}) {
    const w = { sink, state: "writable", chain: null, size: 0, mark: strategy.highWaterMark ?? 1, measure: strategy.size ?? (() => 1), ready: deferred(), ended: deferred(), writer: null };
    w.ready.resolve();
    w.controller = { error: (e) => spoil(w, e), signal: new AbortController().signal };
    inner.set(this, w);
    w.chain = Promise.resolve(sink.start?.(w.controller));
    w.chain.catch((e) => spoil(w, e));
  }
  get locked() { return inner.get(this).writer !== null; }
  getWriter() { return new WritableStreamDefaultWriter(this); }
  close() {
    const w = this.getWriter();
    return w.close().finally(() => w.releaseLock());
  }
  abort(reason) {
    const w = this.getWriter();
    return w.abort(reason).finally(() => w.releaseLock());
  }
}
const spoil = (w, e) => {
  if (w.state === "errored" || w.state === "closed") return;
  w.state = "errored";
  w.error = e;
  w.ready.resolve();
  w.ended.reject(e);
};
class WritableStreamDefaultWriter {
  #w;
  constructor(stream) {
    const w = inner.get(stream);
    if (w.writer) throw new TypeError("the stream is locked");
    this.#w = w;
    w.writer = this;
  }
  get closed() { return this.#w.ended.promise; }
  get ready() { return this.#w.ready.promise; }
  get desiredSize() { return this.#w.state === "errored" ? null : this.#w.mark - this.#w.size; }
  write(chunk) {
    const w = this.#w;
    if (w.state !== "writable") return Promise.reject(w.state === "errored" ? w.error : new TypeError("the stream is closed"));
    const n = w.measure(chunk);
    w.size += n;
    if (w.size >= w.mark) w.ready = deferred();
    const p = w.chain.then(() => {
      if (w.state === "errored") throw w.error;
      return w.sink.write?.(chunk, w.controller);
    });
    w.chain = p.then(() => {
      w.size -= n;
      if (w.size < w.mark) w.ready.resolve();
    }, (e) => spoil(w, e));
    return p.then(() => undefined);
  }
  close() {
    const w = this.#w;
    if (w.state !== "writable") return Promise.reject(w.state === "errored" ? w.error : new TypeError("the stream is closed"));
    w.state = "closing";
    const p = w.chain.then(() => {
      if (w.state === "errored") throw w.error;
      return w.sink.close?.();
    });
    return p.then(() => {
      w.state = "closed";
      w.ended.resolve();
    }, (e) => {
      spoil(w, e);
      throw e;
    });
  }
  async abort(reason) {
    const w = this.#w;
    if (w.state === "closed" || w.state === "errored") return;
    spoil(w, reason);
    await w.sink.abort?.(reason);
  }
  releaseLock() { if (this.#w) this.#w.writer = null; }
}

class TransformStream {
  constructor(transformer = {}, writeStrategy = {}, readStrategy = { highWaterMark: 0 }) {
    let out;
    let room = deferred();
    this.readable = new ReadableStream({ start: (c) => void (out = c), pull: () => room.resolve(), cancel: () => room.resolve() }, readStrategy);
    const controller = {
      enqueue: (chunk) => out.enqueue(chunk),
      error: (e) => out.error(e),
      terminate: () => out.close(),
      get desiredSize() { return out.desiredSize; },
    };
    this.writable = new WritableStream({
      start: () => transformer.start?.(controller),
      async write(chunk) {
        if (out.desiredSize <= 0) {
          await room.promise;
          room = deferred();
        }
        try {
          if (transformer.transform) await transformer.transform(chunk, controller);
          else controller.enqueue(chunk);
        } catch (e) {
          out.error(e);
          throw e;
        }
      },
      async close() {
        await transformer.flush?.(controller);
        try {
          out.close();
        } catch {} // it was terminated
      },
      abort: (e) => out.error(e),
    }, writeStrategy);
  }
}
class CountQueuingStrategy {
  constructor({ highWaterMark }) { this.highWaterMark = highWaterMark; }
  size() { return 1; }
}
class ByteLengthQueuingStrategy {
  constructor({ highWaterMark }) { this.highWaterMark = highWaterMark; }
  size(chunk) { return chunk.byteLength; }
}
class TextEncoderStream extends TransformStream {
  constructor() { super({ transform: (s, c) => c.enqueue(utf8(s)) }); }
  get encoding() { return "utf-8"; }
}
class TextDecoderStream extends TransformStream {
  constructor(label, options) {
    const d = new TextDecoder(label, options);
    const give = (t, c) => t && c.enqueue(t);
    super({ transform: (b, c) => give(d.decode(b, { stream: true }), c), flush: (c) => give(d.decode(), c) });
  }
}
Object.entries({ ReadableStream, ReadableStreamDefaultReader, ReadableStreamDefaultController, WritableStream, WritableStreamDefaultWriter, TransformStream,
  CountQueuingStrategy, ByteLengthQueuingStrategy, TextEncoderStream, TextDecoderStream }).forEach(([k, v]) => global(k, v));
