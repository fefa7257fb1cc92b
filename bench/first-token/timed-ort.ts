/** onnxruntime-node with a clock: what a model's sessions take, by the part of the model that they run. */
import * as ort from 'onnxruntime-node';
import { ATTENTION, ROWS } from '../../src/onnx/block-values.js';
import type { OrtModule } from '../../src/onnx/edit.js';
import { PATCHES } from '../../src/onnx/split.js';
import type { Clock } from './clock.js';

/** `pixels` takes the image: the whole tower, or its front; `rest` is what takes states behind a cut, and `tail` the end of a last block. */
export type SessionPart = 'pixels' | 'rest' | 'tail' | 'connector';

/** Part by part, in milliseconds. */
export type SessionTimes = Readonly<Record<SessionPart, number>>;

export interface TimedOrt {
  readonly ort: OrtModule;
  /** What has been spent since the last call. */
  taken(): SessionTimes;
}

/** A module for the option `ort`. */
export function timedOrt(now: Clock): TimedOrt {
  const nothing = (): Record<SessionPart, number> => ({ pixels: 0, rest: 0, tail: 0, connector: 0 });
  let times = nothing();
  const create = async (...args: Parameters<typeof ort.InferenceSession.create>) => {
    const session = await ort.InferenceSession.create(...args);
    const part = partOf(session.inputNames);
    const run = session.run.bind(session) as (...given: unknown[]) => Promise<unknown>;
    const timed = async (...given: unknown[]) => {
      const start = now();
      const result = await run(...given);
      times[part] += now() - start;
      return result;
    };
    return Object.assign(session, { run: timed });
  };
  return {
    ort: { Tensor: ort.Tensor, InferenceSession: { create } } as unknown as OrtModule,
    taken() {
      const own = times;
      times = nothing();
      return own;
    },
  };
}

function partOf(inputs: readonly string[]): SessionPart {
  if (inputs.includes('pixel_values')) return 'pixels';
  if (inputs.includes(ROWS) || inputs.includes(PATCHES)) return 'connector';
  return inputs.includes(ATTENTION) ? 'tail' : 'rest';
}
