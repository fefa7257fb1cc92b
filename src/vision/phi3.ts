import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { deviceOptions } from '../devices/open.js';
import { DesapError, invalid, mismatch } from '../errors.js';
import { isFile, requireFolder } from '../files.js';
import { ImageAnalysis, Pruner, type TextEmbeddings } from '../index.js';
import { rowsOf } from '../methods/matrix.js';
import { Once } from '../once.js';
import { relativeError } from '../onnx/head/compare.js';
import { confirmHead } from '../onnx/head/confirm.js';
import { trialPixels } from '../onnx/head/pixels.js';
import { pixelTensor, runOpen } from '../onnx/head/trial.js';
import { FILE_FEATURES, withHiddenStates } from '../onnx/hidden-states.js';
import { extractHead, HIDDEN_STATES, openGraph, readModel, readTower, towerGraph } from '../onnx/index.js';
import { type OptionNames, options } from '../options.js';
import { ortModule } from '../ort.js';
import { encodingOf } from '../pruner.js';
import { float32, floatData, nonEmpty, oneOf, type TensorLike, widened } from '../tensor.js';
import { alignedText } from './aligned-text.js';
import { type Grid, NEWLINES, type Newline } from './anyres.js';
import { sizesOf } from './anyres-inputs.js';
import { unitsOfGrid } from './block-family.js';
import { checkQuestion } from './check-text.js';
import { type ClipEncoderOptions, openText, TOLERANCE } from './clip-encoder.js';
import { clipFile, findClipFile } from './clip-folder.js';
import type { ClipText } from './clip-text.js';
import type { ClipTile } from './clip-tile.js';
import { LLAVA_OPTIONS } from './llava.js';
import { longTextChoice } from './long-text.js';
import { featureSource } from './method-source.js';
import { VisionModelBase } from './model-base.js';
import { checkShared } from './model-options.js';
import { phi3Layout } from './phi3-layout.js';
import { allOrNone, atRest, runSession } from './session.js';
import { TilesImage } from './tiles-image.js';
import { warnOfTuning } from './tower-head.js';
import { refuseTower } from './tower-options.js';
import type { InputNames, VisionInputs } from './vision-model.js';

/** Options of {@link Phi3Vision.open}. */
export interface Phi3VisionOptions extends Omit<ClipEncoderOptions, 'taps'> {
  /** Which separators of rows stay; default `kept-rows`. That between the crops and the whole image goes with `none` only. */
  newline?: Newline;
}

const { taps: _, ...SHARED } = LLAVA_OPTIONS;
export const PHI3_OPTIONS: OptionNames<Phi3VisionOptions> = { ...SHARED, newline: true };

type Inputs = Pick<VisionInputs, 'pixelValues' | 'imageSizes'>;
const INPUTS: OptionNames<Inputs> = { pixelValues: true, imageSizes: true };
/** Patches on each side of a unit. */
const UNIT = 2;

/**
 * Phi-3.5-vision's encoder with pruning, over onnxruntime-node: a CLIP tower that sees the whole image and its crops, of which two by two
 * patches become one token. Scores are those of the patches, by the read-out of the CLIP that the tower comes from, and the mean of a
 * token's patches is the token's. Features are the file's own; a merged token is the mean of those that it stands for.
 */
export class Phi3Vision extends VisionModelBase<TilesImage> {
  private constructor(
    readonly pruner: Pruner,
    private readonly ownsPruner: boolean,
    private readonly clipText: ClipText | null,
    private readonly session: InferenceSession,
    private readonly file: string,
    private readonly how: Phi3VisionOptions & Required<Pick<Phi3VisionOptions, 'ort'>>,
  ) {
    super(
      ...(['Phi3Vision', 'phi3_v', TOLERANCE] as const),
      { keep: how.keep, keepRatio: how.keepRatio },
      how.text === 'worker',
    );
  }

