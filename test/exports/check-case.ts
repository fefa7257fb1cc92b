/**
 * One case of an export manifest against the package: a file that a real exporter wrote, and what PyTorch says of it. The format
 * is that of test/fixtures/exports/README.md.
 */
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { DesapError, type HeadWeights, Pruner, type TextEmbeddings } from '../../src/index.js';
import { confirmHead, extractHead, HIDDEN_STATES, openGraph, readTower, towerGraph } from '../../src/onnx/index.js';
import { readSafeTensors, type SafeTensors, toFloat32 } from '../../src/safetensors.js';
import { float32, type Tensor } from '../../src/tensor.js';
import { ClipText } from '../../src/vision/clip-text.js';
import { LlavaVision } from '../../src/vision/index.js';
import { relativeError } from '../support.js';

/** One entry of a manifest. Paths are relative to the manifest. */
export interface ExportCase {
  readonly name: string;
  readonly kind: 'head' | 'text' | 'llava' | `refuse-${'head' | 'text' | 'llava'}`;
  readonly model: string;
  /** How the file was made, in words. */
  readonly how: string;
  /** The exporter and the tools behind it, their versions, and the form of the file; for the table. */
  readonly exporter?: string;
  readonly versions?: string;
  readonly form?: string;
  readonly expected: string;
  /** H, epsilon, E and the class token of a head. */
  readonly heads?: number;
  readonly eps?: number;
  readonly embedding?: number;
  readonly classToken?: boolean;
  /** Whether the graph does not tell H, so that the caller has to. */
  readonly passHeads?: boolean;
  readonly keeps?: readonly number[];
  /** Whether the batch is free. */
  readonly dynamic?: boolean;
  readonly tokenizer?: string;
  readonly clip?: string;
  readonly question?: string;
  readonly refuse?: { readonly code?: string; readonly says?: string };
  /** What rounding in the file allows, where that is more than float32; kept sets are then decided on the expected hidden states. */
  readonly tolerance?: number;
}

export interface CaseResult {
  /** What the package did. */
  readonly verdict: 'read' | 'refused';
  /** Largest errors, relative to the largest magnitude, by what was compared. */
  readonly errors: Readonly<Record<string, number>>;
  /** The message of a refusal. */
  readonly message?: string;
  /** What is not as expected, in words; empty when all is right. */
  readonly failures: readonly string[];
}

const WEIGHT_TOLERANCE = 1e-6;
const TOLERANCE = 1e-4;
const SESSION: ort.InferenceSession.SessionOptions = { logSeverityLevel: 3, intraOpNumThreads: 1 };

/** Compares one case with everything that is expected of it. */
export async function checkCase(folder: string, given: ExportCase): Promise<CaseResult> {
  const check = new Check(folder, given, await readSafeTensors(join(folder, given.expected)));
  const [kind] = given.kind.split('-').slice(-1) as ['head' | 'text' | 'llava'];
  try {
    await (kind === 'head' ? checkHead(check) : kind === 'text' ? checkText(check) : checkLlava(check));
  } catch (error) {
    return refusal(given, error as Error);
  }
  return { verdict: 'read', errors: check.errors, failures: check.failures };
}

function refusal({ kind, refuse }: ExportCase, error: Error): CaseResult {
  const failures: string[] = [];
  const { code } = error as DesapError;
  if (!(error instanceof DesapError)) failures.push(`no DesapError: ${error.stack}`);
  else if (!kind.startsWith('refuse')) failures.push(`refused: ${error.message}`);
  else if (refuse?.code !== undefined && refuse.code !== code) failures.push(`got ${code}, wanted ${refuse.code}`);
  if (refuse?.says !== undefined && !error.message.includes(refuse.says))
    failures.push(`got the message "${error.message}", wanted ${refuse.says} in it`);
  return { verdict: 'refused', errors: {}, message: error.message, failures };
}

/** What a case expects, and what was found of it so far. */
class Check {
  readonly errors: Record<string, number> = {};
  readonly failures: string[] = [];
  readonly tolerance: number;
  readonly model: string;

