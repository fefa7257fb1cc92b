/** How a budget is shared over tiles, and what was kept of tiles as what was kept of the whole. */
import { describe, expect, it } from 'vitest';
import { eachTile, shared, wholeImage } from '../../src/vision/allocation.js';
import { plainLayout, type TokenLayout } from '../../src/vision/layout.js';
import { countsOfTiles, joined, type KeptPart, partsOf } from '../../src/vision/whole-image.js';
import { normal } from '../support.js';

const sum = (list: readonly number[]) => list.reduce((all, one) => all + one, 0);

describe('shared', () => {
  it.each<[string, number, number[], number[], number[]]>([
    ['in proportion', 12, [10, 10, 10], [1, 2, 3], [2, 4, 6]],
    ['the largest remainder first', 10, [10, 10, 10], [1, 1.1, 1], [3, 4, 3]],
    ['ties to the lower tile', 10, [10, 10, 10], [1, 1, 1], [4, 3, 3]],
    ['at least one for each', 5, [10, 10, 10], [0, 0, 1], [1, 1, 3]],
    ['at most the units, the rest to the others', 12, [4, 10, 10], [9, 1, 1], [4, 4, 4]],
    ['units where nothing has mass', 6, [4, 8, 12], [0, 0, 0], [1, 2, 3]],
    ['what masses cannot take goes by units', 9, [2, 4, 8], [1, 0, 0], [2, 2, 5]],
    ['one for each', 3, [4, 4, 4], [5, 1, 0], [1, 1, 1]],
    ['all of them', 12, [4, 4, 4], [5, 1, 0], [4, 4, 4]],
    ['one tile', 3, [4], [0.1], [3]],
  ])('%s', (_, total, units, masses, wanted) => {
    expect(shared(total, units, masses)).toEqual(wanted);
  });

  it('keeps its bounds and its sum, and gives more mass no fewer, for any masses', () => {
    const random = normal(5, 4000);
    for (let at = 0; at + 20 < random.length; at += 20) {
      const tiles = 1 + (at % 9);
      const units = Array.from({ length: tiles }, (_, i) => 1 + Math.floor(Math.abs(random[at + i]) * 20));
      const masses = Array.from({ length: tiles }, (_, i) => Math.max(0, random[at + 10 + i]) ** 3);
      const total = tiles + Math.floor(((sum(units) - tiles) * (at % 7)) / 6);
      const counts = shared(total, units, masses);
      expect(sum(counts)).toBe(total);
      for (const [i, count] of counts.entries()) {
        expect(count).toBeGreaterThanOrEqual(1);
        expect(count).toBeLessThanOrEqual(units[i]);
        for (const [j, other] of counts.entries())
          if (masses[i] > masses[j] && count < units[i]) expect(count).toBeGreaterThanOrEqual(other);
      }
    }
  });
});

describe('budgets', () => {
  it('are of each tile', () => {
    expect(eachTile({ keep: 5 }, [4, 8, 5])).toEqual([4, 5, 5]);
    expect(eachTile({ keepRatio: 0.25 }, [4, 8, 1])).toEqual([1, 2, 1]);
    expect(() => eachTile({ keep: 9 }, [4, 8])).toThrow('keep: got 9, wanted a count from 1 to 8');
    expect(() => eachTile({}, [4])).toThrow(/^keep: got undefined/);
  });

  it('are of the image, with one for each tile', () => {
    expect(wholeImage({ keep: 5 }, [4, 8])).toBe(5);
    expect(wholeImage({ keepRatio: 0.5 }, [4, 8])).toBe(6);
    expect(wholeImage({ keepRatio: 0.01 }, [4, 8, 4])).toBe(3);
    expect(() => wholeImage({ keep: 13 }, [4, 8])).toThrow('keep: got 13, wanted a count from 1 to 12');
    expect(() => wholeImage({ keep: 1 }, [4, 8])).toThrow('keep: got 1 for 2 tiles, wanted at least one for each tile');
  });
});

describe('what was kept', () => {
  const timings = {
    waiting: 0,
    normalize: 1,
    project: 0,
    attention: 0,
    saliency: 0,
    readOut: 0,
    align: 2,
    select: 0,
    merge: 0,
  };
  const part = (indices: number[], source: number[], assignment: number[], counts: number[]): KeptPart => ({
    indices: Int32Array.from(indices),
    source: Uint8Array.from(source),
    assignment: Int32Array.from(assignment),
    counts: Int32Array.from(counts),
    maps: { task: Float32Array.from(assignment, (_, i) => i), saliency: Float32Array.from(assignment, () => 0.5) },
    timings,
  });
  /** Two tiles of two units whose places alternate, a marker behind each pair, which stays with either unit of the pair. */
  const layout: TokenLayout = {
    tokenCount: 6,
    tiles: [
      { frame: 0, rows: 2, columns: 1 },
      { frame: 0, rows: 2, columns: 1 },
    ],
    places: [Int32Array.of(0, 3), Int32Array.of(1, 4)],
    markers: Int32Array.of(2, 5),
    staying: (kept) =>
      Int32Array.of(2, 5).filter((place) => kept.some((one) => one === place - 1 || one === place - 2)),
  };

  it('stands where the layout says, with the markers that stay', () => {
    const kept = [part([1], [0], [0, 0], [2]), part([0, 1], [1, 0], [0, 1], [1, 1])];
    const whole = joined(layout, partsOf(layout, false), kept);
    expect([...whole.indices]).toEqual([1, 2, 3, 4, 5]);
    expect([...whole.source]).toEqual([1, 2, 0, 0, 2]);
    expect([...whole.counts]).toEqual([1, 1, 2, 1, 1]);
    // Unit 0 of the first tile went into its unit 1, which is token 3, row 2.
    expect([...whole.assignment]).toEqual([2, 0, 1, 2, 3, 4]);
    expect([...whole.unitRows]).toEqual([2, 0, 3]);
    expect([...whole.markers]).toEqual([2, 5]);
    expect([...whole.markerRows]).toEqual([1, 4]);
    expect([...countsOfTiles(layout, whole)]).toEqual([1, 2]);
    expect([...whole.maps!.task!]).toEqual([0, 0, 0, 1, 1, 0]);
    expect([...whole.maps!.saliency]).toEqual([0.5, 0.5, 0, 0.5, 0.5, 0]);
    expect(whole.timings).toMatchObject({ normalize: 2, align: 4 });
  });

  it('says -1 for what was dropped, units and markers', () => {
    const kept = [part([0], [0], [0, -1], [1]), part([0], [1], [0, -1], [1])];
    const whole = joined(layout, partsOf(layout, false), kept);
    expect([...whole.indices]).toEqual([0, 1, 2]);
    expect([...whole.assignment]).toEqual([0, 1, 2, -1, -1, -1]);
    expect([...countsOfTiles(layout, whole)]).toEqual([1, 1]);
  });

  it('can be of all tiles as one', () => {
    const plain = plainLayout(layout.tiles, [2, 2]);
    const [one, ...others] = partsOf(plain, true);
    expect(others).toEqual([]);
    expect([...one.places]).toEqual([0, 1, 2, 3]);
    const whole = joined(plain, [one], [part([2, 3], [0, 1], [0, 0, 0, 1], [3, 1])]);
    expect([...countsOfTiles(plain, whole)]).toEqual([0, 2]);
    expect([...whole.assignment]).toEqual([0, 0, 0, 1]);
  });
});
