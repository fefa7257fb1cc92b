/** `--tiles`: the command line leaves out the tiles that the library leaves out. */
import { afterAll, beforeAll, expect, it } from 'vitest';
import { answerCommand } from '../../src/cli/answer.js';
import { pruneCommand } from '../../src/cli/prune.js';
import { AnyresImageProcessor, openVisionModel, type VisionModel } from '../../src/vision/index.js';
import { json } from './family-folders.js';
import { desap, ONE_LINE } from './run.js';

const MODEL = 'models/tiny-llava-next';
const CLIP = 'models/tiny-clip';
const IMAGE = 'models/eval-next/images/000.png';
const QUESTION = 'what color is the circle ?';
const asking = (tiles: string) => [IMAGE, QUESTION, '--model', MODEL, '--clip', CLIP, '--tiles', tiles];

let vision: VisionModel;
beforeAll(async () => {
  vision = await openVisionModel(MODEL, { clip: CLIP, tiles: { keep: 2, by: 'kk' } });
});
afterAll(() => vision?.dispose());

async function wanted(how: object) {
  const [image] = await vision.encode({ ...(await (await AnyresImageProcessor.open(MODEL)).process(IMAGE)) });
  const pruned = await image.prune(QUESTION, how);
  image.dispose();
  return pruned;
}

it('prune and answer keep what the library keeps of the tiles that it takes', async () => {
  const { indices, assignment, looked } = await wanted({ keep: 8 });
  expect(looked!.taken).toHaveLength(2);
  const pruned = await json(pruneCommand(), ...asking('keep=2,by=kk'), '--keep', '8');
  expect(pruned).toMatchObject({ indices: [...indices], assignment: [...assignment] });
  const answered = await json(answerCommand(), ...asking('keep=2,by=kk'), '--keep', '8');
  expect(answered.indices).toEqual([...indices]);
  expect(answered.tokens).toBe(indices.length);
});

it('answer without --keep takes all tokens of these tiles', async () => {
  const { indices } = await wanted({ keepRatio: 1 });
  const answered = await json(answerCommand(), ...asking('keep=2,by=kk'));
  expect(answered.tokens).toBe(indices.length);
  expect(indices.length).toBeLessThan(744);
});

it.each([
  ['keep=0', /tiles\.keep: got 0/],
  ['keep=1,by=luck', /tiles\.by: got 'luck'/],
  ['count=1', /tiles: got the unknown option 'count'/],
])('refuses --tiles %s in one line', async (tiles, message) => {
  const { code, err } = await desap('prune', ...asking(tiles), '--keep', '8');
  expect([code === 0, ONE_LINE.test(err)]).toEqual([false, true]);
  expect(err).toMatch(message);
});