  constructor(
    private readonly folder: string,
    readonly given: ExportCase,
    private readonly expected: SafeTensors,
  ) {
    this.tolerance = given.tolerance ?? TOLERANCE;
    this.model = this.path(given.model);
  }

  path(relative: string): string {
    return join(this.folder, relative);
  }

  has(name: string): boolean {
    return this.expected.tensors.has(name);
  }

  tensor(name: string): Tensor {
    const found = this.expected.tensors.get(name);
    if (found === undefined) throw new Error(`${this.given.expected}: there is no tensor ${name}`);
    return float32(toFloat32(found, name), found.shape);
  }

  integers(name: string): number[] {
    const found = this.expected.tensors.get(name);
    if (found?.dtype !== 'I64') throw new Error(`${this.given.expected}: there are no integers ${name}`);
    return Array.from(new BigInt64Array(found.bytes.slice().buffer), Number);
  }

  get texts(): string[] {
    return JSON.parse(this.expected.metadata.texts);
  }

  /** Numbers within a tolerance, and their shape. */
  close(
    what: string,
    got: Pick<Tensor, 'data' | 'dims'>,
    wanted: Pick<Tensor, 'data' | 'dims'>,
    tolerance = this.tolerance,
  ): void {
    this.equal(`${what}: shape`, got.dims, wanted.dims);
    const error = relativeError(got.data as Float32Array, wanted.data as Float32Array);
    const [kind] = what.split(/[ .]/);
    this.errors[kind] = Math.max(this.errors[kind] ?? 0, error);
    if (!(error <= tolerance))
      this.failures.push(`${what}: got an error of ${error.toExponential(1)}, wanted at most ${tolerance}`);
  }

  /** Values that have no tolerance. */
  equal(what: string, got: unknown, wanted: unknown): void {
    const [a, b] = [got, wanted].map((value) => JSON.stringify(value));
    if (a !== b) this.failures.push(`${what}: got ${a}, wanted ${b}`);
  }
}

/** Fields of a head by their names in PyTorch. */
const LAYERS = { ln1: 'ln1', q: 'q', k: 'k', v: 'v', out: 'out', postNorm: 'post_ln' } as const;

async function checkHead(check: Check): Promise<void> {
  const { given, model } = check;
  const heads = given.passHeads ? given.heads : undefined;
  const head = await extractHead({ visionModel: model, heads });
  await confirmHead(ort, model, head, { session: SESSION });
  if (!check.has('weight.q.weight')) {
    check.failures.push('accepted, and there are no expected weights: wanted a refusal');
    return;
  }
  check.equal('heads', head.heads, given.heads);
  check.equal('embedding', head.projectionDim, given.embedding);
  check.equal('class token', head.classToken, given.classToken);
  check.close('epsilon', scalar(head.epsilon), scalar(given.eps as number), WEIGHT_TOLERANCE);
  compareWeights(check, head);
  const hidden = await checkTower(check);
  await checkChoices(check, head, given.tolerance === undefined ? hidden : check.tensor('hidden'));
}

const scalar = (value: number) => float32(Float32Array.of(value), [1]);

function compareWeights(check: Check, head: HeadWeights): void {
  const tolerance = check.given.tolerance ?? WEIGHT_TOLERANCE;
  const compare = (name: string, data: Float32Array) => {
    const wanted = check.tensor(`weight.${name}`);
    check.close(`weights ${name}`, { data, dims: wanted.dims }, wanted, tolerance);
  };
  for (const [field, name] of Object.entries(LAYERS)) {
    const { weight, bias } = head[field as keyof typeof LAYERS];
    compare(`${name}.weight`, weight);
    compare(`${name}.bias`, bias);
  }
  compare('visual_projection.weight', head.visualProjection);
}

/** The hidden states of one image [1, N, D], and that a second image in the batch changes none of them. */
async function checkTower(check: Check): Promise<Tensor> {
  const structure = readTower(check.model);
  const session = await openGraph(ort, towerGraph(structure), SESSION);
  const run = async (pixels: Tensor) => {
    const input = new ort.Tensor('float32', pixels.data as Float32Array, pixels.dims);
    return (await session.run({ [structure.pixels.name]: input }))[HIDDEN_STATES] as Tensor;
  };
  try {
    const pixels = check.tensor('pixels');
    const { data, dims } = check.tensor('hidden');
    const hidden = await run(pixels);
    check.close('hidden states', hidden, { data, dims: [1, ...dims] });
    if (check.given.dynamic) await checkBatch(check, run, pixels, hidden);
    return hidden;
  } finally {
    await session.release();
  }
}

