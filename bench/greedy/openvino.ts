/** Builds the program that runs OpenVINO GenAI's pruner (bench/peers/openvino_cdpruner.cc) against the libraries of a Python's wheels. */
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const SOURCE = fileURLToPath(new URL('../peers/openvino_cdpruner.cc', import.meta.url));
const WHERE = `
import importlib.metadata, importlib.util
for name in ("openvino", "openvino_genai"):
    print(importlib.util.find_spec(name).submodule_search_locations[0])
print(importlib.metadata.version("openvino_genai"))
`;

export interface OpenvinoPruner {
  readonly program: string;
  readonly version: string;
}

/**
 * @param python a program of Python
 * @returns the program in `folder`, or why there is none
 */
export function openvinoPruner(python: string, folder: string): OpenvinoPruner | string {
  const found = spawnSync(python, ['-c', WHERE], { encoding: 'utf8' });
  if (found.status !== 0) return 'the Python that `--python` names has no openvino_genai';
  const [openvino, genai, version] = found.stdout.trim().split('\n');
  const libraries = join(openvino, 'libs');
  const library = (where: string, name: string) =>
    join(where, readdirSync(where).find((file) => file.startsWith(`${name}.so`)) ?? `${name}.so`);
  const program = join(folder, 'openvino_cdpruner');
  // The libraries look for others by the path of the program, which only the old form of it allows.
  const paths = `-Wl,--disable-new-dtags,-rpath,${genai}:${libraries}`;
  const linked = [library(genai, 'libopenvino_genai'), library(libraries, 'libopenvino')];
  const built = spawnSync(
    'g++',
    ['-O2', '-std=c++17', '-I', join(openvino, 'include'), SOURCE, ...linked, paths, '-o', program],
    { encoding: 'utf8' },
  );
  if (built.status !== 0) return `its program does not build: ${built.stderr?.trim() || built.error?.message}`;
  return { program, version };
}
