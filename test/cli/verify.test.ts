import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { decide } from '../../src/cli/decisions.js';
import { readGoldenCase } from '../../src/cli/golden-case.js';
import { provideBfloat16, provideCuda } from '../support.js';
import { desap } from './run.js';

const GOLDEN = 'test/golden';
const BLOCK = 'test/golden-block';
const METHODS = 'test/golden-baselines';
const TINY = join(GOLDEN, 'tiny.safetensors');

const { isa } = provideBfloat16();
const CASES = (await readdir(GOLDEN)).map((file) => join(GOLDEN, file));

const BLOCKS = (await readdir(BLOCK)).filter((file) => file.endsWith('.safetensors')).map((file) => join(BLOCK, file));

const EDGES = (await readdir('test/golden-edges'))
  .filter((file) => file.endsWith('.safetensors'))
  .map((file) => join('test/golden-edges', file));
const RIVALS = (await readdir(METHODS)).map((file) => join(METHODS, file));

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'desap-verify-'));
});
afterAll(() => rm(folder, { recursive: true }));

/** A copy of a case (the tiny one) whose tensor `name` is changed by `edit`. */
async function altered(name: string, edit: (bytes: Uint8Array) => void, from = TINY): Promise<string> {
  const bytes = new Uint8Array(await readFile(from));
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const [begin, end] = header[name].data_offsets;
  edit(bytes.subarray(8 + length + begin, 8 + length + end));
  const path = join(folder, `${name}.safetensors`);
  await writeFile(path, bytes);
  return path;
}

/** A copy of a case of a method whose tensor `name` has another, smaller shape, or is not there. */
async function shaped(file: string, name: string, shape: number[] | null): Promise<string> {
  const bytes = await readFile(join(METHODS, 'cdpruner.safetensors'));
  const length = Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + length));
  const tensor = header[name];
  const [begin, end] = tensor.data_offsets;
  const size = (dims: number[]) => dims.reduce((all, extent) => all * extent, 1);
  if (shape === null) delete header[name];
  else
    header[name] = {
      ...tensor,
      shape,
      data_offsets: [begin, begin + (size(shape) / size(tensor.shape)) * (end - begin)],
    };
  return written(file, header, bytes.subarray(8 + length));
}

/** A copy of a case with another config. */
async function configured(from: string, name: string, config: object, folderOf = GOLDEN): Promise<string> {
  const bytes = await readFile(join(folderOf, from));
  const length = Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + length));
  header.__metadata__.config = JSON.stringify({ ...JSON.parse(header.__metadata__.config), ...config });
  return written(`${name}.safetensors`, header, bytes.subarray(8 + length));
}

async function written(file: string, header: object, data: Uint8Array): Promise<string> {
  const json = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(json.length));
  const path = join(folder, file);
  await writeFile(path, Buffer.concat([size, json, data]));
  return path;
}

