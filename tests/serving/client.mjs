// A client written from the protocol alone, without a package: node --experimental-websocket client.mjs URL CALLS
// Prints the answers' actions, a line of JSON each.
const [url, calls] = process.argv.slice(2);
const bytes = (text) => new TextEncoder().encode(text);

function pack(value, out = []) {
  const size = (n, short, kinds) => {
    if (short !== null && n < short[1]) out.push(short[0] | n);
    else if (kinds[0] !== null && n < 0x100) out.push(kinds[0], n);
    else if (n < 0x10000) out.push(kinds[1], n >> 8, n & 255);
    else out.push(kinds[2], (n >> 24) & 255, (n >> 16) & 255, (n >> 8) & 255, n & 255);
  };
  if (value === true || value === false) out.push(value ? 0xc3 : 0xc2);
  else if (typeof value === "number") out.push(0xce, (value >> 24) & 255, (value >> 16) & 255, (value >> 8) & 255, value & 255);
  else if (typeof value === "string") { const b = bytes(value); size(b.length, [0xa0, 32], [0xd9, 0xda, 0xdb]); out.push(...b); }
  else if (value instanceof Uint8Array) { size(value.length, null, [0xc4, 0xc5, 0xc6]); for (const b of value) out.push(b); }
  else if (Array.isArray(value)) { size(value.length, [0x90, 16], [null, 0xdc, 0xdd]); for (const v of value) pack(v, out); }
  else if (value instanceof Map) {
    size(value.size, [0x80, 16], [null, 0xde, 0xdf]);
    for (const [k, v] of value) { pack(k, out); pack(v, out); }
  }
  return out;
}

function unpack(data) {
  const view = new DataView(data);
  let at = 0;
  const number = (n) => { let x = 0; for (let i = 0; i < n; i++) x = x * 256 + view.getUint8(at++); return x; };
  const raw = (n) => new Uint8Array(data, (at += n) - n, n);
  const map = (n) => { const m = new Map(); for (let i = 0; i < n; i++) { let k = one(); if (k instanceof Uint8Array) k = "b:" + new TextDecoder().decode(k); m.set(k, one()); } return m; };
  const list = (n) => Array.from({ length: n }, one);
  function one() {
    const b = view.getUint8(at++);
    if (b < 0x80) return b;
    if (b < 0x90) return map(b & 15);
    if (b < 0xa0) return list(b & 15);
    if (b < 0xc0) return new TextDecoder().decode(raw(b & 31));
    if (b >= 0xe0) return b - 256;
    switch (b) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return raw(number(1));
      case 0xc5: return raw(number(2));
      case 0xc6: return raw(number(4));
      case 0xca: { const x = view.getFloat32(at); at += 4; return x; }
      case 0xcb: { const x = view.getFloat64(at); at += 8; return x; }
      case 0xcc: return number(1);
      case 0xcd: return number(2);
      case 0xce: return number(4);
      case 0xcf: return number(8);
      case 0xd9: return new TextDecoder().decode(raw(number(1)));
      case 0xda: return new TextDecoder().decode(raw(number(2)));
      case 0xdc: return list(number(2));
      case 0xde: return map(number(2));
      default: throw new Error(`byte 0x${b.toString(16)}`);
    }
  }
  return one();
}

const array = (data, dtype, shape) =>
  new Map([[bytes("__ndarray__"), true], [bytes("data"), new Uint8Array(data.buffer)], [bytes("dtype"), dtype], [bytes("shape"), shape]]);

const image = Uint8Array.from({ length: 48 * 64 * 3 }, (_, i) => (i * 7) % 256);
const request = Uint8Array.from(pack(new Map([
  ["observation/images/corner2", array(image, "|u1", [48, 64, 3])],
  ["observation/state", array(Float32Array.of(0.1, 0.2, 0.3, 0.4), "<f4", [4])],
  ["prompt", "open the drawer"],
])));

const socket = new WebSocket(url);
socket.binaryType = "arraybuffer";
let answers = -1; // the first message is the server's metadata
socket.onmessage = ({ data }) => {
  if (typeof data === "string") throw new Error(data);
  const message = unpack(data);
  if (++answers) {
    const actions = message.get("actions"), b = actions.get("b:data");
    const values = new Float32Array(b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength));
    console.log(JSON.stringify({ shape: actions.get("b:shape"), dtype: actions.get("b:dtype"), values: [...values] }));
  } else if (!message.has("wamkit")) throw new Error("no metadata");
  if (answers < Number(calls)) socket.send(request);
  else socket.close();
};
socket.onerror = (event) => { console.error(event.message ?? event); process.exit(1); };
