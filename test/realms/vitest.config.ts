import { defineConfig } from 'vitest/config';

export default defineConfig({ test: { include: ['test/realms/*.case.ts'], testTimeout: 60_000 } });
