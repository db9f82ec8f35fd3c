// What programs import from "lode" and "cloudflare:workers", for editors. It
// lies beside the program; nothing of it is needed to build or deploy.

/** Methods of an agent as others call them: each answers with a promise. */
type LodeStub<T> = (0 extends 1 & T ? { readonly [method: string]: any } : {
  readonly [K in keyof T as T[K] extends (...args: any[]) => any ? K : never]: T[K] extends (...args: infer A) => infer R ? (...args: A) => Promise<Awaited<R>> : never;
}) & {
  readonly id: DurableObjectId;
  readonly name: string;
  /** Its address: kind/key. */
  readonly $address: string;
  fetch(input: Request | string | URL, init?: RequestInit): Promise<Response>;
  /** Sends a message that nobody waits for: in a turn, when and if the turn takes effect. Answers with the message's id. */
  $send(method: string, args?: unknown[], options?: LodeSendOptions): Promise<string>;
  /** Calls a method by its name, with an idempotency key if one is given. */
  $call(method: string, args?: unknown[], options?: { key?: string }): Promise<any>;
};

/** What has an address, as stubs have. */
interface LodeAddress {
  readonly $address: string;
}
interface LodeSendOptions {
  /** Milliseconds before it is delivered. */
  delay?: number;
  /** Idempotency key; not in an agent's turn. */
  key?: string;
}

interface LodeTimers {
  /** Calls a method once, not before its time; a timer of that name is replaced. */
  set(name: string, timer: { at: number | Date; method: string; args?: unknown[] } | { after: number; method: string; args?: unknown[] }): Promise<void>;
  clear(name: string): Promise<boolean>;
  /** When it is due, in milliseconds since 1970; null if there is none. */
  get(name: string): Promise<number | null>;
  list(): Promise<{ name: string; at: number; method: string }[]>;
}

interface DurableObjectId {
  readonly name?: string;
  toString(): string;
  equals(other: DurableObjectId): boolean;
}
interface DurableObjectNamespace<T = any> {
  getByName(name: string): DurableObjectStub<T>;
  get(id: DurableObjectId): DurableObjectStub<T>;
  idFromName(name: string): DurableObjectId;
  idFromString(id: string): DurableObjectId;
  newUniqueId(): DurableObjectId;
}
type DurableObjectStub<T = any> = LodeStub<T>;

interface DurableObjectListOptions {
  prefix?: string;
  start?: string;
  startAfter?: string;
  end?: string;
  limit?: number;
  reverse?: boolean;
}
interface DurableObjectTransaction {
  get<T = any>(key: string): Promise<T | undefined>;
  get<T = any>(keys: string[]): Promise<Map<string, T>>;
  put(key: string, value: unknown): Promise<void>;
  put(entries: Record<string, unknown>): Promise<void>;
  delete(key: string): Promise<boolean>;
  delete(keys: string[]): Promise<number>;
  list<T = any>(options?: DurableObjectListOptions): Promise<Map<string, T>>;
  deleteAll(): Promise<void>;
  getAlarm(): Promise<number | null>;
  setAlarm(at: number | Date): Promise<void>;
  deleteAlarm(): Promise<void>;
  rollback(): void;
}
interface DurableObjectStorage extends Omit<DurableObjectTransaction, "rollback"> {
  /** Takes back what f has written if it throws. */
  transaction<T>(f: (txn: DurableObjectTransaction) => Promise<T>): Promise<T>;
  transactionSync<T>(f: () => T): T;
  /** Makes what was written so far durable now, whatever becomes of the turn. */
  sync(): Promise<void>;
  readonly kv: {
    get<T = any>(key: string): T | undefined;
    put(key: string, value: unknown): void;
    delete(key: string): boolean;
    list<T = any>(options?: DurableObjectListOptions): IterableIterator<[string, T]>;
  };
}

interface ExecutionContext {
  waitUntil(promise: Promise<unknown>): void;
  passThroughOnException(): void;
  readonly props: any;
}
interface DurableObjectState {
  readonly id: DurableObjectId;
  readonly storage: DurableObjectStorage;
  /** Timers of any name and method; the alarm is the one named "alarm". */
  readonly timer: LodeTimers;
  /** Address of the agent or function whose message this turn handles. */
  readonly caller: string | undefined;
  waitUntil(promise: Promise<unknown>): void;
  blockConcurrencyWhile<T>(f: () => Promise<T>): Promise<T>;
  /** Fails the turn. */
  abort(reason?: unknown): never;
  /** Tells everybody who listens at GET /agents/kind/key; how many those are. */
  emit(data: unknown, options?: { event?: string }): number;
  /** At the end of the turn the agent is as if it had never been. */
  remove(): Promise<void>;
  acceptWebSocket(ws: WebSocket, tags?: string[]): void;
  getWebSockets(tag?: string): WebSocket[];
  getTags(ws: WebSocket): string[];
  setWebSocketAutoResponse(pair?: WebSocketRequestResponsePair): void;
  getWebSocketAutoResponse(): WebSocketRequestResponsePair | null;
}
interface AlarmInvocationInfo {
  readonly isRetry: boolean;
  readonly retryCount: number;
  readonly scheduledTime: number;
}

