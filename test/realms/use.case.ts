// Runs in another realm than Node's own: see realms.test.ts.
import { expect, it } from 'vitest';
import { Llava } from '../../src/cli/llava/llava.js';
import { DesapError, HostBuffer, openBackend, Pruner } from '../../src/index.js';
import { smallHead, wave } from '../fixtures/native.mjs';

const tensor = (rows: number, cols: number, at = 0) => ({ data: wave(rows * cols, at), dims: [rows, cols] });
const text = tensor(5, 16, 1);

it.each(['cpu', 'reference'] as const)('everything works on %s', async (device) => {
  using pruner = await Pruner.load(smallHead(), { device });
  const want = pruner.pruneSync(tensor(17, 32), text, { keep: 3, maps: true, matrices: true });
  const { timings: _, ...kept } = await pruner.prune(tensor(17, 32), text, { keep: 3, maps: true, matrices: true });
  expect(want).toMatchObject(kept);
  const [image] = await pruner.analyzeBatch([tensor(17, 32)]);
  expect((await image.prune(text, { keep: 3 })).indices).toEqual(kept.indices);
  expect((await pruner.pruneBatch([tensor(17, 32), tensor(9, 32)], text, { keep: 3 })).length).toBe(2);
  using buffer = HostBuffer.forTensor('float32', [17, 32]);
  const hidden = buffer.tensor('float32', [17, 32]);
  buffer.float32().set(wave(17 * 32));
  expect((await pruner.prune(hidden, text, { keep: 3 })).indices).toEqual(kept.indices);
  using backend = openBackend({ device });
  expect([...(await backend.topK({ scores: Float32Array.of(3, 1, 2), k: 2 }))]).toEqual([0, 2]);
  expect([...backend.sync.topK({ scores: Float32Array.of(3, 1, 2), k: 2, excluded: Uint8Array.of(1, 0, 0) })]).toEqual([
    1, 2,
  ]);
  const merged = await backend.merge({ features: tensor(4, 3), kept: Int32Array.of(0, 2) });
  expect(merged.tokens.dims).toEqual([2, 3]);
});

it.each(['cpu', 'reference'] as const)('bad input is a DesapError on %s', async (device) => {
  using pruner = await Pruner.load(smallHead(), { device });
  const bad = tensor(17, 32);
  bad.data[40] = Number.NaN;
  const error = await pruner.prune(bad, text, { keep: 3 }).catch((cause) => cause);
  expect(error).toBeInstanceOf(DesapError);
  expect(error).toMatchObject({ code: 'ERR_NOT_FINITE', row: 1 });
  expect(() => pruner.pruneSync(bad, text, { keep: 3 })).toThrow(DesapError);
});

it('a whole model answers', async () => {
  await using llava = await Llava.open('models/tiny-llava', { clip: 'models/tiny-clip' });
  const { text } = await llava.answer('models/eval/images/000.png', 'what is the large thing ?', { keep: 16 });
  expect(text).toBe('cloud');
});
