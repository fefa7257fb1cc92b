// The package as it would be published, but with the addon of this machine alone.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** Copies into a folder what package.json lists, packs it, and gives the tarball. Needs `npm run build`. */
export function stage(folder) {
  const addon = join(root, 'build', 'Release', 'desap.node');
  for (const file of [addon, join(root, 'dist', 'index.js')])
    if (!existsSync(file)) throw new Error(`${file} is missing: run npm run build first`);
  const { files } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const listed = files.filter((entry) => !entry.startsWith('!') && entry !== 'prebuilds');
  for (const entry of [...listed, 'package.json', 'README.md', 'LICENSE'])
    cpSync(join(root, entry), join(folder, entry), {
      recursive: true,
      filter: (source) => !/native[/\\]test$/.test(source),
    });
  const prebuilds = join(folder, 'prebuilds', `${process.platform}-${process.arch}`);
  mkdirSync(prebuilds, { recursive: true });
  cpSync(addon, join(prebuilds, 'desap.node'));
  const [{ filename }] = JSON.parse(
    execFileSync('npm', ['pack', '--json', '--ignore-scripts'], { cwd: folder, encoding: 'utf8' }),
  );
  return join(folder, filename);
}