async function checkBatch(
  check: Check,
  run: (pixels: Tensor) => Promise<Tensor>,
  pixels: Tensor,
  hidden: Tensor,
): Promise<void> {
  const first = pixels.data as Float32Array;
  const second = first.slice().reverse();
  const other = await run(float32(second, pixels.dims));
  const join = (a: Tensor, b: Tensor) =>
    float32(Float32Array.of(...(a.data as Float32Array), ...(b.data as Float32Array)), [2, ...a.dims.slice(1)]);
  const both = await run(join(pixels, float32(second, pixels.dims)));
  check.close('hidden states of a batch', both, join(hidden, other));
}

async function checkChoices(check: Check, head: HeadWeights, hidden: Tensor): Promise<void> {
  using pruner = await Pruner.load(head, { device: 'cpu' });
  using image = await pruner.analyze(hidden);
  const text: TextEmbeddings = { embeddings: check.tensor('text') };
  for (const keep of check.given.keeps ?? []) {
    const kept = await image.prune(text, { keep, maps: true });
    check.equal(`kept.${keep}`, [...kept.indices], check.integers(`kept.${keep}`));
    check.equal(`source.${keep}`, [...kept.source], check.integers(`source.${keep}`));
    check.close(`tokens.${keep}`, kept.tokens, check.tensor(`tokens.${keep}`));
    for (const map of ['task', 'saliency'] as const) {
      const wanted = check.tensor(map);
      check.close(`maps ${map}`, { data: kept.maps![map]!, dims: wanted.dims }, wanted);
    }
  }
}

async function checkText(check: Check): Promise<void> {
  const { given } = check;
  const text = await ClipText.open({
    model: check.model,
    tokenizer: check.path(given.tokenizer as string),
    session: SESSION,
  });
  try {
    if (check.texts.length === 0) check.failures.push('accepted, and there are no expected rows: wanted a refusal');
    for (const [i, sentence] of check.texts.entries()) {
      const encoded = await text.encode(sentence);
      check.equal(`ids of text ${i}`, encoded.ids, check.integers(`ids.${i}`));
      check.equal(`end of text ${i}`, encoded.endOfText, encoded.ids.length - 1);
      check.close(`rows of text ${i}`, encoded.embeddings, check.tensor(`rows.${i}`));
    }
  } finally {
    await text.dispose();
  }
}

async function checkLlava(check: Check): Promise<void> {
  const { given } = check;
  const vision = await LlavaVision.open(check.model, {
    clip: check.path(given.clip as string),
    device: 'cpu',
    session: SESSION,
  });
  try {
    const pixels = check.tensor('pixels');
    const features = check.tensor('features');
    const [image] = await vision.encode(pixels);
    const all = await image.all();
    image.dispose();
    check.close('features', all, { data: features.data, dims: [1, ...features.dims] });
    for (const keep of given.keeps ?? []) await checkKept(check, vision, pixels, keep, features);
  } finally {
    await vision.dispose();
  }
}

async function checkKept(check: Check, vision: LlavaVision, pixels: Tensor, keep: number, all: Tensor): Promise<void> {
  const question = check.given.question as string;
  const width = all.dims[1];
  const plain = await vision.prune(pixels, question, { keep, merge: false });
  const rows = [...plain.indices].flatMap((patch) => [
    ...(all.data as Float32Array).subarray(patch * width, (patch + 1) * width),
  ]);
  check.close('features not merged', plain.features, float32(Float32Array.from(rows), [1, keep, width]));
  if (check.given.tolerance !== undefined) return;
  const kept = await vision.prune(pixels, question, { keep });
  check.equal(`kept.${keep}`, [...kept.indices], check.integers(`kept.${keep}`));
  const wanted = check.tensor(`features.${keep}`);
  check.close(`features.${keep}`, kept.features, { data: wanted.data, dims: [1, ...wanted.dims] });
}
