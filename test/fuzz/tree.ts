/** Files as trees of their parts, so that a change of one part leaves the rest a file of its format. */
import { crc32 } from 'node:zlib';

/** A part of a file. What stands where: nodes with the same `kind` can take each other's place. */
export interface Tree {
  readonly kind: string;
  /** What stands in front of its content: the key of a JSON object, the number and wire type of a field, the name of a chunk. */
  readonly label: string;
  /** Parts inside, or null for a leaf. */
  readonly children: readonly Tree[] | null;
  /** What a leaf holds. */
  readonly value: Leaf;
}

export type Leaf = Uint8Array | bigint | string | number | boolean | null;

/** A way to read a file as a tree, and to write it again. */
export interface Format {
  /** Null for bytes that are none of this format. */
  parse(bytes: Uint8Array): Tree | null;
  write(tree: Tree): Uint8Array;
}

const branch = (kind: string, label: string, children: readonly Tree[]): Tree => ({
  kind,
  label,
  children,
  value: null,
});
const leaf = (kind: string, label: string, value: Leaf): Tree => ({ kind, label, children: null, value });

const UTF8 = new TextEncoder();

/** JSON. Keys may occur twice when it is written, which `JSON.stringify` cannot do. */
export const json: Format = {
  parse(bytes) {
    try {
      return jsonTree('', '', JSON.parse(new TextDecoder().decode(bytes)), 0);
    } catch {
      return null;
    }
  },
  write: (tree) => UTF8.encode(jsonText(tree)),
};

/** Levels whose keys are names of fields; below them they are content, such as the words of a vocabulary. */
const NAMED_LEVELS = 3;

function jsonTree(kind: string, label: string, value: unknown, level: number): Tree {
  if (typeof value !== 'object' || value === null) return leaf(`${kind}:`, label, value as Leaf);
  const isList = Array.isArray(value);
  const children = Object.entries(value).map(([key, inner]) =>
    jsonTree(`${kind}/${isList || level >= NAMED_LEVELS ? '*' : key}`, isList ? '' : key, inner, level + 1),
  );
  return branch(isList ? `${kind}[` : `${kind}{`, label, children);
}

function jsonText({ kind, children, value }: Tree): string {
  if (children === null) return jsonLeaf(value);
  const isList = kind.endsWith('[');
  const inner = children.map((child) =>
    isList ? jsonText(child) : `${JSON.stringify(child.label)}:${jsonText(child)}`,
  );
  return isList ? `[${inner.join(',')}]` : `{${inner.join(',')}}`;
}

function jsonLeaf(value: Leaf): string {
  if (typeof value === 'bigint' || typeof value === 'number') return String(value); // NaN is no JSON, as it should be
  return JSON.stringify(value instanceof Uint8Array ? Buffer.from(value).toString('latin1') : value);
}

/** A safetensors file: its header as JSON, and the data behind it. The header's length is made to fit. */
export const safetensors: Format = {
  parse(bytes) {
    if (bytes.length < 8) return null;
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
    const header = length <= bytes.length - 8 ? json.parse(bytes.subarray(8, 8 + length)) : null;
    return header && branch('file', '', [header, leaf('data', '', bytes.slice(8 + length))]);
  },
  write({ children }) {
    const header = children?.find(({ kind }) => kind !== 'data');
    const data = (children ?? []).flatMap(({ kind, value }) =>
      kind === 'data' && value instanceof Uint8Array ? [value] : [],
    );
    const text = header ? json.write(header) : new Uint8Array();
    const length = new Uint8Array(8);
    new DataView(length.buffer).setBigUint64(0, BigInt(text.length), true);
    return Buffer.concat([length, text, ...data]);
  },
};

/** Protocol buffers without their schema: a payload that reads as a message is taken for one. */
export const messages: Format = {
  parse(bytes) {
    const children = messageTree('', bytes, 0);
    return children && branch('file', '', children);
  },
  write: ({ children }) => Buffer.concat((children ?? []).map(fieldBytes)),
};

/** Fields as they were written: most of a tree stays what it was. */
const written = new WeakMap<Tree, Uint8Array>();

const DEEPEST = 12;
/** Fields of ONNX have small numbers; what has others is text or a weight. */
const LARGEST_NUMBER = 32;

