// Events, aborting, and the errors with a name.

const codes = { IndexSizeError: 1, NotFoundError: 8, NotSupportedError: 9, InvalidStateError: 11, SyntaxError: 12, InvalidAccessError: 15, TimeoutError: 23,
  AbortError: 20, DataCloneError: 25, QuotaExceededError: 22 };
class DOMException extends Error {
  #name;
  constructor(message = "", name = "Error") {
    super(message);
    this.#name = typeof name === "string" ? name : name.name || "Error";
  }
  get name() { return this.#name; }
  get code() { return codes[this.#name] || 0; }
}
global("DOMException", DOMException);

class Event {
  #stopped = false;
  constructor(type, init = {}) {
    this.type = String(type);
    this.bubbles = !!init.bubbles;
    this.cancelable = !!init.cancelable;
    this.defaultPrevented = false;
    this.target = this.currentTarget = null;
    this.timeStamp = elapsed();
  }
  preventDefault() { if (this.cancelable) this.defaultPrevented = true; }
  stopPropagation() {}
  stopImmediatePropagation() { this.#stopped = true; }
  get stopped() { return this.#stopped; }
}
class CustomEvent extends Event {
  constructor(type, init = {}) {
    super(type, init);
    this.detail = init.detail ?? null;
  }
}
class MessageEvent extends Event {
  constructor(type, init = {}) {
    super(type, init);
    this.data = init.data ?? null;
  }
}
class EventTarget {
  #listeners = new Map();
  addEventListener(type, fn, options) {
    if (!fn) return;
    const list = this.#listeners.get(type) || [];
    if (!list.some((l) => l.fn === fn)) list.push({ fn, once: typeof options === "object" && !!options?.once });
    this.#listeners.set(type, list);
    if (typeof options === "object") options?.signal?.addEventListener("abort", () => this.removeEventListener(type, fn));
  }
  removeEventListener(type, fn) {
    const list = this.#listeners.get(type);
    if (list) this.#listeners.set(type, list.filter((l) => l.fn !== fn));
  }
  dispatchEvent(event) {
    event.target = event.currentTarget = this;
    const on = this["on" + event.type];
    if (typeof on === "function") on.call(this, event);
    for (const l of [...(this.#listeners.get(event.type) || [])]) {
      if (l.once) this.removeEventListener(event.type, l.fn);
      typeof l.fn === "function" ? l.fn.call(this, event) : l.fn.handleEvent(event);
      if (event.stopped) break;
    }
    return !event.defaultPrevented;
  }
}
Object.entries({ Event, CustomEvent, MessageEvent, EventTarget }).forEach(([k, v]) => global(k, v));

let making = false; // only abort() here makes signals
class AbortSignal extends EventTarget {
  aborted = false;
  reason = undefined;
  onabort = null;
  constructor() {
    super();
    if (!making) throw new TypeError("Illegal constructor");
  }
  throwIfAborted() { if (this.aborted) throw this.reason; }
  static abort(reason) {
    const c = new AbortController();
    c.abort(reason);
    return c.signal;
  }
  static timeout(ms) {
    const c = new AbortController();
    setTimeout(() => c.abort(new DOMException("The operation timed out.", "TimeoutError")), ms);
    return c.signal;
  }
  static any(signals) {
    const c = new AbortController();
    for (const s of signals) {
      if (s.aborted) c.abort(s.reason);
      else s.addEventListener("abort", () => c.abort(s.reason), { once: true });
    }
    return c.signal;
  }
}
class AbortController {
  constructor() {
    making = true;
    this.signal = new AbortSignal();
    making = false;
  }
  abort(reason) {
    if (this.signal.aborted) return;
    this.signal.aborted = true;
    this.signal.reason = reason === undefined ? new DOMException("This operation was aborted", "AbortError") : reason;
    this.signal.dispatchEvent(new Event("abort"));
  }
}
global("AbortSignal", AbortSignal);
global("AbortController", AbortController);
