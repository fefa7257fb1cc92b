/** Every refusal of `desap` and `desap/onnx` is a DesapError, whatever is given for whatever. */
import * as ort from 'onnxruntime-node';
import { afterAll, describe, expect, test } from 'vitest';
import * as desap from '../src/index.js';
import * as onnx from '../src/onnx/index.js';
import { normalTensor, randomBlock, randomHead } from './support.js';
import { type Hole, refuseWrongValues, WRONG } from './wrong-values.js';

const head = randomHead(1, { width: 32, heads: 2, projectionDim: 16 });
const hidden = normalTensor(2, 17, 32);
const text = normalTensor(3, 5, 16);
const CLIP = 'models/tiny-clip/onnx/vision_model.onnx';
const LLAVA = 'models/tiny-llava/onnx/vision_encoder.onnx';
const tower = onnx.readTower(CLIP);
const clipHead = await onnx.extractHead({ visionModel: CLIP });
const block = randomBlock(1, { width: 32, heads: 2, norm: 'layer' });

/** A call for each of an object's fields. */
const each = (name: string, fields: readonly string[], call: (given: never) => unknown): Hole[] =>
  fields.map((field) => [`${name} ${field}`, (value) => call({ [field]: value } as never)]);

const PRUNE = [
  ...['keep', 'keepRatio', 'taskShare', 'complement', 'distances', 'alignment', 'lambda', 'merge'],
  ...['task', 'saliency', 'features', 'maps', 'matrices', 'encoding'],
];

const opened = await Promise.all(
  (['cpu', 'reference'] as const).map(async (device) => {
    const pruner = await desap.Pruner.load(head, { device });
    const image = await pruner.analyze(hidden);
    const backend = desap.openBackend({ device });
    return { device, pruner, image, backend, blockHead: await desap.BlockHead.load(block, backend) };
  }),
);