function messageTree(kind: string, bytes: Uint8Array, depth: number): Tree[] | null {
  const children: Tree[] = [];
  for (let at = 0; at < bytes.length; ) {
    const tag = varint(bytes, at);
    if (tag === null) return null;
    const [number, wire] = [Number(tag.value >> 3n), Number(tag.value & 7n)];
    if (number < 1 || number > LARGEST_NUMBER) return null;
    const [inner, label] = [`${kind}.${number}`, `${number}:${wire}`];
    if (wire === 0) {
      const value = varint(bytes, tag.end);
      if (value === null) return null;
      children.push(leaf(inner, label, value.value));
      at = value.end;
      continue;
    }
    const length = wire === 2 ? varint(bytes, tag.end) : { value: wire === 1 ? 8n : 4n, end: tag.end };
    if (length === null || ![1, 2, 5].includes(wire)) return null;
    const end = length.end + Number(length.value);
    if (end > bytes.length) return null;
    const payload = bytes.subarray(length.end, end);
    const parts = wire === 2 && payload.length > 0 && depth < DEEPEST ? messageTree(inner, payload, depth + 1) : null;
    children.push(parts ? branch(inner, label, parts) : leaf(inner, label, payload));
    at = end;
  }
  return children;
}

function varint(bytes: Uint8Array, start: number): { value: bigint; end: number } | null {
  if (bytes[start] < 128) return { value: BigInt(bytes[start]), end: start + 1 };
  let value = 0n;
  for (let at = start, shift = 0n; at < bytes.length && shift < 70n; at++, shift += 7n) {
    value |= BigInt(bytes[at] & 127) << shift;
    if (bytes[at] < 128) return { value, end: at + 1 };
  }
  return null;
}

function varintBytes(given: bigint): Uint8Array {
  const bytes: number[] = [];
  let value = BigInt.asUintN(64, given);
  do {
    bytes.push(Number(value & 127n) | (value > 127n ? 128 : 0));
    value >>= 7n;
  } while (value > 0n);
  return Uint8Array.from(bytes);
}

function fieldBytes(field: Tree): Uint8Array {
  const bytes = written.get(field) ?? newFieldBytes(field);
  written.set(field, bytes);
  return bytes;
}

function newFieldBytes({ label, children, value }: Tree): Uint8Array {
  const [number, wire] = label.split(':').map(Number);
  const tag = (type: number) => varintBytes((BigInt(number) << 3n) | BigInt(type));
  if (children === null && typeof value === 'bigint') return Buffer.concat([tag(0), varintBytes(value)]);
  const payload = children === null ? leafBytes(value) : Buffer.concat(children.map(fieldBytes));
  const isFixed = payload.length === (wire === 1 ? 8 : 4) && (wire === 1 || wire === 5);
  return isFixed
    ? Buffer.concat([tag(wire), payload])
    : Buffer.concat([tag(2), varintBytes(BigInt(payload.length)), payload]);
}

const leafBytes = (value: Leaf) => (value instanceof Uint8Array ? value : UTF8.encode(String(value)));

const PNG = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);

/** The chunks of a PNG, whose checksums are made to fit: a decoder looks no further where they do not. */
export const png: Format = {
  parse(bytes) {
    if (!PNG.every((byte, i) => bytes[i] === byte)) return null;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const chunks: Tree[] = [];
    for (let at = PNG.length; at + 12 <= bytes.length; ) {
      const length = view.getUint32(at);
      if (at + 12 + length > bytes.length) return null;
      const name = Buffer.from(bytes.subarray(at + 4, at + 8)).toString('latin1');
      chunks.push(leaf(name, name, bytes.slice(at + 8, at + 8 + length)));
      at += 12 + length;
    }
    return branch('file', '', chunks);
  },
  write({ children }) {
    const chunks = (children ?? []).map(({ label, value }) => {
      const data = leafBytes(value);
      const chunk = Buffer.alloc(12 + data.length);
      chunk.writeUInt32BE(data.length, 0);
      chunk.write(label.slice(0, 4), 4, 'latin1');
      chunk.set(data, 8);
      chunk.writeUInt32BE(crc32(chunk.subarray(4, 8 + data.length)), 8 + data.length);
      return chunk;
    });
    return Buffer.concat([PNG, ...chunks]);
  },
};
