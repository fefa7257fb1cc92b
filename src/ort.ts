import { checkOrt, type OrtModule } from './onnx/edit.js';
import { missingPackage, warnIfOld } from './optional.js';
import { nodeRequire, resolvePackage } from './package.js';
import { disableTelemetry } from './telemetry.js';
import { forAnyRealm } from './tensor.js';

disableTelemetry(); // before the first session

/**
 * The onnxruntime-node module that a caller gave, or else the installed one.
 * @param why what needs it, in words
 * @throws DesapError `ERR_VALUE` for another module, `ERR_MISSING_PACKAGE`
 */
export async function ortModule(given: OrtModule | undefined, why?: string): Promise<OrtModule> {
  return given === undefined ? loadOrt(why) : checkOrt(given);
}

/**
 * The installed onnxruntime-node module, loaded by Node itself: no bundle and no test's own realm can hold its native part.
 * @param why what needs it, in words
 * @throws DesapError `ERR_MISSING_PACKAGE`
 */
export async function loadOrt(why = 'running ONNX models'): Promise<OrtModule> {
  const file = resolvePackage('onnxruntime-node');
  if (file === null) throw missingPackage('onnxruntime-node', why);
  warnIfOld('onnxruntime-node');
  const { InferenceSession, Tensor } = nodeRequire(file) as OrtModule;
  return { InferenceSession, Tensor: forAnyRealm(Tensor) };
}
