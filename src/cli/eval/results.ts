/** From answers to the rows of a report. */
import { median } from '../table.js';
import { ALL, type Cell, cellsOf, keyOf, type Plan } from './cells.js';
import type { Answered, Outcome } from './journal.js';
import { type Estimate, estimate, pairedDifference } from './statistics.js';

/** One row: shares of right answers from 0 to 1. */
export interface Row extends Cell {
  /** Visual tokens that the language model saw, mean. */
  readonly tokens: number;
  readonly accuracy: Estimate;
  /** Gain over the first method with as many tokens and the same positions, question by question; null for itself and for all tokens. */
  readonly toFirst: Estimate | null;
  /** Gain over all visual tokens, question by question; null for themselves. */
  readonly toAll: Estimate | null;
  /** Milliseconds by part, medians over the questions. */
  readonly ms: Readonly<Record<string, number>>;
  /** From the pixels to the first token, median; with the whole answer where the parts are not told apart. */
  readonly latency: number;
  /** Accuracy by kind of question. */
  readonly types: Readonly<Record<string, number>>;
}

/** @param answered at least one */
export function rowsOf(plan: Plan, answered: readonly Answered[]): Row[] {
  const whole: Cell = { method: ALL, keep: ALL, positions: '' };
  const all = answered.map(({ results }) => results[ALL]);
  const [{ label: first }] = plan.methods;
  return [
    rowOf(whole, all, { answered, all: null, first: null }),
    ...cellsOf(plan).map((cell) => {
      const of = (method: string) => answered.map(({ results }) => results[keyOf({ ...cell, method })]);
      return rowOf(cell, of(cell.method), { answered, all, first: cell.method === first ? null : of(first) });
    }),
  ];
}

interface Others {
  readonly answered: readonly Answered[];
  readonly all: readonly Outcome[] | null;
  readonly first: readonly Outcome[] | null;
}

function rowOf(cell: Cell, outcomes: readonly Outcome[], { answered, all, first }: Others): Row {
  const scores = scoresOf(outcomes);
  return {
    ...cell,
    tokens: estimate(outcomes.map(({ tokens }) => tokens)).mean,
    accuracy: estimate(scores),
    toFirst: first && pairedDifference(scores, scoresOf(first)),
    toAll: all && pairedDifference(scores, scoresOf(all)),
    ms: mediansOf(outcomes),
    latency: median(outcomes.map(({ ms: { decode, ...parts } }) => total(Object.values(parts)))),
    types: byType(answered, scores),
  };
}

const scoresOf = (outcomes: readonly Outcome[]) => outcomes.map(({ score }) => score);
const total = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0);

function mediansOf(outcomes: readonly Outcome[]): Record<string, number> {
  return Object.fromEntries(
    Object.keys(outcomes[0].ms).map((part) => [part, median(outcomes.map(({ ms }) => ms[part] ?? 0))]),
  );
}

function byType(answered: readonly Answered[], scores: readonly number[]): Record<string, number> {
  const types = new Map<string, number[]>();
  for (const [i, { type }] of answered.entries())
    if (type !== undefined) types.set(type, [...(types.get(type) ?? []), scores[i]]);
  return Object.fromEntries([...types].sort().map(([type, own]) => [type, estimate(own).mean]));
}
