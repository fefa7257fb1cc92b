// What ptxas made of the kernels, held against native/cuda/resources.json, and what the addon holds and asks for.
//
//   node test/cuda-resources.mjs build-cuda [--write]
//
// Built with the toolkit that tools/cuda/requirements.txt pins, no kernel may spill, need a stack frame or have static shared
// memory, and registers must be those of the table (written by --write). A build of some of the targets is held against those.
// What another toolkit does differently is told and no fault.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const tableFile = join(root, 'native/cuda/resources.json');
const pin = readFileSync(join(root, 'tools/cuda/requirements.txt'), 'utf8').match(/^nvidia-cuda-nvcc==(\S+)/m)[1];
const [build, ...options] = process.argv.slice(2);
if (!build) throw new Error('usage: node test/cuda-resources.mjs build-folder [--write]');

let failures = 0;
function check(condition, text) {
  if (condition) return;
  failures++;
  console.error(`FAILED ${text}`);
}

// ---- Kernels: what keep_ptxas.sh kept -------------------------------------------------------------------------------

const files = readdirSync(build, { recursive: true }).map((name) => join(build, name));
const toolkit = readFileSync(
  files.find((file) => file.endsWith('CMakeCUDACompiler.cmake')),
  'utf8',
).match(/CMAKE_CUDA_COMPILER_VERSION "(.*?)"/)[1];

const pinned = toolkit === pin;
if (!pinned) console.log(`toolkit ${toolkit}, but ${pin} is pinned: differences are no faults`);
function checkUse(condition, text) {
  if (pinned) check(condition, text);
  else if (!condition) console.log(`note: ${text}`);
}

// Keys stay the same when signatures and files' hashes change: names without namespaces of ours and without parameters.
const keyOf = (demangled) =>
  demangled
    .replace(/^void /, '')
    .replaceAll(/\(anonymous namespace\)::|desap::cuda::|desap::/g, '')
    .replace(/\((?!Precision\)|bool\)|int\)).*$/, '');

