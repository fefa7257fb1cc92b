import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { DesapError } from '../../errors.js';
import { writeWhole } from '../../files.js';
import { csv } from './csv.js';
import { html } from './html.js';
import type { Report } from './report.js';

/** @throws DesapError `ERR_FILE` */
export async function makeFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true }).catch((cause: Error) => {
    throw new DesapError('ERR_FILE', `${folder}: cannot be made: ${cause.message}`, { cause });
  });
}

/**
 * Writes `report.json`, `report.csv` and `report.html`.
 * @throws DesapError `ERR_FILE`
 */
export async function writeReport(folder: string, report: Report): Promise<void> {
  const files = { json: `${JSON.stringify(report, null, 1)}\n`, csv: csv(report), html: html(report) };
  for (const [kind, content] of Object.entries(files))
    await writeWhole(join(folder, `report.${kind}`), new TextEncoder().encode(content));
}
