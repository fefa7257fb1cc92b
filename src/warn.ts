const given = new Set<string>();

/** A warning of the process (`process.on('warning')`, else stderr), once for each code, or for each `about` of it. */
export function warnOnce(code: `DESAP_${string}`, message: string, about = ''): void {
  const key = `${code} ${about}`;
  if (given.has(key)) return;
  given.add(key);
  process.emitWarning(message, { type: 'DesapWarning', code });
}
