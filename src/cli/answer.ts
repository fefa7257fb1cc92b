import { Command } from 'commander';
import { deviceOptions } from '../devices/open.js';
import { Llava } from './llava/llava.js';
import {
  type ModelFlags,
  modelFolders,
  type PruningFlags,
  positive,
  print,
  printJson,
  withModels,
  withPruning,
} from './options.js';
import { positionsOption } from './positions.js';

interface Flags extends ModelFlags, PruningFlags {
  positions: 'compact' | 'original';
  prompt?: string;
  maxNewTokens?: number;
  json?: boolean;
}

export function answerCommand(): Command {
  return withPruning(withModels(new Command('answer')), true)
    .description('Answer a question about an image with a LLaVA model whose visual tokens are pruned.')
    .argument('<image>', 'PNG, JPEG, WebP, ... file')
    .argument('<question>', 'the question, for the language model and for the CLIP text tower')
    .addOption(positionsOption())
    .option('--prompt <form>', 'prompt with {image} and {question} (default: the chat template of the model)')
    .option('--max-new-tokens <count>', 'longest answer (default: that of the model)', positive)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `
Examples:
  $ desap answer models/eval/demo/00.png "what color is the house ?" --keep 16
  $ desap answer photo.jpg "is the fence wood or metal?" --keep 64 --model llava-1.5-7b-hf --clip clip-vit-large-patch14-336`,
    )
    .action(async (image: string, question: string, flags: Flags) => {
      const { prompt, keep, keepRatio, taskShare, alignment, lambda, merge, positions, maxNewTokens } = flags;
      const { model, clip } = await modelFolders(flags);
      const llava = await Llava.open(model, { ...deviceOptions(flags), prompt, clip });
      try {
        const options = { keep, keepRatio, taskShare, alignment, lambda, merge, positions, maxNewTokens };
        const { pruned, ...answer } = await llava.answer(image, question, options);
        if (flags.json) return printJson({ ...answer, indices: pruned?.indices, source: pruned?.source });
        print(answer.text);
        const { vision, prune, projector, prefill, decode } = answer.timings;
        process.stderr.write(
          `${answer.tokens} visual tokens of ${answer.promptTokens} in the prompt; vision ${ms(vision)}, pruning ${ms(prune)}, ` +
            `projector ${ms(projector)}, prefill ${ms(prefill)}, decode ${ms(decode)}\n`,
        );
      } finally {
        await llava.dispose();
      }
    });
}

const ms = (value: number): string => `${value.toFixed(1)} ms`;
