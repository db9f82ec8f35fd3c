// WebSockets of agents. A gateway holds the connection, so that it outlives
// the agent's memory; what is here is a handle: an id, and what is kept with it.

let granted = null; // what makes a WebSocket may be made: {id, tags, attachment}

class WebSocket {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSING = 2;
  static CLOSED = 3;
  static READY_STATE_CONNECTING = 0;
  static READY_STATE_OPEN = 1;
  static READY_STATE_CLOSING = 2;
  static READY_STATE_CLOSED = 3;
  constructor() {
    if (granted === null) throw new LodeError("unavailable", "new WebSocket(url): clients of WebSockets are not there yet", "agents accept them: this.ctx.acceptWebSocket");
    this._id = granted.id;
    this._tags = granted.tags;
    this._attachment = granted.attachment; // bytes, null for none, undefined for not known
    this.readyState = granted.id === "" ? 0 : 1;
    this.url = this.extensions = null;
    this.protocol = "";
    this.binaryType = "arraybuffer";
    granted = null;
  }
  get _open() {
    if (this._id === "") throw new TypeError("this WebSocket was not accepted: call this.ctx.acceptWebSocket(server) first");
    return this.readyState === 1;
  }
  // send gives the message to the socket, or drops it if that is closed.
  send(data) {
    if (!this._open) return;
    const binary = data instanceof ArrayBuffer || ArrayBuffer.isView(data);
    const r = blocking(ops.socket, [":verb", "send", ":socket", this._id, ":type", binary ? "binary" : "text"], binary ? data : String(data));
    if (head(r[0], ":found") === "0") this.readyState = 3;
  }
  close(code = 1000, reason = "") {
    if (!this._open) return;
    blocking(ops.socket, [":verb", "close", ":socket", this._id, ":code", String(code), ":reason", String(reason)]);
    this.readyState = 2;
  }
  serializeAttachment(value) {
    const e = encodeValue(value), bytes = typeof e === "string" ? utf8(e) : e;
    if (bytes.length > 2048) throw new LodeError("too_large", `the attachment has ${bytes.length} bytes, over 2,048`, "keep the rest in this.ctx.storage");
    if (this._open) blocking(ops.socket, [":verb", "attach", ":socket", this._id], bytes);
    this._attachment = bytes;
  }
  deserializeAttachment() {
    if (this._attachment === undefined) this._known;
    return this._attachment ? decodeValue(encodedOf(this._attachment)) : null;
  }
  // _known asks the host what is kept with this socket.
  get _known() {
    const it = listSockets("").find((s) => s.socket === this._id);
    this._attachment = it?.attachment ? Uint8Array.fromBase64(it.attachment) : null;
    this._tags = tagsOf(it?.tags);
    return this._tags;
  }
  accept() { throw new LodeError("unavailable", "accept(): a socket of an agent outlives its memory", "use this.ctx.acceptWebSocket(server), and the methods webSocketMessage(ws, message) and webSocketClose(ws, code, reason)"); }
  addEventListener() { this.accept(); }
}
global("WebSocket", WebSocket);

const socketOf = (id, tags, attachment) => {
  granted = { id, tags, attachment };
  return new WebSocket();
};
const listSockets = (tag) => JSON.parse(host.decode(blocking(ops.socket, [":verb", "list", ":tag", tag])[1], false) || "[]") ?? [];
const tagsOf = (tags) => (Array.isArray(tags) ? tags : String(tags ?? "").split(" ").filter(Boolean));

// A pair has the client's end, which a Response carries, and the server's,
// which the agent accepts.
class WebSocketPair {
  constructor() {
    this[0] = socketOf("", [], null);
    this[1] = socketOf("", [], null);
    this[0]._peer = this[1];
  }
}
global("WebSocketPair", WebSocketPair);
class WebSocketRequestResponsePair {
  constructor(request, response) {
    this.request = String(request);
    this.response = String(response);
  }
}
global("WebSocketRequestResponsePair", WebSocketRequestResponsePair);

// Sockets are those that an agent has seen since it came into memory.
class Sockets {
  constructor() {
    this._seen = new Map();
    this._auto = null;
  }
  accept(ws, tags) {
    const id = host.header(":socket");
    if (!id || host.header(":turn") !== "fetch") throw new LodeError("invalid", "acceptWebSocket: this request does not ask for a WebSocket", "answer 426 unless the request's Upgrade header is websocket");
    if (!(ws instanceof WebSocket)) throw new TypeError("acceptWebSocket takes the server's end of a new WebSocketPair()");
    tags = [...new Set([...tags].map(String))];
    const bad = tags.find((t) => t === "" || /\s/.test(t));
    if (bad !== undefined) throw new TypeError(`${JSON.stringify(bad)} is no tag: a tag is a word without spaces`);
    blocking(ops.socket, [":verb", "accept", ":socket", id, ":tags", tags.join(" ")]);
    ws._id = id;
    ws._tags = tags;
    ws.readyState = 1;
    this._seen.set(id, ws);
  }
  list(tag) {
    const all = listSockets(tag).map((s) => {
      const at = s.attachment ? Uint8Array.fromBase64(s.attachment) : null, ws = this._seen.get(s.socket);
      if (ws === undefined) return socketOf(s.socket, tagsOf(s.tags), at);
      ws._attachment = at;
      return ws;
    });
    if (tag === "") this._seen.clear();
    for (const ws of all) this._seen.set(ws._id, ws);
    return all.filter((ws) => ws.readyState === 1);
  }
  of(id) {
    let ws = this._seen.get(id);
    if (ws === undefined) this._seen.set(id, (ws = socketOf(id, undefined, undefined)));
    return ws;
  }
  gone(ws) {
    ws.readyState = 3;
    this._seen.delete(ws._id);
  }
}
