/** Video-LLaVA of the original kind, against a reference in float64 (test/fixtures/families/video_llava_temporal/make.py). */
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openBackend } from '../../src/index.js';
import { merge } from '../../src/kernels/merge.js';
import { readSafeTensors, toFloat32 } from '../../src/safetensors.js';
import { readTemporal, temporalBlock } from '../../src/vision/temporal.js';
import type { TilesImage } from '../../src/vision/tiles-image.js';
import { VideoLlavaVision } from '../../src/vision/video-llava.js';
import { normal, relativeError } from '../support.js';

const FOLDER = 'test/fixtures/families/video_llava_temporal';
const ENCODER = join(FOLDER, 'onnx/vision_encoder.onnx');
const CLIP = join(FOLDER, 'clip');
const [T, N, D, E, W] = [8, 17, 24, 16, 20];
const P = N - 1;

const { tensors } = await readSafeTensors(join(FOLDER, 'expected.safetensors'));
const expected = (name: string) => toFloat32(tensors.get(name)!);
const about = { heads: 4, epsilon: 1e-5 };

/** The frames that the reference was made with. */
const frames = Float32Array.from({ length: T * 3 * 32 * 32 }, (_, i) => Math.sin(i * i));
const video = (data: Float32Array) => ({ pixelValuesVideos: { data, dims: [1, T, 3, 32, 32] } });
/** A question as rows in the shared space. */
const question = { embeddings: { data: normal(5, 3 * E), dims: [3, E] } };

let vision: VideoLlavaVision;
let image: TilesImage;
beforeAll(async () => {
  vision = await VideoLlavaVision.open(ENCODER, { clip: CLIP, kind: 'video-llava' });
  [image] = await vision.encode(video(frames));
});
afterAll(() => vision.dispose());

describe('the temporal sub-block', () => {
  it.each(['cpu', 'reference'] as const)('is the reference of float64 on %s', async (device) => {
    using backend = await openBackend({ device });
    const weights = await readTemporal(join(CLIP, 'model.safetensors'), about);
    expect([weights.frames, weights.layerBefore.length]).toEqual([T, D]);
    const states = await temporalBlock(expected('hidden'), weights, backend);
    expect(relativeError(states, expected('states'))).toBeLessThan(1e-6);
  });

  it('stands in front of the attention of the last layer, and not of what is merged', async () => {
    for (const [frame, analysis] of (await image.analyses()).entries()) {
      const part = (name: string, size: number) => expected(name).subarray(frame * size, (frame + 1) * size);
      expect(relativeError(analysis.patchEmbeddings().data as Float32Array, part('embeddings', P * E))).toBeLessThan(
        1e-4,
      );
      expect(relativeError(analysis.global(), part('globals', E))).toBeLessThan(1e-4);
      expect(relativeError(analysis.saliency(), part('saliency', P))).toBeLessThan(1e-4);
    }
    expect(relativeError((await image.all()).data as Float32Array, expected('features'))).toBeLessThan(1e-4);
    const { features, indices, assignment } = await image.prune(question, { keep: 6 });
    // Rows of the first frame: its class row, and the means of the states in front of the sub-block that went into each kept one.
    const kept = indices.slice(1, 7).map((place) => place - 1);
    const hidden = { data: expected('hidden').subarray(D, N * D), rows: P, cols: D };
    const means = merge(hidden, kept);
    expect([...assignment.slice(1, N)]).toEqual([...means.assignment].map((k) => k + 1));
    const rows = await vision.project({ data: means.tokens, dims: [6, D] });
    const got = (features.data as Float32Array).slice(W, 7 * W);
    expect(relativeError(got, rows.data as Float32Array)).toBeLessThan(1e-4);
  });

  it('lets frames see each other: another order gives other results', async () => {
    const size = frames.length / T;
    const reversed = Float32Array.from({ length: T }).fill(0) && new Float32Array(frames.length);
    for (let t = 0; t < T; t++) reversed.set(frames.subarray(t * size, (t + 1) * size), (T - 1 - t) * size);
    const [other] = await vision.encode(video(reversed));
    const maps = async (one: TilesImage) => (await one.analyses()).map((analysis) => analysis.saliency());
    const [a, b] = [await maps(image), await maps(other)];
    for (let t = 0; t < T; t++) expect(relativeError(b[T - 1 - t], a[t])).toBeGreaterThan(0.01);
    other.dispose();
  });
});

describe('the kind video-llava', () => {
  it('refuses another number of frames', async () => {
    const data = frames.slice(0, (frames.length / T) * 4);
    await expect(vision.encode({ pixelValuesVideos: { data, dims: [1, 4, 3, 32, 32] } })).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: /^pixelValuesVideos.dims: got \[1, 4, 3, 32, 32\], wanted \[videos, 8/,
    });
  });

  it('refuses a tower that is not of its checkpoint, and one whose frames do not see each other', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'desap-temporal-'));
    const spatial = 'test/fixtures/families/video_llava/onnx/vision_encoder.onnx';
    await cp(CLIP, folder, { recursive: true });
    const opened = VideoLlavaVision.open(spatial, { clip: folder, kind: 'video-llava' });
    await expect(opened).rejects.toMatchObject({ code: 'ERR_HEAD_MISMATCH', message: /not of one model/ });
    await expect(
      VideoLlavaVision.open(ENCODER, { clip: 'test/fixtures/families/video_llava/clip' }),
    ).rejects.toMatchObject({
      name: 'DesapError',
    });
    await rm(folder, { recursive: true });
  });
});
