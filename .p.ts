import { Llava } from './src/runtimes/llava.js';
import fs from 'node:fs';
const e = JSON.parse(fs.readFileSync('models/expected.json','utf8'));
const l = await Llava.open('models/tiny-llava',{clip:'models/tiny-clip'});
console.log(l.vision!.device);
let ok=0, kept=0; const t0=performance.now();
for (const it of e.items.slice(0,100)) { const a = await l.answer('models/eval/'+it.image, it.question, {keep:16}); if (a.text===it.pruned) ok++; else console.log(it.item,a.text,it.pruned); if ([...a.pruned!.indices].join()===it.kept.join()&&[...a.pruned!.source].join()===it.source.join()) kept++; else console.log(it.item, [...a.pruned!.indices].join(), it.kept.join()); if (it.item>97) console.log(a.timings, a.pruned!.timings); }
console.log(ok, kept, performance.now()-t0); await l.dispose();
