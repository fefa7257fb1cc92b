/** Images that are pruned together: one call of the pruner for the parts of all of them. */
import { DesapError, invalid } from '../errors.js';
import { ImageAnalysis, type PruneOptions, type PruneResult, type TextEmbeddings } from '../index.js';
import { isRival } from '../methods/rival.js';
import { eachTile, massOf, shared, wholeImage } from './allocation.js';
import type { RivalOptions } from './method-choice.js';
import type { Allocation, Budget, PrunedFeatures, Question, TokenMaps, VisionPruneOptions } from './vision-model.js';
import type { KeptImage } from './whole-image.js';

/** An image, as far as pruning goes. */
export interface Prunable {
  /** Runs a call of the image: it is not freed meanwhile. */
  call<T>(work: () => Promise<T>): Promise<T>;
  prepare(question: Question, options: VisionPruneOptions): Promise<PreparedImage>;
  /** Prunes by another method than DeSAP's own. */
  pruneBy(question: Question, options: RivalOptions): Promise<PrunedFeatures>;
}

/** An image with a question, and checked options. */
export interface AskedImage {
  readonly image: Prunable;
  readonly question: Question;
  readonly options: VisionPruneOptions;
}

/** What the pruner is asked of an image's parts, and what becomes of its answers. */
export interface PreparedImage {
  /** One of each part. */
  readonly analyses: readonly ImageAnalysis[];
  /** How many units each part has, those that its tower dropped among them: what `keep` and `keepRatio` are of. */
  readonly units: readonly number[];
  readonly text: TextEmbeddings | null;
  /** Those of each part, without how many to keep. */
  readonly requests: readonly PruneOptions[];
  readonly budget: Budget;
  readonly allocation: Allocation;
  /** The answers for all parts as one for the image. */
  join(kept: readonly PruneResult[]): KeptImage;
  /** @param milliseconds the image's share of the pruner's call */
  finish(kept: readonly PruneResult[], milliseconds: number): Promise<PrunedFeatures>;
}

/** What is kept of each image, in their order: to the bit what each gives alone. */
export async function pruneTogether(asked: readonly AskedImage[]): Promise<PrunedFeatures[]> {
  const own = asked.filter(({ options }) => !isRival(options));
  const pruned = new Map((await pruneOwn(own)).map((one, i) => [own[i], one]));
  for (const [i, one] of asked.entries()) {
    const { image, question, options } = one;
    if (!isRival(options)) continue;
    const by = image.call(() => image.pruneBy(question, options));
    pruned.set(one, await by.catch(rethrow((error) => ofImage(error, i, asked.length))));
  }
  return asked.map((one) => pruned.get(one) as PrunedFeatures);
}

/** Those that DeSAP itself prunes. */
function pruneOwn(asked: readonly AskedImage[]): Promise<PrunedFeatures[]> {
  return withPrepared(asked, async (images) => {
    const start = performance.now();
    const counts = await countsOf(images);
    const kept = await pruneParts(images, (request, i, part) => ({ ...request, keep: counts[i][part] }));
    const waited = sum(kept.flat().map(({ timings }) => timings.waiting));
    const milliseconds = performance.now() - start - waited;
    const units = images.map(({ analyses }) => sum(analyses.map(({ patches }) => patches)));
    const pruned: PrunedFeatures[] = [];
    for (const [i, image] of images.entries())
      pruned.push(await image.finish(kept[i], (milliseconds * units[i]) / sum(units)));
    return pruned;
  });
}

/** The maps of each image over its visual tokens: nothing is merged, and the connector does not run. */
export async function mapTogether(asked: readonly AskedImage[]): Promise<TokenMaps[]> {
  for (const { options } of asked)
    if (isRival(options))
      throw invalid('ERR_VALUE', 'method', options.method, "'desap': others have no maps to choose by");
  return withPrepared(asked, async (images) => {
    const kept = await pruneParts(images, mapsOnly);
    return images.map((image, i) => image.join(kept[i]).maps as TokenMaps);
  });
}

/** Prepares the images one after the other, and frees none of them before the work is done. */
function withPrepared<T>(
  asked: readonly AskedImage[],
  work: (images: readonly PreparedImage[]) => Promise<T>,
): Promise<T> {
  const prepareAll = async () => {
    const images: PreparedImage[] = [];
    for (const [i, { image, question, options }] of asked.entries())
      images.push(await image.prepare(question, options).catch(rethrow((error) => ofImage(error, i, asked.length))));
    return work(images);
  };
  return asked.reduce(
    (call, { image }) =>
      () =>
        image.call(call),
    prepareAll,
  )();
}

