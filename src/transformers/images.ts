import { types } from 'node:util';
import type { Tensor } from 'onnxruntime-common';
import { halfToFloat } from '../tensor.js';
import type { SeenImage } from './family.js';

/** Encodes one image after the other; when one fails, what was seen is freed. */
export async function seeAll<T>(images: readonly T[], see: (image: T) => Promise<SeenImage>): Promise<SeenImage[]> {
  const all: SeenImage[] = [];
  try {
    for (const image of images) all.push(await see(image));
    return all;
  } catch (error) {
    for (const one of all) one[Symbol.dispose]();
    throw error;
  }
}

/** The numbers of a float32 or float16 tensor. */
export function floats({ data, type }: Tensor): Float32Array {
  if (types.isFloat32Array(data)) return data;
  const numbers = data as unknown as ArrayLike<number>;
  // Where the runtime has a Float16Array, its elements are numbers already; a Uint16Array holds their bits.
  return type === 'float16' && types.isUint16Array(data)
    ? Float32Array.from(numbers, halfToFloat)
    : Float32Array.from(numbers);
}

/** Arrays one after the other. */
export function joined(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
