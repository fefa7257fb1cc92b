import { DesapError, invalid } from '../../errors.js';
import { floatData, Tensor, type TensorLike } from '../../tensor.js';

/** Whether a value is a tensor of ONNX Runtime, of Transformers.js or of the same form: whether it has `dims`. */
export function isTensor(value: unknown): value is TensorLike {
  return typeof value === 'object' && value !== null && Array.isArray((value as TensorLike).dims);
}

/**
 * A caller's `pixel_values` as a tensor of the installed onnxruntime; the memory is not copied.
 * @throws DesapError `ERR_SHAPE` unless they are one image, [1, 3, H, W]; `ERR_DTYPE`, `ERR_DETACHED`, `ERR_DISPOSED`
 */
export function pixelValues(tensor: TensorLike): Tensor {
  const { dims } = tensor;
  if (dims.length !== 4 || dims[0] !== 1 || dims[1] !== 3)
    throw invalid('ERR_SHAPE', 'image.dims', dims, '[1, 3, H, W]: the pixel_values of one image');
  const { data, half } = floatData('image', { type: tensor.type, data: memoryOf(tensor), dims });
  return new Tensor(half ? 'float16' : 'float32', data as never, dims);
}

/** The tensor's memory, as an array of this realm. */
function memoryOf(tensor: TensorLike): unknown {
  try {
    const { data } = tensor as { data: Float32Array };
    return Object.prototype.toString.call(data) === '[object Float32Array]'
      ? new Float32Array(data.buffer, data.byteOffset, data.length)
      : data;
  } catch (cause) {
    throw new DesapError('ERR_DISPOSED', `image: got a tensor without its data: ${(cause as Error).message}`, {
      cause,
    });
  }
}
