// The guest of the tests: what it does outside is told to a sink on the switch,
// and each run answers with something of its own.
const tell = async (env, path) => {
  await null; // leave the caller's stack first
  const r = await fetch(env.SINK + path, { method: "POST" });
  if (r.status !== 200) throw new Error("the sink says " + r.status);
};

export default {
  async fetch(request, env) {
    const u = new URL(request.url), q = u.searchParams;
    switch (u.pathname) {
    case "/once":
      return new Response(crypto.randomUUID());
    case "/hit":
      await tell(env, "/hit/" + q.get("k"));
      return new Response("hit " + q.get("k"));
    case "/sleep":
      await new Promise((r) => setTimeout(r, Number(q.get("ms"))));
      return new Response("slept");
    case "/version":
      return new Response(env.V);
    }
    return new Response((await request.text()) || u.pathname);
  },
  async queue(batch, env) {
    for (const m of batch.messages) await tell(env, "/message/" + m.body);
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
