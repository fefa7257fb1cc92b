/** `--long-text` and `--max-text-tokens`. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { chosenModel } from '../../src/cli/options.js';
import { ImageProcessor, openVisionModel } from '../../src/vision/index.js';
import { ROOT } from '../transformers/family-cases.js';
import { desap, ONE_LINE } from './run.js';

const IMAGE = 'models/eval/demo/02.png';
const LONG = 'is there a big red star near the small blue house in the top-left corner ?';
const prune = (...flags: string[]) => desap('prune', IMAGE, LONG, '--keep', '16', '--json', ...flags);

describe('long questions on the command line', () => {
  it('are filtered as by the options', async () => {
    const { out } = await prune('--long-text', 'filter', '--max-text-tokens', '6');
    const model = 'models/tiny-llava';
    const how = { longText: 'filter', filter: { maxTokens: 6 } } as const;
    await using vision = await openVisionModel(model, { clip: 'models/tiny-clip', ...how });
    const [image] = await vision.encode({ pixelValues: await (await ImageProcessor.open(model)).process(IMAGE) });
    expect(JSON.parse(out).indices).toEqual([...(await image.prune(LONG, { keep: 16 })).indices]);
    image.dispose();
  });

  it.each<[string, string[], number, RegExp]>([
    ['a count that nothing uses', ['--max-text-tokens', '6'], 1, /filter: got a filter beside longText: 'segment'/],
    ['another form', ['--long-text', 'x'], 2, /--long-text.* segment, truncate, error, filter/],
  ])('refuses %s', async (_, flags, wanted, message) => {
    const { code, err } = await prune(...flags);
    expect([code, err]).toEqual([wanted, expect.stringMatching(message)]);
    expect(err).toMatch(ONE_LINE);
  });

  it("are the SigLIP's business where there is one", async () => {
    const model = join(ROOT, 'paligemma');
    const asked = { model, task: 'siglip', siglip: 'folder', longText: 'filter', maxTextTokens: 4 } as const;
    const { options } = await chosenModel(asked);
    expect(options.siglip).toEqual({ folder: 'folder', text: 'words', longText: 'filter', filter: { maxTokens: 4 } });
    expect(options).not.toHaveProperty('longText');
    expect((await chosenModel({ model, longText: 'filter' })).options).toMatchObject({ longText: 'filter' });
    expect((await chosenModel({ model, task: 'siglip', siglip: 'folder' })).options.siglip).toBe('folder');
  });
});
