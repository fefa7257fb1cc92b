import { realpathSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { namedFile } from '../../named-files.js';
import { GraphField, ModelField } from './proto.js';
import { readTensor } from './stored-tensor.js';
import { fields, withFileSource } from './wire.js';

/**
 * Looks at the files that the initialisers of a model lie in, before ONNX Runtime opens them: it would wait for the writer of a FIFO.
 * @throws DesapError `ERR_FILE` for a model that is none, and as {@link namedFile}
 */
export function checkExternalData(path: string): void {
  const file = { path: realpathSync(path), folder: dirname(resolve(path)) };
  const names = withFileSource(path, file.path, (source) => {
    const found = new Set<string>();
    for (const graph of fields(source))
      if (graph.number === ModelField.graph)
        for (const field of fields(source, graph.start, graph.end)) {
          if (field.number !== GraphField.initializer) continue;
          const { data } = readTensor(source, field.start, field.end);
          if ('file' in data && data.file !== null) found.add(data.file);
        }
    return found;
  });
  for (const name of names) namedFile(path, file, name);
}
