// For Jest and vitest.
import { use } from './use.mjs';

test('desap works in this test runner', async () => {
  expect(await use(process.env.DESAP_MODELS)).toEqual(JSON.parse(process.env.DESAP_EXPECTED));
}, 60_000);
