/** Where the native addons of an installed package lie. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** The platform of this process, as folders of prebuilt addons are named: `linux-x64`, `linux-x64-musl`, `win32-x64`, ... */
export function platformName(): string {
  return `${process.platform}-${process.arch}${usesMusl() ? '-musl' : ''}`;
}

/** The addon built here, else the prebuilt one of this platform; null: there is neither. */
export function cpuAddonFile(root: string): string | null {
  return first(join(root, 'native/build/Release/desap.node'), join(prebuilt(root), 'desap.node'));
}

/** As {@link cpuAddonFile}, for CUDA. */
export function cudaAddonFile(root: string): string | null {
  return first(join(root, 'build-cuda/Release/desap_cuda.node'), join(prebuilt(root), 'cuda/desap_cuda.node'));
}

/** The platforms that the package at `root` carries an addon for. */
export function prebuiltPlatforms(root: string): string[] {
  const folder = join(root, 'prebuilds');
  return existsSync(folder) ? readdirSync(folder).sort() : [];
}

const prebuilt = (root: string) => join(root, 'prebuilds', platformName());

const first = (...files: string[]) => files.find((file) => existsSync(file)) ?? null;

/** Whether this program runs on musl's C library (Alpine): its loader is mapped then. Addons for glibc do not load there. */
function usesMusl(): boolean {
  if (process.platform !== 'linux') return false;
  try {
    return readFileSync('/proc/self/maps', 'latin1').includes('/ld-musl-');
  } catch {
    return false; // no /proc, or no right to read it
  }
}
