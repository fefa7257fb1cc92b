/**
 * Visual tokens handed over to an engine that answers: content parts and prompts for vLLM's OpenAI-compatible server.
 *
 * @module desap/serving
 */

export type { EmbedsDtype } from './elements.js';
export type { GridThw } from './grid.js';
export type { EmbedsOptions, GridRows, ImageEmbedsOptions, ImageEmbedsPart } from './image-embeds.js';
export { toImageEmbeds } from './image-embeds.js';
export type { PromptEmbeds } from './prompt-embeds.js';
export { toPromptEmbeds } from './prompt-embeds.js';
export type { ServedModel } from './served-models.js';
export type { EmbedsFormat } from './tensor-file.js';
export type { Answered } from './usage.js';
export { checkUsage } from './usage.js';
