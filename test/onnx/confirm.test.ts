import { readFileSync } from 'node:fs';
import * as ort from 'onnxruntime-node';
import { beforeAll, describe, expect, test } from 'vitest';
import type { HeadWeights } from '../../src/head.js';
import { confirmHead, confirmTower } from '../../src/onnx/head/confirm.js';
import { extractHead } from '../../src/onnx/head/extract.js';
import { normal } from '../support.js';
import { Editable } from './editable.js';
import { halfPrecision, stripNames } from './variants.js';

const CLIP = 'models/tiny-clip/onnx/vision_model.onnx';
const LLAVA = 'models/tiny-llava/onnx/vision_encoder.onnx';
const PIXELS = new ort.Tensor('float32', normal(3, 3 * 96 * 96), [1, 3, 96, 96]);
const QUIET = { logSeverityLevel: 3 } as const;

let head: HeadWeights;
beforeAll(async () => {
  head = await extractHead({ visionModel: CLIP });
});

/** A copy of the head with one number of one tensor changed. */
function perturbed(
  field: 'ln1' | 'q' | 'k' | 'v' | 'out' | 'postNorm',
  part: 'weight' | 'bias',
  by: number,
): HeadWeights {
  const values = head[field][part].slice();
  values[Math.floor(values.length / 3)] += by;
  return { ...head, [field]: { ...head[field], [part]: values } };
}

