import { table } from '../table.js';
import { count, note, partNames, percent, type Report, signed } from './report.js';

/** A report as plain text. */
export function text(report: Report): string {
  const { rows, first } = report;
  const parts = partNames(rows);
  const names = ['method', 'keep', 'positions', 'tokens', 'right %', `to ${first}`, 'to all'];
  const cells = rows.map(({ method, keep, positions, tokens, accuracy, toFirst, toAll, ms }) => [
    ...[method, keep, positions, count(tokens), percent(accuracy)],
    ...[signed(toFirst), signed(toAll)],
    ...parts.map((part) => ms[part]?.toFixed(2) ?? ''),
  ]);
  const header = [...names, ...parts];
  const numbers = header.flatMap((_, column) => (column === 1 || column > 2 ? [column] : []));
  return `${table(header, cells, numbers)}\n\n${note(report)}`;
}
