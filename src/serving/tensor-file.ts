import { oneOf } from '../tensor.js';
import { DTYPES, type EmbedsDtype, elements } from './elements.js';
import { npyDescription, npyFile } from './npy-file.js';
import type { Rows } from './rows.js';
import { torchFile } from './torch-file.js';

/** Forms of a tensor file. */
export type EmbedsFormat = (typeof FORMATS)[number];
const FORMATS = ['torch', 'npy'] as const;

/** How rows become a file. */
export interface FileForm {
  readonly dtype: EmbedsDtype;
  readonly format: EmbedsFormat;
}

/** @throws DesapError `ERR_VALUE` */
export function fileForm(dtype: EmbedsDtype = 'bf16', format: EmbedsFormat = 'torch'): FileForm {
  oneOf('dtype', dtype, DTYPES);
  oneOf('format', format, FORMATS);
  if (format === 'npy') npyDescription(dtype);
  return { dtype, format };
}

/**
 * A tensor file in base64, as a request holds it.
 * @throws DesapError `ERR_NOT_FINITE`
 */
export function tensorFile(argument: string, rows: Rows, { dtype, format }: FileForm): string {
  const write = format === 'npy' ? npyFile : torchFile;
  return Buffer.from(write(elements(argument, rows, dtype), dtype, rows.count, rows.width)).toString('base64');
}
