import { Option } from 'commander';

/** The option that says which positions the language model sees. */
export const positionsOption = (): Option =>
  new Option(
    '--positions <form>',
    'kept tokens renumbered, or at their own places (default: compact; Qwen-VL: original)',
  ).choices(['compact', 'original']);
