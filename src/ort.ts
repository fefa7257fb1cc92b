import type { OrtModule } from './onnx/edit.js';
import { optional } from './optional.js';
import { nodeRequire, resolvePackage } from './package.js';
import { disableTelemetry } from './telemetry.js';
import { forThisRealm } from './tensor.js';

disableTelemetry(); // before the first session

/**
 * The onnxruntime-node module, loaded by Node itself: no bundle and no test's own realm can hold its native part.
 * @param why what needs it, in words
 * @throws DesapError `ERR_MISSING_PACKAGE`
 */
export function loadOrt(why = 'running ONNX models'): Promise<OrtModule> {
  const load = async () => {
    const ort = nodeRequire(resolvePackage('onnxruntime-node') ?? 'onnxruntime-node') as OrtModule;
    return { InferenceSession: ort.InferenceSession, Tensor: forThisRealm(ort.Tensor) };
  };
  return optional(load, 'onnxruntime-node', why);
}
