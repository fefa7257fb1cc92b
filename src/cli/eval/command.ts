import { createHash } from 'node:crypto';
import { basename, join, resolve } from 'node:path';
import { Command, Option } from 'commander';
import { mismatch } from '../../errors.js';
import { readBytes } from '../../files.js';
import { makeFolder } from '../../output-file.js';
import {
  type ChosenModel,
  chosenModel,
  type ModelFlags,
  positive,
  print,
  printJson,
  withFamilies,
} from '../options.js';
import { progress } from '../progress.js';
import { type Plan, parseAmounts, parsePositions } from './cells.js';
import { clientExaminee } from './client-examinee.js';
import { convertCommand } from './convert-command.js';
import type { Examinee } from './examinee.js';
import { Journal, type Settings } from './journal.js';
import { parseMethods } from './methods.js';
import { ownExaminee } from './own-examinee.js';
import { readQuestions } from './questions.js';
import { type Report, skippedLines } from './report.js';
import { rowsOf } from './results.js';
import { type Asked, askAll } from './run.js';
import { SCORINGS, type Scoring } from './scoring.js';
import { text } from './text.js';
import { writeReport } from './write.js';

interface Flags extends ModelFlags {
  questions: string;
  images?: string;
  methods: string;
  keep: string;
  positions?: string;
  scoring?: Scoring;
  limit?: number;
  out?: string;
  prompt?: string;
  maxNewTokens?: number;
  json?: boolean;
}

/** The file of answers in a report's folder. */
const ANSWERS = 'answers.jsonl';

export function evalCommand(): Command {
  return withFamilies(new Command('eval'))
    .description('Ask a file of questions with several ways of choosing visual tokens, and compare the answers.')
    .argument('[folder]', 'model folder of any family that desap answer takes (default: models/tiny-llava of a clone)')
    .option('--questions <file>', 'questions, a JSON object a line; see docs/eval.md')
    .option('--images <folder>', 'what the paths of images are relative to (default: the folder of the questions)')
    .option('--methods <list>', 'ways of choosing, with options: desap,desap:alignment=mean,taskShare=1', 'desap')
    .option('--keep <list>', 'visual tokens to keep, of each tile or frame: 16,32,12.5%')
    .option('--positions <list>', 'compact, original or both (default: that of desap answer)')
    .addOption(
      new Option('--scoring <form>', 'how answers are judged where a question does not say it').choices(SCORINGS),
    )
    .option('--limit <count>', 'ask only so many questions, the first ones', positive)
    .option('--out <folder>', 'where answers and reports go (JSON, CSV, HTML); a run that was stopped goes on there')
    .option('--prompt <form>', 'prompt with {image} and {question} (default: the chat template of the model)')
    .option('--max-new-tokens <count>', 'longest answer (default: that of the model)', positive)
    .option('--json', 'print JSON')
    .addCommand(convertCommand())
    .addHelpText(
      'after',
      `
Examples:
  $ desap eval --questions models/eval/questions.jsonl --keep 48,16 --limit 100
  $ desap eval llava-1.5-7b-hf --clip clip-vit-large-patch14-336 --questions pope.jsonl --methods desap,desap:alignment=mean \\
      --keep 64,128,192 --positions compact,original --out report
  $ desap eval convert pope coco_pope_random.json --images val2014 -o pope.jsonl

All visual tokens are measured beside the methods. Differences are to the first method.`,
    )
    .action(async (folder: string | undefined, given: Partial<Flags>, command: Command) => {
      const flags = complete(given, command);
      const plan = planOf(flags);
      const hows = plan.methods.flatMap(({ draws }) => draws(0));
      const model = await chosenModel({ ...flags, model: folder }, hows);
      const { asked, device } = await evaluate(model, plan, flags);
      const { answered, skipped } = asked;
      const report: Report = {
        ...{
          model: basename(resolve(model.folder)),
          questions: flags.questions,
          device,
          date: new Date().toISOString(),
        },
        ...{ answered: answered.length, first: plan.methods[0].label, rows: rowsOf(plan, answered), skipped },
      };
      if (flags.out !== undefined) await writeReport(flags.out, report);
      if (flags.json) printJson(report);
      else print(text(report));
      for (const line of skippedLines(skipped)) process.stderr.write(`skipped ${line}\n`);
    });
}

/** Both options are checked here, since Commander asks for mandatory ones of a command when one below it is called, too. */
function complete(flags: Partial<Flags>, command: Command): Flags {
  for (const [name, form] of [
    ['questions', '--questions <file>'],
    ['keep', '--keep <list>'],
  ] as const)
    if (flags[name] === undefined) command.error(`required option '${form}' not specified`);
  return flags as Flags;
}

function planOf({ methods, keep, positions }: Flags): Plan {
  return { methods: parseMethods(methods), amounts: parseAmounts(keep), positions: parsePositions(positions) };
}

/**
 * Asks the questions that the folder of the report has no answers of.
 * @throws DesapError as {@link askAll}; `ERR_VALUE` where no question could be asked
 */
async function evaluate(model: ChosenModel, plan: Plan, flags: Flags): Promise<{ asked: Asked; device: string }> {
  const { questions: file, limit, out } = flags;
  const questions = (await readQuestions(file, flags)).slice(0, limit);
  const journal = out === undefined ? Journal.none() : await openJournal(out, await settingsOf(model, plan, flags));
  const examinee = await openExaminee(model, flags);
  const done = questions.filter(({ line }) => journal.answered.has(line)).length;
  const bar = progress('eval', questions.length, done);
  try {
    const asked = await askAll(questions, plan, { examinee, journal, step: bar.step });
    if (asked.answered.length > 0) return { asked, device: examinee.device };
    throw mismatch(
      'ERR_VALUE',
      file,
      `no question that could be asked (${skippedLines(asked.skipped)[0]})`,
      'one at least',
    );
  } finally {
    bar.stop();
    await examinee.dispose();
  }
}

async function openExaminee(model: ChosenModel, flags: Flags): Promise<Examinee> {
  const { processing } = model.kind;
  return processing ? clientExaminee(model, processing, flags) : ownExaminee(model, flags, flags);
}

async function openJournal(out: string, settings: Settings): Promise<Journal> {
  await makeFolder(out);
  return Journal.open(join(out, ANSWERS), settings);
}

/** What answers depend on. How many questions are asked is no part of it: an evaluation can go on with more of them. */
async function settingsOf({ folder, options }: ChosenModel, plan: Plan, flags: Flags): Promise<Settings> {
  const { questions, images, scoring, prompt, maxNewTokens, frames } = flags;
  return {
    model: resolve(folder),
    options,
    questions: createHash('sha256')
      .update(await readBytes(questions))
      .digest('hex'),
    ...{ images, scoring, prompt, maxNewTokens, frames },
    methods: plan.methods.map(({ label }) => label),
    keep: plan.amounts.map(({ label }) => label),
    positions: plan.positions,
  };
}
