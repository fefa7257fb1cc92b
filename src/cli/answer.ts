import { Command } from 'commander';
import type { Answered } from './answers.js';
import { answerThroughClient } from './client/answer.js';
import { Llava } from './llava/llava.js';
import {
  type ChosenModel,
  chosenModel,
  type ModelFlags,
  type PruningFlags,
  positive,
  print,
  printJson,
  pruningOf,
  withModels,
  withPruning,
} from './options.js';
import { positionsOption } from './positions.js';

interface Flags extends ModelFlags, PruningFlags {
  positions?: 'compact' | 'original';
  prompt?: string;
  maxNewTokens?: number;
  json?: boolean;
}

export function answerCommand(): Command {
  return withPruning(withModels(new Command('answer')), true)
    .description('Answer a question about an image with a model whose visual tokens are pruned.')
    .argument('<image>', 'PNG, JPEG, WebP, ... file; Video-LLaVA also: a video file, or a folder of frames')
    .argument('<question>', 'the question, for the language model and for pruning')
    .addOption(positionsOption())
    .option('--prompt <form>', 'prompt with {image} and {question} (default: the chat template of the model)')
    .option('--max-new-tokens <count>', 'longest answer (default: that of the model)', positive)
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      `
Examples:
  $ desap answer models/eval/demo/00.png "what color is the house ?" --keep 16
  $ desap answer photo.jpg "is the fence wood or metal?" --keep 64 --model llava-1.5-7b-hf --clip clip-vit-large-patch14-336
  $ desap answer photo.jpg "is the fence wood or metal?" --keep 16 --model SmolVLM-500M-Instruct
  $ desap answer film.mp4 "what does the man do?" --keep 128 --model Video-LLaVA-7B-hf --clip languagebind-video

LLaVA, LLaVA-NeXT and Video-LLaVA run on onnxruntime-node alone; all other families through the installed @huggingface/transformers.`,
    )
    .action(async (image: string, question: string, flags: Flags) => {
      const model = await chosenModel(flags);
      const { pruned, ...answer } = await answered(model, image, question, flags);
      if (flags.json) {
        const { indices, source, dropped, tileCounts, looked, task } = pruned ?? {};
        return printJson({ ...answer, indices, source, dropped, tileCounts, looked, task });
      }
      print(answer.text);
      const timings = Object.entries(answer.timings).map(([part, value]) => `${part} ${value.toFixed(1)} ms`);
      process.stderr.write(
        `${answer.tokens} visual tokens of ${answer.promptTokens} in the prompt; ${timings.join(', ')}\n`,
      );
    });
}

async function answered(
  { folder, kind, options }: ChosenModel,
  image: string,
  question: string,
  flags: Flags,
): Promise<Answered> {
  const { prompt, keep, positions, maxNewTokens, tiles } = flags;
  const isUnsaid = [keep, flags.keepRatio, flags.method].every((one) => one === undefined);
  // Tiles are chosen by a question: all tokens of those that are.
  const keepRatio = isUnsaid && tiles !== undefined ? 1 : flags.keepRatio;
  const how = { ...pruningOf(flags), keep, keepRatio, positions };
  if (kind.processing) {
    const { dtype, ...opening } = options;
    const isPruned = keep !== 'all' && (keep ?? keepRatio) !== undefined;
    const pruning = isPruned ? { ...opening, ...how } : null;
    return answerThroughClient(folder, kind.processing, { image, question, prompt, dtype, maxNewTokens, pruning });
  }
  const llava = await Llava.open(folder, { ...options, prompt, images: await kind.images(folder, flags) });
  try {
    return await llava.answer(image, question, { ...how, maxNewTokens });
  } finally {
    await llava.dispose();
  }
}