describe('confirmHead', () => {
  test('the head of the file itself, on noise and on a given image', async () => {
    for (const options of [{}, { pixelValues: PIXELS }]) {
      const { attention, embedding, tolerance } = await confirmHead(ort, CLIP, head, options);
      expect(attention).toBeLessThan(1e-5);
      expect(embedding).toBeLessThan(1e-5);
      expect(tolerance).toBe(1e-4);
    }
  });

  test.each([
    [
      'turned round',
      (n: number) => Array.from({ length: n }, (_, i) => n - 1 - i),
      /patches line by line; found .* row 143/,
    ],
    [
      'column by column',
      (n: number) => Array.from({ length: n }, (_, i) => (i % 12) * 12 + Math.floor(i / 12)),
      /found .* row 13/,
    ],
  ])(
    'patches %s, by an operator that the search does not follow, are seen by their numbers',
    async (_, order, message) => {
      const graph = await Editable.from(readFileSync(CLIP));
      const join = graph.nodes.findIndex(({ op, attributes }) => op === 'Concat' && attributes.axis?.i === 1);
      const node = graph.nodes[join];
      const places = graph.integers(order(144));
      node.inputs[1] = graph.add('Gather', [node.inputs[1], places], { axis: { i: 1 } }, { at: join });
      await expect(confirmHead(ort, graph.bytes(), head, { session: QUIET })).rejects.toMatchObject({
        code: 'ERR_GRAPH',
        message: expect.stringMatching(message),
      });
    },
  );

  test('a row that no image has a part in is seen by its numbers', async () => {
    const graph = await Editable.from(readFileSync(CLIP));
    const join = graph.nodes.findIndex(({ op, attributes }) => op === 'Concat' && attributes.axis?.i === 1);
    const node = graph.nodes[join];
    // Patch 5 becomes zeros: a pick of rows that the search does not follow, times zero.
    const keep = Float32Array.from({ length: 144 }, (_, i) => Number(i !== 5));
    node.inputs[1] = graph.add('Mul', [node.inputs[1], graph.floats(keep, [144, 1])], {}, { at: join });
    await expect(confirmHead(ort, graph.bytes(), head, { session: QUIET })).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringMatching(/found the rows 0, 6 of 145/),
    });
  });

  test('a float16 graph gets the tolerance of its type', async () => {
    const graph = await Editable.from(readFileSync(CLIP));
    halfPrecision(graph);
    const { attention, embedding, tolerance } = await confirmHead(ort, graph.bytes(), head, { session: QUIET });
    expect(Math.max(attention, embedding!)).toBeLessThan(tolerance);
    expect(tolerance).toBe(1e-2);
  });

  const changes: [string, () => HeadWeights][] = [
    ['one weight of q', () => perturbed('q', 'weight', 0.5)],
    ['one weight of k', () => perturbed('k', 'weight', 0.5)],
    ['one weight of v', () => perturbed('v', 'weight', 0.5)],
    ['one weight of out', () => perturbed('out', 'weight', 0.5)],
    ['one bias of v', () => perturbed('v', 'bias', 0.1)],
    ['one weight of ln1', () => perturbed('ln1', 'weight', 0.1)],
    ['one bias of the post norm', () => perturbed('postNorm', 'bias', 0.1)],
    ['the head count', () => ({ ...head, heads: 8 })],
    ['the epsilon', () => ({ ...head, epsilon: 0.1 })],
    ['a transposed weight', () => ({ ...head, v: { ...head.v, weight: transposed(head.v.weight) } })],
    ['a scaled q', () => ({ ...head, q: { ...head.q, weight: head.q.weight.map((value) => value / 2) } })],
    [
      'the visual projection',
      () => ({ ...head, visualProjection: head.visualProjection.map((value, i) => (i === 200 ? value + 0.1 : value)) }),
    ],
  ];
  test.each(changes)('fails for a change of %s', async (_, change) => {
    await expect(confirmHead(ort, CLIP, change(), { pixelValues: PIXELS })).rejects.toMatchObject({
      code: 'ERR_HEAD_MISMATCH',
      message: expect.stringMatching(/vision_model\.onnx: got relative errors of .* wanted at most 0\.0001/),
    });
  });

  test('refuses misspelt options', async () => {
    const error = {
      code: 'ERR_VALUE',
      message: /^options: got the unknown option 'pixels', wanted one of pixelValues, session/,
    };
    const wrong = { name: 'DesapError', code: 'ERR_VALUE' };
    for (const confirm of [
      (runtime: object, options?: object) => confirmHead(runtime as never, CLIP, head, options),
      (runtime: object, options?: object) => confirmTower(runtime as never, LLAVA, CLIP, options),
    ]) {
      await expect(confirm({})).rejects.toMatchObject({ ...wrong, message: expect.stringMatching(/^ort: got Object/) });
      const refused = confirm(ort, { session: 'x' });
      await expect(refused).rejects.toMatchObject({ ...wrong, message: expect.stringMatching(/^session: got 'x'/) });
    }
    await expect(confirmHead(ort, CLIP, head, { pixels: PIXELS } as never)).rejects.toMatchObject(error);
    await expect(confirmTower(ort, LLAVA, CLIP, { pixels: PIXELS } as never)).rejects.toMatchObject(error);
  });

  test('refuses other widths, LLaVA files and images that do not fit', async () => {
    const narrow = { ...head, width: 64 };
    await expect(confirmHead(ort, CLIP, narrow)).rejects.toMatchObject({ code: 'ERR_SHAPE' });
    await expect(confirmHead(ort, LLAVA, head)).rejects.toMatchObject({
      code: 'ERR_GRAPH',
      message: expect.stringContaining('Confirm a head with'),
    });
    const small = new ort.Tensor('float32', new Float32Array(3 * 8 * 8), [1, 3, 8, 8]);
    await expect(
      confirmHead(ort, CLIP, head, { pixelValues: small, session: { logSeverityLevel: 4 } }),
    ).rejects.toMatchObject({ code: 'ERR_GRAPH', message: expect.stringContaining('[1, 3, 8, 8]') });
  });
});

describe('confirmTower', () => {
  test('LLaVA and its CLIP agree', async () => {
    expect(await confirmTower(ort, LLAVA, CLIP)).toEqual({ error: 0, tolerance: 1e-4 });
    const graph = await Editable.from(readFileSync(CLIP));
    stripNames(graph);
    expect((await confirmTower(ort, LLAVA, graph.bytes(), { session: QUIET })).error).toBe(0);
  });

  test('a fine-tuned tower does not', async () => {
    const graph = await Editable.from(readFileSync(CLIP));
    const [name, { dims }] = [...graph.tensors].find(([, tensor]) => tensor.dims.join() === '128,512')!;
    const changed = graph.floats(
      graph.values(name).map((value) => 1.01 * value),
      [...dims],
    );
    graph.redirect(name, changed);
    await expect(confirmTower(ort, LLAVA, graph.bytes(), { session: QUIET })).rejects.toMatchObject({
      code: 'ERR_HEAD_MISMATCH',
      message: expect.stringMatching(
        /vision_encoder\.onnx and clipVisionModel: got hidden states that differ by \d\.\de-\d/,
      ),
    });
  });
});

function transposed(weight: Float32Array): Float32Array {
  const n = Math.sqrt(weight.length);
  return Float32Array.from(weight, (_, i) => weight[(i % n) * n + Math.floor(i / n)]);
}