describe('desap verify', () => {
  it('agrees with every golden case', async () => {
    const { code, out } = await desap('verify', ...CASES, '--device', 'reference');
    expect(out).toContain(`${CASES.length} of ${CASES.length} cases agree within 0.0001 (fp32)`);
    expect(code).toBe(0);
  });

  it('agrees with every case of a block, beside those of heads', async () => {
    const { code, out } = await desap('verify', TINY, ...BLOCKS, '--device', 'cpu');
    expect(out).toContain(`${BLOCKS.length + 1} of ${BLOCKS.length + 1} cases agree within 0.0001 (fp32)`);
    expect(out).toMatch(/^case +context +attention +embedding +task/m);
    expect(out).toMatch(/^case +attention +saliency +unit_saliency +embedding +global +probe_saliency/m);
    expect(code).toBe(0);
  });

  it('agrees with every case on a GPU', async () => {
    provideCuda();
    const { code, out } = await desap('verify', TINY, ...BLOCKS, '--device', 'cuda');
    expect(out).toContain(`${BLOCKS.length + 1} of ${BLOCKS.length + 1} cases agree within 0.0001 (fp32)`);
    expect(code).toBe(0);
  });

  it('agrees with every case of a method, beside those of heads', async () => {
    const { code, out } = await desap('verify', TINY, ...RIVALS, '--device', 'reference');
    expect(out).toContain(`${RIVALS.length + 1} of ${RIVALS.length + 1} cases agree within 0.0001 (fp32)`);
    expect(out).toMatch(/^case +context +attention +embedding +task/m);
    expect(out).toMatch(/^case +tokens +saliency .* +kept +source +assignment +count +order +budget +picked/m);
    expect(code).toBe(0);
  });

  it.each(['reference', 'cpu', 'cuda'])('agrees with the edges of methods on %s', async (device) => {
    if (device === 'cuda') provideCuda();
    const { code, out } = await desap('verify', ...EDGES, '--device', device);
    expect(out).toContain(`${EDGES.length} of ${EDGES.length} cases agree within 0.0001 (fp32)`);
    expect(code).toBe(0);
  });

  it('computes a method in fp32 beside heads in bf16', async () => {
    const options = ['--device', 'cpu', '--isa', isa, '--precision', 'bf16', '--json'];
    const { code, out } = await desap('verify', join(METHODS, 'tome.safetensors'), TINY, ...options);
    const { precision, cases } = JSON.parse(out);
    expect([code, precision, cases[0].kind, cases[1].kind]).toEqual([0, 'bf16', 'method', 'head']);
    expect(cases[0].errors.tokens).toBeLessThan(1e-4);
  });

  it.each([
    ['a number', 'output.saliency'],
    ['a decision', 'output.budget'],
  ])('finds %s of a method that is wrong', async (_, name) => {
    const path = await altered(name, (bytes) => bytes.copyWithin(0, 8, 16), join(METHODS, 'holov.safetensors'));
    const { code, out } = await desap('verify', path, '--device', 'reference', '--json');
    const [{ ok, errors, choices }] = JSON.parse(out).cases;
    expect([code, ok]).toEqual([1, false]);
    expect(errors.saliency > 1e-4 || choices.budget === false).toBe(true);
  });

  it.each<[string, object, string]>([
    ['no grid', { grid: undefined }, 'config.grid: got undefined, wanted two positive integers'],
    ['a grid of three', { grid: [12, 12, 1] }, 'config.grid: got [12, 12, 1], wanted two positive integers'],
    ['another grid', { grid: [6, 6] }, 'penultimate.hidden: got [145, 32], wanted [37, D]'],
    ['heads that do not divide', { heads: 3 }, 'config.heads: got 3, wanted a positive integer that divides 32'],
    ['no heads', { heads: -4 }, 'config.heads: got -4, wanted a positive integer'],
    ['too many to keep', { keep: 145 }, 'config.keep: got 145, wanted an integer from 1 to 144'],
    ['nothing to keep', { keep: undefined }, 'config.keep: got undefined, wanted an integer from 1 to 144'],
    ['an unknown key', { valid: 3 }, "config: got the key 'valid', wanted 'method' | 'heads'"],
    ['a key of another type', { runs: '16' }, "config.runs: got '16', wanted a number"],
    ['another method', { method: 'fastv' }, "method: got 'fastv', wanted 'desap' | 'random'"],
    ['an option of another method', { pivots: 2 }, "methodOptions: got the unknown option 'pivots', wanted one of"],
    ['tiles', { tiles: [2, 2] }, 'config.tiles: got tiles, wanted a method that shares one K among them'],
    ['a tap that is not there', { method: 'fastervlm', tap: 'last', runs: undefined }, "no tap 'last'"],
  ])('refuses a case of a method with %s', async (name, config, message) => {
    const path = await configured('holov.safetensors', `method-${name.replaceAll(' ', '-')}`, config, METHODS);
    const { code, out } = await desap('verify', path, '--device', 'reference');
    expect(out).toContain(message);
    expect(code).toBe(1);
  });

  it.each([
    ['rows.safetensors', 'input.features', [63, 48], 'input.features: got [63, 48], wanted [64, F]'],
    ['width.safetensors', 'input.text', [5, 15], 'input.text: got [5, 15], wanted [L, 16]'],
    ['bias.safetensors', 'weight.post_ln.bias', [31], 'weight.post_ln.bias: got [31], wanted [32]'],
    ['text.safetensors', 'input.text', [4, 16], 'config.eos: got 4, wanted an integer from 0 to 3'],
    ['kept.safetensors', 'output.kept', [9], 'output.kept: got [9], wanted [10]'],
    ['none.safetensors', 'output.order', null, 'got no tensor output.order, wanted a golden case'],
    ['absent.safetensors', 'weight.post_ln.bias', null, 'got no tensor weight.post_ln.bias, wanted a golden case'],
  ])('refuses a case of a method with another shape: %s', async (file, name, shape, message) => {
    const path = await shaped(file, name, shape);
    const { code, out } = await desap('verify', path, '--device', 'reference');
    expect(out).toContain(`${path}: ${message}`);
    expect(code).toBe(1);
  });

  it('names a tensor of a method that is not finite', async () => {
    const from = join(METHODS, 'holov.safetensors');
    const path = await altered('weight.penultimate.k.bias', (bytes) => bytes.fill(255, 4, 8), from);
    const { code, out } = await desap('verify', path, '--device', 'reference');
    expect(out).toContain(`${path}: weight.penultimate.k.bias: got NaN at element 1, wanted finite numbers`);
    expect(code).toBe(1);
  });

  it('compares each output that a case of a block has', async () => {
    const base = join(BLOCK, 'made-siglip-padded-units.safetensors');
    const outputs = ['attention', 'saliency', 'unit_saliency', 'embedding', 'global', 'probe_saliency'];
    const wrong = await Promise.all(
      outputs.map((name) => altered(`output.${name}`, (bytes) => bytes.copyWithin(0, 8, 16), base)),
    );
    const { code, out } = await desap('verify', base, ...wrong, '--device', 'reference', '--json');
    expect(code).toBe(1);
    const { failed, cases } = JSON.parse(out);
    expect(failed).toBe(outputs.length);
    const over = cases
      .slice(1)
      .map(({ errors }: { errors: Record<string, number> }) =>
        Object.keys(errors).filter((name) => errors[name] > 1e-4),
      );
    expect(over).toEqual(outputs.map((name) => [name]));
  });

  it.each<[string, object, string]>([
    ['an unknown key', { causal: true }, "config: got the key 'causal', wanted 'kind' | 'norm' | 'encoding'"],
    ['a key of another type', { valid: '48' }, "config.valid: got '48', wanted a number"],
    ['a class token', { cls: true }, 'config.cls: got true, wanted false'],
    ['more rows than there are', { valid: 65 }, 'valid: got 65, wanted an integer from 1 to 64'],
    ['an unknown encoding', { encoding: 'kq' }, "encoding: got 'kq', wanted 'qq'"],
    ['a head that is not there', { siglip: true }, "got no tensor 'fc1.weight', wanted a block file"],
  ])('refuses a case of a block with %s', async (name, config, message) => {
    const path = await configured('block-padded.safetensors', name.replaceAll(' ', '-'), config, BLOCK);
    const { code, out } = await desap('verify', path, '--device', 'reference');
    expect(out).toContain(message);
    expect(code).toBe(1);
  });

  it('holds bf16 to the tolerance of bf16, and decisions to the computed maps', async () => {
    const wrong = await altered('output.task', (bytes) => bytes.copyWithin(0, 8, 16));
    const options = ['--device', 'cpu', '--isa', isa, '--precision', 'bf16', '--json'];
    const { code, out } = await desap('verify', ...CASES, wrong, ...options);
    expect(code).toBe(1);
    const { precision, tolerance, failed, cases } = JSON.parse(out);
    expect({ precision, tolerance, failed }).toEqual({ precision: 'bf16', tolerance: 0.03, failed: 1 });
    expect(cases.at(-1)).toMatchObject({ file: wrong, ok: false });
    expect(cases.at(-1).errors.task).toBeGreaterThan(0.03);
    for (const { ok, errors, choices, follows } of cases.slice(0, -1)) {
      expect(ok).toBe(true);
      expect(errors.embedding).toBeGreaterThan(1e-4); // it did round
      expect(errors.tokens).toBeLessThan(1e-4);
      expect(follows).toBe(Object.values(choices).every(Boolean) ? undefined : true);
    }
  });

  it('is held to float32 where bf16 is asked for and not computed', async () => {
    const { code, out } = await desap('verify', TINY, '--device', 'reference', '--precision', 'bf16', '--json');
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ precision: 'fp32', tolerance: 1e-4 });
  });

  it('honours lambda', async () => {
    const other = await configured('lambda.safetensors', 'other-lambda', { lambda: 0.1 });
    const { out } = await desap('verify', other, '--device', 'reference', '--json');
    expect(JSON.parse(out).cases[0].errors.task).toBeGreaterThan(1e-4);
  });

  it.each([
    [{ complement: 'diversity' }, "config: got the key 'complement', wanted 'heads' | "],
    [{ lambda: '10' }, "config.lambda: got '10', wanted a number"],
    [{ alignment: 0 }, 'config.alignment: got 0, wanted a boolean'],
  ])('refuses a config with %j', async (config, message) => {
    const path = await configured('tiny.safetensors', 'refused', config);
    const { code, out } = await desap('verify', path, '--device', 'reference', '--json');
    expect(code).toBe(1);
    expect(JSON.parse(out).cases[0].failure).toContain(`refused.safetensors: ${message}`);
    await expect(readGoldenCase(path)).rejects.toMatchObject({ name: 'DesapError', code: 'ERR_FILE' });
  });

  it('reports unreadable files and still runs the others', async () => {
    const broken = join(folder, 'broken.safetensors');
    await writeFile(broken, 'nothing');
    const { code, out } = await desap('verify', broken, 'no/such.safetensors', TINY, '--device', 'reference', '--json');
    expect(code).toBe(1);
    const { failed, cases } = JSON.parse(out);
    expect(failed).toBe(2);
    expect(cases.map(({ ok }: { ok: boolean }) => ok)).toEqual([false, false, true]);
    expect(cases[0].failure).toContain('broken.safetensors');
    expect(cases[2].errors.tokens).toBeLessThan(1e-4);
  });

  it('finds a wrong value', async () => {
    const path = await altered('output.task', (bytes) => bytes.copyWithin(0, 8, 16));
    const { code, out } = await desap('verify', path, '--device', 'reference', '--json');
    expect(code).toBe(1);
    expect(JSON.parse(out).cases[0].errors.task).toBeGreaterThan(1e-4);
  });

  it('finds a wrong decision', async () => {
    const path = await altered('output.source', (bytes) => {
      bytes[0] ^= 1;
    });
    const { code, out } = await desap('verify', path, '--device', 'reference');
    expect(code).toBe(1);
    expect(out).toContain('DIFFERS');
  });

  it('says why a device is not available', async () => {
    const { code, err } = await desap('verify', TINY, '--device', 'cuda:99');
    expect(code).toBe(1);
    expect(err).toMatch(/^desap: .*cuda/);
  });
});

describe('decide', () => {
  it.each(CASES)('makes of the expected maps the expected decisions: %s', async (file) => {
    const golden = await readGoldenCase(file);
    const { task, saliency, tokens } = golden.values;
    const own = decide(golden, { task: Float32Array.from(task), saliency: Float32Array.from(saliency) });
    expect(own.choices).toEqual(golden.choices);
    for (const [i, value] of own.tokens.entries()) expect(value).toBeCloseTo(tokens[i], 5);
  });

  it('follows the maps that it is given', async () => {
    const golden = await readGoldenCase(TINY);
    const task = Float32Array.from(golden.values.task).reverse();
    const { choices } = decide(golden, { task, saliency: Float32Array.from(golden.values.saliency) });
    expect(choices.kept).not.toEqual(golden.choices.kept);
    expect(choices.kept).toContain(task.indexOf(Math.max(...task)));
  });
});
