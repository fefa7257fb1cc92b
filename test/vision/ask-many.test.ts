/** Encode once, ask many: the tower runs once for all questions of an image, and each gets what it gets by itself. */
import * as ort from 'onnxruntime-node';
import { expect, it } from 'vitest';
import type { OrtModule } from '../../src/onnx/edit.js';
import { ImageProcessor, openVisionModel, type PrunedFeatures } from '../../src/vision/index.js';

const QUESTIONS = ['what is the large thing ?', 'what color is the star ?', 'is there a red thing ?'];

it('runs the tower once', async () => {
  let runs = 0;
  const create = async (...given: Parameters<OrtModule['InferenceSession']['create']>) => {
    const session = await ort.InferenceSession.create(...given);
    const run = session.run.bind(session) as (...all: unknown[]) => Promise<never>;
    session.run = (feeds: Record<string, ort.Tensor>, ...more: unknown[]) => {
      if (Object.values(feeds)[0].dims.length === 4) runs++;
      return run(feeds, ...more);
    };
    return session;
  };
  const counted = { InferenceSession: { create }, Tensor: ort.Tensor } as unknown as OrtModule;
  await using vision = await openVisionModel('models/tiny-llava', { clip: 'models/tiny-clip', keep: 16, ort: counted });
  const pixelValues = await (await ImageProcessor.open('models/tiny-llava')).process('models/eval/images/000.png');
  // The first image tells the extents of the hidden states.
  (await vision.encode({ pixelValues }))[0].dispose();
  const plain = ({ timings: _, ...result }: PrunedFeatures) => result;
  const alone: PrunedFeatures[] = [];
  runs = 0;
  for (const question of QUESTIONS) alone.push(await vision.prune({ pixelValues }, question));
  expect(runs).toBe(QUESTIONS.length);
  runs = 0;
  const [image] = await vision.encode({ pixelValues });
  const asked = await Promise.all(QUESTIONS.map((question) => image.prune(question)));
  expect(runs).toBe(1);
  expect(asked.map(plain)).toEqual(alone.map(plain));
  const bytes = image.byteLength;
  await image.prune(QUESTIONS[0], { keep: 4 });
  expect([runs, image.byteLength]).toEqual([1, bytes]);
  image.dispose();
});
