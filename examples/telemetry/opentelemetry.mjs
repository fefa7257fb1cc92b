// Every call as a span of OpenTelemetry, calls within a call below it, with the stages as attributes.
import { AsyncLocalStorage } from 'node:async_hooks';
import { tracingChannel } from 'node:diagnostics_channel';
import { context, SpanStatusCode, trace } from '@opentelemetry/api';

/** Spans go to the tracer provider that the program has registered. */
export function spans(tracer = trace.getTracer('desap')) {
  const current = new AsyncLocalStorage();
  const channel = tracingChannel('desap:call');
  // What a call does on its way sees the call's span as its own.
  channel.start.bindStore(current, (event) => {
    const outer = current.getStore() ?? context.active();
    event.span = tracer.startSpan(`desap ${event.call}`, {}, outer);
    return trace.setSpan(outer, event.span);
  });
  channel.subscribe({
    start() {},
    end() {},
    asyncStart() {},
    asyncEnd({ span, timings = {} }) {
      for (const [stage, milliseconds] of Object.entries(timings)) span.setAttribute(`desap.${stage}_ms`, milliseconds);
      span.end();
    },
    error({ span, error }) {
      span.recordException(error);
      span.setStatus({ code: SpanStatusCode.ERROR, message: String(error?.code) });
    },
  });
}
