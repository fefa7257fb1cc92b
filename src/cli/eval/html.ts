import { type Plot, type Point, plot, type Series } from './plot.js';
import { count, latencyEnd, note, partNames, percent, type Report, signed, skippedLines } from './report.js';
import type { Row } from './results.js';
import { PLAIN, styleOf, swatch } from './styles.js';
import { escaped } from './svg.js';

const STYLE = `
:root { color-scheme: light dark; --line: #8886; --faint: #8883; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { flex: 1 1 28rem; margin: 0; max-width: 44rem; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.grid { stroke: var(--faint); } .axis { stroke: currentColor; }
.level line { stroke: currentColor; } .level rect { fill: var(--faint); }
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; } .legend svg { width: 34px; height: 10px; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }`;

/** A report as one page that needs nothing else. */
export function html(report: Report): string {
  const { model, questions, date, rows, skipped, first } = report;
  const title = `Answers with pruned visual tokens: ${model}`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(title)}</title>
<style>${STYLE}
</style>
</head>
<body>
<h1>${escaped(title)}</h1>
<p>${escaped(`${questions}, ${date}. ${note(report)}`)}</p>
${legend(rows)}
${positionsOf(rows)
  .map((positions) => plots(rows, positions))
  .join('\n')}
<h2>All rows</h2>
${resultTable(rows, first)}
${typeTable(rows)}
${
  skipped.length > 0
    ? `<h2>Skipped</h2>\n<ul>${skippedLines(skipped)
        .map((line) => `<li>${escaped(line)}</li>`)
        .join('\n')}</ul>`
    : ''
}
</body>
</html>
`;
}

const methodsOf = ([, ...rows]: readonly Row[]) => [...new Set(rows.map(({ method }) => method))];
const positionsOf = ([, ...rows]: readonly Row[]) => [...new Set(rows.map(({ positions }) => positions))];

function legend(rows: readonly Row[]): string {
  const entries = methodsOf(rows).map((method, i) => `<li>${swatch(styleOf(i))} ${escaped(method)}</li>`);
  return `<ul class="legend">\n${entries.join('\n')}\n<li>${swatch(PLAIN)} all tokens: the dotted line, with its error</li>\n</ul>`;
}

/** Both plots of one form of positions. */
function plots(rows: readonly Row[], positions: string): string {
  const [all] = rows;
  const methods = methodsOf(rows);
  const series = (x: (row: Row) => number, spread: number): Series[] =>
    methods.map((method, i) => {
      const own = rows.filter((row) => row.positions === positions && row.method === method);
      const points = own.sort((a, b) => a.tokens - b.tokens).map((row) => pointOf(row, x(row)));
      return { style: styleOf(i), shift: spread * (i - (methods.length - 1) / 2), points };
    });
  const whole = { style: PLAIN, shift: 0, points: [pointOf(all, all.latency)] };
  return `<h2>Positions: ${escaped(positions)}</h2>
<div class="plots">
${figure('Accuracy over kept tokens', {
  ...{ xName: 'visual tokens', isLogarithmic: true, level: pointOf(all, 0) },
  series: series((row) => row.tokens, 2),
})}
${figure('Accuracy against latency', {
  ...{ xName: `ms from the pixels to ${latencyEnd(rows)}`, isLogarithmic: false, level: pointOf(all, 0) },
  series: [...series((row) => row.latency, 0), whole],
})}
</div>`;
}

function figure(caption: string, drawn: Omit<Plot, 'yName'>): string {
  return `<figure><figcaption>${escaped(caption)}</figcaption>\n${plot({ ...drawn, yName: 'right, %' })}\n</figure>`;
}

function pointOf(row: Row, x: number): Point {
  const { method, tokens, accuracy, latency } = row;
  const error = accuracy.error === null ? null : 100 * accuracy.error;
  const title = `${method}, ${count(tokens)} tokens: ${percent(accuracy)} %, ${latency.toFixed(2)} ms`;
  return { x, y: 100 * accuracy.mean, error, title };
}

function resultTable(rows: readonly Row[], first: string): string {
  const parts = partNames(rows);
  const header = ['method', 'keep', 'positions', 'tokens', 'right, %', `to ${first}`, 'to all tokens'];
  const cells = rows.map(({ method, keep, positions, tokens, accuracy, toFirst, toAll, ms, latency }) => [
    ...[method, keep, positions, count(tokens), percent(accuracy), signed(toFirst), signed(toAll)],
    ...parts.map((part) => ms[part]?.toFixed(2) ?? ''),
    latency.toFixed(2),
  ]);
  return tableOf([...header, ...parts.map((part) => `${part}, ms`), `to ${latencyEnd(rows)}, ms`], cells);
}

/** Accuracy by kind of question, where questions have kinds. */
function typeTable(rows: readonly Row[]): string {
  const types = Object.keys(rows[0].types);
  if (types.length === 0) return '';
  const cells = rows.map(({ method, keep, positions, types: own }) => [
    ...[method, keep, positions],
    ...types.map((type) => (100 * own[type]).toFixed(1)),
  ]);
  return `<h2>Right, %, by kind of question</h2>\n${tableOf(['method', 'keep', 'positions', ...types], cells)}`;
}

function tableOf(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (tag: string, cells: readonly string[]) =>
    `<tr>${cells.map((cell) => `<${tag}>${escaped(cell)}</${tag}>`).join('')}</tr>`;
  return `<div class="table"><table>
<thead>${line('th', header)}</thead>
<tbody>
${rows.map((cells) => line('td', cells)).join('\n')}
</tbody>
</table></div>`;
}
