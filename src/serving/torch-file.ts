/** The file that `torch.save` makes of a dense tensor, and `torch.load(weights_only=True)` reads: a zip archive with a pickle. */
import type { EmbedsDtype } from './elements.js';
import { zip } from './zip.js';

const STORAGE: Readonly<Record<EmbedsDtype, string>> = {
  bf16: 'BFloat16Storage',
  fp16: 'HalfStorage',
  fp32: 'FloatStorage',
};

/** Operations of pickle's protocol 2. */
const PROTOCOL_2 = Buffer.from([0x80, 2]);
const MARK = Buffer.from('(');
const TUPLE = Buffer.from('t');
const EMPTY_TUPLE = Buffer.from(')');
const PERSISTENT_ID = Buffer.from('Q');
const FALSE = Buffer.from([0x89]);
const CALL = Buffer.from('R');
const STOP = Buffer.from('.');

const global = (module: string, name: string) => Buffer.from(`c${module}\n${name}\n`, 'latin1');

function text(value: string): Buffer {
  const head = Buffer.from([0x58, 0, 0, 0, 0]);
  head.writeUInt32LE(value.length, 1);
  return Buffer.concat([head, Buffer.from(value, 'latin1')]);
}

/** An integer from 0 to 2^31 - 1, in the fewest bytes. */
function integer(value: number): Buffer {
  if (value < 0x100) return Buffer.from([0x4b, value]);
  if (value < 0x10000) return Buffer.from([0x4d, value & 0xff, value >>> 8]);
  const long = Buffer.from([0x4a, 0, 0, 0, 0]);
  long.writeInt32LE(value, 1);
  return long;
}

const tuple = (...items: readonly Buffer[]) => [MARK, ...items, TUPLE];

/** `_rebuild_tensor_v2(storage, offset, extents, strides, requires_grad, hooks)` of a row-major matrix. */
function pickle(dtype: EmbedsDtype, rows: number, width: number): Buffer {
  const storage = [text('storage'), global('torch', STORAGE[dtype]), text('0'), text('cpu'), integer(rows * width)];
  return Buffer.concat([
    PROTOCOL_2,
    global('torch._utils', '_rebuild_tensor_v2'),
    MARK,
    ...tuple(...storage),
    PERSISTENT_ID,
    integer(0),
    ...tuple(integer(rows), integer(width)),
    ...tuple(integer(width), integer(1)),
    FALSE,
    global('collections', 'OrderedDict'),
    EMPTY_TUPLE,
    CALL,
    TUPLE,
    CALL,
    STOP,
  ]);
}

/** @param content the elements of a matrix [rows, width] */
export function torchFile(content: Uint8Array, dtype: EmbedsDtype, rows: number, width: number): Uint8Array {
  return zip([
    ['archive/data.pkl', pickle(dtype, rows, width)],
    ['archive/byteorder', Buffer.from('little')],
    ['archive/data/0', content],
    ['archive/version', Buffer.from('3\n')],
  ]);
}
