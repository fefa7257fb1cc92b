/** The file that `numpy.save` makes of a matrix, format 1.0. It has no bfloat16. */
import { mismatch } from '../errors.js';
import type { EmbedsDtype } from './elements.js';

const DESCRIPTIONS: Readonly<Record<EmbedsDtype, string | null>> = { bf16: null, fp16: '<f2', fp32: '<f4' };
const MAGIC = Buffer.from('\x93NUMPY\x01\x00', 'latin1');
/** The elements begin at a multiple of it. */
const ALIGNMENT = 64;

/**
 * The description of a type.
 * @throws DesapError `ERR_VALUE` for bf16
 */
export function npyDescription(dtype: EmbedsDtype): string {
  const description = DESCRIPTIONS[dtype];
  if (description === null)
    throw mismatch('ERR_VALUE', 'format', `'npy' with dtype '${dtype}'`, "'torch', or dtype 'fp16' | 'fp32'");
  return description;
}

/** @param content the elements of a matrix [rows, width] */
export function npyFile(content: Uint8Array, dtype: EmbedsDtype, rows: number, width: number): Uint8Array {
  const text = `{'descr': '${npyDescription(dtype)}', 'fortran_order': False, 'shape': (${rows}, ${width}), }`;
  const before = MAGIC.length + 2;
  const padding = (ALIGNMENT - ((before + text.length + 1) % ALIGNMENT)) % ALIGNMENT;
  const header = Buffer.from(`${text}${' '.repeat(padding)}\n`, 'latin1');
  const length = Buffer.alloc(2);
  length.writeUInt16LE(header.length);
  return Buffer.concat([MAGIC, length, header, content]);
}
