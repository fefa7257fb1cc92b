/** Every case of the last block on every device and instruction set: every result within 1e-4 of float64. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type BlockValue, computeBlock, goldenBlock } from '../src/cli/golden-block.js';
import { BlockHead } from '../src/index.js';
import { readSafeTensors } from '../src/safetensors.js';
import { devicesUnderTest, provideCuda, relativeError } from './support.js';

const FOLDER = join(import.meta.dirname, 'golden-block');
const CASES = readdirSync(FOLDER)
  .filter((file) => file.endsWith('.safetensors'))
  .sort();

it('has all fifteen cases', () => expect(CASES).toHaveLength(15));
const readCase = async (file: string) => goldenBlock(await readSafeTensors(join(FOLDER, file)), file);

async function agrees(file: string, device: Parameters<typeof BlockHead.load>[1], tolerance: number): Promise<void> {
  const golden = await readCase(file);
  using head = await BlockHead.load(golden.block, device);
  const computed = await computeBlock(head, golden);
  for (const [name, values] of Object.entries(golden.values))
    expect(relativeError(computed[name as BlockValue]!, values), name).toBeLessThan(tolerance);
}

describe.each(devicesUnderTest())('cases of the last block on %s', (_, device) => {
  it.each(CASES)('%s', (file) => agrees(file, device, 1e-4));
});

/** What a GPU computes of the same cases when its caller accepts coarser arithmetic. */
describe.each([
  ['fp16', 4e-3],
  ['bf16', 3e-2],
] as const)(`cases of the last block on ${provideCuda()} %s`, (precision, tolerance) => {
  it.each(CASES)('%s', (file) => agrees(file, { device: 'cuda', precision }, tolerance));
});
