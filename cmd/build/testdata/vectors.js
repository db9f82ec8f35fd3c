// The JavaScript SDK's side of the ABI vectors.
import { call, config, recode as again, secret as secretOf } from "lode";

const worker = (fetch) => ({ fetch });
export const recode = worker(async (r) => new Response(again(await r.arrayBuffer()) ?? "malformed"));
export const ten = worker(async () => {
  const bytes = await Promise.all([...Array(10).keys()].map((i) => call("echo", new TextEncoder().encode(String(i)))));
  return new Response(bytes.map((b) => (b instanceof Uint8Array ? new TextDecoder().decode(b) : String(b))).join(""));
});
export const error = worker(async () => {
  try {
    await call("nobody");
  } catch (e) {
    return new Response(e.kind);
  }
});
export const copy = worker((r) => new Response(r.body));
export const secret = worker(async () => new Response(await secretOf("KEY")));
export const configuration = worker(async () => new Response(await config("MODE")));
export { configuration as config };
export const page = worker(() => fetch("http://example.com/x"));
export { page as fetch };
export const log = worker(() => {
  console.warn("hello");
  return new Response();
});
export const fail = worker(() => {
  throw new Error("short and stout");
});
