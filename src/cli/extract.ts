import { stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Command } from 'commander';
import { DesapError } from '../errors.js';
import { isFile } from '../files.js';
import { type HeadWeights, saveHead } from '../index.js';
import { confirmHead, extractHead } from '../onnx/index.js';
import { loadOrt } from '../ort.js';
import { findClipFile } from '../vision/clip-folder.js';
import { positive, print } from './options.js';

interface Flags {
  output: string;
  heads?: number;
}

export function extractCommand(): Command {
  return new Command('extract')
    .description("Take the pruning head (the vision tower's last attention and its read-out) out of a CLIP model.")
    .argument('<source>', 'CLIP folder, vision_model.onnx, model.safetensors, or model.safetensors.index.json')
    .requiredOption('-o, --output <file>', 'head file to write (.safetensors)')
    .option('--heads <count>', 'attention heads, where neither the graph nor config.json says how many', positive)
    .addHelpText(
      'after',
      `
The head is compared by numbers with the vision model itself, where onnx/vision_model.onnx is beside the weights.

Examples:
  $ desap extract models/tiny-clip -o tiny-clip.head.safetensors
  $ desap extract clip-vit-large-patch14-336/model.safetensors -o clip-l-336.head.safetensors`,
    )
    .action(async (source: string, { output, heads }: Flags) => {
      const { weights, visionModel } = await resolveSource(source);
      const head = await extractHead(
        weights === visionModel ? { visionModel: weights, heads } : { safetensors: weights, heads },
      );
      const confirmation = visionModel === null ? null : await confirmHead(await loadOrt(), visionModel, head);
      await saveHead(head, output);
      report(head, output, confirmation && Math.max(confirmation.attention, confirmation.embedding ?? 0));
    });
}

/** The file that the weights come from, and the graph to confirm them with. */
async function resolveSource(source: string): Promise<{ weights: string; visionModel: string | null }> {
  const entry = await stat(source).catch(() => null);
  if (!entry) throw new DesapError('ERR_FILE', `${source}: got no such file or folder, wanted a CLIP model`);
  const folder = entry.isDirectory() ? source : dirname(source);
  const visionModel = await findClipFile(folder, 'vision');
  if (!entry.isDirectory())
    return source.endsWith('.onnx') ? { weights: source, visionModel: source } : { weights: source, visionModel };
  if (visionModel) return { weights: visionModel, visionModel };
  for (const name of ['model.safetensors', 'model.safetensors.index.json'])
    if (await isFile(join(source, name))) return { weights: join(source, name), visionModel: null };
  throw new DesapError(
    'ERR_FILE',
    `${source}: got neither onnx/vision_model.onnx nor model.onnx nor model.safetensors, wanted one of them in a CLIP folder`,
  );
}

function report(head: HeadWeights, output: string, error: number | null): void {
  print(
    `${output}: width ${head.width}, ${head.heads} heads, shared space ${head.projectionDim}, ${head.classToken ? 'with' : 'without'} class token`,
  );
  print(
    error === null
      ? 'not confirmed: no vision_model.onnx beside it'
      : `confirmed: within ${error.toExponential(1)} of what the vision model computes`,
  );
}
