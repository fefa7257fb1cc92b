import type { OnnxNode } from '../format/messages.js';
import { type StoredTensor, smallValues } from '../format/stored-tensor.js';

/** Operators whose result is their first input, element for element. */
export const PASS: ReadonlySet<string> = new Set(['Identity', 'Cast', 'CastLike', 'Dropout']);

/** Operators that move elements or repeat them, and change none. */
export const MOVES: ReadonlySet<string> = new Set([
  'Reshape',
  'Transpose',
  'Squeeze',
  'Unsqueeze',
  'Flatten',
  'Expand',
]);

/** `factor * extent ** power`, where `extent` is the last extent of some tensor. */
interface Monomial {
  readonly factor: number;
  readonly power: number;
}

/** The rank of [batch, H, tokens, dh], whose last extent scales are computed from. */
const ATTENTION_RANK = 4;

/** Axes, target shapes and scalars are shorter. */
const MAX_ENTRIES = 128;

/**
 * The small numbers in a graph: axes, target shapes, scales. Worked out once, in the order of the computation.
 */
export class Constants {
  private readonly lists = new Map<string, readonly (number | null)[]>();
  private readonly monomials = new Map<string, Monomial>();
  /** Values that hold the shape of a tensor, and that tensor's rank where it can be told. */
  private readonly shapes = new Map<string, number | null>();
  private readonly ranks = new Map<string, number>();
  /** The last of the values that a shape was joined from. */
  private readonly lastEntries = new Map<string, string>();

  constructor(tensors: Iterable<StoredTensor>, order: readonly OnnxNode[]) {
    for (const tensor of tensors) this.define(tensor.name, smallValues(tensor));
    for (const node of order) this.read(node);
  }

  /** The numbers of a small constant, or null. */
  numbers(value: string): readonly number[] | null {
    const entries = this.lists.get(value);
    return entries?.every((entry) => entry !== null) ? (entries as readonly number[]) : null;
  }

  /** Like {@link numbers}, with null for every entry that is computed at run time: the form of an exported target shape. */
  entries(value: string): readonly (number | null)[] | null {
    return this.lists.get(value) ?? null;
  }

  /**
   * The value of a scalar that is constant, or that depends on nothing but the last extent of some tensor: the form that
   * exported attention computes its scale in (Shape, Gather or Slice of the last extent, Cast, Sqrt, Div).
   *
   * @param lastExtent what that extent is
   * @returns null for anything else
   */
  scalar(value: string, lastExtent: number): number | null {
    const monomial = this.monomials.get(value);
    return monomial === undefined ? null : monomial.factor * lastExtent ** monomial.power;
  }

  /**
   * The whole number that the last extent of a tensor is divided by in the last entry of a computed shape: the head count, where
   * an export computes `dh` as `D / H`. Null when the entry is anything else.
   */
  lastShare(shape: string): number | null {
    const last = this.lastEntries.get(shape);
    const monomial = last === undefined ? undefined : this.monomials.get(last);
    const share = monomial?.power === 1 ? Math.round(1 / monomial.factor) : 0;
    return share > 1 && Math.abs(share * (monomial as Monomial).factor - 1) < 1e-6 ? share : null;
  }

  private define(value: string, entries: readonly (number | null)[] | null | undefined): void {
    if (!entries || entries.length > MAX_ENTRIES) return;
    this.lists.set(value, entries);
    if (entries.length === 1 && entries[0] !== null) this.monomials.set(value, { factor: entries[0], power: 0 });
  }

  private read({ op, inputs, outputs, attributes }: OnnxNode): void {
    const [a, b] = inputs;
    const [output] = outputs;
    const rank =
      op === 'Transpose'
        ? attributes.get('perm')?.ints?.length
        : op === 'Reshape'
          ? this.lists.get(b)?.length
          : PASS.has(op)
            ? this.ranks.get(a)
            : undefined;
    if (rank !== undefined) this.ranks.set(output, rank);
    const isView = PASS.has(op) || op === 'Unsqueeze' || op === 'Squeeze' || op === 'Reshape';
    if (isView) {
      // A scalar made into a vector: one entry, whether it is known or not.
      this.define(output, this.lists.get(a) ?? (op === 'Unsqueeze' ? [null] : null));
      const rank = this.shapes.get(a);
      if (rank !== undefined) this.shapes.set(output, rank);
    } else if (op === 'Constant') {
      const { i, f, t, ints } = constantOf(attributes);
      this.define(output, t ? smallValues(t) : (ints ?? (i !== undefined ? [i] : f !== undefined ? [f] : null)));
    } else if (op === 'Concat') {
      this.define(output, concatenated(inputs.map((input) => this.lists.get(input) ?? [null])));
      this.lastEntries.set(output, inputs[inputs.length - 1]);
    } else if (op === 'Shape') {
      this.shapes.set(output, this.ranks.get(a) ?? null);
    }
    const monomial = isView ? this.monomials.get(a) : this.compute(op, a, b);
    if (monomial !== undefined) this.monomials.set(output, monomial);
  }

  private compute(op: string, a: string, b: string): Monomial | undefined {
    const [x, y] = [this.monomials.get(a), this.monomials.get(b)];
    const rank = this.shapes.get(a);
    if ((op === 'Gather' || op === 'Slice') && rank !== undefined) {
      const start = this.numbers(b)?.[0];
      return start === -1 || start === (rank ?? ATTENTION_RANK) - 1 ? { factor: 1, power: 1 } : undefined;
    }
    if (x === undefined) return undefined;
    if (op === 'Sqrt') return power(x, 0.5);
    if (op === 'Reciprocal') return power(x, -1);
    if (y === undefined) return undefined;
    if (op === 'Mul') return { factor: x.factor * y.factor, power: x.power + y.power };
    if (op === 'Div') return { factor: x.factor / y.factor, power: x.power - y.power };
    return op === 'Pow' && y.power === 0 ? power(x, y.factor) : undefined;
  }
}

function constantOf(attributes: OnnxNode['attributes']) {
  const names = ['value', 'value_int', 'value_float', 'value_ints'];
  return names.map((name) => attributes.get(name)).find((found) => found !== undefined) ?? {};
}

/** A list of at most {@link MAX_ENTRIES}, or null: repeated joining of a list with itself would have no end. */
function concatenated(parts: readonly (readonly (number | null)[])[]): (number | null)[] | null {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  return length > MAX_ENTRIES ? null : parts.flat();
}

function power({ factor, power }: Monomial, by: number): Monomial {
  return { factor: factor ** by, power: power * by };
}
