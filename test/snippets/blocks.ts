/** Blocks of code in a paper. */

export interface Block {
  readonly paper: string;
  /** Where its first line of code stands, from 1. */
  readonly line: number;
  /** What is written behind the fence; blocks that are indented are command lines. */
  readonly language: string;
  readonly text: string;
  /** Why it is not run, from a comment above it: `<!-- not run: reason -->`. */
  readonly notRun: string | null;
}

const MARK = /^\s*<!-- not run:\s*(.*?)\s*-->\s*$/;
const INDENTED = /^ {4}/;

/**
 * The blocks of a paper in their order: fenced ones, and lines behind an empty one that are indented by four spaces.
 * @throws Error for a fence without an end, and for a mark without a reason or without a block below it
 */
export function blocksOf(paper: string, markdown: string): Block[] {
  const lines = markdown.split('\n');
  const blocks: Block[] = [];
  let mark: string | null = null;
  const add = (first: number, end: number, language: string, text: readonly string[]) => {
    blocks.push({ paper, line: first + 1, language, text: text.join('\n'), notRun: mark });
    mark = null;
    return end;
  };
  for (let at = 0; at < lines.length; at++) {
    const where = `${paper}:${at + 1}`;
    const fence = /^(\s*)(```+)(\S*)/.exec(lines[at]);
    if (fence) {
      const [, indent, ticks, language] = fence;
      const end = lines.findIndex((line, i) => i > at && line.trim() === ticks);
      if (end < 0) throw new Error(`${where}: this fence has no end`);
      const text = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent.length, line.search(/\S|$/))));
      at = add(at + 1, end, language, text);
    } else if (INDENTED.test(lines[at]) && (mark !== null || (lines[at - 1] ?? '').trim() === '')) {
      const after = lines.findIndex((line, i) => i > at && !INDENTED.test(line));
      const end = after < 0 ? lines.length : after;
      at = add(
        at,
        end - 1,
        'sh',
        lines.slice(at, end).map((line) => line.slice(4)),
      );
    } else if (lines[at].includes('<!-- not run')) {
      const reason = MARK.exec(lines[at])?.[1];
      if (!reason) throw new Error(`${where}: wanted <!-- not run: reason -->`);
      mark = reason;
    } else if (mark !== null && lines[at].trim() !== '') throw new Error(`${where}: no block below the mark`);
  }
  if (mark !== null) throw new Error(`${paper}: no block below the last mark`);
  return blocks;
}
