import { Llava, type SeenImage } from '../llava/llava.js';
import type { ChosenModel, ModelFlags } from '../options.js';
import { type Examinee, partsOf, type Reply, type Sight } from './examinee.js';

export interface ExamineeOptions {
  /** Default: the model's chat template. */
  readonly prompt?: string;
  readonly maxNewTokens?: number;
}

/** A model that the command line runs itself. */
export async function ownExaminee(
  { folder, kind, options }: ChosenModel,
  flags: ModelFlags,
  { prompt, maxNewTokens }: ExamineeOptions,
): Promise<Examinee> {
  const llava = await Llava.open(folder, { ...options, prompt, images: await kind.images(folder, flags) });
  return {
    device: llava.vision.deviceDescription,
    see: async (image) => sightOf(llava, await llava.see(image), maxNewTokens),
    dispose: () => llava.dispose(),
  };
}

function sightOf(llava: Llava, seen: SeenImage, maxNewTokens: number | undefined): Sight {
  const { image } = seen;
  return {
    async whole({ told }) {
      const { text, tokens, timings } = await seen.answer(told, { keep: 'all', maxNewTokens });
      const { vision, projector, prefill, decode } = timings;
      return { text, tokens, parts: { vision, projector, prefill, decode } };
    },
    async pruned({ question, told }, how, forms) {
      const dart = how.method === 'dart' && { methodOptions: await llava.withText(told, image.medium, how) };
      const kept = await image.prune(how.taskShare === 0 ? null : question, { ...how, ...dart });
      const visual = { features: kept.features, kept, medium: image.medium };
      const replies: Reply[] = [];
      for (const positions of forms) {
        const { text, tokens, timings } = await llava.complete(visual, told, { positions, maxNewTokens });
        replies.push({ text, tokens, parts: { vision: seen.milliseconds, ...partsOf(kept.timings), ...timings } });
      }
      return replies;
    },
    dispose: () => seen.dispose(),
  };
}
