/** Folders of tiny models of each family, images for them, and commands in this process. */
import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Command } from 'commander';
import sharp from 'sharp';
import { vi } from 'vitest';
import { imageOf, ROOT, type Size } from '../transformers/family-cases.js';

/** What a command in this process prints: starting one for each case would take most of the time. */
export async function printed(command: Command, ...args: string[]): Promise<string> {
  const written: string[] = [];
  const spy = vi.spyOn(process.stdout, 'write').mockImplementation((text) => written.push(String(text)) > 0);
  try {
    await command.exitOverride().parseAsync(args, { from: 'user' });
  } finally {
    spy.mockRestore();
  }
  return written.join('');
}

export async function json(command: Command, ...args: string[]) {
  return JSON.parse(await printed(command, ...args, '--json'));
}

/** What Hugging Face says; each family has other fields of these. */
export interface Expected {
  readonly never_generated: number[];
  readonly max_new_tokens: number;
  readonly cases: readonly (ClientCase & OwnCase)[];
}
interface ClientCase {
  readonly pictures: readonly (readonly Size[])[];
  readonly unpruned: readonly number[][];
}
interface OwnCase {
  readonly picture: Size;
  readonly frames: readonly Size[];
  readonly tiles: number;
  readonly tokens: number;
  readonly input_ids: number[];
}

/** The folder of a family, with the settings of `expected.json` as its own. */
export async function familyFolder(folder: string, family: string): Promise<{ model: string; expected: Expected }> {
  const model = join(folder, family);
  await cp(join(ROOT, family), model, { recursive: true });
  const expected: Expected = JSON.parse(await readFile(join(model, 'expected.json'), 'utf8'));
  const path = join(model, 'generation_config.json');
  const own = JSON.parse(await readFile(path, 'utf8'));
  const { never_generated: suppress_tokens, max_new_tokens } = expected;
  await writeFile(path, JSON.stringify({ ...own, suppress_tokens, max_new_tokens }));
  return { model, expected };
}

export async function pngOf(folder: string, size: Size, path = join(folder, `${size.join('-')}.png`)): Promise<string> {
  const { data, width, height } = imageOf(size);
  await sharp(data, { raw: { width, height, channels: 3 } })
    .png()
    .toFile(path);
  return path;
}
