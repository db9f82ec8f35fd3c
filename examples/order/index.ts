// Order is a workflow: reserve the goods, charge the card, wait for the parcel
// to leave. Each step is a message; what was done is undone, by messages too, if
// a later step fails or nobody ships in time. An order is an agent: where it
// stands is its state, and what it waits for is a timer.
//
//   new -> reserving -> charging -> paid -> shipped
//              |            |         |
//              v            v         v   not shipped in time: refund
//          cancelled <- release goods +

import { Agent, LodeError } from "lode";

type Stage = "reserving" | "charging" | "paid" | "shipped" | "cancelled";

interface State {
  stage: Stage;
  item: string;
  count: number;
  card: string;
  amount: number;
  why?: string;
}

interface Env {
  STOCK: DurableObjectNamespace<Stock>;
  CARD: DurableObjectNamespace<Card>;
  SHIP_WITHIN_MS: string;
}

export class Order extends Agent<Env> {
  static read = ["show"];

  /** Begins. The answer means that it is on its way, whatever crashes. */
  async place(item: string, count: number, card: string, amount: number): Promise<State> {
    if (await this.ctx.storage.get("order")) throw new LodeError("conflict", "this order was placed before", "each order has a key of its own");
    await this.env.STOCK.getByName(item).$send("reserve", [this.ctx.id.name, count]);
    return this.#to({ stage: "reserving", item, count, card, amount });
  }

  async reserved(ok: boolean): Promise<void> {
    const o = await this.#at("reserving");
    if (!ok) return void (await this.#to({ ...o, stage: "cancelled", why: `there is not enough of ${o.item}` }));
    await this.env.CARD.getByName(o.card).$send("charge", [this.ctx.id.name, o.amount]);
    await this.#to({ ...o, stage: "charging" });
  }

  async charged(ok: boolean): Promise<void> {
    const o = await this.#at("charging");
    if (!ok) return this.#cancel(o, "the card was declined");
    await this.ctx.timer.set("ship", { after: Number(this.env.SHIP_WITHIN_MS), method: "late" });
    await this.#to({ ...o, stage: "paid" });
  }

  /** Somebody says that the parcel has left. */
  async ship(): Promise<State> {
    const o = await this.#at("paid");
    await this.ctx.timer.clear("ship");
    return this.#to({ ...o, stage: "shipped" });
  }

  /** The timer: nobody has shipped it. */
  async late(): Promise<void> {
    await this.#cancel(await this.#at("paid"), "it was not shipped in time");
  }

  async show(): Promise<State | null> {
    return (await this.ctx.storage.get("order")) ?? null;
  }

  /** Undoes what was done, in the opposite order. */
  async #cancel(o: State, why: string): Promise<void> {
    if (o.stage === "paid") await this.env.CARD.getByName(o.card).$send("refund", [this.ctx.id.name]);
    await this.env.STOCK.getByName(o.item).$send("release", [this.ctx.id.name]);
    await this.#to({ ...o, stage: "cancelled", why });
  }

  async #at(stage: Stage): Promise<State> {
    const o: State | undefined = await this.ctx.storage.get("order");
    if (o?.stage !== stage) throw new LodeError("conflict", `the order is ${o?.stage ?? "not placed"}, not ${stage}`);
    return o;
  }

  async #to(o: State): Promise<State> {
    await this.ctx.storage.put("order", o);
    this.ctx.emit(o, { event: o.stage });
    return o;
  }
}

/** The goods of one kind: stock/ITEM. */
export class Stock extends Agent<{ ORDER: DurableObjectNamespace<Order> }> {
  static read = ["left"];

  async add(count: number): Promise<number> {
    const left = (await this.left()) + count;
    await this.ctx.storage.put("left", left);
    return left;
  }

  async reserve(order: string, count: number): Promise<void> {
    const left = await this.left();
    if (left >= count) await this.ctx.storage.put({ left: left - count, [`for/${order}`]: count });
    await this.env.ORDER.getByName(order).$send("reserved", [left >= count]);
  }

  async release(order: string): Promise<void> {
    const count = (await this.ctx.storage.get<number>(`for/${order}`)) ?? 0;
    await this.ctx.storage.put("left", (await this.left()) + count);
    await this.ctx.storage.delete(`for/${order}`);
  }

  async left(): Promise<number> {
    return (await this.ctx.storage.get("left")) ?? 0;
  }
}

/** A card with a limit: card/NUMBER. */
export class Card extends Agent<{ ORDER: DurableObjectNamespace<Order> }> {
  static read = ["spent"];

  async charge(order: string, amount: number): Promise<void> {
    const spent = await this.spent();
    const ok = spent + amount <= 1000;
    if (ok) await this.ctx.storage.put({ spent: spent + amount, [`for/${order}`]: amount });
    await this.env.ORDER.getByName(order).$send("charged", [ok]);
  }

  async refund(order: string): Promise<void> {
    const amount = (await this.ctx.storage.get<number>(`for/${order}`)) ?? 0;
    await this.ctx.storage.put("spent", (await this.spent()) - amount);
    await this.ctx.storage.delete(`for/${order}`);
  }

  async spent(): Promise<number> {
    return (await this.ctx.storage.get("spent")) ?? 0;
  }
}
