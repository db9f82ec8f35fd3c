// What the tests of agents in real clusters deploy: a counter, a register and a
// set in one, and accounts whose transfers are messages.
import { Agent, send } from "lode";

export class Thing extends Agent {
  static read = ["get", "peek"];

  async add(by) {
    const n = ((await this.ctx.storage.get("n")) ?? 0) + by;
    await this.ctx.storage.put("n", n);
    return n;
  }
  async get() {
    return (await this.ctx.storage.get("n")) ?? 0;
  }
  async put(v) {
    await this.ctx.storage.put("v", v);
    return "";
  }
  async note(w) {
    await this.ctx.storage.put("v", ((await this.ctx.storage.get("v")) ?? "") + w + " ");
    return "";
  }
  async peek() {
    return (await this.ctx.storage.get("v")) ?? "";
  }
  async open(n) {
    await this.ctx.storage.put("n", n);
  }
  async pay(order) {
    const have = (await this.ctx.storage.get("n")) ?? 0;
    if (have < order.amount) return false;
    await this.ctx.storage.put("n", have - order.amount);
    await send("thing/" + order.to, "add", [order.amount]);
    return true;
  }
}
