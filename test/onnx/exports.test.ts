/** Files that real exporters wrote, as they are: every public case, with the values that PyTorch computes. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it, test } from 'vitest';
import { checkCase, type ExportCase } from '../exports/check-case.js';
import { ROOT } from '../support.js';

const FOLDER = join(ROOT, 'test/fixtures/exports');
const CASES: ExportCase[] = JSON.parse(readFileSync(join(FOLDER, 'manifest.json'), 'utf8'));

it('has all sixteen cases', () => expect(CASES).toHaveLength(16));

test.each(CASES)('$name ($kind)', async (given) => {
  expect((await checkCase(FOLDER, given)).failures).toEqual([]);
});
