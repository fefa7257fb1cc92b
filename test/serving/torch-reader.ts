/**
 * Reads tensor files as vLLM does: what `torch.save` writes (zip and pickle, the operations and names that `weights_only` allows) and
 * `.npy`. Stricter than torch: sizes, checksums and names have to be right.
 */
import { crc32 } from 'node:zlib';

export interface Read {
  readonly dtype: 'bf16' | 'fp16' | 'fp32' | 'int64';
  readonly dims: readonly number[];
  readonly values: Float32Array;
}

/** What a server answers to a file that it cannot read. */
export class Unreadable extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

const broken = (why: string) =>
  new Unreadable(500, `PytorchStreamReader failed reading zip archive: ${why}. This is an internal miniz error.`);

export function readTensorFile(file: Buffer): Read {
  return file.subarray(0, 6).equals(Buffer.from('\x93NUMPY', 'latin1')) ? readNpy(file) : readTorch(file);
}

/** Entries of an archive by their names. */
export function unzip(file: Buffer): Map<string, Buffer> {
  const end = file.length - 22;
  if (end < 0 || file.readUInt32LE(end) !== 0x06054b50) throw broken('failed finding central directory');
  const entries = new Map<string, Buffer>();
  let at = file.readUInt32LE(end + 16);
  // Of torch.save itself, records of zip64 stand between the two.
  const beyond = at + file.readUInt32LE(end + 12);
  if (beyond !== end && file.readUInt32LE(beyond) !== 0x06064b50) throw broken('central directory of another size');
  for (let left = file.readUInt16LE(end + 10); left > 0; left--) {
    if (file.readUInt32LE(at) !== 0x02014b50) throw broken('no entry of the central directory');
    const [method, sum, packed, size] = [10, 16, 20, 24].map((field) =>
      field === 10 ? file.readUInt16LE(at + field) : file.readUInt32LE(at + field),
    );
    const [nameLength, extraLength, commentLength] = [28, 30, 32].map((field) => file.readUInt16LE(at + field));
    const local = file.readUInt32LE(at + 42);
    const name = file.toString('latin1', at + 46, at + 46 + nameLength);
    if (method !== 0 || packed !== size) throw broken(`${name} is compressed`);
    if (file.readUInt32LE(local) !== 0x04034b50) throw broken(`no local header of ${name}`);
    if (file.toString('latin1', local + 30, local + 30 + nameLength) !== name) throw broken(`${name} has two names`);
    const start = local + 30 + nameLength + file.readUInt16LE(local + 28);
    const content = file.subarray(start, start + size);
    if (content.length !== size || crc32(content) !== sum) throw broken(`checksum of ${name}`);
    entries.set(name, content);
    at += 46 + nameLength + extraLength + commentLength;
  }
  if (at !== beyond) throw broken('bytes behind the central directory');
  return entries;
}

const STORAGES: Readonly<Record<string, { dtype: Read['dtype']; size: number }>> = {
  'torch.BFloat16Storage': { dtype: 'bf16', size: 2 },
  'torch.HalfStorage': { dtype: 'fp16', size: 2 },
  'torch.FloatStorage': { dtype: 'fp32', size: 4 },
  'torch.LongStorage': { dtype: 'int64', size: 8 },
};

function readTorch(file: Buffer): Read {
  const entries = unzip(file);
  const [folder] = [...entries.keys()][0].split('/');
  const entry = (name: string) => {
    const found = entries.get(`${folder}/${name}`);
    if (!found) throw broken(`file not found: ${folder}/${name}`);
    return found;
  };
  if (entry('version').toString('latin1') !== '3\n') throw broken('version');
  if (entry('byteorder').toString('latin1') !== 'little') throw broken('byte order');
  const { dtype, size, key, numel, dims } = tensorIn(entry('data.pkl'));
  const data = entry(`data/${key}`);
  if (data.length !== numel * size) throw broken(`data/${key} has ${data.length} bytes of ${numel * size}`);
  return { dtype, dims, values: values(data, dtype) };
}

/** A global of the pickle, and the persistent storage. */
type Global = { readonly global: string };
type Storage = { readonly storage: string; readonly key: string; readonly numel: number };
const MARK = Symbol('mark');

