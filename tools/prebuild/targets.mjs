// The platforms that the package carries an addon for, named as `platformName` of src/devices/addon-file.ts names them.

/** Newer symbols of glibc than these are in no addon. */
export const GLIBC = '2.28';

/**
 * `zig`: the target of the cross compiler; null: built on the platform itself, by node-gyp (the workflow does).
 * `format`: what the file is, as `formatOf` of check.mjs says it.
 */
export const TARGETS = {
  'linux-x64': { zig: `x86_64-linux-gnu.${GLIBC}`, format: 'ELF x64' },
  'linux-arm64': { zig: `aarch64-linux-gnu.${GLIBC}`, format: 'ELF arm64' },
  'linux-x64-musl': { zig: 'x86_64-linux-musl', format: 'ELF x64' },
  'win32-x64': { zig: 'x86_64-windows-gnu', format: 'PE x64' },
  'darwin-x64': { zig: null, format: 'Mach-O x64' },
  'darwin-arm64': { zig: null, format: 'Mach-O arm64' },
};

/** Those that one Linux machine makes. */
export const CROSS = Object.keys(TARGETS).filter((name) => TARGETS[name].zig !== null);
