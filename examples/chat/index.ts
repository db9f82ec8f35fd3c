// Chat is rooms that people talk in over WebSockets. A room is an agent: it
// numbers what is said, keeps it, and tells everybody. Its sockets stay open
// while it sleeps, and while it moves to another node; the same room can be
// read as server-sent events, with curl.

import { Agent } from "lode";
import { page } from "./page.ts";

interface Line {
  n: number;
  from: string;
  text: string;
}

interface Env {
  ROOM: DurableObjectNamespace<Room>;
}

/** How many lines a room keeps. */
const kept = 1000;

export class Room extends Agent {
  static read = ["history"];

  /** GET, as a WebSocket: ?name= says who. */
  async fetch(request: Request): Promise<Response> {
    if (request.headers.get("upgrade") !== "websocket") return new Response("talk over a WebSocket, or POST to /say\n", { status: 426 });
    const name = new URL(request.url).searchParams.get("name") ?? "somebody";
    const [theirs, ours] = Object.values(new WebSocketPair());
    this.ctx.acceptWebSocket(ours, [name]);
    ours.serializeAttachment({ name }); // stays with the socket: this object does not
    for (const line of await this.history(20)) ours.send(JSON.stringify(line));
    return new Response(null, { status: 101, webSocket: theirs });
  }

  async webSocketMessage(ws: WebSocket, message: string | ArrayBuffer) {
    await this.say(ws.deserializeAttachment().name, String(message));
  }

  /** Says something to everybody, and answers its number. */
  async say(from: string, text: string): Promise<number> {
    const n = ((await this.ctx.storage.get<number>("n")) ?? 0) + 1;
    const line: Line = { n, from, text };
    await this.ctx.storage.put({ n, [key(n)]: line });
    await this.ctx.storage.delete(key(n - kept));
    for (const ws of this.ctx.getWebSockets()) ws.send(JSON.stringify(line));
    this.ctx.emit(line);
    return n;
  }

  /** The last lines, the oldest first. */
  async history(limit = 50): Promise<Line[]> {
    const lines = await this.ctx.storage.list<Line>({ prefix: "line/", reverse: true, limit });
    return [...lines.values()].reverse();
  }

  /** Who has a socket open. */
  async who(): Promise<string[]> {
    return this.ctx.getWebSockets().map((ws) => ws.deserializeAttachment().name).sort();
  }
}

function key(n: number): string {
  return `line/${String(n).padStart(12, "0")}`;
}

export default {
  async fetch(): Promise<Response> {
    return new Response(page, { headers: { "content-type": "text/html; charset=utf-8" } });
  },
};