/** Runs the pickle of one tensor. */
function tensorIn(pickle: Buffer) {
  const stack: unknown[] = [];
  const memo = new Map<number, unknown>();
  let at = 0;
  const byte = () => pickle[at++];
  const line = () => {
    const end = pickle.indexOf(10, at);
    const text = pickle.toString('latin1', at, end);
    at = end + 1;
    return text;
  };
  const toMark = () => {
    const mark = stack.lastIndexOf(MARK);
    const items = stack.splice(mark);
    return items.slice(1);
  };
  const refuse = (what: string) => new Unreadable(400, `Weights only load failed: ${what}`);
  for (;;) {
    const operation = byte();
    if (operation === 0x2e) break;
    else if (operation === 0x80) {
      if (byte() !== 2) throw refuse('protocol');
    } else if (operation === 0x63) stack.push({ global: `${line()}.${line()}` });
    else if (operation === 0x28) stack.push(MARK);
    else if (operation === 0x58) {
      const length = pickle.readUInt32LE(at);
      stack.push(pickle.toString('utf8', at + 4, at + 4 + length));
      at += 4 + length;
    } else if (operation === 0x4b) stack.push(byte());
    else if (operation === 0x4d) stack.push(byte() | (byte() << 8));
    else if (operation === 0x4a) {
      stack.push(pickle.readInt32LE(at));
      at += 4;
    } else if (operation === 0x74) stack.push(toMark());
    else if (operation >= 0x85 && operation <= 0x87) stack.push(stack.splice(0x84 - operation));
    else if (operation === 0x29) stack.push([]);
    else if (operation === 0x89) stack.push(false);
    else if (operation === 0x51) {
      const [kind, type, key, device, numel] = stack.pop() as [string, Global, string, string, number];
      if (kind !== 'storage' || device !== 'cpu') throw refuse(`${kind} on ${device}`);
      stack.push({ storage: type.global, key, numel } satisfies Storage);
    } else if (operation === 0x52) {
      const given = stack.pop() as unknown[];
      const { global } = stack.pop() as Global;
      if (global !== 'torch._utils._rebuild_tensor_v2' && global !== 'collections.OrderedDict')
        throw refuse(`Unsupported global: GLOBAL ${global}`);
      stack.push({ called: global, given });
    } else if (operation === 0x71) memo.set(byte(), stack.at(-1));
    else if (operation === 0x68) stack.push(memo.get(byte()));
    else throw refuse(`Unsupported operand ${operation}`);
  }
  const [{ called, given }] = stack as [{ called: string; given: unknown[] }];
  const [{ storage, key, numel }, offset, dims, strides, grad] = given as [
    Storage,
    number,
    number[],
    number[],
    boolean,
    unknown,
  ];
  const rowMajor = dims.map((_, i) => dims.slice(i + 1).reduce((a, b) => a * b, 1));
  if (stack.length !== 1 || at !== pickle.length || given.length !== 6 || called !== 'torch._utils._rebuild_tensor_v2')
    throw refuse('no tensor');
  if (!(storage in STORAGES) || offset !== 0 || grad !== false || `${strides}` !== `${rowMajor}`)
    throw refuse('another layout');
  if (numel !== dims.reduce((a, b) => a * b, 1)) throw refuse('extents that its storage has not');
  return { ...STORAGES[storage], key, numel, dims };
}

/** Descriptions that numpy makes of what torch has; `<u2` is what bfloat16 becomes when it is written as integers. */
const NPY: Readonly<Record<string, Read['dtype']>> = { '<f4': 'fp32', '<f2': 'fp16', '<i8': 'int64' };

function readNpy(file: Buffer): Read {
  const length = file.readUInt16LE(8);
  const header = file.toString('latin1', 10, 10 + length);
  const found = /^\{'descr': '([^']+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n$/.exec(header);
  if (!found || (10 + length) % 64 !== 0) throw new Unreadable(400, 'Cannot parse header');
  const dims = found[2].split(',').filter(Boolean).map(Number);
  if (!(found[1] in NPY))
    throw new Unreadable(400, `can't convert np.ndarray of type numpy.${found[1] === '<V2' ? 'void' : found[1]}.`);
  const dtype = NPY[found[1]];
  const data = file.subarray(10 + length);
  const read = values(data, dtype);
  if (read.length !== dims.reduce((a, b) => a * b, 1)) throw new Unreadable(400, 'EOF: reading array data');
  return { dtype, dims, values: read };
}

function values(data: Buffer, dtype: Read['dtype']): Float32Array {
  const own = new Uint8Array(data).buffer;
  if (dtype === 'fp32') return new Float32Array(own);
  if (dtype === 'int64') return Float32Array.from(new BigInt64Array(own), Number);
  const bits = new Uint16Array(own);
  if (dtype === 'bf16') return new Float32Array(Uint32Array.from(bits, (x) => x << 16).buffer);
  return Float32Array.from(bits, (x) => {
    const [exponent, fraction] = [(x >> 10) & 31, x & 1023];
    const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    const finite = exponent === 31 ? (fraction ? Number.NaN : Number.POSITIVE_INFINITY) : size;
    return x & 0x8000 ? -finite : finite;
  });
}
