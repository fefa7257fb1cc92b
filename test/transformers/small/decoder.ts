/** A small Llama-like decoder with cache, grouped queries and rotary positions, and its embedding table. */
import { FLOAT, INT64, SmallGraph } from './graph.js';

export interface DecoderShape {
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly layers: number;
  readonly vocabulary: number;
  /** Sections of M-RoPE; without them positions have one axis. */
  readonly sections?: readonly number[];
  /** Whether the graph is told positions; otherwise it counts the mask. */
  readonly positions?: boolean;
}

const MAX_POSITIONS = 512;
const MASKED = -1e9;
/** Ids that can be generated: words only, as a trained model would not write placeholders. */
const WORDS = 61;

export function embedTokens(seed: number, { width, vocabulary }: DecoderShape): Uint8Array {
  const g = new SmallGraph(seed);
  const ids = g.input('input_ids', INT64, ['batch_size', 'sequence_length']);
  g.output(g.add('Gather', [g.random([vocabulary, width], 1), ids], { axis: { i: 0 } }), 'inputs_embeds');
  return g.bytes();
}

export function decoder(seed: number, shape: DecoderShape): Uint8Array {
  const { width, heads, kvHeads, layers } = shape;
  const dh = width / heads;
  const g = new SmallGraph(seed);
  const embeds = g.input('inputs_embeds', FLOAT, ['batch_size', 'sequence_length', width]);
  const attention = g.input('attention_mask', INT64, ['batch_size', 'total_sequence_length']);
  const length = g.extent(embeds, 1);
  const total = g.extent(attention, 1);
  const past = g.add('Sub', [total, length]);
  const [cos, sin] = rotary(g, shape, attention, past);
  const mask = causalMask(g, attention, past, total);

  let x = embeds;
  for (let layer = 0; layer < layers; layer++) {
    const normed = g.rmsNorm(x, width);
    const split = (value: string, count: number) => g.transpose(g.reshape(value, [0, 0, count, dh]), [0, 2, 1, 3]);
    const q = g.rotate(split(g.linear(normed, width, width), heads), cos, sin, dh);
    const k = g.rotate(split(g.linear(normed, width, kvHeads * dh), kvHeads), cos, sin, dh);
    const v = split(g.linear(normed, width, kvHeads * dh), kvHeads);
    const [keys, values] = Object.entries({ key: k, value: v }).map(([what, fresh]) => {
      const cache = g.input(`past_key_values.${layer}.${what}`, FLOAT, [
        'batch_size',
        kvHeads,
        'past_sequence_length',
        dh,
      ]);
      const all = g.concat([cache, fresh], 2);
      g.output(all, `present.${layer}.${what}`);
      const group = g.add('Tile', [g.unsqueeze(all, 2), g.integers([1, 1, heads / kvHeads, 1, 1])]);
      return g.reshape(group, [0, heads, -1, dh]);
    });
    const context = g.attend(q, keys, values, { heads, headExtent: dh }, mask);
    x = g.add('Add', [x, g.linear(context, width, width, false)]);
    const inner = g.rmsNorm(x, width);
    const gated = g.add('Mul', [
      g.silu(g.linear(inner, width, 2 * width, false)),
      g.linear(inner, width, 2 * width, false),
    ]);
    x = g.add('Add', [x, g.linear(gated, 2 * width, width, false)]);
  }
  g.output(g.linear(g.rmsNorm(x, width), width, WORDS, false), 'logits');
  return g.bytes();
}

/** Cosines and sines [B, 1, S, dh] of the positions. */
function rotary(g: SmallGraph, { width, heads, sections, positions }: DecoderShape, attention: string, past: string) {
  const dh = width / heads;
  const angle = (position: number, i: number) => position * 100 ** ((-2 * i) / dh);
  const table = (f: (angle: number) => number) =>
    g.floats(
      Array.from({ length: (MAX_POSITIONS * dh) / 2 }, (_, at) => f(angle(Math.floor(at / (dh / 2)), at % (dh / 2)))),
      [MAX_POSITIONS, dh / 2],
    );
  const ids =
    positions === false
      ? counted(g, attention, past)
      : g.input('position_ids', INT64, [...(sections ? [3] : []), 'batch_size', 'sequence_length']);
  return [Math.cos, Math.sin].map((f) => {
    let half = g.add('Gather', [table(f), ids], { axis: { i: 0 } });
    if (sections) {
      let at = 0;
      const parts = sections.map((size, axis) => {
        const own = g.add('Gather', [half, g.integers([axis], [])], { axis: { i: 0 } });
        return g.slice(own, at, (at += size), -1);
      });
      half = g.concat(parts, -1);
    }
    return g.unsqueeze(g.concat([half, half], -1), 1);
  });
}

/** Positions out of the mask, as decoders without the input have them. */
function counted(g: SmallGraph, attention: string, past: string): string {
  const sum = g.add('CumSum', [attention, g.integers([1], [])]);
  const from = g.add('Sub', [sum, g.integers([1], [])]);
  const clipped = g.add('Max', [from, g.integers([0], [])]);
  const end = g.integers([Number.MAX_SAFE_INTEGER]);
  return g.add('Slice', [clipped, g.unsqueeze(past, 0), end, g.integers([1])]);
}

/** [B, 1, S, T]: 0 where a query sees a key. */
function causalMask(g: SmallGraph, attention: string, past: string, total: string): string {
  const one = g.integers([1], []);
  const keys = g.unsqueeze(g.add('Range', [g.integers([0], []), total, one]), 0);
  const queries = g.unsqueeze(g.add('Range', [past, total, one]), 1);
  const later = g.add('Where', [g.add('Greater', [keys, queries]), g.scalar(MASKED), g.scalar(0)]);
  const hidden = g.add('Sub', [g.scalar(1), g.cast(attention, FLOAT)]);
  const padding = g.add('Unsqueeze', [g.add('Mul', [hidden, g.scalar(MASKED)]), g.integers([1, 2])]);
  return g.add('Add', [later, padding]);
}
