/** Every refusal of `desap/serving` is a DesapError, whatever is given for whatever. */
import * as serving from '../../src/serving/index.js';
import { refuseWrongValues } from '../wrong-values.js';

const rows = { data: new Float32Array(32), dims: [8, 4] };
const LLAVA = { modelType: 'llava', hiddenSize: 4 } as const;
const QWEN = { modelType: 'qwen3_vl', hiddenSize: 4 } as const;
const image = {
  features: rows,
  grid: [1, 4, 8] as const,
  indices: Int32Array.from({ length: 8 }, (_, i) => i),
  deepstack: { data: new Float32Array(32), dims: [1, 8, 4] },
};
serving.toImageEmbeds(image, QWEN); // is taken as it is

refuseWrongValues([
  ['toImageEmbeds', (value) => serving.toImageEmbeds(value, LLAVA)],
  ['toImageEmbeds of a list', (value) => serving.toImageEmbeds([rows, value], LLAVA)],
  ['toImageEmbeds options', (value) => serving.toImageEmbeds(rows, value)],
  ...['modelType', 'hiddenSize', 'dtype', 'format', 'rows', 'allowMixedK'].map(
    (name) =>
      [`toImageEmbeds ${name}`, (value: never) => serving.toImageEmbeds(rows, { ...LLAVA, [name]: value })] as const,
  ),
  ...Object.keys(image).map(
    (name) =>
      [`toImageEmbeds ${name}`, (value: never) => serving.toImageEmbeds({ ...image, [name]: value }, QWEN)] as const,
  ),
  ['toImageEmbeds grid entry', (value) => serving.toImageEmbeds({ ...image, grid: [1, value, 8] }, QWEN)],
  ['toPromptEmbeds', (value) => serving.toPromptEmbeds(value, LLAVA)],
  ['toPromptEmbeds options', (value) => serving.toPromptEmbeds(rows, value)],
  ['checkUsage', (value) => serving.checkUsage(value, 5)],
  ['checkUsage usage', (value) => serving.checkUsage({ usage: value }, 5)],
  ['checkUsage expected', (value) => serving.checkUsage({ usage: { prompt_tokens: 5 } }, value)],
]);
