/** DeSAP's head in float64: Head of native/head.h. */
import { naming } from '../errors.js';
import type { HeadWeights, LinearWeights } from '../head.js';
import { attention } from '../kernels/attention.js';
import { layerNorm } from '../kernels/layer-norm.js';
import { linear } from '../kernels/linear.js';
import { type NumberMatrix, row, rows, widen } from '../kernels/numeric.js';
import { readOut } from '../kernels/read-out.js';
import { saliency } from '../kernels/saliency.js';
import type { FloatMatrix } from '../tensor.js';
import type { AnalyzeRequest, DriverAnalysis, DriverHead, MaybePromise, PruneOutput, PruneRequest } from './driver.js';
import { meanDirection, ReferenceAnalysis } from './reference-analysis.js';
import { Clock, operands, present, settle, single } from './reference-support.js';

export class ReferenceHead implements DriverHead {
  /** `use` fails once the device is disposed. */
  constructor(
    private readonly weights: HeadWeights,
    private readonly use: () => void,
  ) {}

  analyze(images: readonly FloatMatrix[], request: AnalyzeRequest, sync: boolean): MaybePromise<DriverAnalysis[]> {
    this.use();
    return settle(sync, () =>
      images.map((hidden, index) =>
        this.#one(present(hidden, 'hidden'), request, images.length > 1 ? index : undefined),
      ),
    );
  }

  prune(
    images: readonly FloatMatrix[],
    { encoding }: Pick<AnalyzeRequest, 'encoding'>,
    requests: readonly PruneRequest[],
    sync: boolean,
  ): MaybePromise<PruneOutput[]> {
    this.use();
    return settle(sync, () =>
      images.map((hidden, index) => {
        const image = images.length > 1 ? index : undefined;
        const analysis = this.#one(present(hidden, 'hidden'), { encoding, intermediates: false }, image);
        return analysis.ask(present(requests[index]), image);
      }),
    );
  }

  #one(hidden: FloatMatrix, request: AnalyzeRequest, image?: number): ReferenceAnalysis {
    const { width, heads, epsilon, ln1, postNorm, out, projectionDim, visualProjection, classToken } = this.weights;
    const clock = new Clock();
    const X = widen(hidden);
    const L = naming('hidden', () => layerNorm(X, ln1.weight, ln1.bias, epsilon), image);
    const normalize = clock.lap();
    const project = (layer: LinearWeights) => linear(L, { data: layer.weight, rows: width, cols: width }, layer.bias);
    const [q, k, v] = [project(this.weights.q), project(this.weights.k), project(this.weights.v)];
    const projected = clock.lap();
    const context = attention(...operands(request.encoding, q, k, v), v, heads);
    const attended = clock.lap();
    const A_s = saliency(q, k, heads, classToken);
    const salient = clock.lap();
    const projection: NumberMatrix = { data: visualProjection, rows: projectionDim, cols: width };
    const read = readOut(context, out, postNorm, epsilon, projection);
    const timings = {
      waiting: 0,
      normalize,
      project: projected,
      attention: attended,
      saliency: salient,
      readOut: clock.lap(),
    };
    const intermediates = request.intermediates
      ? { context: single(context.data), attention: single(read.attention.data) }
      : null;
    const skipped = Number(classToken);
    const patchEmbeddings = rows(read.embeddings, skipped, X.rows);
    const known = {
      rows: X.rows,
      patchEmbeddings,
      global: classToken ? row(read.embeddings, 0) : meanDirection(patchEmbeddings),
      saliency: A_s,
      features: rows(X, skipped, X.rows),
      half: hidden.half,
      intermediates,
      timings,
    };
    return new ReferenceAnalysis(known, this.use);
  }

  dispose() {}
}
