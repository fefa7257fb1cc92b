/** Cases of the methods that DeSAP is compared with. */
import { alternatives, DesapError, mismatch } from '../errors.js';
import { headFromSafeTensors, type LinearWeights } from '../head.js';
import type { Backend } from '../index.js';
import { chooserOf, type RivalName } from '../methods/index.js';
import type { Matrix } from '../methods/matrix.js';
import { type Choice, type Grid, type MethodImage, missing, type Tap, type TapName } from '../methods/method.js';
import { type SafeTensors, toFloat32 } from '../safetensors.js';
import { configOf, float64Values, integerValues, storedTensor } from './golden-file.js';
import { checkMethodCase } from './golden-method-shapes.js';

interface Config {
  method: RivalName;
  heads: number;
  grid: [rows: number, columns: number];
  keep?: number;
  cls?: boolean;
  tiles?: [rows: number, columns: number];
  eos?: number | number[];
  text_pivots?: number;
  [option: string]: unknown;
}

/** Keys that are no options of a method. */
const OWN = new Map([
  ['method', 'string'] as const,
  ...['heads', 'keep'].map((key) => [key, 'number'] as const),
  ...['grid', 'tiles'].map((key) => [key, 'list'] as const),
  ['cls', 'boolean'] as const,
  ['eos', 'number or list'] as const,
]);
/** Options of methods; `methodOptions` has them in camel case. */
const OPTIONS = new Map([
  ...['contextual_share', 'attention_share', 'local_share', 'neighbours', 'alpha', 'runs', 'windows'].map(
    (key) => [key, 'number'] as const,
  ),
  ...['theta', 'blend', 'split', 'pivots', 'text_pivots', 'random_seed'].map((key) => [key, 'number'] as const),
  ...['aggregate', 'adaptive', 'merging'].map((key) => [key, 'boolean'] as const),
  ...['combine', 'allocation', 'merge_space', 'relevance', 'tap'].map((key) => [key, 'string'] as const),
  ['taps', 'list'] as const,
]);
const KEYS = new Map([...OWN, ...OPTIONS]);

/** Integers and floating-point numbers of a result, by their names in files. */
export const METHOD_CHOICES = ['kept', 'source', 'assignment', 'count', 'order', 'budget', 'picked'] as const;
export const METHOD_VALUES = [
  'tokens',
  ...['saliency', 'local', 'allocation', 'metric', 'relevance', 'run_score', 'score'],
] as const;

/** A case: how it is computed, and the results that it has. */
export interface GoldenMethod {
  readonly values: Readonly<Record<string, Float64Array>>;
  readonly choices: Readonly<Record<string, readonly number[]>>;
  /** Results by the names of those above. */
  compute(backend: Backend): Promise<Readonly<Results>>;
}

/**
 * A case of a method from a `.safetensors` file.
 * @throws DesapError `ERR_FILE`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_NOT_FINITE`, `ERR_VALUE` when it is not one, or when it has a key or a result that is not known here
 */
export function goldenMethod(file: SafeTensors, path: string): GoldenMethod {
  const config = configOf<Config>(file, path, KEYS);
  const chooser = chooserOf(config.method, optionsOf(file, path, config));
  if (config.tiles && !chooser.chooseTiles)
    throw mismatch('ERR_FILE', `${path}: config.tiles`, 'tiles', 'a method that shares one K among them');
  checkMethodCase(file, path, config);
  const outputs = [...file.tensors.keys()].filter((name) => name.startsWith('output.')).map((name) => name.slice(7));
  const known: readonly string[] = [...METHOD_CHOICES, ...METHOD_VALUES];
  const unknown = outputs.find((name) => !known.includes(name));
  if (unknown !== undefined)
    throw new DesapError('ERR_FILE', `${path}: got the result '${unknown}', wanted ${alternatives(known)}`);
  const results = <T>(names: readonly string[], read: (name: string) => T) =>
    Object.fromEntries(names.filter((name) => outputs.includes(name)).map((name) => [name, read(name)]));
  const stored = (name: string) => storedTensor(file, `output.${name}`, path);
  return {
    values: results(METHOD_VALUES, (name) => float64Values(stored(name), `${path}: output.${name}`)),
    choices: results(METHOD_CHOICES, (name) => integerValues(stored(name), `${path}: output.${name}`)),
    async compute(backend) {
      const images = imagesOf(file, path, config, backend);
      const [first] = images;
      const keep = config.keep ?? first.states().rows;
      if (!config.tiles) return named(await chooser.choose(first, keep));
      const [rows, columns] = config.tiles;
      const { tiles, ...shared } = await chooser.chooseTiles!(images, { rows, columns }, keep);
      return { ...shared.scores, budget: shared.budget, ...joined(tiles.map(named)) };
    },
  };
}

type Results = Record<string, ArrayLike<number>>;

/** What a method chose, by the names of files. */
function named({ counts, tokens, scores, isProjected: _, ...choice }: Choice): Results {
  const { runScore, ...others } = scores;
  return { ...choice, ...others, ...(runScore && { run_score: runScore }), count: counts, tokens: tokens.data };
}

