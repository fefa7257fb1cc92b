import { type AttachOptions, attach, type PrunedImage } from '../../transformers/index.js';
import type { Answered } from '../answers.js';
import { ClientModel, type ClientOptions } from './client-model.js';
import type { Processing } from './processing.js';

/** A question about an image, for a model that Transformers.js runs. */
export interface ClientQuestion extends ClientOptions {
  readonly image: string;
  readonly question: string;
  /** How to prune; null: not at all. */
  readonly pruning: Omit<AttachOptions, 'model' | 'question' | 'onPruned'> | null;
}

/**
 * Answers through the installed Transformers.js, greedily.
 * @throws DesapError as {@link ClientModel} and `attach`
 */
export async function answerThroughClient(
  folder: string,
  processing: Processing,
  { image: path, question, pruning, ...options }: ClientQuestion,
): Promise<Answered> {
  const client = await ClientModel.open(folder, processing, options);
  try {
    const prompt = await client.ask(question, await client.read(path));
    let kept: PrunedImage | undefined;
    if (pruning !== null)
      await attach(client.model, {
        ...pruning,
        ...{ model: folder, question },
        onPruned: ([first]) => {
          kept = first;
        },
      });
    const { text, ids, milliseconds } = await client.generate(prompt);
    const tokens = kept?.indices.length ?? prompt.visual;
    const promptTokens = prompt.length - prompt.visual + tokens;
    return { text, ids, tokens, promptTokens, timings: { generate: milliseconds }, ...(kept && { pruned: kept }) };
  } finally {
    await client.dispose();
  }
}
