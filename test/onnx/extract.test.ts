import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { loadHead, saveHead } from '../../src/head.js';
import { extractHead } from '../../src/onnx/head/extract.js';
import { formatSafeTensors, readSafeTensors, toFloat32, type WritableTensors } from '../../src/safetensors.js';

const VISION = 'models/tiny-clip/onnx/vision_model.onnx';
const CHECKPOINT = 'models/tiny-clip/model.safetensors';
const CONFIG = { vision_config: { num_attention_heads: 4, layer_norm_eps: 1e-5, num_hidden_layers: 4 } };
const FOLDER = mkdtempSync(join(tmpdir(), 'desap-extract-'));
afterAll(() => rmSync(FOLDER, { recursive: true }));

/** The tensors of the checkpoint under other names; null leaves one out. */
async function renamed(rename: (name: string) => string | null): Promise<WritableTensors> {
  const { tensors } = await readSafeTensors(CHECKPOINT);
  return Object.fromEntries(
    [...tensors].flatMap(([name, tensor]) => {
      const to = rename(name);
      return to === null ? [] : [[to, { data: toFloat32(tensor), shape: tensor.shape }]];
    }),
  );
}

function write(folder: string, files: Record<string, Uint8Array | string>): string {
  mkdirSync(join(FOLDER, folder), { recursive: true });
  for (const [name, content] of Object.entries(files)) writeFileSync(join(FOLDER, folder, name), content);
  return join(FOLDER, folder, Object.keys(files)[0]);
}