  /**
   * @param visionEncoder path of a `vision_encoder.onnx` that takes `pixel_values` [1, crops, 3, S, S] and `image_sizes` [1, 2]
   * @throws DesapError as `LlavaVision.open`
   */
  static async open(visionEncoder: string, given: Phi3VisionOptions): Promise<Phi3Vision> {
    const checked = options('options', given, PHI3_OPTIONS);
    const { clip, head, pruner, newline = 'kept-rows' } = checked;
    checkShared(checked);
    refuseTower(
      checked.tower,
      'of an encoder whose crops its own graph puts together, row by row, in front of the connector',
    );
    encodingOf(checked);
    longTextChoice(checked);
    oneOf('newline', newline, NEWLINES);
    nonEmpty('visionEncoder', visionEncoder, 'the path of a vision_encoder.onnx');
    const [session, ort] = [atRest(checked.session), await ortModule(checked.ort)];
    if (clip !== undefined || !pruner)
      await requireFolder(nonEmpty('clip', clip as string, 'a CLIP folder (or the option pruner)'), 'a CLIP folder');
    if (!(await isFile(visionEncoder)))
      throw new DesapError('ERR_FILE', `${visionEncoder}: got no such file, wanted a vision encoder`);
    const graph = withHiddenStates(visionEncoder);
    return allOrNone(async (opened) => {
      const encoder = opened(await openGraph(ort, graph, session), (one) => one.release());
      const own =
        pruner ?? opened(await Pruner.load(head ?? (await clipHead()), deviceOptions(checked)), (one) => one.dispose());
      const text = clip === undefined ? null : await findClipFile(clip, 'text');
      const clipText =
        text === null ? null : opened(await openText(text, { ...checked, session, ort }), (one) => one.dispose());
      return new Phi3Vision(own, !pruner, clipText, encoder, visionEncoder, { ...checked, newline, ort });

      /** The head of the CLIP folder, where the encoder's tower is that of the folder. */
      async function clipHead() {
        const model = readModel(await clipFile(clip!, 'vision', ', or the option head (made by: desap extract)'));
        const weights = await extractHead({ visionModel: model });
        await confirmHead(ort, model, weights, { session });
        const structure = readTower(model);
        const pixels = pixelTensor(ort, trialPixels(structure));
        const tower = await openGraph(ort, towerGraph(structure), session);
        const wanted = await runOpen({ structure, session: tower }, pixels).finally(() => tower.release());
        const [, , height, width] = pixels.dims;
        const data = Float32Array.from([...(pixels.data as Float32Array), ...(pixels.data as Float32Array)]);
        const names = { pixelValues: visionEncoder, imageSizes: visionEncoder };
        const trial = { data, dims: [1, 2, 3, height, width] };
        const got = await run(encoder, ort, trial, { height, width }, names);
        const states = got[HIDDEN_STATES].data as Float32Array;
        warnOfTuning(relativeError(states.subarray(states.length / 2), wanted[HIDDEN_STATES].data as Float32Array), {
          visionEncoder,
          clip: clip!,
        });
        return weights;
      }
    });
  }

  get device(): string {
    return this.pruner.device;
  }

  get deviceDescription(): string {
    return this.pruner.deviceDescription;
  }

  protected async encodeText(question: string): Promise<TextEmbeddings> {
    if (this.clipText) return this.clipText.encode(checkQuestion(question));
    const wanted = 'its embeddings, null with taskShare: 0, or the option clip with a folder that has a text tower';
    throw mismatch('ERR_VALUE', 'question', 'a text, and no text tower', wanted);
  }

