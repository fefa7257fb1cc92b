import { describe, expect, it } from 'vitest';
import { lastUserTurn } from '../../src/runtimes/transformers/question.js';

describe('the last user turn', () => {
  it.each([
    ['Vicuna', '<s>USER: \nwhat? ASSISTANT: this</s>USER: and that? ASSISTANT:', ' and that? '],
    ['Vicuna with a system text', 'A chat.\nUSER: \nwhat is it?\nASSISTANT:', ' \nwhat is it?\n'],
    [
      'ChatML',
      '<|im_start|>system\nhelp<|im_end|>\n<|im_start|>user\n<|vision_start|><|vision_end|>what?<|im_end|>\n<|im_start|>assistant\n',
      '<|vision_start|><|vision_end|>what?',
    ],
    ['Mistral', '<s>[INST] \nfirst [/INST] answer</s>[INST] second [/INST]', ' second '],
    ['Llama 3', '<|start_header_id|>user<|end_header_id|>\n\nwhat?<|eot_id|><|start_header_id|>assistant', '\n\nwhat?'],
    ['Gemma', '<start_of_turn>user\nwhat?<end_of_turn>\n<start_of_turn>model\n', 'what?'],
    ['Phi', '<|user|>\nwhat?<|end|>\n<|assistant|>\n', '\nwhat?'],
  ])('%s', (_, prompt, turn) => {
    expect(lastUserTurn(prompt)).toBe(turn);
  });

  it('is not guessed for prompts of no known format', () => {
    expect(lastUserTurn('Frage: was? Antwort:')).toBeNull();
  });
});
