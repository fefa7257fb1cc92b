import { describe, expect, it } from 'vitest';
import { type Key, score } from '../../../src/cli/eval/scoring.js';
import { normalized, softScore } from '../../../src/cli/eval/vqa.js';

describe('exact and any', () => {
  const exact: Key = { scoring: 'exact', answers: ['Top-left'] };
  it.each([
    ['top-left', 1],
    [' Top-left. ', 1],
    ['top left', 0],
    ['the top-left', 0],
    ['', 0],
  ])('%j', (answer, right) => expect(score(answer, exact)).toBe(right));

  it('takes one of several', () => {
    const any: Key = { scoring: 'any', answers: ['sofa', 'couch'] };
    expect(['Couch', 'sofa.', 'chair'].map((answer) => score(answer, any))).toEqual([1, 1, 0]);
  });
});

describe('yes-no, as POPE reads answers', () => {
  it.each([
    ['No', 'no'],
    ['no, there is none', 'no'],
    ['There is not a dog. Yes.', 'no'],
    ['Yes, there is. No doubt.', 'yes'],
    ['nothing', 'yes'],
    ['', 'yes'],
  ])('%j says %s', (answer, said) => {
    expect(score(answer, { scoring: 'yes-no', answers: ['yes'] })).toBe(Number(said === 'yes'));
    expect(score(answer, { scoring: 'yes-no', answers: ['No'] })).toBe(Number(said === 'no'));
  });
});

describe('choice', () => {
  const key: Key = { scoring: 'choice', answers: ['a red car'], choices: ['a bus', 'a red car', 'A'] };
  it.each([
    ['B', 1],
    ['b', 1],
    ['B. a bus', 1],
    ['(B)', 1],
    ['B) that one', 1],
    ['The answer is B.', 1],
    ['the answer is (b), the red one', 1],
    ['Answer: B', 1],
    ['The answer is B because it is red', 1],
    ['The answer is b red', 0],
    ['A red car.', 1],
    ['C', 0],
    ['Bus', 0],
    ['', 0],
    ['a', 0], // the text of the third
  ])('%j', (answer, right) => expect(score(answer, key)).toBe(right));
});

describe('the soft score of VQA', () => {
  const people = (agreeing: number) => [
    ...new Array<string>(agreeing).fill('red'),
    ...Array.from({ length: 10 - agreeing }, (_, i) => `other ${i}`),
  ];
  // By hand: m agree; without one of them m - 1 of the others do, without another one m.
  it.each([
    [0, 0],
    [1, 0.3],
    [2, 0.6],
    [3, 0.9],
    [4, 1],
    [10, 1],
  ])('%i of ten agree', (agreeing, wanted) => expect(softScore('red', people(agreeing))).toBeCloseTo(wanted, 12));

  it('reads the answers of people as it reads that of the model', () => {
    const given = ['Two dogs', 'two dogs.', 'the 2 dogs', '2 dogs', ...new Array<string>(6).fill('cats')];
    expect(softScore('2 dogs', given)).toBe(1);
  });

  // What processPunctuation and processDigitArticle of the official program give.
  it.each([
    ['The  Dog\n', 'dog'],
    ['none', '0'],
    ['Ten, or eleven?', '10 or eleven'],
    ['1,000', '1000'],
    ['1,000 blue-green', '1000 bluegreen'],
    ['blue-green', 'blue green'],
    ['blue - green', 'blue green'],
    ['3.5.', '3.5'],
    ['U.S.', 'us'],
    ['dont', "don't"],
    ["couldn'tve", "couldn't've"],
    ["Ow's'at", "'ow's'at"],
    ['its', 'its'],
    ["she's (a) nurse", "she's nurse"],
    ['lets', 'lets'],
  ])('%j is compared as %j', (answer, wanted) => expect(normalized(answer)).toBe(wanted));
});

it('takes an article for no letter', () => {
  const key: Key = { scoring: 'choice', answers: ['dog'], choices: ['dog', 'cat'] };
  expect(score('The answer is a cat', key)).toBe(0);
});
