/** The papers of the house: every file that they link to is there. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';
import { ROOT } from './support.js';

const docs = readdirSync(join(ROOT, 'docs')).filter((name) => name.endsWith('.md'));
const PAPERS = ['README.md', 'CONTRIBUTING.md', 'tools/export/README.md', 'test/exports/README.md'].concat(
  docs.map((name) => join('docs', name)),
);

test.each(PAPERS)('%s', (paper) => {
  const text = readFileSync(join(ROOT, paper), 'utf8');
  const linked = [...text.matchAll(/\]\(([^)#]+)[^)]*\)/g)]
    .map(([, target]) => target)
    .filter((to) => !to.includes('://'));
  expect(linked.filter((target) => !existsSync(join(ROOT, dirname(paper), target)))).toEqual([]);
});