  protected async encodeImages(inputs: VisionInputs, names: InputNames): Promise<TilesImage[]> {
    const { pixelValues, imageSizes } = options<Inputs>('inputs', inputs, INPUTS);
    const sizes = sizesOf(imageSizes, names);
    const pixels = floatData(names.pixelValues, pixelValues as TensorLike);
    const [images, crops, channels, height, width] = pixels.dims;
    if (pixels.dims.length !== 5 || images !== sizes.length || channels !== 3 || height !== width || crops < 2)
      throw invalid('ERR_SHAPE', `${names.pixelValues}.dims`, pixels.dims, `[${sizes.length}, 1 + crops, 3, S, S]`);
    const data = widened(pixels);
    const size = data.length / images;
    const made: TilesImage[] = [];
    try {
      for (const [i, { height: tall, width: wide }] of sizes.entries()) {
        const grid = { rows: tall / height, columns: wide / height };
        if (!Number.isInteger(grid.rows) || !Number.isInteger(grid.columns) || grid.rows * grid.columns >= crops)
          throw mismatch(
            'ERR_SHAPE',
            names.imageSizes,
            `${tall} x ${wide} pixels and ${crops - 1} crops of image ${i}`,
            `multiples of ${height}, and at least as many crops as they make`,
          );
        const own = { data: data.subarray(i * size, (i + 1) * size), dims: [1, crops, 3, height, width] };
        const start = performance.now();
        const outputs = await run(this.session, this.how.ort, own, sizes[i], names);
        made.push(this.#image(grid, outputs, performance.now() - start));
      }
      return made;
    } catch (error) {
      for (const image of made) image.dispose();
      throw error;
    }
  }

  #image(grid: Grid, outputs: Record<string, Tensor>, milliseconds: number): TilesImage {
    const { pruner, file } = this;
    const { encoding, newline = 'kept-rows' } = this.how;
    const [hidden, features] = [outputs[HIDDEN_STATES], outputs[FILE_FEATURES]];
    const [crops, rows, D] = hidden.dims;
    const W = features.dims[features.dims.length - 1];
    const classRows = Number(pruner.head.classToken);
    const patches = Math.sqrt(rows - classRows);
    const side = patches / UNIT;
    const layout = phi3Layout(grid, side, newline);
    const tokens = features.data.length / W;
    if (hidden.dims.length !== 3 || D !== pruner.head.width || !Number.isInteger(side) || tokens !== layout.tokenCount)
      throw new DesapError(
        'ERR_GRAPH',
        `${file}: got hidden states [${hidden.dims.join(', ')}] and ${tokens} tokens, wanted ${layout.tokenCount} tokens of ${grid.rows} x ${grid.columns} crops: two by two patches each, with separators`,
      );
    const unitOf = unitsOfGrid(patches, patches, UNIT);
    const at = (places: Int32Array) => rowsOf({ data: features.data as Float32Array, cols: W }, places).data;
    // Crop 0 is the whole image, whose tokens come last.
    const states = (tile: number) => {
      const crop = tile === layout.tiles.length - 1 ? 0 : tile + 1;
      const size = rows * D;
      return { data: (hidden.data as Float32Array).subarray(crop * size, (crop + 1) * size), dims: [rows, D] };
    };
    const analyses = new Once<ImageAnalysis[]>();
    const analyzed = () =>
      analyses.get(() =>
        pruner.analyzeBatch(
          layout.tiles.map((_, tile) => states(tile)),
          { encoding },
        ),
      );
    const { backend } = pruner;
    const tiles = layout.places.map((places, tile): ClipTile => {
      const made = new Once<ImageAnalysis>();
      const { projectionDim } = pruner.head;
      return {
        byteLength: 4 * (rows * (D + projectionDim) + places.length * (W + projectionDim)),
        source: () =>
          featureSource(backend, { data: at(places), rows: places.length, cols: W }, { rows: side, columns: side }),
        units: () => ({ data: at(places), dims: [places.length, W] }),
        cut: null,
        classRow: () => ({ data: states(tile).data.subarray(0, D), dims: [1, D] }),
        async release() {
          (await made.made())?.dispose();
          (await analyses.made())?.[tile].dispose();
        },
        async analyze() {
          const start = performance.now();
          const analysis = await made.get(async () => {
            const own = (await analyzed())[tile];
            const { data, dims } = own.patchEmbeddings();
            const means = meanOfUnits(data as Float32Array, unitOf, dims[1]);
            const parts = {
              patchEmbeddings: { data: means, dims: [places.length, dims[1]] },
              global: own.global(),
              saliency: await backend.pool({ scores: own.saliency(), unit: unitOf }),
              features: { data: at(places), dims: [places.length, W] },
            };
            return ImageAnalysis.from(parts, backend);
          });
          return { analysis, milliseconds: performance.now() - start };
        },
        async task(text, how) {
          const own = (await analyzed())[tile];
          const aligned = await alignedText(backend, text);
          const parts = { visual: own.patchEmbeddings(), global: own.global() };
          const { task } = await backend.align({ ...parts, ...aligned, ...how });
          return backend.pool({ scores: task, unit: unitOf });
        },
      };
    });
    if (crops < layout.tiles.length)
      throw new DesapError('ERR_GRAPH', `${file}: got hidden states of ${crops} crops, wanted ${layout.tiles.length}`);
    return new TilesImage(this, {
      ...{ medium: 'image', layout, tiles, milliseconds },
      project: async (tokens) => float32(tokens.data as Float32Array, [1, ...tokens.dims]),
      markers: async (places) => at(places),
    });
  }

  protected async free(): Promise<void> {
    if (this.ownsPruner) this.pruner.dispose();
    await Promise.all([this.clipText?.dispose(), this.session.release()]);
  }
}

/** One image through the whole encoder. */
function run(
  session: InferenceSession,
  ort: NonNullable<Phi3VisionOptions['ort']>,
  pixels: { readonly data: Float32Array; readonly dims: readonly number[] },
  { height, width }: { readonly height: number; readonly width: number },
  names: Pick<InputNames, 'pixelValues' | 'imageSizes'>,
): Promise<Record<string, Tensor>> {
  const [float, integer] = ['float32', 'int64'].map(
    (type) => session.inputMetadata.find((input) => input.isTensor && input.type === type)?.name,
  );
  if (float === undefined || integer === undefined || session.inputNames.length !== 2)
    throw new DesapError(
      'ERR_GRAPH',
      `the vision encoder: got the inputs ${session.inputNames.join(', ')}, wanted pixels in float32 and sizes in int64`,
    );
  return runSession(
    session,
    { argument: names.pixelValues, graph: 'the vision encoder' },
    {
      [float]: new ort.Tensor('float32', pixels.data, pixels.dims),
      [integer]: new ort.Tensor('int64', BigInt64Array.from([height, width], BigInt), [1, 2]),
    },
  );
}

/** The mean row of each unit. */
function meanOfUnits(data: Float32Array, unit: Int32Array, width: number): Float32Array {
  const means = new Float32Array(data.length / UNIT ** 2);
  for (const [patch, one] of unit.entries())
    for (let c = 0; c < width; c++) means[one * width + c] += data[patch * width + c] / UNIT ** 2;
  return means;
}
