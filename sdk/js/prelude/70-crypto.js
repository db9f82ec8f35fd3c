// crypto: digests and HMAC by the engine's C, random bytes by the host.

const hashes = { "SHA-1": [1, 64, 20], "SHA-256": [256, 64, 32], "SHA-384": [384, 128, 48], "SHA-512": [512, 128, 64] };
const nameOf = (a) => String(typeof a === "string" ? a : a?.name).toUpperCase();
const unsupported = (what) => new DOMException(`crypto.subtle here has no ${what}: Node itself comes in a later version`, "NotSupportedError");
const hashOf = (a) => {
  const h = hashes[nameOf(a)];
  if (!h) throw unsupported(nameOf(a));
  return h;
};
const hmac = ([bits, block], key, data) => {
  const k = new Uint8Array(block);
  k.set(key.length > block ? new Uint8Array(host.hash(bits, key)) : key);
  const inside = new Uint8Array(host.hash(bits, join([k.map((b) => b ^ 0x36), data])));
  return host.hash(bits, join([k.map((b) => b ^ 0x5c), inside]));
};
const from64url = (s) => Uint8Array.from(atob(s.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
const to64url = (b) => btoa(String.fromCharCode(...b)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

class CryptoKey {
  #bytes;
  constructor(bytes, algorithm, extractable, usages) {
    this.#bytes = bytes;
    Object.assign(this, { type: "secret", algorithm, extractable, usages: [...usages] });
  }
  _use(usage) {
    if (usage ? !this.usages.includes(usage) : !this.extractable) throw new DOMException(`the key is not for ${usage || "export"}`, "InvalidAccessError");
    return this.#bytes;
  }
}
const subtle = {
  async digest(algorithm, data) { return host.hash(hashOf(algorithm)[0], view(data)); },
  async importKey(format, data, algorithm, extractable, usages) {
    const name = nameOf(algorithm);
    if (name !== "HMAC" && name !== "HKDF") throw unsupported(name);
    if (format !== "raw" && format !== "jwk") throw unsupported(`key format ${format}`);
    const bytes = format === "raw" ? view(data).slice() : from64url(data.k);
    return new CryptoKey(bytes, name === "HMAC" ? { name, hash: { name: nameOf(algorithm.hash) }, length: bytes.length * 8 } : { name }, !!extractable, usages);
  },
  async exportKey(format, key) {
    const b = key._use("");
    if (format === "raw") return b.slice().buffer;
    if (format === "jwk") return { kty: "oct", k: to64url(b), alg: "HS" + key.algorithm.hash.name.slice(4), ext: true, key_ops: key.usages };
    throw unsupported(`key format ${format}`);
  },
  async generateKey(algorithm, extractable, usages) {
    if (nameOf(algorithm) !== "HMAC") throw unsupported(nameOf(algorithm));
    const n = algorithm.length ? Math.ceil(algorithm.length / 8) : hashOf(algorithm.hash)[1];
    return subtle.importKey("raw", host.bytes(n), algorithm, extractable, usages);
  },
  async sign(algorithm, key, data) {
    if (nameOf(algorithm) !== "HMAC") throw unsupported(nameOf(algorithm));
    return hmac(hashOf(key.algorithm.hash), key._use("sign"), view(data));
  },
  async verify(algorithm, key, signature, data) {
    if (nameOf(algorithm) !== "HMAC") throw unsupported(nameOf(algorithm));
    const want = new Uint8Array(hmac(hashOf(key.algorithm.hash), key._use("verify"), view(data))), got = view(signature);
    let differ = want.length ^ got.length;
    for (let i = 0; i < want.length; i++) differ |= want[i] ^ got[i];
    return differ === 0;
  },
  async deriveBits(algorithm, key, length) {
    if (nameOf(algorithm) !== "HKDF") throw unsupported(nameOf(algorithm));
    const h = hashOf(algorithm.hash), out = [];
    const prk = new Uint8Array(hmac(h, view(algorithm.salt), key._use("deriveBits")));
    for (let t = new Uint8Array(0), i = 1; out.length * h[2] * 8 < length; i++) out.push((t = new Uint8Array(hmac(h, prk, join([t, view(algorithm.info), Uint8Array.of(i)])))));
    return join(out).slice(0, length / 8).buffer;
  },
};
for (const missing of ["encrypt", "decrypt", "deriveKey", "wrapKey", "unwrapKey"]) {
  subtle[missing] = async (a) => { throw unsupported(`${missing} (${nameOf(a)})`); };
}
global("CryptoKey", CryptoKey);
global("crypto", {
  subtle,
  getRandomValues(v) {
    if (v.byteLength > 65536) throw new DOMException("at most 65,536 bytes at once", "QuotaExceededError");
    view(v).set(new Uint8Array(host.bytes(v.byteLength)));
    return v;
  },
  randomUUID() {
    const b = new Uint8Array(host.bytes(16));
    b[6] = (b[6] & 15) | 64;
    b[8] = (b[8] & 63) | 128;
    const s = [...b].map((x) => x.toString(16).padStart(2, "0")).join("");
    return `${s.slice(0, 8)}-${s.slice(8, 12)}-${s.slice(12, 16)}-${s.slice(16, 20)}-${s.slice(20)}`;
  },
});
