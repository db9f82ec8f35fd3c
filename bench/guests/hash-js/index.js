// The JavaScript guest of bench invoke: it parses the body and answers a JSON.
export default {
  async fetch(request) {
    const order = await request.json();
    let total = 0;
    for (const item of order.items) total += item.price * item.count;
    return Response.json({ id: order.id, total });
  },
};
