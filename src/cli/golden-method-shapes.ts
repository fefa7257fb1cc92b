/** What a case of a method has to hold before anything is computed of it: numbers of its config that make sense, tensors of their shapes. */
import { invalid, mismatch } from '../errors.js';
import type { SafeTensors } from '../safetensors.js';
import { integer } from '../tensor.js';
import { storedTensor } from './golden-file.js';

/** What the config of a case says of its extents. */
export interface MethodExtents {
  readonly heads: number;
  readonly grid: readonly number[];
  readonly tiles?: readonly number[];
  readonly cls?: boolean;
  readonly keep?: number;
  readonly adaptive?: unknown;
  readonly eos?: number | readonly number[];
}

/** Results that every method has. */
const RESULTS = ['kept', 'source', 'assignment', 'count', 'order', 'tokens'];

/**
 * Shapes by names. P patches of a tile, N rows of the tower, A patches of all tiles, K kept; `tiles` only where the case has some. D, E, F,
 * the width of tokens W and of the metric G, text rows L and M, runs or tiles R: as the first tensor says.
 */
const SHAPES: readonly (readonly [names: RegExp, extents: readonly string[]])[] = [
  [/^input\.((local|penultimate)\.)?hidden$/, ['tiles', 'N', 'D']],
  [/^input\.first\.hidden$/, ['N', 'D']],
  [/^weight\.visual_projection\.weight$/, ['E', 'D']],
  [/^weight\.(\w+\.)?(q|k|v|out)\.weight$/, ['D', 'D']],
  [/^weight\.(\w+\.)?((ln1|post_ln)\.weight|(ln1|post_ln|q|k|v|out)\.bias)$/, ['D']],
  [/^input\.text$/, ['L', 'E']],
  [/^input\.features$/, ['P', 'F']],
  [/^input\.text_embeddings$/, ['M', 'F']],
  [/^output\.(kept|source|count|order|picked)$/, ['K']],
  [/^output\.(assignment|saliency)$/, ['A']],
  [/^output\.(local|allocation|relevance|score)$/, ['P']],
  [/^output\.(budget|run_score)$/, ['R']],
  [/^output\.tokens$/, ['K', 'W']],
  [/^output\.metric$/, ['P', 'G']],
];

/**
 * @throws DesapError `ERR_VALUE` for a bad number of the config, `ERR_FILE` without a result that every case has, `ERR_SHAPE` for a tensor of
 * another shape than the config and the other tensors say; each by the name of file and key or tensor
 */
export function checkMethodCase(file: SafeTensors, path: string, config: MethodExtents): void {
  const { heads, eos } = config;
  for (const result of RESULTS) storedTensor(file, `output.${result}`, path);
  const extents = extentsOf(path, config);
  for (const [names, letters] of SHAPES) {
    const wanted = letters.filter((letter) => letter !== 'tiles' || config.tiles !== undefined);
    for (const [name, { shape }] of file.tensors)
      if (names.test(name)) hold(`${path}: ${name}`, shape, wanted, extents);
  }
  const D = extents.get('D') as number;
  const hasHeads = [...file.tensors.keys()].some((name) => /^weight\.(\w+\.)?[qk]\.weight$/.test(name));
  if (hasHeads && !(Number.isInteger(heads) && heads > 0 && D % heads === 0))
    throw invalid('ERR_VALUE', `${path}: config.heads`, heads, `a positive integer that divides ${D}`);
  if (eos === undefined || !extents.has('L')) return;
  const ends = [eos].flat();
  if (ends.length === 0) throw invalid('ERR_VALUE', `${path}: config.eos`, eos, 'at least one row of the text');
  for (const end of ends) integer(`${path}: config.eos`, end, 0, (extents.get('L') as number) - 1);
}

/** What the config says of the letters. */
function extentsOf(path: string, { grid, tiles, cls = true, keep, adaptive }: MethodExtents): Map<string, number> {
  const area = (key: string, list: unknown) => {
    const isPair = Array.isArray(list) && list.length === 2 && list.every((one) => Number.isInteger(one) && one > 0);
    if (!isPair) throw invalid('ERR_VALUE', `${path}: config.${key}`, list, 'two positive integers');
    return list[0] * list[1];
  };
  const P = area('grid', grid);
  const count = tiles === undefined ? 1 : 1 + area('tiles', tiles);
  const extents = new Map(Object.entries({ tiles: count, P, A: count * P, N: P + Number(cls) }));
  if (!adaptive) extents.set('K', integer(`${path}: config.keep`, keep as number, 1, count * P));
  return extents;
}

/** Holds a tensor to its extents; those that are not known yet are known then. */
function hold(name: string, shape: readonly number[], letters: readonly string[], extents: Map<string, number>): void {
  const wanted = letters.map((letter) => extents.get(letter) ?? letter).join(', ');
  const isFit = letters.every((letter, at) => {
    if (shape[at] > 0 && !extents.has(letter)) extents.set(letter, shape[at]);
    return shape[at] === extents.get(letter);
  });
  if (!isFit || shape.length !== letters.length)
    throw mismatch('ERR_SHAPE', name, `[${shape.join(', ')}]`, `[${wanted}]`);
}
