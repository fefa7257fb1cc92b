/** What the tests share: devices under test, seeded data, error measures. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { loadAddon } from '../src/devices/cpu.js';
import { findCudaAddon } from '../src/devices/cuda.js';
import {
  type Backend,
  type BlockWeights,
  type DeviceOptions,
  devices,
  type ImageAnalysis,
  openBackend,
} from '../src/index.js';
import { uniform } from '../src/onnx/head/pixels.js';
import { float32, type Tensor } from '../src/tensor.js';

export const ROOT = join(import.meta.dirname, '..');
/** The CUDA addon over the emulator. */
export const EMULATED = join(ROOT, 'native/test/simt-addon/build/Release/desap_cuda.node');

/** Whether this machine has a GPU and the addon for it; then tests use that, otherwise the emulator. */
export function realGpu(): boolean {
  return process.env.DESAP_CUDA_ADDON !== EMULATED && findCudaAddon(ROOT).status.available;
}

/** From now on the package finds CUDA in this process: a GPU, or the emulator. Returns how its name begins. */
export function provideCuda(): 'cuda' | 'cuda emulated' {
  if (realGpu()) return 'cuda';
  if (!existsSync(EMULATED)) throw new Error(`there is no ${EMULATED}; npm run build:simt makes it`);
  process.env.DESAP_CUDA_ADDON = EMULATED;
  return 'cuda emulated';
}

/**
 * From now on the CPU of this process multiplies bfloat16 numbers: with this processor's instruction, or as its definition says
 * (`npm run build:simt`). Comes before the addon's first use. Returns how to call it, and the instruction set to ask for: it is
 * not the default where it is slower than float32.
 */
export function provideBfloat16(): { name: 'cpu' | 'cpu emulated'; isa: NonNullable<DeviceOptions['isa']> } {
  const [isa] = loadAddon(ROOT).bfloat16Isas;
  if (isa) return { name: 'cpu', isa: isa as NonNullable<DeviceOptions['isa']> };
  process.env.DESAP_PREBUILD = dirname(dirname(dirname(EMULATED)));
  return { name: 'cpu emulated', isa: 'avx512bf16' };
}

/**
 * Every device and every instruction set that this machine can run, and CUDA in the precision that keeps the contract of
 * float32; the CPU addon has to be there.
 */
export function devicesUnderTest(): [name: string, options: DeviceOptions][] {
  const cuda = provideCuda();
  const cpu = devices().find(({ device }) => device === 'cpu');
  if (!cpu?.available || !('isas' in cpu)) throw new Error(`the CPU addon is not available: ${JSON.stringify(cpu)}`);
  return [
    ['reference', { device: 'reference' }],
    ...cpu.isas!.map((isa): [string, DeviceOptions] => [
      `cpu ${isa}`,
      { device: 'cpu', isa: isa as never, threads: 2 },
    ]),
    [`${cuda} fp32`, { device: 'cuda' }],
  ];
}

/** Backends of {@link devicesUnderTest}, opened once for a test file. */
export function backendsUnderTest(): [name: string, backend: Backend][] {
  return devicesUnderTest().map(([name, options]) => [name, openBackend(options)]);
}

/** Standard normal numbers from a seed. */
export function normal(seed: number, size: number, scale = 1): Float32Array {
  const next = uniform(seed);
  return Float32Array.from(
    { length: size },
    () => scale * Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()),
  );
}

/** A seeded normal matrix as a tensor. */
export function normalTensor(seed: number, rows: number, cols: number, scale = 1): Tensor {
  return float32(normal(seed, rows * cols, scale), [rows, cols]);
}

/** Largest difference, relative to the largest magnitude wanted. */
export function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  let difference = 0;
  let magnitude = 0;
  for (let i = 0; i < want.length; i++) {
    if (Number.isNaN(got[i])) return Number.POSITIVE_INFINITY;
    difference = Math.max(difference, Math.abs(got[i] - want[i]));
    magnitude = Math.max(magnitude, Math.abs(want[i]));
  }
  return magnitude === 0 ? difference : difference / magnitude;
}

/** Values of a float32 tensor. */
export function values(tensor: Tensor): Float32Array {
  return tensor.data as Float32Array;
}

/** A_d [N, E], the class token's row first where there is one. */
export function embeddings(image: ImageAnalysis): Float32Array {
  const patches = values(image.patchEmbeddings());
  return image.rows === image.patches ? patches : Float32Array.of(...image.global(), ...patches);
}

/** Random head weights of a shape, scaled like a trained encoder's. */
export function randomHead(
  seed: number,
  shape: { width: number; heads: number; projectionDim: number; classToken?: boolean },
) {
  const { width, heads, projectionDim, classToken = true } = shape;
  const dense = (s: number, rows: number, scale = 1) => normal(seed * 100 + s, rows * width, scale / Math.sqrt(width));
  const layer = (s: number, scale = 1) => ({
    weight: dense(s, width, scale),
    bias: normal(seed * 100 + s + 50, width, 0.1),
  });
  const norm = (s: number) => ({
    weight: normal(seed * 100 + s, width, 0.1).map((x) => 1 + x),
    bias: normal(seed * 100 + s + 50, width, 0.1),
  });
  return {
    width,
    heads,
    projectionDim,
    classToken,
    epsilon: 1e-5,
    ln1: norm(1),
    q: layer(2, 2),
    k: layer(3, 2),
    v: layer(4),
    out: layer(5),
    postNorm: norm(6),
    visualProjection: dense(7, projectionDim),
  };
}

/** Random weights of a block, scaled like a trained encoder's; with `mlpWidth` SigLIP's head too. */
export function randomBlock(
  seed: number,
  shape: { width: number; heads: number; norm: 'layer' | 'rms'; mlpWidth?: number; bias?: boolean },
): BlockWeights {
  const { width, heads, norm, mlpWidth, bias = true } = shape;
  const dense = (s: number, rows = width, cols = width, scale = 1) => ({
    weight: normal(seed * 100 + s, rows * cols, scale / Math.sqrt(cols)),
    bias: normal(seed * 100 + s + 50, rows, 0.1),
  });
  const scaling = (s: number) => ({
    weight: normal(seed * 100 + s, width, 0.1).map((x) => 1 + x),
    bias: normal(seed * 100 + s + 50, width, 0.1),
  });
  const optional = (layer: ReturnType<typeof dense>) => (bias ? layer : { ...layer, bias: null });
  return {
    width,
    heads,
    norm,
    epsilon: 1e-6,
    norm1: norm === 'layer' ? scaling(1) : { ...scaling(1), bias: null },
    q: optional(dense(2, width, width, 2)),
    k: optional(dense(3, width, width, 2)),
    v: optional(dense(4)),
    out: optional(dense(5)),
    siglip:
      mlpWidth === undefined
        ? null
        : {
            mlpWidth,
            postNorm: scaling(6),
            probe: normal(seed * 100 + 7, width),
            q: dense(8),
            k: dense(9),
            v: dense(10),
            out: dense(11),
            norm: scaling(12),
            fc1: dense(13, mlpWidth, width),
            fc2: dense(14, width, mlpWidth),
          },
  };
}

export { uniform };
