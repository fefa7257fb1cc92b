/** Results of the servers as Markdown. */
export function report(results) {
  const tables = results.map(({ name, date, versions, ready, found }) => {
    const right = found.filter((one) => one.right).length;
    const rows = found.map((one) => {
      const apart = one.apart === undefined ? '' : one.apart.toExponential(1);
      return `| ${one.name} | ${one.right ? 'yes' : '**no**'} | ${one.ids ?? ''} | ${apart} | ${one.tokens ?? ''} | ${cell(one.said)} |`;
    });
    return [
      `## ${name}`,
      '',
      `${right} of ${found.length} as expected. ${date}, ${versions}; started in ${ready.toFixed(0)} s.`,
      '',
      '| case | as expected | ids equal to Hugging Face’s | log-probabilities apart by at most | prompt tokens | said |',
      '|---|---|---|---|---|---|',
      ...rows,
      '',
    ].join('\n');
  });
  return [
    '# What a real vLLM answered',
    '',
    'Written by `npm run test:vllm`. Tiny models with random weights, float32, greedy. "Rows" are kept by hand; Hugging Face answers from the same rows as `inputs_embeds`. Machines that do other work start slowly: no time here is a measurement.',
    '',
    ...tables,
  ].join('\n');
}

const cell = (said = '') => said.replaceAll('|', '/').replace(/\s+/g, ' ');
