// Every stage of every call as a Prometheus histogram: the events of the channel `desap:call`, counted by prom-client.
import { tracingChannel } from 'node:diagnostics_channel';
import { Counter, Histogram, Registry } from 'prom-client';

/** @returns a registry whose `metrics()` a server hands out */
export function prometheus(registry = new Registry()) {
  const about = { registers: [registry], buckets: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10] };
  const calls = new Histogram({ name: 'desap_call_seconds', help: 'Whole calls', labelNames: ['call'], ...about });
  const stages = new Histogram({
    ...{ name: 'desap_stage_seconds', help: 'Stages of calls', labelNames: ['call', 'stage'] },
    ...about,
  });
  const errors = new Counter({
    ...{ name: 'desap_errors_total', help: 'Calls that failed', labelNames: ['call', 'code'], registers: [registry] },
  });
  const began = new WeakMap();
  tracingChannel('desap:call').subscribe({
    start: (event) => began.set(event, performance.now()),
    end() {},
    asyncStart() {},
    asyncEnd(event) {
      const { call, timings = {}, error } = event;
      if (error !== undefined) return;
      calls.observe({ call }, (performance.now() - began.get(event)) / 1000);
      for (const [stage, milliseconds] of Object.entries(timings)) stages.observe({ call, stage }, milliseconds / 1000);
    },
    error: ({ call, error }) => errors.inc({ call, code: error?.code ?? 'unknown' }),
  });
  return registry;
}
