import { type ChatTemplate, type ContentPart, type Message, writesParts } from '../../vision/chat-template.js';

/** What a chat template writes around the texts of a conversation, learned by rendering conversations of known words. */
export interface Literals {
  /** In front of the first user's text when there is no system text. */
  readonly first: string;
  /** In front of a system text and between it and the first user's text; null where the template takes none. */
  readonly system: { readonly before: string; readonly after: string; readonly inLastTurn: boolean } | null;
  /** Between a user's text and the answer to it. */
  readonly toAnswer: string;
  /** Between an answer and the next user's text. */
  readonly toUser: string;
  /** Between the texts of two user turns in a row; null where the template takes none. */
  readonly toUserAgain: string | null;
  /** Behind the last user's text, when an answer is asked for. */
  readonly asked: string;
  /** Behind the last user's text, when none is asked for. */
  readonly closed: string;
}

type Role = Message['role'];

/** A word for each place, of plain letters, which no template changes. */
const WORDS = { system: 'desapsystem', user: 'desapfirst', assistant: 'desapanswer', again: 'desapsecond' };
const FIRST: readonly [Role, string][] = [['user', WORDS.user]];
const SYSTEM: readonly [Role, string][] = [['system', WORDS.system], ...FIRST];
const AGAIN: readonly [Role, string][] = [...FIRST, ['user', WORDS.again]];
const TWO: readonly [Role, string][] = [...FIRST, ['assistant', WORDS.assistant], ['user', WORDS.again]];

/** The literals of a template, or null for one that does not write a user's text. */
export function literalsOf(template: ChatTemplate): Literals | null {
  const around = (messages: readonly [Role, string][], asked = true, order = messages.map(([, word]) => word)) =>
    pieces(template, messages, asked, order);
  const one = around(FIRST);
  if (one === null) return null;
  const system = around(SYSTEM);
  const two = around(TWO);
  const late = [WORDS.user, WORDS.assistant, WORDS.system, WORDS.again];
  return {
    first: one[0],
    system: system && {
      before: system[0],
      after: system[1],
      inLastTurn: around([...SYSTEM.slice(0, 1), ...TWO], true, late) !== null,
    },
    toAnswer: two?.[1] ?? '',
    toUser: two?.[2] ?? '',
    toUserAgain: around(AGAIN)?.[1] ?? null,
    asked: one[1],
    closed: around(FIRST, false)?.[1] ?? one[1],
  };
}

/** Templates take texts or lists of parts, some of them texts from all but the user. */
const CONTENTS: readonly ((role: Role, text: string) => string | readonly ContentPart[])[] = [
  (_, text) => [{ type: 'text', text }],
  (_, text) => text,
  (role, text) => (role === 'user' ? [{ type: 'text', text }] : text),
];

/** What a template writes around the words of a conversation; null when it refuses it, or writes them otherwise than once and in order. */
function pieces(
  template: ChatTemplate,
  messages: readonly [Role, string][],
  asked: boolean,
  order: readonly string[],
): string[] | null {
  for (const content of CONTENTS) {
    let text: string;
    try {
      text = template.render(
        messages.map(([role, word]) => ({ role, content: content(role, word) })),
        asked,
      );
    } catch {
      continue;
    }
    const parts = text.split(new RegExp(order.join('|')));
    const words = text.match(new RegExp(order.join('|'), 'g'));
    if (words?.join() === order.join() && !writesParts(text)) return parts;
  }
  return null;
}
