// The platforms that the package carries an addon for.

/** Newer symbols of glibc than these are in no addon. */
export const GLIBC = '2.28';

/**
 * `zig`: the target of the cross compiler; null: built on the platform itself, by prebuildify (the workflow does).
 * `file`: in `prebuilds`; node-gyp-build takes one with the name of a C library on that library alone.
 * `format`: what the file is, as `formatOf` of check.mjs says it.
 */
export const TARGETS = {
  'linux-x64': { zig: `x86_64-linux-gnu.${GLIBC}`, file: 'linux-x64/desap.glibc.node', format: 'ELF x64' },
  'linux-arm64': { zig: `aarch64-linux-gnu.${GLIBC}`, file: 'linux-arm64/desap.glibc.node', format: 'ELF arm64' },
  'linux-x64-musl': { zig: 'x86_64-linux-musl', file: 'linux-x64/desap.musl.node', format: 'ELF x64' },
  'win32-x64': { zig: 'x86_64-windows-gnu', file: 'win32-x64/desap.node', format: 'PE x64' },
  'darwin-x64': { zig: null, file: 'darwin-x64/desap.node', format: 'Mach-O x64' },
  'darwin-arm64': { zig: null, file: 'darwin-arm64/desap.node', format: 'Mach-O arm64' },
};

/** Those that one Linux machine makes. */
export const CROSS = Object.keys(TARGETS).filter((name) => TARGETS[name].zig !== null);
