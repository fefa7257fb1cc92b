import { join } from 'node:path';
import { Command } from 'commander';
import { mismatch } from '../errors.js';
import { writeWhole } from '../files.js';
import { ImageProcessor, type RgbImage } from '../vision/image-processor.js';
import { type PrunedFeatures, PrunedVision } from '../vision/llava.js';
import {
  deviceOptions,
  keepCount,
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
  keep: number;
  output?: string;
  json?: boolean;
}

export function pruneCommand(): Command {
  return withPruning(withModels(new Command('prune')))
    .description('Show which patches of an image a question keeps, and why.')
    .argument('<image>', 'PNG, JPEG, WebP, ... file')
    .argument('<question>', 'the question, as the CLIP text tower sees it')
    .requiredOption('--keep <count>', 'visual tokens to keep: a count, or a fraction below 1', keepCount)
    .option('-o, --output <file>', 'write an image of the kept patches and both maps (PNG)')
    .option('--json', 'print indices, source, assignment, counts, maps and timings as JSON')
    .addHelpText(
      'after',
      `
Examples:
  $ desap prune models/eval/demo/02.png "what color is the star ?" --keep 16 -o kept.png
  $ desap prune photo.png "where is the red thing ?" --keep 0.1 --json`,
    )
    .action(async (file: string, question: string, flags: Flags) => {
      const { keep, taskShare, alignment, lambda, merge, output } = flags;
      const { model, clip } = await modelFolders(flags);
      const images = await ImageProcessor.open(model);
      const image = await images.rgb(file);
      const vision = await PrunedVision.open(join(model, 'onnx', 'vision_encoder.onnx'), {
        ...deviceOptions(flags),
        clip,
      });
      try {
        const options = { keep, taskShare, alignment, lambda, merge, maps: true };
        const kept = await vision.encode(images.normalize(image), question, options);
        if (output !== undefined) await writeWhole(output, await draw(image, question, kept));
        if (flags.json) printJson(forPrograms(question, kept, vision.device));
        else summarize(kept, vision.device, output);
      } finally {
        await vision.dispose();
      }
    });
}

/** The image of {@link renderKept} for one pruning with maps. */
export async function draw(
  image: RgbImage,
  question: string,
  kept: PrunedFeatures,
  answer?: string,
): Promise<Uint8Array> {
  const { indices, source, maps, assignment } = kept;
  const columns = Math.sqrt((assignment.length * image.width) / image.height);
  if (!maps || !Number.isInteger(columns))
    throw mismatch(
      'ERR_SHAPE',
      'image',
      `${assignment.length} patches on ${image.width}x${image.height} pixels`,
      'square patches',
    );
  return renderKept(image, { indices, source, ...maps, columns, question, answer });
}

function forPrograms(question: string, kept: PrunedFeatures, device: string) {
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
  if (output !== undefined) print(`image: ${output}`);
}
