// The guest of the tests: each path of fetch misbehaves in one way, and what
// it does outside is told to a sink that the test serves.
import { secret } from "lode";

const tell = async (path) => {
  const r = await fetch((await secret("SINK")) + path, { method: "POST" });
  if (r.status !== 200) throw new Error("the sink says " + r.status);
};

export default {
  async fetch(request, env) {
    const u = new URL(request.url), q = u.searchParams;
    switch (u.pathname) {
    case "/throw":
      throw new TypeError("thrown " + q.get("m"));
    case "/loop":
      for (;;) {}
    case "/bomb":
      for (const a = []; ;) a.push(new Uint8Array(1 << 20).fill(1));
    case "/recurse": {
      const f = (n) => f(n + 1) + 1;
      return new Response(String(f(0)));
    }
    case "/sleep":
      if (q.has("k")) await tell("/begun/" + q.get("k"));
      await new Promise((r) => setTimeout(r, Number(q.get("ms"))));
      if (q.has("k")) await tell("/ended/" + q.get("k"));
      return new Response("slept");
    case "/logs":
      for (let i = 0; i < Number(q.get("n")); i++) console.log("line " + i + " " + "x".repeat(1000));
      return new Response("logged");
    case "/flood":
      return new Response(new ReadableStream({ pull(c) { c.enqueue(new Uint8Array(65536)); } }));
    case "/big":
      return new Response(new Uint8Array(Number(q.get("n"))));
    case "/fetch":
      try {
        const r = await fetch(q.get("u"));
        return Response.json({ status: r.status, body: await r.text() });
      } catch (e) {
        return Response.json({ error: String(e.message), kind: e.kind });
      }
    case "/put":
      await env.work.send(q.get("m"));
      return new Response("put");
    case "/hit":
      await tell("/hit/" + q.get("k"));
      return new Response("hit " + q.get("k"));
    case "/once": { // each run has an answer of its own
      const v = crypto.randomUUID();
      if (q.has("ms")) await tell("/began/" + q.get("k"));
      if (q.has("ms")) await new Promise((r) => setTimeout(r, Number(q.get("ms"))));
      await tell("/once/" + q.get("k") + "/" + v);
      return new Response(v);
    }
    case "/status":
      return new Response(/^(204|304)$/.test(q.get("s")) ? null : "mine", { status: Number(q.get("s")) });
    case "/headers":
      return Response.json([...request.headers].length);
    }
    return new Response((await request.text()) || u.pathname);
  },
  async scheduled() {
    await tell("/tick");
  },
  async queue(batch) {
    for (const m of batch.messages) await tell("/message/" + m.body);
  },
};

export const job = {
  map(shard) {
    let n = 0;
    for (const r of shard.records()) n++;
    return n;
  },
  merge: (a, b) => a + b,
};
