import { Command } from 'commander';
import { mismatch } from '../errors.js';
import type { Complement } from '../index.js';
import type { MethodName } from '../methods/index.js';
import { writeWhole } from '../output-file.js';
import { askAhead } from '../vision/ask-ahead.js';
import { openVisionModel } from '../vision/open.js';
import { withoutPreset } from '../vision/vision-choices.js';
import type { EncodedImage, PrunedFeatures } from '../vision/vision-model.js';
import type { Strip } from './images/reader.js';
import {
  chosenModel,
  type ModelFlags,
  type PruningFlags,
  print,
  printJson,
  pruningOf,
  withModels,
  withPruning,
} from './options.js';
import { type KeptView, renderKept } from './render.js';

interface Flags extends ModelFlags, PruningFlags {
  keep?: number;
  output?: string;
  json?: boolean;
}

export function pruneCommand(): Command {
  return withPruning(withModels(new Command('prune')))
    .description('Show which patches of an image a question keeps, and why.')
    .argument('<image>', 'PNG, JPEG, WebP, ... file; Video-LLaVA also: a video file, or a folder of frames')
    .argument('[question]', 'the question; --task-share 0 needs none')
    .option('-o, --output <file>', 'draw the kept patches and the maps, of each tile or frame (PNG)')
    .option('--json', 'print indices, source, assignment, counts, tiles, maps and timings as JSON')
    .addHelpText(
      'after',
      `
Examples:
  $ desap prune models/eval/demo/02.png "what color is the star ?" --keep 16 -o kept.png
  $ desap prune photo.png "where is the red thing ?" --keep-ratio 0.1 --json
  $ desap prune photo.png --task-share 0 --keep 16
  $ desap prune photo.png "where is the red thing ?" --keep 100 --allocation image --model SmolVLM-500M-Instruct`,
    )
    .action(async (file: string, question: string | undefined, flags: Flags, command: Command) => {
      const { keep, keepRatio, taskShare = 0.5, method = 'desap', output } = flags;
      if (keep === undefined && keepRatio === undefined && flags.method === undefined)
        command.error('--keep or --keep-ratio is missing');
      if (question === undefined && method === 'desap' && taskShare > 0)
        command.error('the question is missing; only --task-share 0 needs none');
      if (output !== undefined && method !== 'desap')
        command.error('--output draws the maps that desap chooses by; another --method has none');
      const { folder, kind, options } = await chosenModel(flags);
      const read = await (await kind.images(folder, flags)).read(file);
      const vision = await openVisionModel(folder, options);
      try {
        const how = { ...pruningOf(flags), keep, keepRatio, ...(method === 'desap' && { maps: true }) };
        // A question without a share of the tokens may still choose tiles.
        const asked = taskShare > 0 || vision.looks ? (question ?? null) : null;
        const prune = askAhead(vision, asked, how);
        const [image] = await vision.encode(read.inputs);
        const kept = await prune(image, how);
        const { complement = 'saliency' } = withoutPreset(how);
        if (output !== undefined)
          await writeWhole(
            output,
            await draw(await read.strips(image), kept, { question: question ?? '', complement }),
          );
        if (flags.json) printJson(forPrograms(question, image, kept, vision.device));
        else summarize(kept, vision.deviceDescription, { complement, method, output });
        image.dispose();
      } finally {
        await vision.dispose();
      }
    });
}

type About = Pick<KeptView, 'question' | 'answer' | 'complement'>;

/** {@link renderKept} for one pruning with maps. */
export async function draw(strips: readonly Strip[], kept: PrunedFeatures, about: About): Promise<Uint8Array> {
  return renderKept(strips.map((strip, i) => viewOf(strip, kept, i === 0 ? about : { ...about, question: '' })));
}

/** What was kept, cell by cell of a strip. */
function viewOf(strip: Strip, { indices, source, maps, dropped, looked }: PrunedFeatures, about: About): KeptView {
  if (!maps) throw mismatch('ERR_VALUE', 'maps', 'none', 'those of a pruning that is drawn');
  const { rows, columns, image, title } = strip;
  const places = Array.from({ length: rows * columns }, (_, cell) =>
    strip.place(Math.floor(cell / columns), cell % columns),
  );
  const cells = new Map(places.map((place, cell) => [place, cell]));
  const shown = [...indices.keys()].filter((k) => cells.has(indices[k]));
  const map = (values: Float32Array) => Float32Array.from(places, (place) => values[place]);
  return {
    ...{ image, title, rows, columns, ...about },
    skipped:
      looked &&
      strip.tile &&
      places.map((_, cell) => {
        const tile = strip.tile!(Math.floor(cell / columns), cell % columns);
        return !looked.taken.includes(tile);
      }),
    indices: Int32Array.from(shown, (k) => cells.get(indices[k]) as number),
    source: Uint8Array.from(shown, (k) => source[k]),
    dropped: new Set([...(dropped ?? [])].flatMap((place) => cells.get(place) ?? [])),
    task: maps.task && map(maps.task),
    saliency: map(maps.saliency),
  };
}

function forPrograms(
  question: string | undefined,
  { medium, tiles }: EncodedImage,
  kept: PrunedFeatures,
  device: string,
) {
  const { indices, source, assignment, counts, dropped, tileCounts, looked, task, maps, timings } = kept;
  const image = { medium, patches: assignment.length, tiles, tileCounts: tileCounts };
  return { question, device, ...image, indices, source, assignment, counts, dropped, looked, task, maps, timings };
}

/** By `source`. */
const MARKER = 2;

function summarize(
  kept: PrunedFeatures,
  device: string,
  how: { readonly complement: Complement; readonly method: MethodName; readonly output?: string },
): void {
  const { complement, method, output } = how;
  const { indices, source, assignment, dropped, tileCounts, looked, task, timings } = kept;
  const list = (which: number) => [...indices].filter((_, at) => source[at] === which);
  const markers = list(MARKER);
  const units = indices.length - markers.length;
  print(`kept ${units} of ${assignment.length} patches on: ${device}`);
  if (dropped) print(`dropped:     ${dropped.length} inside the tower`);
  if (looked)
    print(
      `tiles:       ${[...looked.taken].map((tile) => tile + 1).join(' ')} of ${looked.scores.length} by ${looked.by}`,
    );
  if (tileCounts.length > 1) print(`by tile:     ${tileCounts.join(' ')}`);
  if (method === 'desap') {
    print(`by task:     ${list(0).join(' ')}${task && task.form !== 'clip' ? ` (form: ${task.form})` : ''}`);
    print(`by ${complement}: ${list(1).join(' ')}`);
  } else print(`by ${method}: ${indices.join(' ')}`);
  if (method === 'desap' && markers.length > 0) print(`markers:     ${markers.join(' ')}`);
  const { vision, analyze, text, prune, projector } = timings;
  const ms = (value: number) => value.toFixed(1);
  print(
    `ms: vision ${ms(vision)}, analysis ${ms(analyze)}, text ${ms(text)}, pruning ${ms(prune)}, projector ${ms(projector)}`,
  );
  if (output !== undefined) print(`drawing: ${output}`);
}
