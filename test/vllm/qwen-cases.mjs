// Qwen-VL: all rows of the grid, and those of a rectangle with the rectangle's own grid.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { toImageEmbeds } from 'desap/serving';
import { chat, compared, picture, text } from './client.mjs';

export async function grids(base, model, folder, modelType) {
  const { N, D, wide, grid, cases } = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8'));
  const { buffer, byteOffset, length } = readFileSync(join(folder, 'wide1.f32'));
  const all = new Float32Array(buffer.slice(byteOffset, byteOffset + length)); // each row with its deepstack rows
  const columns = (kept, layer) => {
    const data = new Float32Array(kept.length * D);
    for (const [k, row] of kept.entries())
      data.set(all.subarray(row * wide + layer * D, row * wide + (layer + 1) * D), k * D);
    return data;
  };
  const part = (kept, dtype) => {
    const layers = wide / D - 1;
    const deepstack = new Float32Array(layers * kept.length * D);
    for (let layer = 0; layer < layers; layer++) deepstack.set(columns(kept, layer + 1), layer * kept.length * D);
    const image = {
      features: { data: columns(kept, 0), dims: [kept.length, D] },
      grid,
      indices: Int32Array.from(kept),
      ...(layers > 0 && { deepstack: { data: deepstack, dims: [layers, kept.length, D] } }),
    };
    return toImageEmbeds(image, { modelType, hiddenSize: D, dtype });
  };
  const { full, rect_owngrid: rectangle } = cases;
  const ask = text(full.question);
  return [
    compared('the picture itself (image_url)', await chat(base, [picture(model, 1), ask]), full),
    compared(`all ${N} rows, torch fp32`, await chat(base, [part(full.keep[0], 'fp32'), ask]), full),
    compared(`all ${N} rows, torch fp16`, await chat(base, [part(full.keep[0], 'fp16'), ask]), full),
    compared('3 x 4 rows of it, their own grid', await chat(base, [part(rectangle.keep[0], 'fp32'), ask]), rectangle),
  ];
}
