import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';

// The processes of the tests inherit it: ONNX Runtime sends no usage data of theirs.
process.env.ORT_DISABLE_TELEMETRY ??= '1';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    // By default one core would do nothing: of two, half of the time.
    maxWorkers: availableParallelism(),
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