describe.each(opened)('$device', ({ pruner, image, backend, blockHead }) => {
  afterAll(() => {
    for (const one of [image, blockHead, pruner, backend]) one.dispose();
  });
  const parts = { patchEmbeddings: text, saliency: new Float32Array(5), features: normalTensor(4, 5, 8) };
  const kernels: Record<string, object> = {
    layerNorm: { x: hidden, weight: new Float32Array(32), bias: new Float32Array(32), epsilon: 1e-5 },
    rmsNorm: { x: hidden, weight: new Float32Array(32), epsilon: 1e-5 },
    linear: { x: hidden, weight: normalTensor(5, 8, 32), bias: new Float32Array(8) },
    attention: { q: hidden, k: hidden, v: hidden, heads: 2 },
    saliency: {
      q: hidden,
      k: hidden,
      heads: 2,
      classToken: true,
      rotary: { cos: normalTensor(6, 17, 16), sin: normalTensor(6, 17, 16) },
    },
    selfAttention: { q: hidden, k: hidden, v: hidden, heads: 2 },
    pool: { scores: new Float32Array(4), unit: Int32Array.of(0, 0, 1, 1) },
    unitRows: { x: hidden },
    readOut: {
      context: hidden,
      out: { weight: normalTensor(7, 32, 32), bias: new Float32Array(32) },
      postNorm: head.postNorm,
      visualProjection: normalTensor(8, 16, 32),
    },
    align: {
      visual: normalTensor(9, 6, 16),
      text,
      global: new Float32Array(16).fill(1),
      endOfText: new Float32Array(16).fill(1),
      alignment: 'fcma',
      lambda: 0.1,
      matrices: false,
    },
    topK: { scores: new Float32Array(4), k: 1, excluded: new Uint8Array(4) },
    select: { task: new Float32Array(4), saliency: new Float32Array(4), keep: 2, taskKeep: 1 },
    merge: { features: hidden, kept: Int32Array.of(0, 1) },
    farthestPoints: { x: hidden, seeds: Int32Array.of(0), count: 2 },
    dpp: { x: hidden, relevance: new Float32Array(17), count: 2, blend: 1 },
  };

  test('a list with four milliards of holes is refused by its length', async () => {
    const wanted = /got 4000000000 entries, wanted at most/;
    await expect(pruner.analyzeBatch(new Array(4e9))).rejects.toThrow(wanted);
  });

  refuseWrongValues([
    ['analyze hidden', (v) => pruner.analyze(v)],
    ['analyze in a list', (v) => pruner.analyzeBatch([v])],
    ['analyze data', (v) => pruner.analyze({ ...hidden, dims: [17, 32], data: v })],
    ['analyze dims', (v) => pruner.analyze({ data: hidden.data, dims: v })],
    ['analyze extent', (v) => pruner.analyze({ data: hidden.data, dims: [17, v] })],
    ['analyze type', (v) => pruner.analyze({ data: hidden.data, dims: [17, 32], type: v })],
    ['analyze options', (v) => pruner.analyze(hidden, v)],
    ['analyzeSync hidden', (v) => pruner.analyzeSync(v)],
    ['analyzeBatch hidden', (v) => pruner.analyzeBatch(v)],
    ...each('analyze', ['encoding', 'intermediates'], (given) => pruner.analyze(hidden, given)),
    ['prune hidden', (v) => pruner.prune(v, text, { keep: 3 })],
    ['prune text', (v) => pruner.prune(hidden, v, { keep: 3 })],
    ['prune embeddings', (v) => pruner.prune(hidden, { embeddings: v }, { keep: 3 })],
    ['prune endOfText', (v) => pruner.prune(hidden, { embeddings: text, endOfText: v }, { keep: 3 })],
    ['prune options', (v) => pruner.prune(hidden, text, v)],
    ...each('prune', PRUNE, (given) => pruner.prune(hidden, text, { keep: 3, ...(given as object) })),
    ...each('pruneSync', PRUNE, (given) => pruner.pruneSync(hidden, text, { keep: 3, ...(given as object) })),
    ['pruneBatch hidden', (v) => pruner.pruneBatch(v, text, { keep: 3 })],
    ['pruneBatch text', (v) => pruner.pruneBatch([hidden], v, { keep: 3 })],
    ['pruneBatch one text', (v) => pruner.pruneBatch([hidden], [v], { keep: 3 })],
    ['pruneBatch options', (v) => pruner.pruneBatch([hidden], text, v)],
    ['image.prune text', (v) => image.prune(v, { keep: 3 })],
    ['image.prune options', (v) => image.prune(text, v)],
    ['ImageAnalysis.pruneBatch analyses', (v) => desap.ImageAnalysis.pruneBatch(v, text, { keep: 3 })],
    ['ImageAnalysis.pruneBatch one', (v) => desap.ImageAnalysis.pruneBatch([v], text, { keep: 3 })],
    ['ImageAnalysis.pruneBatch text', (v) => desap.ImageAnalysis.pruneBatch([image], v, { keep: 3 })],
    ['ImageAnalysis.pruneBatch options', (v) => desap.ImageAnalysis.pruneBatch([image], text, v)],
    ['ImageAnalysis.pruneBatch own options', (v) => desap.ImageAnalysis.pruneBatch([image], text, [v])],
    ['ImageAnalysis.from parts', (v) => desap.ImageAnalysis.from(v, backend)],
    ['ImageAnalysis.from where', (v) => desap.ImageAnalysis.from(parts, v)],
    ...Object.keys(parts).map(
      (part): Hole => [`ImageAnalysis.from ${part}`, (v) => desap.ImageAnalysis.from({ ...parts, [part]: v }, backend)],
    ),
    ['ImageAnalysis.from global', (v) => desap.ImageAnalysis.from({ ...parts, global: v }, backend)],
    ['BlockHead.analyze hidden', (v) => blockHead.analyze(v)],
    ['BlockHead.analyze options', (v) => blockHead.analyze(hidden, v)],
    ...each('BlockHead.analyze', ['valid', 'cos', 'sin', 'unit', 'attention', 'selfAttention', 'encoding'], (given) =>
      blockHead.analyze(hidden, given),
    ),
    ['BlockHead.analyzeBatch images', (v) => blockHead.analyzeBatch(v)],
    ['BlockHead.analyzeBatch one', (v) => blockHead.analyzeBatch([v])],
    ...Object.entries(kernels).flatMap(([kernel, args]): Hole[] => {
      const async_ = (backend as never as Record<string, (given: object) => unknown>)[kernel];
      const sync = (backend.sync as never as Record<string, (given: object) => unknown>)[kernel];
      return [
        [`backend.${kernel}`, (v) => async_(v)],
        ...Object.keys(args).map(
          (field): Hole => [`backend.sync.${kernel} ${field}`, (v) => sync({ ...args, [field]: v })],
        ),
      ];
    }),
  ]);

  test('every kernel takes what it should', async () => {
    for (const [kernel, args] of Object.entries(kernels))
      await (backend as never as Record<string, (given: object) => unknown>)[kernel](args);
  });
});