describe('extractHead', () => {
  test('graph and checkpoint give the same bits, which are those of the checkpoint', async () => {
    const { tensors } = await readSafeTensors(CHECKPOINT);
    const layer = 'vision_model.encoder.layers.3';
    const names = {
      ln1: `${layer}.layer_norm1`,
      q: `${layer}.self_attn.q_proj`,
      k: `${layer}.self_attn.k_proj`,
      v: `${layer}.self_attn.v_proj`,
      out: `${layer}.self_attn.out_proj`,
      postNorm: 'vision_model.post_layernorm',
    } as const;
    for (const source of [
      { visionModel: VISION },
      { visionModel: readFileSync(VISION) },
      { safetensors: CHECKPOINT },
    ]) {
      const head = await extractHead(source);
      const { width, heads, projectionDim, classToken, epsilon } = head;
      expect({ width, heads, projectionDim, classToken, epsilon }).toEqual({
        width: 128,
        heads: 4,
        projectionDim: 96,
        classToken: true,
        epsilon: 1e-5,
      });
      for (const [field, name] of Object.entries(names)) {
        const { weight, bias } = head[field as keyof typeof names];
        expect(Buffer.compare(Buffer.from(weight.buffer), tensors.get(`${name}.weight`)!.bytes), name).toBe(0);
        expect(Buffer.compare(Buffer.from(bias.buffer), tensors.get(`${name}.bias`)!.bytes), name).toBe(0);
      }
      expect(
        Buffer.compare(Buffer.from(head.visualProjection.buffer), tensors.get('visual_projection.weight')!.bytes),
      ).toBe(0);
    }
  });

  test('a head file holds what was extracted', async () => {
    const head = await extractHead({ visionModel: VISION });
    await saveHead(head, join(FOLDER, 'head.safetensors'));
    expect(await loadHead(join(FOLDER, 'head.safetensors'))).toEqual(head);
  });

  test('prefixes, a vision model alone, and shards', async () => {
    const wanted = await extractHead({ safetensors: CHECKPOINT });
    const vision = (name: string) => (name.startsWith('text') || name === 'logit_scale' ? null : name);
    const prefixed = formatSafeTensors(await renamed((name) => `model.vision_tower.${name}`));
    const alone = formatSafeTensors(await renamed(vision));
    expect(
      await extractHead({ safetensors: write('prefix', { 'model.safetensors': prefixed }), config: CONFIG }),
    ).toEqual(wanted);
    expect(await extractHead({ safetensors: write('alone', { 'model.safetensors': alone }), heads: 4 })).toEqual(
      wanted,
    );

    const parts: WritableTensors[] = [{}, {}];
    const map: Record<string, string> = {};
    Object.entries(await renamed(vision)).forEach(([name, tensor], i) => {
      parts[i % 2][name] = tensor;
      map[name] = `part-${i % 2}.safetensors`;
    });
    const path = write('shards', {
      'model.safetensors.index.json': JSON.stringify({ weight_map: map }),
      'part-0.safetensors': formatSafeTensors(parts[0]),
      'part-1.safetensors': formatSafeTensors(parts[1]),
      'config.json': JSON.stringify(CONFIG.vision_config),
    });
    expect(await extractHead({ safetensors: path })).toEqual(wanted);
  });

  const rejected: [string, () => Promise<Parameters<typeof extractHead>[0]>, string, RegExp][] = [
    [
      'a LLaVA file',
      async () => ({ visionModel: 'models/tiny-llava/onnx/vision_encoder.onnx' }),
      'ERR_GRAPH',
      /lacks the last CLIP layer/,
    ],
    [
      'a text tower',
      async () => ({ visionModel: 'models/tiny-clip/onnx/text_model.onnx' }),
      'ERR_GRAPH',
      /depends on an image/,
    ],
    ['no source', async () => ({}) as never, 'ERR_VALUE', /visionModel/],
    ['nothing', async () => undefined as never, 'ERR_VALUE', /visionModel/],
    [
      'a misspelt option',
      async () => ({ visionModel: VISION, head: 4 }) as never,
      'ERR_VALUE',
      /^source: got the unknown option 'head', wanted one of visionModel, heads/,
    ],
    [
      'a source that is misspelt',
      async () => ({ visionModle: VISION }) as never,
      'ERR_VALUE',
      /^source: got the unknown option 'visionModle', wanted one of visionModel, heads, safetensors, config/,
    ],
    [
      'a source that is not given',
      async () => ({ visionModel: undefined, heads: 4 }) as never,
      'ERR_VALUE',
      /^source: got Object, wanted \{ visionModel \} or \{ safetensors \}/,
    ],
    [
      'two sources',
      async () => ({ visionModel: VISION, safetensors: CHECKPOINT }) as never,
      'ERR_VALUE',
      /^source: got the unknown option 'safetensors', wanted one of visionModel, heads/,
    ],
    [
      'a config that is none',
      async () => ({ safetensors: CHECKPOINT, config: 5 }) as never,
      'ERR_VALUE',
      /^config: got 5/,
    ],
    [
      'a path that is none',
      async () => ({ safetensors: 5 }) as never,
      'ERR_VALUE',
      /^safetensors: got 5, wanted a path/,
    ],
    ['bad heads', async () => ({ visionModel: VISION, heads: 0 }), 'ERR_VALUE', /heads: got 0/],
    [
      'heads that do not divide',
      async () => ({ safetensors: CHECKPOINT, heads: 5 }),
      'ERR_VALUE',
      /a divisor of the width 128/,
    ],
    [
      'no head count',
      async () => ({ safetensors: write('bare', { 'model.safetensors': readFileSync(CHECKPOINT) }) }),
      'ERR_VALUE',
      /heads: got undefined, wanted the head count/,
    ],
    [
      'the last layer missing',
      async () => {
        const tensors = await renamed((name) => (name.includes('vision_model.encoder.layers.3') ? null : name));
        return { safetensors: write('short', { 'model.safetensors': formatSafeTensors(tensors) }), config: CONFIG };
      },
      'ERR_FILE',
      /got layers up to 2, wanted 4 layers/,
    ],
    [
      'no visual projection',
      async () => {
        const tensors = await renamed((name) => (name === 'visual_projection.weight' ? null : name));
        return {
          safetensors: write('unprojected', { 'model.safetensors': formatSafeTensors(tensors) }),
          config: CONFIG,
        };
      },
      'ERR_FILE',
      /visual_projection\.weight/,
    ],
    ['another checkpoint', async () => ({ safetensors: 'test/golden/tiny.safetensors' }), 'ERR_FILE', /q_proj/],
    [
      'a broken index',
      async () => ({ safetensors: write('index', { 'model.safetensors.index.json': '{"weight_map": 3}' }) }),
      'ERR_FILE',
      /weight_map/,
    ],
  ];
  test.each(rejected)('%s is refused', async (_, source, code, message) => {
    await expect(extractHead(await source())).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });
});