/** Results of tiles as those of one image: patches, and positions among the kept ones, count on from tile to tile. */
function joined(tiles: readonly Results[]): Results {
  let [patches, kept] = [0, 0];
  const all: Record<string, number[]> = {};
  for (const tile of tiles) {
    for (const [name, numbers] of Object.entries(tile)) {
      const first = name === 'kept' ? patches : name === 'order' || name === 'assignment' ? kept : 0;
      all[name] = [...(all[name] ?? []), ...Array.from(numbers, (one) => (one < 0 ? one : first + one))];
    }
    patches += tile.assignment.length;
    kept += tile.kept.length;
  }
  return all;
}

function optionsOf(file: SafeTensors, path: string, config: Config): object {
  const given = Object.entries(config).filter(([key]) => OPTIONS.has(key));
  const camel = (key: string) =>
    key === 'random_seed' ? 'seed' : key.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
  const text = file.tensors.has('input.text_embeddings') && {
    textEmbeddings: tensorOf(stored(file, 'input.text_embeddings', path)),
  };
  return { ...Object.fromEntries(given.map(([key, value]) => [camel(key), value])), ...text };
}

/** One image, or its tiles. */
function imagesOf(file: SafeTensors, path: string, config: Config, backend: Backend): MethodImage[] {
  const {
    heads,
    cls: classToken = true,
    grid: [rows, columns],
    tiles,
    eos,
  } = config;
  const count = tiles ? 1 + tiles[0] * tiles[1] : 1;
  const grid: Grid = { rows, columns };
  const matrix = (name: string) => stored(file, name, path);
  const layer = (name: string): LinearWeights => ({
    weight: matrix(`${name}.weight`).data,
    bias: matrix(`${name}.bias`).data,
  });
  const tileOf = (name: string, tile: number): Matrix => {
    const all = matrix(name);
    const parts = all.rows / (rows * columns + Number(classToken));
    const size = all.rows / parts;
    return {
      data: all.data.subarray(tile * size * all.cols, (tile + 1) * size * all.cols),
      rows: size,
      cols: all.cols,
    };
  };
  return Array.from({ length: count }, (_, tile): MethodImage => {
    const hidden = () => tileOf('input.hidden', tile);
    return {
      ...{ backend, grid, classToken, patches: null },
      states: () => {
        const { data, rows: N, cols } = hidden();
        return { data: data.subarray(Number(classToken) * cols), rows: N - Number(classToken), cols };
      },
      tap: async (name: TapName): Promise<Tap> => {
        const weight = name === 'last' ? 'weight' : `weight.${name}`;
        if (!file.tensors.has(`${weight}.ln1.weight`)) throw missing(`no tap '${name}' in ${path}`, 'its weights');
        const v = file.tensors.has(`${weight}.v.weight`) && { v: layer(`${weight}.v`) };
        const [ln1, q, k] = ['ln1', 'q', 'k'].map((part) => layer(`${weight}.${part}`));
        return {
          hidden: name === 'last' ? hidden() : tileOf(`input.${name}.hidden`, tile),
          weights: { heads, epsilon: EPSILON, ln1, q, k, ...v },
        };
      },
      features: async () => matrix('input.features'),
      timed: async (_, work) => work(),
      readOut: async () => ({
        postNorm: layer('weight.post_ln'),
        epsilon: EPSILON,
        visualProjection: matrix('weight.visual_projection.weight'),
      }),
      text: async () => {
        const text = matrix('input.text');
        const ends = [eos ?? text.rows - 1].flat();
        const data = Float32Array.from(
          ends.flatMap((end) => [...text.data.subarray(end * text.cols, (end + 1) * text.cols)]),
        );
        return { data, rows: ends.length, cols: text.cols };
      },
      taskMap: async () => {
        const { ln1, q, v, out, postNorm, width, projectionDim: E, ...head } = headFromSafeTensors(file, path);
        const square = ({ weight, bias }: LinearWeights) => ({ weight: { data: weight, dims: [width, width] }, bias });
        const x = await backend.layerNorm({ x: tensorOf(hidden()), ...ln1 });
        const [Q, V] = [await backend.linear({ x, ...square(q) }), await backend.linear({ x, ...square(v) })];
        const context = await backend.attention({ q: Q, k: Q, v: V, heads });
        const visualProjection = { data: head.visualProjection, dims: [E, width] };
        const { embeddings } = await backend.readOut({ context, out: square(out), postNorm, visualProjection });
        const A = embeddings.data as Float32Array;
        const text = await backend.unitRows({ x: tensorOf(matrix('input.text')) });
        const visual = { data: A.subarray(Number(classToken) * E), dims: [rows * columns, E] };
        return (await backend.align({ visual, text, global: A.slice(0, E), alignment: 'mean' })).task;
      },
    };
  });
}

/** CLIP's. */
const EPSILON = 1e-5;

const tensorOf = ({ data, rows, cols }: Matrix) => ({ data, dims: [rows, cols] });

/** A tensor of a file as a matrix: its leading extents as rows. */
function stored(file: SafeTensors, name: string, path: string): Matrix {
  const tensor = storedTensor(file, name, path);
  const cols = tensor.shape[tensor.shape.length - 1] ?? 1;
  const data = toFloat32(tensor, `${path}: ${name}`);
  const bad = data.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0)
    throw mismatch('ERR_NOT_FINITE', `${path}: ${name}`, `${data[bad]} at element ${bad}`, 'finite numbers');
  return { data, rows: data.length / cols, cols };
}