describe('everything else', () => {
  refuseWrongValues([
    ['Pruner.load', (v) => desap.Pruner.load(v)],
    ['Pruner.load options', (v) => desap.Pruner.load(head, v)],
    ...each('Pruner.load', ['device', 'precision', 'threads', 'isa'], (given) =>
      desap.Pruner.load(head, { device: 'cpu', ...(given as object) }),
    ),
    ...Object.keys(head).map(
      (field): Hole => [
        `Pruner.load head.${field}`,
        (v) => desap.Pruner.load({ ...head, [field]: v }, { device: 'reference' }),
      ],
    ),
    ['Pruner.load head.q.weight', (v) => desap.Pruner.load({ ...head, q: { ...head.q, weight: v } })],
    ['BlockHead.load', (v) => desap.BlockHead.load(v)],
    ['BlockHead.load where', (v) => desap.BlockHead.load(block, v)],
    ...Object.keys(block).map(
      (field): Hole => [
        `BlockHead.load block.${field}`,
        (v) => desap.BlockHead.load({ ...block, [field]: v }, { device: 'reference' }),
      ],
    ),
    ['loadHead', (v) => desap.loadHead(v)],
    ['saveHead head', (v) => desap.saveHead(v, '/tmp/no/such/folder/x')],
    ['saveHead path', (v) => desap.saveHead(head, v)],
    ['formatHead', (v) => desap.formatHead(v)],
    ['loadBlock', (v) => desap.loadBlock(v)],
    ['saveBlock path', (v) => desap.saveBlock(block, v)],
    ['formatBlock', (v) => desap.formatBlock(v)],
    ['openBackend', (v) => desap.openBackend(v)],
    ['limits', (v) => desap.limits(v)],
    ...each('limits', Object.keys(desap.limits()), (given) => desap.limits(given)),
    ['HostBuffer.allocate', (v) => desap.HostBuffer.allocate(v).dispose()],
    ['HostBuffer.allocate options', (v) => desap.HostBuffer.allocate(8, v).dispose()],
    ['HostBuffer.allocate pinned', (v) => desap.HostBuffer.allocate(8, { pinned: v }).dispose()],
    ['HostBuffer.forTensor type', (v) => desap.HostBuffer.forTensor(v, [1])],
    ['HostBuffer.forTensor dims', (v) => desap.HostBuffer.forTensor('float32', v)],
    ['HostBuffer.forTensor extent', (v) => desap.HostBuffer.forTensor('float32', [v])],
    ['HostBuffer.float32 offset', (v) => desap.HostBuffer.allocate(64).float32(v)],
    ['HostBuffer.uint16 length', (v) => desap.HostBuffer.allocate(64).uint16(0, v)],
    ['HostBuffer.tensor type', (v) => desap.HostBuffer.allocate(64).tensor(v, [1])],
    ['readModel', (v) => onnx.readModel(v)],
    ['readModel name', (v) => onnx.readModel(3 as never, v)],
    ['readTower', (v) => onnx.readTower(v)],
    ['towerGraph', (v) => onnx.towerGraph(v)],
    ['projectorGraph', (v) => onnx.projectorGraph(v)],
    ['extractHead', (v) => onnx.extractHead(v)],
    ['extractHead visionModel', (v) => onnx.extractHead({ visionModel: v })],
    ['extractHead safetensors', (v) => onnx.extractHead({ safetensors: v })],
    ['extractHead config', (v) => onnx.extractHead({ safetensors: 'models/tiny-clip/model.safetensors', config: v })],
    ['extractHead heads', (v) => onnx.extractHead({ visionModel: CLIP, heads: v })],
    ['confirmHead ort', (v) => onnx.confirmHead(v, CLIP, head)],
    ['confirmHead visionModel', (v) => onnx.confirmHead(ort, v, head)],
    ['confirmHead head', (v) => onnx.confirmHead(ort, CLIP, v)],
    ['confirmHead options', (v) => onnx.confirmHead(ort, CLIP, clipHead, v)],
    ...each('confirmHead', ['pixelValues', 'session'], (given) => onnx.confirmHead(ort, CLIP, clipHead, given)),
    ['confirmTower llava', (v) => onnx.confirmTower(ort, v, CLIP)],
    ['confirmTower clip', (v) => onnx.confirmTower(ort, LLAVA, v)],
    ['openGraph ort', (v) => onnx.openGraph(v, onnx.towerGraph(tower))],
    ['openGraph graph', (v) => onnx.openGraph(ort, v)],
    ['openGraph options', (v) => onnx.openGraph(ort, onnx.towerGraph(tower), v)],
  ]);

  test('the wrong values are as many as they say', () => {
    expect(Object.keys(WRONG).length).toBeGreaterThan(20);
  });
});
