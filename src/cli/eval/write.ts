import { join } from 'node:path';
import { writeWhole } from '../../output-file.js';
import { csv } from './csv.js';
import { html } from './html.js';
import type { Report } from './report.js';

/**
 * Writes `report.json`, `report.csv` and `report.html`.
 * @throws DesapError `ERR_FILE`
 */
export async function writeReport(folder: string, report: Report): Promise<void> {
  const files = { json: `${JSON.stringify(report, null, 1)}\n`, csv: csv(report), html: html(report) };
  for (const [kind, content] of Object.entries(files))
    await writeWhole(join(folder, `report.${kind}`), new TextEncoder().encode(content));
}
