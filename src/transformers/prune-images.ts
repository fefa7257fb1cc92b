/** Prunes the images of a prompt for its questions. */
import type { TextEmbeddings } from '../index.js';
import { massOf, shared, wholeImage } from '../vision/allocation.js';
import type { Budget, EncodedImage, PrunedFeatures, VisionPruneOptions } from '../vision/vision-model.js';
import { embedWords } from './embeddings.js';
import type { ModelInputs, ModelTensor } from './model.js';
import { amountOf, type CallOptions, entryOf, howOf, type PrunedImage, type Question, rival } from './options.js';
import type { Attached, PromptImage } from './prompt-images.js';
import { isVisual, videoIds } from './visual-ids.js';

/** An image of a prompt, with what its sequence says. */
interface Asked extends PromptImage {
  /** The question as embeddings. */
  readonly text: TextEmbeddings | null;
  readonly how: VisionPruneOptions;
}

/** The question of each sequence, as embeddings. */
type Questions = (sequence: number) => Promise<TextEmbeddings | null>;

/**
 * The questions of the sequences of a prompt. Where the model encodes them in another thread, those with visual tokens are under way when
 * this is done, and what fails is told where it is asked for.
 */
export async function askAhead(attached: Attached, inputs: ModelInputs, options: CallOptions): Promise<Questions> {
  const ask = (sequence: number) => question(attached, inputs, sequence, options);
  const text = async (sequence: number) => embedded(attached, await ask(sequence));
  if (!attached.vision.questionsBeside) return text;
  const ids = inputs.input_ids as ModelTensor;
  const [rows, columns] = ids.dims;
  const visual = isVisual(attached.model);
  const asked = Array.from({ length: rows }, async (_, sequence) => {
    const own = (ids.data as BigInt64Array).subarray(sequence * columns, (sequence + 1) * columns);
    return own.some(visual) ? ask(sequence) : null;
  });
  await Promise.allSettled(asked);
  const texts = asked.map(async (one) => embedded(attached, await one));
  for (const one of texts) one.catch(() => {});
  return (sequence) => texts[sequence];
}

/**
 * What is kept of each image, in their order.
 * @throws DesapError as `EncodedImage.prune`; `ERR_VALUE` for lists of another length and for a question that cannot be found
 */
export async function pruneImages(
  attached: Attached,
  inputs: ModelInputs,
  images: readonly PromptImage[],
  options: CallOptions,
  questions: Questions,
): Promise<PrunedFeatures[]> {
  const said = new Map<number, Pick<Asked, 'text' | 'how'>>();
  const asked: Asked[] = [];
  for (const image of images) {
    const { sequence } = image;
    const own = said.get(sequence) ?? {
      text: await questions(sequence),
      how: await howIn(attached, inputs, sequence, options),
    };
    said.set(sequence, own);
    asked.push({ ...image, ...own });
  }
  const budgets = await budgetsOf(attached, asked, options, (inputs.input_ids as ModelTensor).dims[0]);
  const kept = await attached.vision.pruneImages(
    ...questionsOf(asked),
    budgets.map((budget, i) => ({ ...asked[i].how, ...budget })),
  );
  options.onPruned?.(
    kept.map(
      ({ indices, source, assignment, counts, choice, dropped, tileCounts, looked, task }, i): PrunedImage => ({
        ...{ sequence: images[i].sequence, indices, source, assignment, counts, tileCounts, task },
        ...(choice && { choice }),
        ...(dropped && { dropped }),
        ...(looked && { looked }),
      }),
    ),
  );
  return kept;
}

type Budgets = Pick<VisionPruneOptions, 'keep' | 'keepRatio' | 'allocation'>;

/** How much to keep of each image. */
async function budgetsOf(
  { vision }: Attached,
  images: readonly Asked[],
  options: CallOptions,
  sequences: number,
): Promise<Budgets[]> {
  const { allocation } = options;
  if (allocation !== 'prompt')
    return images.map(({ encoded }, i) => ({
      ...atMost(amountOf(options, i, images.length), unitsFor(encoded, allocation)),
      ...(allocation && { allocation }),
    }));
  const maps = await vision.mapImages(
    ...questionsOf(images),
    images.map(({ how }) => how),
  );
  const masses = maps.map((map, i) => massOf(map, images[i].how));
  const counts = new Map<Asked, number>();
  for (let sequence = 0; sequence < sequences; sequence++) {
    const own = images.filter((image) => image.sequence === sequence);
    if (own.length === 0) continue;
    const units = own.map(({ encoded }) => encoded.tokenCount);
    const least = own.map(({ encoded }) => encoded.least);
    const tiles = least.reduce((sum, count) => sum + count, 0);
    const all = units.reduce((sum, count) => sum + count, 0);
    const total = wholeImage(atMost(amountOf(options, sequence, sequences), all), units, tiles);
    const mass = own.map((image) => masses[images.indexOf(image)]);
    for (const [i, count] of shared(total, units, mass, least).entries()) counts.set(own[i], count);
  }
  return images.map((image) => ({ keep: counts.get(image), allocation: 'image' }));
}

