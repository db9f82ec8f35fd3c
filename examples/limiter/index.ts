// Limiter is a token bucket for each client: a bucket holds up to `burst` tokens
// and gains `rate` a second; each request takes one, or is told when to come
// back. A bucket is an agent, so that all nodes count the same requests once.

import { Agent } from "lode";

interface Env {
  BUCKET: DurableObjectNamespace<Bucket>;
  RATE: string;
  BURST: string;
}

interface Answer {
  ok: boolean;
  /** Whole tokens that are left. */
  left: number;
  /** Milliseconds until there is one again; 0 if there is. */
  wait: number;
}

export class Bucket extends Agent {
  static read = ["look"];

  /** Takes a token if there is one. A refusal writes nothing, and so costs little. */
  async take(rate: number, burst: number): Promise<Answer> {
    const now = Date.now();
    const { tokens, at } = (await this.ctx.storage.get("level")) ?? { tokens: burst, at: now };
    const level = Math.min(burst, tokens + ((now - at) / 1000) * rate);
    if (level < 1) return { ok: false, left: 0, wait: Math.ceil(((1 - level) / rate) * 1000) };
    await this.ctx.storage.put("level", { tokens: level - 1, at: now });
    return { ok: true, left: Math.floor(level - 1), wait: 0 };
  }

  /** What was there when it was last asked. */
  async look(): Promise<{ tokens: number; at: number } | null> {
    return (await this.ctx.storage.get("level")) ?? null;
  }
}

export default {
  async fetch(request: Request, env: Env): Promise<Response> {
    const client = request.headers.get("x-api-key") ?? "anonymous";
    const { ok, left, wait } = await env.BUCKET.getByName(client).take(Number(env.RATE), Number(env.BURST));
    if (ok) return new Response(`hello, ${client}\n`, { headers: { "x-ratelimit-remaining": String(left) } });
    return new Response("slower, please\n", { status: 429, headers: { "retry-after": String(Math.ceil(wait / 1000)) } });
  },
};
