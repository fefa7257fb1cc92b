import { dirname, join, relative, resolve } from 'node:path';
import { Argument, Command } from 'commander';
import { writeWhole } from '../../output-file.js';
import { print } from '../options.js';
import { convert, FORMATS, type Format } from './convert.js';

/** What LLaVA is told beside a question of these benchmarks. */
const INSTRUCTION = 'Answer the question using a single word or phrase.';

interface Flags {
  output: string;
  images?: string;
  annotations?: string;
  instruction: string;
}

export function convertCommand(): Command {
  return new Command('convert')
    .description('Make a file of questions of a published benchmark, from its own files.')
    .addArgument(new Argument('<format>', 'whose file it is').choices(FORMATS))
    .argument('<file>', 'the questions, as the benchmark has them')
    .requiredOption('-o, --output <file>', 'file of questions that is written')
    .option('--annotations <file>', 'VQAv2: the file of annotations')
    .option('--images <folder>', 'where the images are (default: beside the file that is written)')
    .option('--instruction <text>', 'how to answer, for the language model alone; empty for none', INSTRUCTION)
    .addHelpText(
      'after',
      `
Examples:
  $ desap eval convert pope coco_pope_adversarial.json --images val2014 -o pope.jsonl
  $ desap eval convert gqa testdev_balanced_questions.json --images images -o gqa.jsonl
  $ desap eval convert textvqa TextVQA_0.5.1_val.json --images train_images -o textvqa.jsonl
  $ desap eval convert vqav2 v2_OpenEnded_mscoco_val2014_questions.json --annotations v2_mscoco_val2014_annotations.json \\
      --images val2014 -o vqav2.jsonl`,
    )
    .action(async (format: Format, file: string, _: object, command: Command) => {
      // Commander gives --images, which eval has too, to eval.
      const { output, images, annotations, instruction } = command.optsWithGlobals<Flags>();
      const lines = await convert(format, { questions: file, annotations });
      const folder = relative(dirname(resolve(output)), resolve(images ?? dirname(output)));
      const text = lines.map(({ image, ...line }) =>
        JSON.stringify({ ...line, image: join(folder, image), ...(instruction && { instruction }) }),
      );
      await writeWhole(output, new TextEncoder().encode(`${text.join('\n')}\n`));
      print(`${lines.length} questions: ${output}`);
    });
}
