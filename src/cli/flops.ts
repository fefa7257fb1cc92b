import { Command, Option } from 'commander';
import { DesapError } from '../errors.js';
import { decoderFlops, MODEL_SHAPES, type ModelShape, prunerFlops } from '../flops.js';
import { positive, print, printJson } from './options.js';
import { table } from './table.js';

interface Flags {
  model: string;
  keep: number[];
  visual?: number;
  text: number;
  width?: number;
  intermediate?: number;
  layers?: number;
  json?: boolean;
}

export function flopsCommand(): Command {
  return new Command('flops')
    .description(
      'Count the operations of visual tokens in the language model (eq. 6 of the paper: layers * (4 n d^2 + 2 n^2 d + 3 n d m)) and of pruning.',
    )
    .addOption(new Option('--model <name>', 'known shape').choices(Object.keys(MODEL_SHAPES)).default('llava-1.5-7b'))
    .option('--keep <counts>', 'visual tokens to keep, separated by commas', counts, [192, 128, 64])
    .option('--visual <n>', 'visual tokens without pruning (default: that of the model)', positive)
    .option('--text <n>', 'text tokens of the question, for the cost of pruning', positive, 30)
    .option('--width <d>', "the language model's width, in place of the known one", positive)
    .option('--intermediate <m>', 'width of its feed-forward layers', positive)
    .option('--layers <n>', 'its layers', positive)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `
The unit is the paper's: one multiplication with its addition. The cost of pruning counts the pruner's matrix products; the text
tower of the question is not counted.

Examples:
  $ desap flops
  $ desap flops --model llava-1.5-13b --keep 64,32
  $ desap flops --width 3584 --intermediate 18944 --layers 28 --visual 1024 --keep 256`,
    )
    .action((flags: Flags) => {
      const known = MODEL_SHAPES[flags.model];
      const shape: ModelShape = {
        decoder: {
          width: flags.width ?? known.decoder.width,
          intermediate: flags.intermediate ?? known.decoder.intermediate,
          layers: flags.layers ?? known.decoder.layers,
        },
        head: { ...known.head, patches: flags.visual ?? known.head.patches },
      };
      const all = shape.head.patches;
      if (flags.keep.some((keep) => keep > all))
        throw new DesapError(
          'ERR_VALUE',
          `--keep: got ${flags.keep.join(',')}, wanted at most the ${all} visual tokens`,
        );
      const full = decoderFlops(all, shape.decoder);
      const rows = flags.keep.map((keep) => {
        const decoder = decoderFlops(keep, shape.decoder);
        return { keep, decoder, reduction: full / decoder, pruner: prunerFlops(shape.head, keep, flags.text) };
      });
      if (flags.json) return printJson({ ...shape, visual: all, text: flags.text, full, kept: rows });
      print(`${flags.model}: ${all} visual tokens cost ${amount(full)}`);
      print();
      const cells = rows.map(({ keep, decoder, reduction, pruner }) => [
        String(keep),
        amount(decoder),
        `${reduction.toFixed(1)}x`,
        amount(pruner.total),
        `${((100 * pruner.total) / (full - decoder || Number.NaN)).toFixed(2)} %`,
      ]);
      print(table(['kept', 'language model', 'less', 'pruning', 'of what it saves'], cells, [0, 1, 2, 3, 4]));
    });
}

/** In tera from 0.1 T on, as the paper prints them. */
function amount(flops: number): string {
  const [scale, unit] = flops >= 1e11 ? [1e12, 'T'] : flops >= 1e8 ? [1e9, 'G'] : [1e6, 'M'];
  return `${(flops / scale).toFixed(2)} ${unit}`;
}

function counts(text: string): number[] {
  return text.split(',').map(positive);
}