/** K of each part of each image. An image's K is shared by what the question finds in its parts; without one by what stands out. */
async function countsOf(images: readonly PreparedImage[]): Promise<number[][]> {
  const units = images.map(({ analyses }) => analyses.map(({ patches }) => patches));
  const counts = images.map(({ allocation, budget, units: all }, i) =>
    allocation === 'tile' ? eachTile(budget, all, units[i]) : [Math.min(wholeImage(budget, all), sum(units[i]))],
  );
  const sharing = [...images.keys()].filter((i) => counts[i].length < units[i].length);
  const answers = await pruneParts(
    sharing.map((i) => images[i]),
    mapsOnly,
  );
  for (const [at, i] of sharing.entries()) {
    const masses = answers[at].map(({ maps }, part) => massOf(maps!, images[i].requests[part]));
    counts[i] = shared(counts[i][0], units[i], masses);
  }
  return counts;
}

function mapsOnly({ complement: _, distances: __, ...request }: PruneOptions): PruneOptions {
  return { ...request, keep: 1, merge: false, maps: true };
}

/** One part of one of several images. */
interface AskedPart {
  readonly image: number;
  readonly analysis: ImageAnalysis;
  readonly request: PruneOptions;
}

/** The pruner's answers for the parts of each image, by one call for all of one device; models have one, or one for each tower. */
async function pruneParts(
  images: readonly PreparedImage[],
  request: (given: PruneOptions, image: number, part: number) => PruneOptions,
): Promise<PruneResult[][]> {
  const parts = images.map(({ analyses, requests }, image) =>
    analyses.map((analysis, part): AskedPart => ({ image, analysis, request: request(requests[part], image, part) })),
  );
  const answers = new Map<AskedPart, PruneResult>();
  for (const device of new Set(parts.flat().map(({ analysis }) => analysis.driver))) {
    const own = parts.flat().filter(({ analysis }) => analysis.driver === device);
    const pruned = await ImageAnalysis.pruneBatch(
      own.map(({ analysis }) => analysis),
      own.map(({ image }) => images[image].text),
      own.map(({ request }) => request),
    ).catch(rethrow((error) => ofPart(error, own, images.length)));
    for (const [i, part] of own.entries()) answers.set(part, pruned[i]);
  }
  return parts.map((own) => own.map((part) => answers.get(part)!));
}

/** A data error of the pruner's call, under the name that the caller has for what is wrong. */
function ofPart(error: unknown, parts: readonly AskedPart[], images: number): unknown {
  const asked = asQuestion(error);
  const { image: part = 0 } = error as { image?: number };
  return asked === error ? ofImage(asEncoding(error), parts[part].image, images) : asked;
}

/** What is wrong with a text, under the name that the caller has for it. */
export function asQuestion(error: unknown): unknown {
  if (!(error instanceof DesapError)) return error;
  const message = error.message.replace(/^text\b(\[\d+\])?/, 'question').replace(/^endOfText\[\d+\]/, 'endOfText');
  const isText = /^(question|endOfText)\b/.test(message);
  return isText ? new DesapError(error.code, message, { cause: error }) : error;
}

/** What is wrong with an image, or with the question, by the name that a kernel has for it. */
export function asMethodsInput(error: unknown): unknown {
  const isQuestion = error instanceof DesapError && /^(question|endOfText)\b/.test(error.message);
  return isQuestion ? error : asEncoding(error);
}

/** What the pruner is given of an image is the encoder's, and not what the caller knows. */
export function asEncoding(error: unknown): unknown {
  if (!(error instanceof DesapError) || error.code !== 'ERR_NOT_FINITE') return error;
  const text = `image: it is not finite behind the encoder (${error.message})`;
  return new DesapError(error.code, text, { cause: error });
}

/** An error of one image, which is named where there are several. */
function ofImage(error: unknown, image: number, images: number): unknown {
  if (!(error instanceof DesapError) || images === 1 || !error.message.startsWith('image: ')) return error;
  return new DesapError(error.code, error.message.replace('image', `images[${image}]`), { cause: error });
}

/** Throws another error in place of the one that came. */
export function rethrow(instead: (error: unknown) => unknown): (error: unknown) => never {
  return (error) => {
    throw instead(error);
  };
}

function sum(list: readonly number[]): number {
  return list.reduce((all, one) => all + one, 0);
}
