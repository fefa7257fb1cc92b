/** Every case of the methods that DeSAP is compared with, on every device and instruction set: integers equal, numbers within 1e-4. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { goldenMethod } from '../src/cli/golden-method.js';
import { readSafeTensors } from '../src/safetensors.js';
import { backendsUnderTest, relativeError } from './support.js';

const FOLDER = join(import.meta.dirname, 'golden-baselines');
const CASES = readdirSync(FOLDER).sort();

it('has all 34 cases', () => expect(CASES).toHaveLength(34));

describe.each(backendsUnderTest())('cases of methods on %s', (_, backend) => {
  it.each(CASES)('%s', async (file) => {
    const golden = goldenMethod(await readSafeTensors(join(FOLDER, file)), file);
    const computed = await golden.compute(backend);
    for (const [name, expected] of Object.entries(golden.choices))
      expect(Array.from(computed[name]), name).toEqual(expected);
    for (const [name, expected] of Object.entries(golden.values))
      expect(relativeError(computed[name], expected), name).toBeLessThan(1e-4);
  });
});
