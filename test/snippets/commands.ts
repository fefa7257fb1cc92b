/** Command lines of the papers. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { ROOT } from '../support.js';

/** Arguments of Node, for lines that are run. */
export type Run = readonly string[];

const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));

/**
 * What of a block is run: the lines that begin with `desap`, `npx desap` or `node`. Of the others it is checked that the scripts and
 * the files that they name are there.
 *
 * @throws Error for a script or a file that is not there
 */
export function runsOf(text: string, folder: string): Run[] {
  const lines = text.replaceAll('\\\n', ' ').split('\n');
  return lines
    .flatMap((line) => line.replace(/(^|\s)#.*/, '').split('&&'))
    .flatMap((command) => {
      const words = wordsOf(command.replace(/^\s*(\$ )?(\w+=\S* )*/, '')).flatMap((word) => expanded(word, folder));
      const program = words[0] === 'npx' ? words.slice(1) : words;
      if (program[0] === 'desap') return [[join(ROOT, 'dist/cli/main.js'), ...program.slice(1)]];
      if (program[0] === 'node') return [program.slice(1)];
      if (program[0] === 'npm') checkScript(program);
      for (const word of program) checkPath(word);
      return [];
    });
}

function wordsOf(command: string): string[] {
  return [...command.matchAll(/"([^"]*)"|'([^']*)'|(\S+)/g)].map(
    ([, double, single, bare]) => double ?? single ?? bare,
  );
}

/** A path with `*` in its last part: the files that it stands for, as a shell has them. */
function expanded(word: string, folder: string): string[] {
  if (!word.includes('*')) return [word];
  const [start, end] = basename(word).split('*');
  const names = readdirSync(join(folder, dirname(word)));
  const found = names.filter((name) => name.startsWith(start) && name.endsWith(end)).sort();
  if (found.length === 0) throw new Error(`there is nothing at ${word}`);
  return found.map((name) => join(dirname(word), name));
}

/** `npm run name`, `npm test`. */
function checkScript([, verb, ...rest]: readonly string[]): void {
  const script = verb === 'run' ? rest.find((word) => !word.startsWith('-')) : verb === 'test' ? 'test' : undefined;
  if (script !== undefined && !Object.hasOwn(scripts, script)) throw new Error(`package.json has no script ${script}`);
}

/** Paths into the folders that a clone has. */
function checkPath(word: string): void {
  if (/^(bench|docs|examples|native|src|test|tools)\//.test(word) && !existsSync(join(ROOT, word)))
    throw new Error(`there is no ${word}`);
}
