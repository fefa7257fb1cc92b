import { Tensor } from '@huggingface/transformers';
import * as ort from 'onnxruntime-node';
import { describe, expect, it } from 'vitest';
import { FurtherInputs } from '../../src/transformers/further-inputs.js';

/** A decoder with these inputs that remembers what it is run on. */
function decoder(inputs: Record<string, number>) {
  const fed: Record<string, ort.Tensor>[] = [];
  const inputMetadata = Object.entries({ inputs_embeds: 3, ...inputs }).map(([name, rank]) => ({
    ...{ name, isTensor: true, type: 'float32', shape: new Array(rank).fill('open') },
  }));
  const session = {
    ...{ inputMetadata, inputNames: inputMetadata.map(({ name }) => name) },
    run: async (feeds: Record<string, ort.Tensor>) => fed.push(feeds),
  };
  return { session: session as never, fed };
}

// Two sequences of three slots, the first of them padding in the second; visual tokens in columns 1, 2, 4 and in column 3.
const slots = [Int32Array.from([0, 1, 4]), Int32Array.from([-1, 2, 3])];
const images = [
  { sequence: 0, columns: [1, 2, 4] },
  { sequence: 1, columns: [3] },
] as never[];
const kept = (rows: (name: number) => ort.Tensor) =>
  [[0, 2], [0]].map((indices, image) => ({
    indices: Int32Array.from(indices),
    further: { deep: rows(image) },
  })) as never[];
const embeds = () => new Tensor('float32', new Float32Array(12), [2, 3, 2]);
const rows = (image: number) =>
  image === 0 ? new ort.Tensor('float32', [1, 2, 3, 4], [2, 2]) : new ort.Tensor('float32', [5, 6], [1, 2]);
const layers = (image: number) =>
  image === 0
    ? new ort.Tensor('float32', [1, 2, 3, 4, -1, -2, -3, -4], [2, 2, 2])
    : new ort.Tensor('float32', [5, 6, -5, -6], [2, 1, 2]);

describe('what a decoder takes of visual tokens besides their features', () => {
  it.each([
    ['rows one after the other', 2, rows, [1, 2, 3, 4, 5, 6], [3, 2], [0, 2]],
    ['rows at their places', 3, rows, [0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 5, 6], [2, 3, 2], [2, 1, 2]],
    ['layers one after the other', 3, layers, [1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5, -6], [2, 3, 2], [2, 0, 2]],
    [
      ...(['layers at their places', 4, layers] as const),
      [0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 0, 0, -1, -2, -3, -4, 0, 0, 0, 0, -5, -6],
      [2, 2, 3, 2],
      [2, 2, 1, 2],
    ],
  ] as const)('%s, and zeros in later steps', async (_, rank, of, data, dims, later) => {
    const { session, fed } = decoder({ deep: rank });
    const further = FurtherInputs.of(session, [{ name: 'deep', shape: [] }], ort)!;
    expect(further.session.inputNames).toEqual(['inputs_embeds']);
    const prompt = embeds();
    further.note(prompt as never, slots, images, kept(of));
    await further.session.run({ inputs_embeds: prompt.ort_tensor });
    expect(Array.from(fed[0].deep.data as Float32Array)).toEqual(data);
    expect(fed[0].deep.dims).toEqual(dims);
    await further.session.run({ inputs_embeds: new ort.Tensor('float32', new Float32Array(4), [2, 1, 2]) });
    expect(fed[1].deep.dims).toEqual(later);
    expect((fed[1].deep.data as Float32Array).every((value) => value === 0)).toBe(true);
  });

  it('is nothing where the decoder takes none', () => {
    expect(FurtherInputs.of(decoder({}).session, [{ name: 'deep', shape: [] }], ort)).toBeNull();
  });
});
