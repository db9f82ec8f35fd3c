// What `import ... from "lode"` gives, and what cloudflare:workers gives of it.
class WorkerEntrypoint {
  constructor(ctx, env) {
    this.ctx = ctx;
    this.env = env;
  }
}
global("__lode_sdk", {
  LodeError, env, WorkerEntrypoint, DurableObject, Agent, receive, run, group, send: post,
  agent: (address, key) => agent(address, key),
  // An address with a slash is an agent's, or a running invocation's: its method comes first.
  call: (address, ...args) => (String(address).includes("/") ? askAgent(address, String(args[0]), args.slice(1)) : call(address, "", args)),
  callHandler: (address, handler, ...args) => call(address, handler, args),
  queue: (name) => methods(name), dataset: (name) => methods(name), service: (name) => binding(name),
  secret: async (name) => host.decode((await operate(ops.secret, [":key", name]))[1], false),
  config: async (name) => host.decode((await operate(ops.config, [":key", name]))[1], false),
  self: () => ({ function: host.header(":function"), namespace: host.header(":namespace"), revision: host.header(":revision"), id: host.header(":id"),
    attempt: Number(host.header(":attempt") ?? 1), trigger: host.header(":kind"), deadline: Number(host.header(":deadline") ?? 0),
    agent: host.header(":address"), key: host.header(":agent"), turn: host.header(":turn-id"), caller: host.header(":caller") }),
  waitUntil: (p) => current.waitUntil(p),
  recode: (bytes) => host.recode(bytes),
});
delete globalThis.__lode;
