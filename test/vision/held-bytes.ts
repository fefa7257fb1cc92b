/**
 * `node --expose-gc --import tsx test/vision/held-bytes.ts <family>`: what an image of a tiny model says that it holds, and what a process
 * holds for each of many that were encoded and asked about. Prints JSON.
 */
import { join } from 'node:path';
import { type EncodedImage, openVisionModel, type Question, type VisionInputs } from '../../src/vision/index.js';
import { normal, ROOT } from '../support.js';

const folder = (name: string) => join(ROOT, 'test/fixtures/families', name);
const own = (name: string) => ({ model: folder(name), options: { clip: join(folder(name), 'clip') } });
const llava = (name: string) => ({
  model: join(ROOT, 'models', name),
  options: { clip: join(ROOT, 'models/tiny-clip') },
});
const pixels = (...dims: number[]) => ({
  data: normal(
    5,
    dims.reduce((a, b) => a * b),
  ),
  dims,
});
const sizes = (...sides: number[]) => ({ data: BigInt64Array.from(sides, BigInt), dims: [1, 2] });

interface Held {
  readonly model: string;
  readonly options?: object;
  readonly inputs: VisionInputs;
  readonly images: number;
  readonly question?: Question;
}
const FAMILIES: Readonly<Record<string, Held>> = {
  llava: { ...llava('tiny-llava'), inputs: { pixelValues: pixels(1, 3, 96, 96) }, images: 200 },
  llava_next: {
    ...llava('tiny-llava-next'),
    inputs: { pixelValues: pixels(1, 5, 3, 96, 96), imageSizes: sizes(192, 192) },
    images: 60,
  },
  phi3_v: {
    ...own('phi3_v'),
    inputs: { pixelValues: pixels(1, 37, 3, 32, 32), imageSizes: sizes(192, 192) },
    images: 200,
    question: { embeddings: pixels(3, 16) },
  },
  'video_llava video': { ...own('video_llava'), inputs: { pixelValuesVideos: pixels(1, 8, 3, 32, 32) }, images: 2000 },
  'video_llava image': {
    model: folder('video_llava'),
    options: {
      clip: join(folder('video_llava'), 'clip'),
      imageEncoder: join(folder('video_llava'), 'onnx/vision_encoder.onnx'),
    },
    inputs: { pixelValues: pixels(1, 3, 32, 32) },
    images: 2000,
  },
  idefics3: {
    model: folder('idefics3'),
    inputs: { pixelValues: pixels(1, 37, 3, 32, 32), tileGrids: [[6, 6]] },
    images: 100,
  },
  gemma3: { model: folder('gemma3'), inputs: { pixelValues: pixels(1, 3, 32, 32) }, images: 1500 },
};

const { model, options, inputs, images, question = 'what is it ?' } = FAMILIES[process.argv[2]];
const vision = await openVisionModel(model, { keep: 1, ...options });
const held: EncodedImage[] = [];
async function more(count: number): Promise<void> {
  for (let i = 0; i < count; i++) {
    const [image] = await vision.encode(inputs);
    await image.prune(question);
    held.push(image);
  }
}
/** Bytes of this process without JavaScript's heap. */
function bytes(): number {
  global.gc?.();
  const { rss, heapTotal } = process.memoryUsage();
  return rss - heapTotal;
}

await more(images / 2);
const before = bytes();
await more(images);
const measured = (bytes() - before) / images;
const [{ byteLength, tiles }] = held;
console.log(JSON.stringify({ byteLength, measured, tiles: tiles.length }));
for (const image of held) image.dispose();
await vision.dispose();
