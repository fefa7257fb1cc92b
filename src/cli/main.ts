#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { DesapError } from '../errors.js';
import { answerCommand } from './answer.js';
import { demoCommand } from './demo.js';
import { devicesCommand } from './devices.js';
import { evalCommand } from './eval/command.js';
import { extractCommand } from './extract.js';
import { flopsCommand } from './flops.js';
import { pruneCommand } from './prune.js';
import { verifyCommand } from './verify.js';

const OK = 0;
const FAILED = 1;
const USAGE = 2;

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));

const program = new Command('desap')
  .description('Prune the visual tokens of vision-language models for a question (DeSAP, arXiv 2604.11240).')
  .version(version)
  .option('--verbose', 'print the stack of an error')
  .addHelpText(
    'after',
    `
Examples:
  $ desap demo
  $ desap answer photo.png "what color is the star ?" --keep 16
  $ desap prune photo.png "what color is the star ?" --keep 16 -o kept.png

Exit codes: 0 done; 1 failed, or a case of "verify" disagrees; 2 the command line is wrong.`,
  );

for (const command of [
  answerCommand(),
  pruneCommand(),
  demoCommand(),
  evalCommand(),
  extractCommand(),
  verifyCommand(),
  flopsCommand(),
  devicesCommand(),
])
  program.addCommand(command);

// Usage errors look like all other errors of this program: one line on stderr.
for (const [name, command] of named('desap', program)) {
  const line = (message: string) =>
    `desap: ${message
      .replace(/^error: /, '')
      .trim()
      .replaceAll('\n', ' ')} (see: ${name} --help)\n`;
  command.exitOverride();
  command.configureOutput({ outputError: (message, write) => write(line(message)) });
}

// A reader that stops early (| head) is no failure; a full disk is one.
process.stdout.on('error', ({ code, message }: NodeJS.ErrnoException) => {
  if (code === 'EPIPE') process.exit(OK);
  process.stderr.write(`desap: the output cannot be written: ${message}\n`);
  process.exit(FAILED);
});
// There is nobody left to tell; the exit code stays.
process.stderr.on('error', () => {});

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = report(error);
}

/** A command with those below it, by the names that they are called by. */
function named(name: string, command: Command): [string, Command][] {
  return [[name, command], ...command.commands.flatMap((below) => named(`${name} ${below.name()}`, below))];
}

function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === OK ? OK : USAGE;
  const known = error instanceof DesapError;
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`desap: ${message}${known ? '' : ' (unexpected; run again with --verbose and report it)'}\n`);
  if (program.opts().verbose && error instanceof Error) process.stderr.write(`${error.stack}\n`);
  return FAILED;
}
