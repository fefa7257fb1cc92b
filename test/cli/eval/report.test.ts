import { describe, expect, it } from 'vitest';
import { csv } from '../../../src/cli/eval/csv.js';
import { html } from '../../../src/cli/eval/html.js';
import { plot, ticks } from '../../../src/cli/eval/plot.js';
import type { Report } from '../../../src/cli/eval/report.js';
import type { Row } from '../../../src/cli/eval/results.js';
import { styleOf, swatch } from '../../../src/cli/eval/styles.js';
import { text } from '../../../src/cli/eval/text.js';

const row = (method: string, keep: string, positions: string, more: Partial<Row>): Row => ({
  ...{ method, keep, positions, tokens: 16, accuracy: { mean: 0.5, error: 0.025 }, toFirst: null },
  ...{
    toAll: { mean: -0.25, error: 0.02 },
    ms: { vision: 3, select: 0.25, prefill: 1.5 },
    latency: 4.75,
    types: { color: 0.25, shape: 0.75 },
  },
  ...more,
});
const OTHER = 'desap:alignment=mean,taskShare=1';
const report: Report = {
  ...{ model: 'a <model>', questions: 'q.jsonl', device: 'CPU', date: '2026-01-01', answered: 400, first: 'desap' },
  rows: [
    row('all', 'all', '', {
      tokens: 144,
      accuracy: { mean: 0.75, error: 0.02 },
      toAll: null,
      ms: { vision: 3, prefill: 4 },
      latency: 7,
    }),
    row('desap', '16', 'compact', {}),
    row(OTHER, '16', 'compact', { accuracy: { mean: 0.6175, error: null }, toFirst: { mean: 0.1175, error: 0.03 } }),
  ],
  skipped: [{ line: 7, skipped: 'a"b.png & <c>: missing' }],
};

describe('a report', () => {
  it('is a table', () => {
    const [header, , all, first, second, , note] = text(report).split('\n');
    expect(header.split(/ {2,}/)).toEqual([
      'method',
      'keep',
      'positions',
      'tokens',
      'right %',
      'to desap',
      'to all',
      'vision',
      'select',
      'prefill',
    ]);
    expect(all.split(/ {2,}/)).toEqual(['all', 'all', '144', '75.00 ± 2.0', '3.00', '4.00']);
    expect(first.split(/ {2,}/)).toEqual([
      'desap',
      '16',
      'compact',
      '16',
      '50.00 ± 2.5',
      '-25.00 ± 2.0',
      '3.00',
      '0.25',
      '1.50',
    ]);
    expect(second.split(/ {2,}/)).toEqual([
      OTHER,
      '16',
      'compact',
      '16',
      '61.75',
      '+11.75 ± 3.0',
      '-25.00 ± 2.0',
      '3.00',
      '0.25',
      '1.50',
    ]);
    expect(note).toMatch(/^400 questions on: CPU\./);
  });

  it('is CSV', () => {
    const lines = csv(report).split('\r\n');
    expect(lines).toEqual([
      'method,keep,positions,questions,tokens,accuracy,accuracy_error,to_first,to_first_error,to_all,to_all_error,vision_ms,select_ms,prefill_ms,latency_ms',
      'all,all,,400,144,75,2,,,,,3,,4,7',
      'desap,16,compact,400,16,50,2.5,,,-25,2,3,0.25,1.5,4.75',
      `"${OTHER}",16,compact,400,16,61.75,,11.75,3,-25,2,3,0.25,1.5,4.75`,
      '',
    ]);
  });

  it('is one page with plots, which needs nothing else', () => {
    const page = html(report);
    expect(page).not.toMatch(/(?:src|href)=|url\(|<script|@import/);
    expect(page).toContain('a &lt;model&gt;');
    expect(page).toContain('line 7: a&quot;b.png &amp; &lt;c&gt;: missing');
    const plots = page.match(/<svg viewBox="0 0 640[\s\S]*?<\/svg>/g) as string[];
    expect(plots).toHaveLength(2);
    for (const [name, plot] of [
      ['visual tokens', plots[0]],
      ['first token', plots[1]],
    ]) {
      expect(plot).toContain(name);
      expect(plot).toContain(`<title>${OTHER}, 16 tokens: 61.75 %`);
      expect(plot).not.toContain('NaN');
    }
    // Methods alone over tokens, all tokens beside them over time.
    expect(plots.map((plot) => plot.match(/class="mark"/g)?.length)).toEqual([2, 3]);
    expect(page).toContain('<th>color</th><th>shape</th>');
    const tags = [...page.matchAll(/<(\/?)(svg|g|table|tr|ul|li|figure|div|title|text)\b/g)];
    for (const tag of new Set(tags.map(([, , name]) => name))) {
      const own = tags.filter(([, , name]) => name === tag);
      expect(own.filter(([, slash]) => slash)).toHaveLength(own.length / 2);
    }
  });

  it('says what latencies end with', () => {
    const rows = report.rows.map((one) => ({ ...one, ms: { vision: 3, generate: 9 } }));
    expect(html(report)).toContain('ms from the pixels to the first token');
    expect(html({ ...report, rows })).toContain('ms from the pixels to the end of the answer');
  });

  it.each([
    [0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]],
    [52, 88, [50, 60, 70, 80, 90]],
    [6.8, 9.1, [6.5, 7, 7.5, 8, 8.5, 9, 9.5]],
    [5, 5, [5]],
    [0, 0, [0]],
  ])('has round ticks from %f to %f', (low, high, wanted) => expect(ticks(low, high)).toEqual(wanted));

  it('tells 24 methods apart, by their points too', () => {
    const styles = Array.from({ length: 24 }, (_, i) => styleOf(i));
    expect(new Set(styles.map((style) => JSON.stringify(style))).size).toBe(24);
    const marks = styles.map((style) => swatch(style).match(/<(?:circle|rect|polygon)[^>]*>/)?.[0]);
    expect(new Set(marks).size).toBe(24);
  });

  it('has room for all points, and numbers that do not touch', () => {
    const series = [8, 16, 32].map((x, i) => ({
      ...{ style: styleOf(i), shift: 20 * (i - 1) },
      points: [x, 8, 32, 32.4].map((at) => ({ x: at, y: 50, error: 1, title: '' })),
    }));
    const drawn = plot({
      ...{ xName: 'tokens', yName: 'right', isLogarithmic: true, series },
      level: { y: 60, error: 1, title: '' },
    });
    const lefts = [...drawn.matchAll(/cx="([\d.]+)"/g)].map(([, at]) => Number(at));
    expect(Math.min(...lefts)).toBeGreaterThan(56);
    expect(Math.max(...lefts)).toBeLessThan(640 - 16);
    const numbers = [...drawn.matchAll(/y="372" text-anchor="middle">([\d.]+)</g)].map(([, tick]) => tick);
    expect(numbers.sort()).toEqual(['16', '32', '8']);
  });
});
