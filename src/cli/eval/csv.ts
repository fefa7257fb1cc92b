import { partNames, type Report } from './report.js';
import type { Estimate } from './statistics.js';

/** One line for each row of a report, as RFC 4180 has them. Accuracies and differences are in percent. */
export function csv({ rows, answered }: Report): string {
  const parts = partNames(rows);
  const estimates = (name: string) => [name, `${name}_error`];
  const header = [
    ...['method', 'keep', 'positions', 'questions', 'tokens'],
    ...['accuracy', 'to_first', 'to_all'].flatMap(estimates),
    ...parts.map((part) => `${part}_ms`),
    'latency_ms',
  ];
  const lines = rows.map(({ method, keep, positions, tokens, accuracy, toFirst, toAll, ms, latency }) => [
    ...[method, keep, positions, answered, tokens],
    ...[accuracy, toFirst, toAll].flatMap(percents),
    ...parts.map((part) => ms[part]),
    latency,
  ]);
  return [header, ...lines].map((line) => `${line.map(field).join(',')}\r\n`).join('');
}

function percents(estimate: Estimate | null): (number | null)[] {
  return [estimate?.mean, estimate?.error].map((share) => (typeof share === 'number' ? 100 * share : null));
}

function field(value: string | number | null | undefined): string {
  if (typeof value === 'number') return String(Number(value.toPrecision(6)));
  const text = value ?? '';
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