interface WebSocket {
  serializeAttachment(value: unknown): void;
  deserializeAttachment(): any;
}
interface ResponseInit {
  webSocket?: WebSocket | null;
}
declare class WebSocketPair {
  0: WebSocket;
  1: WebSocket;
}
declare class WebSocketRequestResponsePair {
  constructor(request: string, response: string);
  readonly request: string;
  readonly response: string;
}

declare module "lode" {
  /** A kind of agents: its public methods are called one at a time for each key. */
  export class DurableObject<Env = any> {
    constructor(ctx: DurableObjectState, env: Env);
    readonly ctx: DurableObjectState;
    readonly env: Env;
    /** Names of the methods that only read. */
    static read?: readonly string[];
    fetch?(request: Request): Response | Promise<Response>;
    alarm?(info?: AlarmInvocationInfo): unknown;
    webSocketMessage?(ws: WebSocket, message: string | ArrayBuffer): void | Promise<void>;
    webSocketClose?(ws: WebSocket, code: number, reason: string, wasClean: boolean): void | Promise<void>;
    webSocketError?(ws: WebSocket, error: unknown): void | Promise<void>;
    /** Runs once before the first turn on a new revision. */
    migrate?(from: number, to: number): void | Promise<void>;
  }
  export class Agent<Env = any> extends DurableObject<Env> {}

  export class LodeError extends Error {
    constructor(kind: string, message?: string, hint?: string);
    readonly kind: string;
    readonly hint?: string;
    /** Of a group: the members, or their ranks, that did not answer. */
    readonly missing?: (string | number)[];
  }
  export const env: any;
  /** The agent of an address kind/key, or of a kind and a key. */
  export function agent<T = any>(address: string, key?: string): LodeStub<T>;
  /** Calls a function, or the method of an agent: call("cart/alice", "add", "book", 2). */
  export function call<T = any>(address: string, ...args: unknown[]): Promise<T>;
  export function callHandler<T = any>(address: string, handler: string, ...args: unknown[]): Promise<T>;
  export function send(address: string | LodeAddress, method: string, args?: unknown[], options?: LodeSendOptions): Promise<string>;
  /** The address at which this invocation can be called while it runs. */
  export function run(): Promise<string>;
  export interface Incoming {
    readonly method: string;
    readonly caller?: string;
    readonly args: any[];
    readonly value: any;
    /** Somebody waits for a reply. */
    readonly waits: boolean;
    reply(value?: unknown, options?: { status?: number }): Promise<boolean>;
  }
  /** The next message to this invocation's address. */
  export function receive(): Promise<Incoming>;
  export interface Group {
    readonly name: string;
    readonly rank: number;
    readonly size: number;
    allReduce<V extends Float32Array | Float64Array>(op: "sum" | "mean" | "max", vector: V): Promise<V>;
    exchange(part: Uint8Array | ArrayBuffer | string): Promise<Uint8Array[]>;
    barrier(): Promise<void>;
    leave(): Promise<void>;
  }
  export const group: {
    gather<T = any>(members: Iterable<string | LodeAddress>, method: string, args?: unknown[], options?: { timeout?: number }): Promise<{ member: string; status: number; value: T }[]>;
    broadcast(members: Iterable<string | LodeAddress>, method: string, args?: unknown[], options?: { timeout?: number }): Promise<void>;
    join(name: string, rank: number, size: number, options?: { timeout?: number }): Promise<Group>;
  };
  export function queue(name: string): any;
  export function dataset(name: string): any;
  export function service(name: string): any;
  export function secret(name: string): Promise<string>;
  export function config(name: string): Promise<string>;
  export function self(): {
    function?: string;
    namespace?: string;
    revision?: string;
    id?: string;
    attempt: number;
    trigger?: string;
    deadline: number;
    agent?: string;
    key?: string;
    turn?: string;
    caller?: string;
  };
  export function waitUntil(promise: Promise<unknown>): void;
}

declare module "cloudflare:workers" {
  export { DurableObject, env, waitUntil } from "lode";
  export class WorkerEntrypoint<Env = any> {
    constructor(ctx: ExecutionContext, env: Env);
    readonly ctx: ExecutionContext;
    readonly env: Env;
  }
}
