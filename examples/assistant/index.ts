// Assistant is a conversation with a language model. A conversation is an agent:
// it keeps what was said, asks the model over HTTP, in the shape of OpenAI's
// chat completions, and hands its words on, as they come, over a WebSocket. The
// agent drives the model; it does not contain one.

import { Agent } from "lode";

interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

interface Env {
  MODEL_URL: string;
  MODEL: string;
  MODEL_KEY: string;
}

const system: Message = { role: "system", content: "You are brief and friendly." };

/** How many messages the model is told again. */
const remembered = 40;

export class Assistant extends Agent<Env> {
  static read = ["history"];

  /** A WebSocket: texts come in; {delta} and, at the end, {done} go out. */
  async fetch(request: Request): Promise<Response> {
    if (request.headers.get("upgrade") !== "websocket") return new Response("this talks over a WebSocket, or POST to /ask\n", { status: 426 });
    const [theirs, ours] = Object.values(new WebSocketPair());
    this.ctx.acceptWebSocket(ours);
    return new Response(null, { status: 101, webSocket: theirs });
  }

  async webSocketMessage(ws: WebSocket, message: string | ArrayBuffer) {
    const answer = await this.ask(String(message), (delta) => ws.send(JSON.stringify({ delta })));
    ws.send(JSON.stringify({ done: answer }));
  }

  /**
   * Asks the model. Nothing is written before its answer is whole: until then
   * what is sent goes out at once, and if the model fails nothing was said.
   */
  async ask(text: string, heard?: (delta: string) => void): Promise<string> {
    const n = (await this.ctx.storage.get<number>("n")) ?? 0;
    const question: Message = { role: "user", content: text };
    const answer: Message = { role: "assistant", content: "" };
    for await (const delta of this.#complete([system, ...(await this.history(remembered)), question])) {
      answer.content += delta;
      heard?.(delta);
    }
    await this.ctx.storage.put({ n: n + 2, [key(n)]: question, [key(n + 1)]: answer });
    return answer.content;
  }

  async history(limit = 1000): Promise<Message[]> {
    const found = await this.ctx.storage.list<Message>({ prefix: "said/", reverse: true, limit });
    return [...found.values()].reverse();
  }

  async forget(): Promise<void> {
    await this.ctx.storage.deleteAll();
  }

  /** The words of the model, as they come. */
  async *#complete(messages: Message[]): AsyncGenerator<string> {
    const response = await fetch(`${this.env.MODEL_URL}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${this.env.MODEL_KEY}` },
      body: JSON.stringify({ model: this.env.MODEL, stream: true, messages }),
    });
    if (!response.ok) throw new Error(`the model answers ${response.status}: ${await response.text()}`);
    for await (const line of lines(response.body!)) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const delta = JSON.parse(line.slice(6)).choices[0]?.delta?.content;
      if (delta) yield delta;
    }
  }
}

/** The lines of a stream. */
async function* lines(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    const found = (rest + (value ?? "")).split("\n");
    rest = done ? "" : found.pop()!;
    yield* found;
    if (done) return;
  }
}

function key(n: number): string {
  return `said/${String(n).padStart(9, "0")}`;
}
