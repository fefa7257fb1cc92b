import { attachThrough } from '../../transformers/attach.js';
import type { CallOptions } from '../../transformers/index.js';
import { ClientModel, type ClientPrompt } from '../client/client-model.js';
import { EncodeOnce } from '../client/encode-once.js';
import type { Processing } from '../client/processing.js';
import type { ChosenModel } from '../options.js';
import { type Examinee, partsOf, type Reply } from './examinee.js';
import type { ExamineeOptions } from './own-examinee.js';

/** A model that Transformers.js runs. Its time is told as one: prompt and answer together. */
export async function clientExaminee(
  { folder, options: { dtype, ...opening } }: ChosenModel,
  processing: Processing,
  options: ExamineeOptions,
): Promise<Examinee> {
  const client = await ClientModel.open(folder, processing, { ...options, dtype });
  const once = new EncodeOnce();
  let device = '';
  await attachThrough(client.model, { ...opening, model: folder, keep: 'all' }, (vision) => {
    device = vision.deviceDescription;
    once.watch(vision);
  });

  const answer = async (prompt: ClientPrompt, desap?: CallOptions): Promise<Reply> => {
    const { text, milliseconds } = await client.generate(prompt, desap);
    const { pruned, milliseconds: seeing, encoding } = once.take();
    return {
      text,
      tokens: pruned?.indices.length ?? prompt.visual,
      parts: { vision: encoding, ...(pruned && partsOf(pruned.timings)), generate: milliseconds - seeing },
    };
  };
  return {
    device,
    async see(path) {
      const image = await client.read(path);
      let asked: { readonly told: string; readonly prompt: Promise<ClientPrompt> } | undefined;
      const ask = (told: string) => {
        if (asked?.told !== told) asked = { told, prompt: client.ask(told, image) };
        return asked.prompt;
      };
      return {
        whole: async ({ told }) => answer(await ask(told)),
        async pruned({ question, told }, how, forms) {
          const replies: Reply[] = [];
          for (const positions of forms)
            replies.push(await answer(await ask(told), { ...how, ...(positions && { positions }), question }));
          return replies;
        },
        dispose: () => once.forget(),
      };
    },
    async dispose() {
      once.forget();
      await client.dispose();
    },
  };
}