const kernels = new Map(); // name -> target -> { registers, spills, stack, shared }
for (const file of files.filter((name) => name.endsWith('.ptxas'))) {
  let current;
  for (const line of readFileSync(file, 'utf8').split('\n')) {
    const entry = line.match(/Compiling entry function '(\w+)' for 'sm_(\d+)'/);
    if (entry) {
      const key = `${relative(build, file).replace(/^.*\/|\.o\.ptxas$/g, '')} ${entry[1]}`;
      const targets = kernels.get(key) ?? new Map();
      kernels.set(key, targets.set(entry[2], (current = {})));
    }
    const frame = line.match(/(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/);
    if (frame && current) Object.assign(current, { stack: +frame[1], spills: +frame[2] + +frame[3] });
    const used = line.match(/Used (\d+) registers(?:.*?(\d+) bytes smem)?/);
    if (used && current) Object.assign(current, { registers: +used[1], shared: +(used[2] ?? 0) });
  }
}
check(kernels.size > 0, `no .ptxas file in ${build}`);

const names = [...kernels.keys()];
const demangled = execFileSync('c++filt', {
  input: names.map((name) => name.split(' ')[1]).join('\n'),
  encoding: 'utf8',
});
const found = {};
for (const [i, line] of demangled.trim().split('\n').entries()) {
  const key = `${names[i].split(' ')[0]}: ${keyOf(line)}`;
  check(!(key in found), `${key}: two kernels of this name`);
  found[key] = {};
  for (const [target, use] of kernels.get(names[i])) {
    checkUse(
      use.stack === 0 && use.spills === 0,
      `${key}, sm_${target}: stack ${use.stack}, spills ${use.spills} bytes`,
    );
    checkUse(use.shared === 0, `${key}, sm_${target}: ${use.shared} bytes of static shared memory`);
    found[key][target] = use.registers;
  }
}
const targets = [...new Set(Object.values(found).flatMap((use) => Object.keys(use)))].sort((a, b) => a - b);

if (options.includes('--write')) {
  const sorted = Object.fromEntries(Object.entries(found).sort(([a], [b]) => (a < b ? -1 : 1)));
  const lines = Object.entries(sorted).map(([key, use]) => {
    const registers = targets.map((target) => `"${target}": ${use[target]}`).join(', ');
    return `    ${JSON.stringify(key)}: { ${registers} }`;
  });
  writeFileSync(tableFile, `{\n  "toolkit": "${toolkit}",\n  "registers": {\n${lines.join(',\n')}\n  }\n}\n`);
  console.log(`wrote ${relative(process.cwd(), tableFile)}`);
}

const table = JSON.parse(readFileSync(tableFile, 'utf8'));
check(table.toolkit === pin, `the table is of toolkit ${table.toolkit}, but ${pin} is pinned`);
if (pinned) {
  for (const key of new Set([...Object.keys(table.registers), ...Object.keys(found)])) {
    for (const target of targets) {
      const [expected, actual] = [table.registers[key]?.[target], found[key]?.[target]];
      check(actual === expected, `${key}, sm_${target}: ${actual} registers, the table says ${expected}`);
    }
  }
}
console.log(`${names.length} kernels for sm_${targets.join(', ')}, toolkit ${toolkit}`);

// ---- The addon --------------------------------------------------------------------------------------------------------

// The targets of the machine code in a fatbin section: containers (magic, version, header size, size) of entries (kind, version,
// header size, size, .. target at byte 28); kind 2 is machine code.
function targetsOf(section) {
  const seen = new Set();
  for (let at = section.indexOf(Buffer.from('50ed55ba', 'hex')); at >= 0; ) {
    let entry = at + section.readUInt16LE(at + 6);
    const end = entry + Number(section.readBigUInt64LE(at + 8));
    while (entry < end) {
      check(section.readUInt16LE(entry) === 2, 'the addon holds something else than machine code');
      seen.add(String(section.readUInt32LE(entry + 28)));
      entry += section.readUInt32LE(entry + 4) + Number(section.readBigUInt64LE(entry + 8));
    }
    at = section.indexOf(Buffer.from('50ed55ba', 'hex'), end);
  }
  return [...seen].sort((a, b) => a - b);
}

const addon = join(build, 'Release/desap_cuda.node');
if (existsSync(addon)) {
  const readelf = (...args) => execFileSync('readelf', ['-W', ...args, addon], { encoding: 'utf8' });
  const section = readelf('-S').match(/\.nv_fatbin\s+PROGBITS\s+\w+\s+(\w+)\s+(\w+)/);
  check(section, 'the addon has no .nv_fatbin section');
  if (section) {
    const begin = Number.parseInt(section[1], 16);
    const held = targetsOf(readFileSync(addon).subarray(begin, begin + Number.parseInt(section[2], 16)));
    check(held.join() === targets.join(), `the addon holds sm_${held}, compiled were sm_${targets}`);
  }
  const needed = [...readelf('-d').matchAll(/\(NEEDED\).*\[(.*)\]/g)].map((match) => match[1]);
  const system = /^(lib(stdc\+\+|m|gcc_s|c|dl|rt|pthread)\.so|ld-linux)/;
  check(
    needed.every((name) => system.test(name)),
    `the addon needs ${needed}`,
  );
  const exported = readelf('--dyn-syms')
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields.length === 8 && /^(GLOBAL|WEAK|UNIQUE)$/.test(fields[4]) && /^\d+$/.test(fields[6]))
    .map((fields) => fields[7]);
  const entries = ['napi_register_module_v1', 'node_api_module_get_api_version_v1'];
  check(
    exported.every((name) => entries.includes(name)),
    `the addon exports ${exported}`,
  );
  console.log(`addon: needs ${needed.join(', ')}; exports ${exported.join(', ')}`);
} else {
  console.log('no addon in this build');
}
process.exitCode = failures ? 1 : 0;
