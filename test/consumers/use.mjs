// What every surrounding runs: kernels, memory, a pruner, bad input, and a vision model. Returns what came out, for comparison.
import { DesapError, HostBuffer, openBackend, Pruner } from 'desap';
import { ImageProcessor, openVisionModel } from 'desap/onnxruntime';
import { toImageEmbeds } from 'desap/serving';

const wave = (length, at) => Float32Array.from({ length }, (_, i) => Math.sin(i * 12.9898 + at));
const layer = (at) => ({ weight: wave(64, at), bias: wave(8, at) });
const HEAD = {
  width: 8,
  heads: 2,
  projectionDim: 4,
  classToken: true,
  epsilon: 1e-5,
  ln1: { weight: wave(8, 1), bias: wave(8, 2) },
  q: layer(3),
  k: layer(4),
  v: layer(5),
  out: layer(6),
  postNorm: { weight: wave(8, 7), bias: wave(8, 8) },
  visualProjection: wave(32, 9),
};

/** @param models the repository's models folder */
export async function use(models) {
  const pruner = await Pruner.load(HEAD);
  const hidden = { data: wave(80, 10), dims: [10, 8] };
  const text = { data: wave(12, 11), dims: [3, 4] };
  const [image] = await pruner.analyzeBatch([hidden]);
  const kept = await image.prune(text, { keep: 3, maps: true });

  hidden.data[20] = Number.NaN;
  const refused = await pruner.prune(hidden, text, { keep: 3 }).then(
    () => 'accepted',
    (error) => `${error instanceof DesapError} ${error.code}`,
  );

  const backend = openBackend();
  const best = await backend.topK({ scores: Float32Array.of(3, 1, 2), k: 2 });

  let inPlace = null; // without a native addon there is no such memory
  try {
    const buffer = HostBuffer.forTensor('float32', [10, 8]);
    buffer.float32().set(wave(80, 10));
    inPlace = buffer.inPlace;
    const again = await pruner.prune(buffer.tensor('float32', [10, 8]), text, { keep: 3 });
    if (`${again.indices}` !== `${kept.indices}`) throw new Error(`memory read wrong: ${again.indices}`);
    buffer.dispose();
  } catch (error) {
    if (error.code !== 'ERR_DEVICE_UNAVAILABLE') throw error;
  }

  const processor = await ImageProcessor.open(`${models}/tiny-llava`);
  const vision = await openVisionModel(`${models}/tiny-llava`, { clip: `${models}/tiny-clip`, keep: 16 });
  const pixelValues = await processor.process(`${models}/eval/images/000.png`);
  const seen = await vision.prune({ pixelValues }, 'what is the large thing ?');
  await vision.dispose();
  await vision.dispose();

  const { device, fallback } = pruner.backend;
  pruner.dispose();
  backend.dispose();
  return {
    device,
    addon: fallback === null || !fallback.includes('cpu:'),
    inPlace,
    kept: `${kept.indices}`,
    best: `${best}`,
    refused,
    patches: `${seen.indices}`,
    features: `${seen.features.dims}`,
    part: toImageEmbeds(seen.features, { modelType: 'llava', hiddenSize: 128, rows: 16 }).image_embeds,
  };
}
