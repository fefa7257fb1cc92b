/** Times one model, from an image to the logits of the first token: with all visual tokens, pruned, and with rows dropped in the tower. */
import * as ort from 'onnxruntime-node';
import { Pruner } from '../../src/index.js';
import { openVisionModel } from '../../src/vision/open.js';
import { atRest } from '../../src/vision/session.js';
import type { VisionModel } from '../../src/vision/vision-model.js';
import { randomHead } from '../../test/support.js';
import { normal, tensor } from '../data.js';
import { temporaryFolder } from '../onnx-models.js';
import type { Clock } from './clock.js';
import { STATES } from './decoders.js';
import { patchesOf } from './encoders.js';
import { feedsOf, inputsOf } from './inputs.js';
import type { Decoder, Model } from './models.js';
import { type Images, imagesOf, type Taken, towerOf } from './own-tower.js';
import { type SessionTimes, type TimedOrt, timedOrt } from './timed-ort.js';
import { writeDecoder, writeEncoder } from './write.js';

/** One round. */
export interface Round extends Images {
  /** Of a prompt by language model and length: all layers, and the logits of its last row. */
  readonly prefill: Readonly<Record<string, Readonly<Record<number, number>>>>;
}

/** Of one of nine visual tokens, as LLaVA's 64 of 576. */
const KEPT = 1 / 9;
const QUESTION = 30;

/** @param lengths of the prompts that the language models read */
export async function measure(
  model: Model,
  { rounds, now }: { readonly rounds: number; readonly now: Clock },
  lengths: (images: Images) => readonly number[],
): Promise<Round[]> {
  const folder = temporaryFolder();
  const { visionEncoder } = await writeEncoder(model, folder);
  const whole = await ort.InferenceSession.create(visionEncoder, atRest());
  const [kept, dropped] = [
    await openPruned(model, folder, now, {}),
    await openPruned(model, folder, now, { tower: towerOf(model) }),
  ];
  const decoders: [string, (length: number) => Promise<number>][] = [];
  for (const decoder of model.decoders) decoders.push([decoder.name, await openDecoder(decoder, folder, now)]);
  const feeds = feedsOf(model.encoder, model.tiles);
  const results: Round[] = [];
  for (let round = 0; round <= rounds; round++) {
    const start = now();
    await whole.run(feeds);
    const all = now() - start;
    const [own, fewer] = [await kept(), await dropped()];
    const images = imagesOf(model, { all, own, fewer });
    const prefill: Record<string, Record<number, number>> = {};
    for (const [name, read] of decoders) {
      prefill[name] = {};
      for (const length of new Set(lengths(images))) prefill[name][length] = await read(length);
    }
    if (round > 0) results.push({ ...images, prefill });
  }
  return results;
}

/** Opens a model, and times how it encodes an image, prunes it for a question, and prunes it for another. */
async function openPruned(model: Model, folder: string, now: Clock, options: object): Promise<() => Promise<Taken>> {
  const { encoder, modelType, tiles } = model;
  const { width, heads, languageWidth } = encoder;
  const sessions = timedOrt(now);
  const isClip = encoder.family === 'llava';
  const space = isClip ? CLIP_SPACE : languageWidth;
  const own = isClip && {
    pruner: await Pruner.load(randomHead(1, { width, heads, projectionDim: space }), { device: 'cpu' }),
    ...(modelType === 'llava_next' && { newlineVector: normal(5, languageWidth) }),
  };
  const vision = await openVisionModel(folder, { ort: sessions.ort, ...own, ...options });
  const inputs = inputsOf(encoder, modelType, tiles);
  const question = { embeddings: tensor(7, QUESTION, space), endOfText: QUESTION - 1 };
  return () => encodeAndPrune(vision, sessions, now, { inputs, question, keep: keepOf(model) });
}

/** Width of the space that CLIP ViT-L shares with texts. */
const CLIP_SPACE = 768;

/** Visual tokens kept of each tile. */
function keepOf({ encoder }: Model): number {
  return Math.round((KEPT * patchesOf(encoder)) / encoder.side ** 2);
}

type Asked = {
  readonly inputs: Parameters<VisionModel['encode']>[0];
  readonly question: { readonly embeddings: ReturnType<typeof tensor>; readonly endOfText: number };
  readonly keep: number;
};

async function encodeAndPrune(
  vision: VisionModel,
  timed: TimedOrt,
  now: Clock,
  { inputs, question, keep }: Asked,
): Promise<Taken> {
  const ask = () => image.prune(question, { keep, allocation: 'tile' });
  timed.taken();
  const start = now();
  const [image] = await vision.encode(inputs);
  const { features } = await ask();
  const asked = now();
  const sessions = timed.taken();
  // What a second question takes is what depends on questions: the image is analysed.
  await ask();
  const selection = now() - asked - sum(timed.taken());
  await image.dispose();
  return { sessions, analysis: asked - start - sum(sessions) - selection, selection, tokens: features.dims[1] };
}

const sum = (times: SessionTimes): number => Object.values(times).reduce((total, one) => total + one, 0);

/** Times a prompt's way through all layers, of which one of each kind runs, and of its last row to the logits. */
async function openDecoder(decoder: Decoder, folder: string, now: Clock): Promise<(length: number) => Promise<number>> {
  const { width, layers } = decoder;
  const files = await writeDecoder(decoder, folder);
  const open = (path: string) => ort.InferenceSession.create(path, atRest());
  const logits = await open(files.logits);
  const kinds: { session: ort.InferenceSession; count: number }[] = [];
  for (const { kind, path } of files.layers) kinds.push({ session: await open(path), count: layers[kind] });
  const rows = (count: number) => ({
    [STATES]: new ort.Tensor('float32', normal(9, count * width), [1, count, width]),
  });
  return async (length) => {
    let taken = 0;
    const add = async (session: ort.InferenceSession, count: number, times: number) => {
      const feeds = rows(count);
      const start = now();
      await session.run(feeds);
      taken += times * (now() - start);
    };
    for (const { session, count } of kinds) await add(session, length, count);
    await add(logits, 1, 1);
    return taken;
  };
}
