import { mismatch } from '../errors.js';
import { floatToHalf } from '../tensor.js';
import type { Rows } from './rows.js';

/** Element types of a tensor file. */
export type EmbedsDtype = (typeof DTYPES)[number];
export const DTYPES = ['bf16', 'fp16', 'fp32'] as const;

const VALUE = new Float32Array(1);
const BITS = new Uint32Array(VALUE.buffer);

/** A finite number rounded to the upper 16 bits of binary32, nearest even; beyond the largest it becomes infinite. */
function floatToBfloat16(value: number): number {
  VALUE[0] = value;
  const [bits] = BITS;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** How 16 bits are made, and which of them, without the sign, are infinite. */
const ROUNDED = {
  bf16: { round: floatToBfloat16, infinite: 0x7f80 },
  fp16: { round: floatToHalf, infinite: 0x7c00 },
};

/**
 * The rows' elements as a file holds them, row by row; little-endian, as every processor is that this package runs on.
 * @throws DesapError `ERR_NOT_FINITE` for a value that is infinite in that type
 */
export function elements(argument: string, rows: Rows, dtype: EmbedsDtype): Uint8Array {
  const { data, width } = rows;
  if (dtype === 'fp32') return new Uint8Array(data.slice().buffer);
  const { round, infinite } = ROUNDED[dtype];
  const rounded = Uint16Array.from(data, round);
  const at = rounded.findIndex((bits) => (bits & 0x7fff) === infinite);
  if (at < 0) return new Uint8Array(rounded.buffer);
  throw mismatch(
    'ERR_NOT_FINITE',
    argument,
    `${data[at]} in row ${Math.floor(at / width)}`,
    `values that stay finite as ${dtype}; dtype 'fp32' holds it`,
  );
}
