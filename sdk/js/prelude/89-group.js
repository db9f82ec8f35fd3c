// Messages to a running invocation, and groups of agents and invocations.

const bytesIn = (r) => host.decode(r[1], false);
const argsIn = (type, body) => {
  if (body.byteLength === 0) return [];
  if (type !== undefined && !/json/.test(type)) return [new Uint8Array(body)];
  const v = JSON.parse(host.decode(body, false));
  return type !== undefined && type.startsWith(jsonArgs) && Array.isArray(v) ? v : [v];
};

// run is the address at which this invocation can be called while it runs.
const run = async () => head((await operate(ops.self, []))[0], ":run");
// receive is the next message to that address.
const receive = async () => {
  const [list, body] = await operate(ops.receive, [":verb", "next"]);
  const handle = head(list, ":reply"), args = argsIn(head(list, "content-type"), body);
  return {
    method: head(list, ":verb") ?? "", caller: head(list, ":caller"), args, value: args[0], waits: handle !== undefined,
    // reply answers whoever waits; false if nobody does.
    async reply(value, { status = 200 } = {}) {
      if (handle === undefined) return false;
      const [type, bytes] = encodeArgs(value === undefined ? [] : [value]);
      await operate(ops.receive, [":verb", "reply", ":reply", handle, ":status", String(status), ...type], bytes);
      return true;
    },
  };
};

const toAll = async (verb, members, method, args, { timeout } = {}) => operate(ops.group, [":verb", verb, ...(timeout ? [":timeout", String(timeout)] : [])],
  JSON.stringify({ members: [...members].map(addressOf), method, args }));

class Group {
  constructor(name, rank, size) {
    this.name = name;
    this.rank = rank;
    this.size = size;
  }
  _do(verb, more, body) { return operate(ops.group, [":verb", verb, ":group", this.name, ...more], body); }
  // allReduce combines the vectors of all members: op is sum, mean or max.
  async allReduce(op, vector) {
    const form = vector instanceof Float32Array ? "f32" : vector instanceof Float64Array ? "f64" : undefined;
    if (form === undefined) throw new TypeError("allReduce(op, vector): want a Float32Array or a Float64Array");
    return new vector.constructor((await this._do("reduce", [":op", op, ":form", form], vector))[1]);
  }
  // exchange gives the parts of all members, in the order of their ranks.
  async exchange(part) {
    const body = (await this._do("exchange", [], typeof part === "string" ? utf8(part) : view(part)))[1], at = new DataView(body), out = [];
    for (let i = 4, n = at.getUint32(0, true); n > 0; n--) {
      const length = at.getUint32(i, true);
      out.push(new Uint8Array(body.slice(i + 4, i + 4 + length)));
      i += 4 + length;
    }
    return out;
  }
  async barrier() { await this._do("barrier", []); }
  async leave() { await this._do("leave", []); }
}
const group = {
  gather: async (members, method, args = [], options) => JSON.parse(bytesIn(await toAll("gather", members, method, args, options))),
  broadcast: async (members, method, args = [], options) => void (await toAll("broadcast", members, method, args, options)),
  async join(name, rank, size, { timeout } = {}) {
    await operate(ops.group, [":verb", "join", ":group", name, ":rank", String(rank), ":size", String(size), ...(timeout ? [":timeout", String(timeout)] : [])]);
    return new Group(name, rank, size);
  },
};
