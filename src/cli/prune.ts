import { Command } from 'commander';
import { deviceOptions } from '../devices/open.js';
import { mismatch } from '../errors.js';
import { writeWhole } from '../files.js';
import { ImageProcessor, type RgbImage } from '../vision/image-processor.js';
import { openVisionModel } from '../vision/open.js';
import type { PrunedFeatures, Tile } from '../vision/vision-model.js';
import {
  type ModelFlags,
  modelFolders,
  type PruningFlags,
  print,
  printJson,
  withModels,
  withPruning,
} from './options.js';
import { renderKept } from './render.js';

interface Flags extends ModelFlags, PruningFlags {
  keep?: number;
  output?: string;
  json?: boolean;
}

export function pruneCommand(): Command {
  return withPruning(withModels(new Command('prune')))
    .description('Show which patches of an image a question keeps, and why.')
    .argument('<image>', 'PNG, JPEG, WebP, ... file')
    .argument('[question]', 'the question, for the CLIP text tower; --task-share 0 needs none')
    .option('-o, --output <file>', 'draw the kept patches and the maps (PNG)')
    .option('--json', 'print indices, source, assignment, counts, maps and timings as JSON')
    .addHelpText(
      'after',
      `
Examples:
  $ desap prune models/eval/demo/02.png "what color is the star ?" --keep 16 -o kept.png
  $ desap prune photo.png "where is the red thing ?" --keep-ratio 0.1 --json
  $ desap prune photo.png --task-share 0 --keep 16`,
    )
    .action(async (file: string, question: string | undefined, flags: Flags, command: Command) => {
      const { keep, keepRatio, taskShare, alignment, lambda, merge, output } = flags;
      if (keep === undefined && keepRatio === undefined) command.error('--keep or --keep-ratio is missing');
      if (question === undefined && taskShare > 0)
        command.error('the question is missing; only --task-share 0 needs none');
      const { model, clip } = await modelFolders(flags);
      const images = await ImageProcessor.open(model);
      const rgb = await images.rgb(file);
      const vision = await openVisionModel(model, { ...deviceOptions(flags), clip });
      try {
        const [image] = await vision.encode({ pixelValues: images.normalize(rgb) });
        const options = { keep, keepRatio, taskShare, alignment, lambda, merge, maps: true };
        const kept = await image.prune(taskShare > 0 ? (question as string) : null, options);
        if (output !== undefined) await writeWhole(output, await draw(rgb, image.tiles, kept, question ?? ''));
        if (flags.json) printJson(forPrograms(question, kept, vision.device));
        else summarize(kept, vision.deviceDescription, output);
        image.dispose();
      } finally {
        await vision.dispose();
      }
    });
}

/** {@link renderKept} for one pruning with maps. */
export async function draw(
  image: RgbImage,
  tiles: readonly Tile[],
  { indices, source, maps }: PrunedFeatures,
  question: string,
  answer?: string,
): Promise<Uint8Array> {
  const [tile] = tiles;
  if (!maps || tiles.length > 1) throw mismatch('ERR_SHAPE', 'image', `${tiles.length} tiles`, 'one, to draw it');
  return renderKept(image, { indices, source, ...maps, rows: tile.rows, columns: tile.columns, question, answer });
}

function forPrograms(question: string | undefined, kept: PrunedFeatures, device: string) {
  const { indices, source, assignment, counts, maps, timings } = kept;
  return { question, device, patches: assignment.length, indices, source, assignment, counts, maps, timings };
}

function summarize({ indices, source, assignment, timings }: PrunedFeatures, device: string, output?: string): void {
  const list = (which: number) => [...indices].filter((_, at) => source[at] === which).join(' ');
  print(`kept ${indices.length} of ${assignment.length} patches on: ${device}`);
  print(`by task:     ${list(0)}`);
  print(`by saliency: ${list(1)}`);
  const { vision, analyze, text, prune, projector } = timings;
  const ms = (value: number) => value.toFixed(1);
  print(
    `ms: vision ${ms(vision)}, analysis ${ms(analyze)}, text ${ms(text)}, pruning ${ms(prune)}, projector ${ms(projector)}`,
  );
  if (output !== undefined) print(`drawing: ${output}`);
}
