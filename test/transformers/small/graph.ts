/** Layers of small models as ONNX nodes, with fresh random weights. */
import { DataType } from '../../../src/onnx/format/proto.js';
import { Editable } from '../../onnx/editable.js';
import { normal } from '../../support.js';

export const FLOAT = DataType.float;
export const INT64 = DataType.int64;

export class SmallGraph extends Editable {
  constructor(private seed: number) {
    super();
  }

  input(name: string, type: number, dims: readonly (number | string)[]): string {
    this.inputs.push({ name, type, dims });
    return name;
  }

  /** Names a value and hands it out. */
  output(value: string, name: string): void {
    this.add('Identity', [value], {}, { outputs: [name] });
    this.outputs.push(name);
  }

  random(dims: number[], scale: number): string {
    const size = dims.reduce((product, extent) => product * extent, 1);
    return this.floats(normal(this.seed++, size, scale), dims);
  }

  scalar(value: number): string {
    return this.floats([value], []);
  }

  linear(x: string, rows: number, cols: number, bias = true): string {
    return this.linearLayer(rows, cols, bias)(x);
  }

  /** A linear layer that can be applied to several values. */
  linearLayer(rows: number, cols: number, bias = true): (x: string) => string {
    const weight = this.random([rows, cols], 1 / Math.sqrt(rows));
    const shift = bias ? this.random([cols], 0.1) : null;
    return (x) => {
      const product = this.add('MatMul', [x, weight]);
      return shift ? this.add('Add', [product, shift]) : product;
    };
  }

  layerNorm(x: string, width: number): string {
    return this.normLayer(width, 'layer')(x);
  }

  rmsNorm(x: string, width: number): string {
    return this.normLayer(width, 'rms')(x);
  }

  /** A norm that can be applied to several values. */
  normLayer(width: number, kind: 'layer' | 'rms'): (x: string) => string {
    const near = normal(this.seed++, width, 0.1).map((value) => 1 + value);
    const weight = this.floats(near, [width]);
    if (kind === 'layer') {
      const shift = this.random([width], 0.1);
      return (x) => this.add('LayerNormalization', [x, weight, shift], { axis: { i: -1 }, epsilon: { f: 1e-5 } });
    }
    return (x) => {
      const square = this.add('Pow', [x, this.scalar(2)]);
      const mean = this.add('ReduceMean', [square], { axes: { ints: [-1] }, keepdims: { i: 1 } });
      const root = this.add('Sqrt', [this.add('Add', [mean, this.scalar(1e-6)])]);
      return this.add('Mul', [weight, this.add('Div', [x, root])]);
    };
  }

  gelu(x: string): string {
    const erf = this.add('Erf', [this.add('Div', [x, this.scalar(Math.SQRT2)])]);
    return this.add('Mul', [this.add('Mul', [x, this.add('Add', [erf, this.scalar(1)])]), this.scalar(0.5)]);
  }

  silu(x: string): string {
    return this.add('Mul', [x, this.add('Sigmoid', [x])]);
  }

  reshape(x: string, shape: number[]): string {
    return this.add('Reshape', [x, this.integers(shape)]);
  }

  transpose(x: string, perm: number[]): string {
    return this.add('Transpose', [x], { perm: { ints: perm } });
  }

  concat(values: string[], axis: number): string {
    return this.add('Concat', values, { axis: { i: axis } });
  }

  slice(x: string, start: number, end: number, axis: number): string {
    return this.add('Slice', [x, this.integers([start]), this.integers([end]), this.integers([axis])]);
  }

  /** One extent of a value, as a scalar. */
  extent(x: string, axis: number): string {
    return this.add('Gather', [this.add('Shape', [x]), this.integers([axis], [])], { axis: { i: 0 } });
  }

  unsqueeze(x: string, axis: number): string {
    return this.add('Unsqueeze', [x, this.integers([axis])]);
  }

  cast(x: string, to: number): string {
    return this.add('Cast', [x], { to: { i: to } });
  }

  /** Queries, keys and values [B, H, S, dh] to the context [B, S, H dh]; `mask` is added to the scores. */
  attend(q: string, k: string, v: string, extents: { heads: number; headExtent: number }, mask?: string): string {
    const { heads, headExtent } = extents;
    const product = this.add('MatMul', [q, this.transpose(k, [0, 1, 3, 2])]);
    const scaled = this.add('Mul', [product, this.scalar(headExtent ** -0.5)]);
    const scores = mask ? this.add('Add', [scaled, mask]) : scaled;
    const context = this.add('MatMul', [this.add('Softmax', [scores], { axis: { i: -1 } }), v]);
    return this.reshape(this.transpose(context, [0, 2, 1, 3]), [0, 0, heads * headExtent]);
  }

  /** Rotary embedding of x [.., dh] by cos and sin that broadcast to it. */
  rotate(x: string, cos: string, sin: string, headExtent: number): string {
    const outputs = [this.fresh('half'), this.fresh('half')];
    this.add('Split', [x, this.integers([headExtent / 2, headExtent / 2])], { axis: { i: -1 } }, { outputs });
    const turned = this.concat([this.add('Neg', [outputs[1]]), outputs[0]], -1);
    return this.add('Add', [this.add('Mul', [x, cos]), this.add('Mul', [turned, sin])]);
  }
}
