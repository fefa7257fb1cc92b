// Whether an addon is one for its platform, by its bytes alone: any machine can tell.
import { readFileSync } from 'node:fs';
import { GLIBC, TARGETS } from './targets.mjs';

const ELF = { 62: 'x64', 183: 'arm64' };
const PE = { 34404: 'x64', 43620: 'arm64' };
const MACH_O = { 16777223: 'x64', 16777228: 'arm64' };

/** The format and the processor of a library: `ELF x64`, `PE x64`, `Mach-O arm64`, ... */
export function formatOf(bytes) {
  if (bytes.length < 64) return 'nothing';
  if (bytes.readUInt32BE(0) === 0x7f454c46) return `ELF ${ELF[bytes.readUInt16LE(18)]}`;
  if (bytes.readUInt32LE(0) === 0xfeedfacf) return `Mach-O ${MACH_O[bytes.readUInt32LE(4)]}`;
  const header = bytes.readUInt32LE(60);
  if (bytes.readUInt16BE(0) === 0x4d5a && header + 6 <= bytes.length) return `PE ${PE[bytes.readUInt16LE(header + 4)]}`;
  return 'no library';
}

/** What is wrong with the addon of a target; null: nothing. */
export function faultOf(target, file) {
  let bytes;
  try {
    bytes = readFileSync(file);
  } catch {
    return 'is not there';
  }
  const format = formatOf(bytes);
  const wanted = TARGETS[target].format;
  if (format !== wanted) return `is ${format}, wanted ${wanted}`;
  const text = bytes.toString('latin1');
  if (!text.includes('napi_register_module_v1')) return 'is no addon: it has no napi_register_module_v1';
  if (!target.startsWith('linux')) return null;
  if (/libstdc\+\+\.so|libgcc_s\.so/.test(text)) return 'needs a C++ library of the machine that it runs on';
  const musl = target.endsWith('-musl');
  const versions = [...new Set([...text.matchAll(/GLIBC_(\d+\.\d+)/g)].map(([, version]) => version))];
  if (musl !== (versions.length === 0)) return musl ? 'is for glibc, wanted musl' : 'is not for glibc';
  const newer = versions.filter((version) => minor(version) > minor(GLIBC));
  return newer.length > 0 ? `needs glibc ${newer.join(', ')}, wanted at most ${GLIBC}` : null;
}

const minor = (version) => Number(version.split('.')[1]);
