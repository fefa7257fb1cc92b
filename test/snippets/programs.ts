/** Programs of the papers, in TypeScript or JavaScript. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';
import { ROOT } from '../support.js';
import type { Block } from './blocks.js';
import { sized, WORKPLACE } from './workplace.js';

export interface Program {
  /** For the compiler. */
  readonly source: string;
  /** For Node. */
  readonly file: string;
  /** The line of the paper that the first line of the program stands for. */
  readonly start: number;
}

/** Transformers.js looks for models in the folder, and nowhere else. */
const LOCAL = `import { env as library } from '@huggingface/transformers';
library.localModelPath = '.';
library.allowRemoteModels = false;
`;

const { config } = ts.readConfigFile(join(ROOT, 'tsconfig.json'), ts.sys.readFile);
const OPTIONS: ts.CompilerOptions = {
  ...ts.convertCompilerOptionsFromJson(config.compilerOptions, ROOT).options,
  rootDir: ROOT,
  outDir: undefined,
  noEmit: true,
  declaration: false,
  allowJs: true,
  checkJs: true,
  noImplicitAny: false,
};

/** Writes the program of a block. */
export function writeProgram({ paper, line, language, text }: Block): Program {
  const setup = text.includes('transformers') ? LOCAL : '';
  const code = `${setup}${sized(text)}\nexport {};\n`;
  const name = join(WORKPLACE, `${paper.replaceAll('/', '-')}-${line}`);
  const [source, file] = [`${name}.source.${language === 'ts' ? 'mts' : 'mjs'}`, `${name}.mjs`];
  writeFileSync(source, code);
  // Node runs it without `using` and without types.
  writeFileSync(file, ts.transpileModule(code, { compilerOptions: OPTIONS, fileName: source }).outputText);
  return { source, file, start: line - setup.split('\n').length + 1 };
}

/** What the compiler says about each of the programs; an empty text where it says nothing. */
export function check(programs: readonly Program[]): Map<Program, string> {
  const compiler = ts.createProgram(
    programs.map(({ source }) => source),
    OPTIONS,
  );
  const said = (program: Program) =>
    ts.getPreEmitDiagnostics(compiler, compiler.getSourceFile(program.source)).map(({ messageText, file, start }) => {
      const line = file?.getLineAndCharacterOfPosition(start ?? 0).line ?? 0;
      return `line ${program.start + line}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`;
    });
  return new Map(programs.map((program) => [program, said(program).join('\n')]));
}
