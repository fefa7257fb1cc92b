import { describe, expect, it } from 'vitest';
import { cellsOf, parseAmounts, parsePositions } from '../../../src/cli/eval/cells.js';
import { parseMethods } from '../../../src/cli/eval/methods.js';

const refused = (parse: () => unknown) => {
  try {
    parse();
  } catch (error) {
    return error;
  }
  return null;
};

describe('methods', () => {
  it('have options, and commas that belong to them', () => {
    const methods = parseMethods('desap, desap:alignment=mean,taskShare=1,merge=false,desap:lambda=0.2');
    expect(methods.map(({ label }) => label)).toEqual([
      'desap',
      'desap:alignment=mean,taskShare=1,merge=false',
      'desap:lambda=0.2',
    ]);
    expect(methods.map(({ draws }) => draws(1))).toEqual([
      [{}],
      [{ alignment: 'mean', taskShare: 1, merge: false }],
      [{ lambda: 0.2 }],
    ]);
  });

  it('other than the pruner have options of their own', () => {
    const [vscan, divprune] = parseMethods('vscan:windows=2,mergeSpace=hidden,divprune');
    expect(vscan.draws(1)).toEqual([{ method: 'vscan', methodOptions: { windows: 2, mergeSpace: 'hidden' } }]);
    expect(divprune.draws(1)).toEqual([{ method: 'divprune', methodOptions: {} }]);
  });

  it('draw five times for each question, or once with a seed', () => {
    const [random, once] = parseMethods('random:merging=true,random:seed=3');
    const seeds = (line: number) =>
      random.draws(line).map(({ methodOptions }) => (methodOptions as { seed: number }).seed);
    expect(new Set([...seeds(1), ...seeds(2)]).size).toBe(10);
    expect(random.draws(1)[0]).toMatchObject({ method: 'random', methodOptions: { merging: true } });
    expect(once.draws(1)).toEqual([{ method: 'random', methodOptions: { seed: 3 } }]);
  });

  it.each([
    ['', /--methods: got ''/],
    ['abacus', /--methods abacus: method: got 'abacus', wanted 'desap' \| 'random'/],
    ['vscan:speed=9', /--methods vscan:speed=9: .*unknown option 'speed'/],
    ['trim:adaptive=true', /--methods trim:adaptive=true: method: got one that finds K itself/],
    ['random:seed=-1', /--methods random:seed=-1: seed: got -1/],
    ['desap,,desap:lambda=1', /--methods: got ''/],
    ['desap,desap', /--methods: got 'desap' twice/],
    ['desap:', /--methods: got 'desap:'/],
    ['desap:lambda', /--methods desap:lambda: got 'lambda', wanted option=value/],
    ['desap:lambda=1,lambda=2', /--methods desap:lambda=1,lambda=2: got 'lambda' twice/],
    ['desap:lamda=1', /--methods desap:lamda=1: options: got the unknown option 'lamda', wanted one of taskShare/],
    ['desap:keep=3', /unknown option 'keep'/],
    ['desap:taskShare=2', /--methods desap:taskShare=2: taskShare: got 2/],
    ['desap:alignment=median', /alignment: got 'median', wanted 'fcma'/],
    ['desap:merge=no', /merge: got 'no'/],
  ])('refuses %j', (text, message) => {
    expect(refused(() => parseMethods(text))).toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(message),
    });
  });
});

describe('amounts and positions', () => {
  it('are counts and shares', () => {
    expect(parseAmounts('16, 12.50%,100%')).toEqual([
      { label: '16', budget: { keep: 16 } },
      { label: '12.5%', budget: { keepRatio: 0.125 } },
      { label: '100%', budget: { keepRatio: 1 } },
    ]);
    expect(parsePositions('compact,original')).toEqual(['compact', 'original']);
    expect(parsePositions(undefined)).toEqual([undefined]);
  });

  it.each(['', '0', '1.5', '-3', '0%', '101%', 'all', '16,16', '16,016', '12.5%,12.50%', '0x10'])(
    'refuses --keep %j',
    (text) => {
      expect(refused(() => parseAmounts(text))).toMatchObject({
        code: 'ERR_VALUE',
        message: expect.stringMatching(/^--keep: got/),
      });
    },
  );

  it.each(['', 'middle', 'compact,compact'])('refuses --positions %j', (text) => {
    expect(refused(() => parsePositions(text))).toMatchObject({
      code: 'ERR_VALUE',
      message: expect.stringMatching(/^--positions: got/),
    });
  });

  it('make rows', () => {
    const plan = {
      methods: parseMethods('desap,desap:lambda=1'),
      amounts: parseAmounts('8,4'),
      positions: parsePositions('compact,original'),
    };
    expect(cellsOf(plan).map(({ method, keep, positions }) => `${method} ${keep} ${positions}`)).toEqual([
      ...['desap 8 compact', 'desap:lambda=1 8 compact', 'desap 4 compact', 'desap:lambda=1 4 compact'],
      ...['desap 8 original', 'desap:lambda=1 8 original', 'desap 4 original', 'desap:lambda=1 4 original'],
    ]);
  });
});
