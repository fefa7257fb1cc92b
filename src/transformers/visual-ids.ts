/** Which ids of a prompt stand for visual tokens. */
import { type HookedModel, imageTokenId, isJoint, videoTokenId } from './model.js';

/** A kind of ids. */
export interface VisualIds {
  has(id: bigint): boolean;
  /** For messages. */
  readonly words: string;
}

const NEGATIVE: VisualIds = { has: (id) => id < 0n, words: 'negative ids' };

function only(token: bigint): VisualIds {
  return { has: (id) => id === token, words: `id ${token}` };
}

/**
 * Those of images.
 * @throws DesapError `ERR_VALUE` for a config that names none
 */
export function imageIds(model: Pick<HookedModel, 'config' | 'sessions'>): VisualIds {
  return isJoint(model) ? NEGATIVE : only(imageTokenId(model));
}

/** Those of videos; null for a model without videos. */
export function videoIds(model: Pick<HookedModel, 'config'>): VisualIds | null {
  const token = videoTokenId(model);
  return token === null ? null : only(token);
}

/** Those of images and of videos. */
export function isVisual(model: Pick<HookedModel, 'config' | 'sessions'>): (id: bigint) => boolean {
  const [image, video] = [imageIds(model), videoIds(model)];
  return (id) => image.has(id) || video?.has(id) === true;
}
