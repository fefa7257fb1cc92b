/** A language model's decoder as eq. 6 of the paper sees it. */
export interface DecoderShape {
  /** d, the hidden width. */
  readonly width: number;
  /** m, the width of the feed-forward layer. */
  readonly intermediate: number;
  readonly layers: number;
}

/** An encoder's pruning head: what its cost depends on. */
export interface HeadShape {
  /** P, patch tokens. */
  readonly patches: number;
  /** D, the encoder's width. */
  readonly width: number;
  /** E, the width of the space shared with the text. */
  readonly embedding: number;
  /** Whether a class token goes through the attention with the patches. */
  readonly classToken: boolean;
}

/**
 * Eq. 6 of the paper: what `tokens` visual tokens cost a decoder while it reads the prompt, 4 n d^2 + 2 n^2 d + 3 n d m per
 * layer. The paper calls the unit FLOPs; each is one multiplication with its addition. Text tokens are not counted.
 */
export function decoderFlops(tokens: number, { width: d, intermediate: m, layers }: DecoderShape): number {
  const n = tokens;
  return layers * (4 * n * d * d + 2 * n * n * d + 3 * n * d * m);
}

/** Multiply-adds of {@link prunerFlops}, per stage. */
export interface PrunerFlops {
  /** q, k and v of the encoder's last layer. */
  readonly projections: number;
  /** Decoupled attention, eq. 2. */
  readonly attention: number;
  /** Output projection and visual projection. */
  readonly readOut: number;
  /** Visual saliency, eq. 4. */
  readonly saliency: number;
  /** Cosines of patches and text tokens, eq. 3. The paper's 2.7e7 (576 patches, 30 text tokens) is twice this stage. */
  readonly alignment: number;
  /** Cosines of dropped and kept patches. */
  readonly merging: number;
  readonly total: number;
}

/**
 * What pruning itself costs: this package's own count of the matrix products in its stages, in the unit of
 * {@link decoderFlops}. Norms, softmaxes and selection are left out (below 1 %), and so is the text tower, whose cost depends on the
 * model that encodes the question. All but `alignment` and `merging` is paid once per image, whatever the number of questions.
 *
 * @param keep K, visual tokens kept
 * @param textTokens T, tokens of the question
 */
export function prunerFlops(head: HeadShape, keep: number, textTokens: number): PrunerFlops {
  const { patches: P, width: D, embedding: E, classToken } = head;
  const N = P + Number(classToken);
  const stages = {
    projections: 3 * N * D * D,
    attention: 2 * N * N * D,
    readOut: N * D * D + N * D * E,
    saliency: classToken ? N * D : N * N * D,
    alignment: P * textTokens * E,
    merging: (P - keep) * keep * D,
  };
  return { ...stages, total: Object.values(stages).reduce((sum, stage) => sum + stage, 0) };
}

/** A model as {@link decoderFlops} and {@link prunerFlops} take it. */
export interface ModelShape {
  readonly decoder: DecoderShape;
  readonly head: HeadShape;
}

const VICUNA_7B: DecoderShape = { width: 4096, intermediate: 11008, layers: 32 };
const CLIP_LARGE_336: HeadShape = { patches: 576, width: 1024, embedding: 768, classToken: true };

/** Shapes of known models. LLaVA-1.5 is the model of the paper's Table 6. */
export const MODEL_SHAPES: Readonly<Record<string, ModelShape>> = {
  'llava-1.5-7b': { decoder: VICUNA_7B, head: CLIP_LARGE_336 },
  'llava-1.5-13b': { decoder: { width: 5120, intermediate: 13824, layers: 40 }, head: CLIP_LARGE_336 },
  'tiny-llava': {
    decoder: { width: 128, intermediate: 344, layers: 3 },
    head: { patches: 144, width: 128, embedding: 96, classToken: true },
  },
};
