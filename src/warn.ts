const given = new Set<string>();

/** A warning of the process (`process.on('warning')`, else stderr), once for each code. */
export function warnOnce(code: `DESAP_${string}`, message: string): void {
  if (given.has(code)) return;
  given.add(code);
  process.emitWarning(message, { type: 'DesapWarning', code });
}