/** A small image has fewer tokens than a call keeps of a large one: all of them are kept. */
function atMost({ keep, keepRatio }: Budget, units: number): Budget {
  return keep === undefined ? { keepRatio } : { keep: Math.min(keep, units) };
}

/** The visual tokens that `keep` can be of. */
function unitsFor({ tiles, least }: EncodedImage, allocation: CallOptions['allocation']): number {
  const units = tiles.map(({ rows, columns }) => rows * columns);
  const isWhole = allocation === 'image' || least < tiles.length;
  return isWhole ? units.reduce((sum, count) => sum + count, 0) : Math.max(...units);
}

/** The images, and their questions. */
function questionsOf(images: readonly Asked[]): [EncodedImage[], (TextEmbeddings | null)[]] {
  return [images.map(({ encoded }) => encoded), images.map(({ text }) => text)];
}

function embedded({ vision }: Attached, asked: Question | null): Promise<TextEmbeddings> | TextEmbeddings | null {
  return typeof asked === 'string' ? vision.encodeQuestion(asked) : asked;
}

/** The question of one sequence: the given one, or that of its last user turn. */
async function question(
  attached: Attached,
  inputs: ModelInputs,
  sequence: number,
  options: CallOptions,
): Promise<Question | null> {
  // A question may be there to choose tiles.
  const isAsked = options.taskShare !== 0 && rival(options)?.isAsked !== false;
  if (!isAsked && (!attached.vision.looks || options.keep === 'all')) return null;
  const ids = inputs.input_ids as ModelTensor;
  const asked = entryOf('question', options.question, sequence, ids.dims[0]) as Question | undefined;
  return asked ?? questionOf(attached, unpadded(inputs, sequence));
}

/** How the images of one sequence are pruned: `dart` has the words of its prompt among the pivots, unless it is given others. */
async function howIn(
  { model }: Attached,
  inputs: ModelInputs,
  sequence: number,
  options: CallOptions,
): Promise<VisionPruneOptions> {
  const how = howOf(options);
  if (how.method !== 'dart') return how;
  const visual = isVisual(model);
  const words = unpadded(inputs, sequence).filter((id) => !visual(BigInt(id)));
  const { data, dims } = await embedWords(model, words);
  return { ...how, methodOptions: { textEmbeddings: { data, dims: dims.slice(1) }, ...how.methodOptions } };
}

/** Stands for each visual token: no token has this id. */
const VISUAL = -1;

/** The times that Qwen3-VL's processor writes in front of a video's frames. */
const TIMES = /<\d+(\.\d+)? seconds>/g;

async function questionOf({ model, questions }: Attached, ids: readonly number[]): Promise<string> {
  const visual = isVisual(model);
  const marked = ids.map((id) => (visual(BigInt(id)) ? VISUAL : id));
  const read = (await questions()).read(marked, VISUAL);
  const video = videoIds(model);
  return ids.some((id) => video?.has(BigInt(id))) ? read.replace(TIMES, '').trim() : read;
}

/** The ids of one sequence that its mask does not hide. */
function unpadded({ input_ids, attention_mask, past_key_values }: ModelInputs, sequence: number): number[] {
  const [rows, columns] = (input_ids as ModelTensor).dims;
  const row = ((input_ids as ModelTensor).data as BigInt64Array).subarray(sequence * columns, (sequence + 1) * columns);
  // With a cache the mask begins with the slots of the cache.
  const past = past_key_values?.get_seq_length() ?? 0;
  const mask = attention_mask?.data as BigInt64Array | undefined;
  const hidden = (column: number) => mask?.[sequence * (past + columns) + past + column] === 0n;
  return Array.from(row, Number).filter((_, column) => mask?.length !== rows * (past + columns) || !hidden(column));
}
