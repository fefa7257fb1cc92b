/**
 * Rows whose files PyTorch and NumPy have read (`torch_check.py`). Run as a program, it writes them for that: `npx tsx
 * test/serving/torch-cases.ts folder`.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type EmbedsDtype, type EmbedsFormat, toImageEmbeds } from '../../src/serving/index.js';

/** Numbers at the edges of rounding: halves that go to even, subnormal ones, the largest that stays finite. */
const EDGES: Readonly<Record<EmbedsDtype, readonly number[]>> = {
  bf16: [1.00390625, 1.01171875, -1.00390625, -0, 1e-40, -9.2e-41, 3.3895313892515355e38, -3.3895313892515355e38],
  fp16: [1.00048828125, 1.00146484375, -1.00048828125, -0, 2 ** -24, 2 ** -25, 65504, -65519.9],
  fp32: [1 + 2 ** -23, 2 ** -149, -0, 3.4028234663852886e38, -3.4028234663852886e38, 0.1, 1 / 3, -2.5],
};

/** Rows and width: integers of one, two and four bytes in the pickle. */
const SHAPES: readonly (readonly [number, number])[] = [
  [1, 8],
  [3, 96],
  [2, 128],
  [64, 256],
  [255, 257],
  [16, 4096],
];

export interface TorchCase {
  readonly name: string;
  readonly dtype: EmbedsDtype;
  readonly format: EmbedsFormat;
  readonly dims: readonly [number, number];
  readonly values: Float32Array;
}

/** Eighths from -4096 to 4096 in an order that repeats late, and the edges. */
function values(dtype: EmbedsDtype, [rows, width]: readonly [number, number]): Float32Array {
  const data = Float32Array.from({ length: rows * width }, (_, i) => (((i * 7919) % 65521) - 32760) / 1024);
  data.set(EDGES[dtype]);
  return data;
}

export const CASES: readonly TorchCase[] = SHAPES.flatMap((dims) =>
  (['bf16', 'fp16', 'fp32'] as const).flatMap((dtype) =>
    (['torch', 'npy'] as const)
      .filter((format) => format === 'torch' || dtype !== 'bf16')
      .map((format) => ({
        name: `${dims[0]}x${dims[1]}-${dtype}.${format}`,
        dtype,
        format,
        dims,
        values: values(dtype, dims),
      })),
  ),
);

/** The file of a case. */
export function fileOf({ dtype, format, dims, values: data }: TorchCase): Buffer {
  const part = toImageEmbeds({ data, dims }, { modelType: 'llava', hiddenSize: dims[1], dtype, format });
  return Buffer.from(part.image_embeds as string, 'base64');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [folder] = process.argv.slice(2);
  mkdirSync(folder, { recursive: true });
  for (const one of CASES) {
    writeFileSync(join(folder, one.name), fileOf(one));
    writeFileSync(join(folder, `${one.name}.f32`), one.values);
  }
}
