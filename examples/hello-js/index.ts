// A function in TypeScript, in the shape of a module Worker: routing by path,
// JSON, and an answer that is streamed.

interface Env {
  GREETING?: string;
}

export default {
  async fetch(request: Request, env: Env): Promise<Response> {
    const url = new URL(request.url);
    if (url.pathname === "/count") return count(Number(url.searchParams.get("to") ?? 3));
    if (request.method !== "POST") return new Response("POST a name as JSON\n", { status: 405, headers: { allow: "POST" } });
    const name: string = await request.json();
    console.log("greeting", name);
    return Response.json({ text: `${env.GREETING ?? "hello"}, ${name}` });
  },
};

/** count streams the numbers up to n, a line each. */
function count(n: number): Response {
  let i = 0;
  const lines = new ReadableStream({
    pull(controller) {
      if (++i > n) controller.close();
      else controller.enqueue(new TextEncoder().encode(`${i}\n`));
    },
  });
  return new Response(lines, { headers: { "content-type": "text/plain" } });
}
