// What each client's project runs: the addon that was installed, without another word.
import { devices, openBackend } from 'desap';

process.on('warning', (warning) => {
  if (warning.name === 'DesapWarning') process.exitCode = 1;
});
const [cpu] = devices();
const backend = openBackend();
const best = await backend.topK({ scores: Float32Array.of(3, 1, 2), k: 2 });
console.log(JSON.stringify({ available: cpu.available, device: backend.device, best: String(best) }));
