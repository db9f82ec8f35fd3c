// The JavaScript function of the demo: it totals an order, and has its note
// censored by the Go function.
export default {
  async fetch(request, env) {
    const order = await request.json();
    const total = order.items.reduce((sum, item) => sum + item.price * item.count, 0);
    const answer = await env.CENSOR.fetch("http://censor/", { method: "POST", body: JSON.stringify(order.note) });
    return Response.json({ total, note: await answer.json() });
  },
};
