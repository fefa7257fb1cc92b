/** Changes of files: of their parts where the format is known, and of their bytes. */
import fc from 'fast-check';
import type { Format, Leaf, Tree } from './tree.js';

/** One change. Numbers are taken modulo what there is to choose from, so that any of them means something for any file. */
export interface Mutation {
  readonly what: (typeof PARTS)[number] | (typeof BYTES)[number];
  readonly at: number;
  readonly other: number;
}

const PARTS = ['remove', 'repeat', 'many', 'swap', 'copy', 'graft', 'donor', 'leaf', 'leaf', 'label', 'nest'] as const;
const BYTES = ['flip', 'set', 'insert', 'cut', 'double', 'end', 'number', 'splice'] as const;

/** A file of the pool (modulo their count), another that parts are taken from, and what is done to it. */
export interface Case {
  readonly base: number;
  readonly donor: number;
  readonly mutations: readonly Mutation[];
}

const natural = fc.nat(2 ** 31 - 1);
const mutation = (what: readonly Mutation['what'][]) =>
  fc.record({ what: fc.constantFrom(...what), at: natural, other: natural });

/** Mostly changes of parts: changed bytes seldom get behind the first check of a format. */
export const cases: fc.Arbitrary<Case> = fc.record({
  base: natural,
  donor: natural,
  mutations: fc.oneof(
    { weight: 3, arbitrary: fc.array(mutation(PARTS), { minLength: 1, maxLength: 6 }) },
    { weight: 1, arbitrary: fc.array(mutation(BYTES), { minLength: 1, maxLength: 4 }) },
    { weight: 1, arbitrary: fc.array(mutation([...PARTS, ...BYTES]), { minLength: 1, maxLength: 6 }) },
  ),
});

/** What a leaf may hold instead. */
const NUMBERS = [
  0n,
  1n,
  2n,
  3n,
  7n,
  16n,
  255n,
  65536n,
  2n ** 31n - 1n,
  2n ** 31n,
  2n ** 32n,
  2n ** 53n,
  2n ** 63n - 1n,
];
const TEXTS = [
  '',
  '.',
  '..',
  '../outside.bin',
  '/etc/hostname',
  'link.bin',
  'folder',
  'pipe',
  'a\0b',
  '\ud800',
  '<',
  'x'.repeat(5000),
];
const LEAVES: readonly Leaf[] = [
  ...NUMBERS,
  ...NUMBERS.slice(1).map((n) => -n),
  ...TEXTS,
  ...[
    '__proto__',
    'constructor',
    '(a+)+$',
    '{{',
    'weights.bin',
    './weights.bin',
    'folder/../weights.bin',
    'out/outside.bin',
  ],
  ...[0.5, 1e308, true, false, null],
];

/** A tree with a limit on what nesting and repeating make of it. */
const MOST_PARTS = 20_000;
const LARGEST = 2 ** 22;

const trees = new WeakMap<Uint8Array, Tree | null>();

/** The tree of a file of the pool, which is read once. */
function treeOf(bytes: Uint8Array, format: Format | null): Tree | null {
  const known = trees.get(bytes);
  if (known !== undefined) return known;
  const tree = format?.parse(bytes) ?? null;
  trees.set(bytes, tree);
  return tree;
}

/** The changed file. */
export function mutated(bytes: Uint8Array, donor: Uint8Array, format: Format | null, { mutations }: Case): Uint8Array {
  let now = bytes;
  let tree = treeOf(bytes, format);
  let isWritten = true;
  for (const one of mutations) {
    if (isOfParts(one)) {
      if (format === null || tree === null) continue;
      tree = ofParts(tree, one, (one.what === 'donor' && treeOf(donor, format)) || tree);
      isWritten = false;
    } else {
      now = ofBytes(isWritten ? now : format!.write(tree!), one, donor);
      tree = format?.parse(now) ?? null;
      isWritten = true;
    }
  }
  return (isWritten ? now : format!.write(tree!)).subarray(0, LARGEST);
}

const isOfParts = ({ what }: Mutation) => (PARTS as readonly string[]).includes(what);

/** All parts below the root, by their kinds: rare kinds are chosen as often as common ones. */
function byKind(root: Tree): Tree[][] {
  const kinds = new Map<string, Tree[]>();
  const walk = (tree: Tree) => {
    for (const child of tree.children ?? []) {
      const same = kinds.get(child.kind);
      if (same) same.push(child);
      else kinds.set(child.kind, [child]);
      walk(child);
    }
  };
  walk(root);
  return [...kinds.values()];
}

const pick = <T>(list: readonly T[], n: number): T => list[n % list.length];
/** A second number out of one. */
const further = (n: number) => Math.imul(n, 0x9e3779b1) >>> 1;

function ofParts(root: Tree, { what, at, other }: Mutation, donor: Tree): Tree {
  const kinds = byKind(root);
  if (kinds.length === 0) return root;
  const same = pick(kinds, at);
  const target = pick(same, further(at));
  const twin = pick(same, other);
  const labelled = (tree: Tree) => ({ ...tree, kind: target.kind, label: target.label });
  switch (what) {
    case 'remove':
      return replaced(root, new Map([[target, []]]));
    case 'repeat':
      return replaced(root, new Map([[target, Array<Tree>(2 + (other % 3)).fill(target)]]));
    case 'many':
      return replaced(root, new Map([[target, Array<Tree>(Math.min(1000, mostOf(target))).fill(target)]]));
    case 'swap':
      return replaced(
        root,
        new Map([
          [target, [twin]],
          [twin, [target]],
        ]),
      );
    case 'copy':
      return replaced(root, new Map([[target, [twin]]]));
    case 'graft':
      return replaced(root, new Map([[target, [labelled(pick(pick(kinds, other), further(other)))]]]));
    case 'donor': {
      const found = byKind(donor);
      const alike = found.find(([{ kind }]) => kind === target.kind) ?? pick(found.length > 0 ? found : kinds, other);
      return replaced(root, new Map([[target, [labelled(pick(alike, further(other)))]]]));
    }
    case 'leaf':
      return replaced(
        root,
        new Map([[target, [{ ...target, children: null, value: leafValue(target.value, other) }]]]),
      );
    case 'label':
      return replaced(
        root,
        new Map([
          [
            target,
            [{ ...target, label: twin.label === target.label ? pick(pick(kinds, other), 0).label : twin.label }],
          ],
        ]),
      );
    case 'nest': {
      let nested = target;
      const levels = Math.min(1 + (other % 40), mostOf(target));
      for (let i = 0; i < levels && target.children !== null; i++)
        nested = { ...target, children: [...target.children.slice(1), nested] };
      return replaced(root, new Map([[target, [nested]]]));
    }
    default:
      return root;
  }
}

/** How often a part may stand there: by its parts, and by their bytes. */
function mostOf(tree: Tree): number {
  const bytes = ({ value }: Tree) => (value instanceof Uint8Array ? value.length : String(value).length);
  const weight = (one: Tree): number =>
    (one.children ?? []).reduce((sum, child) => sum + weight(child), 1 + (bytes(one) * MOST_PARTS) / LARGEST);
  return Math.max(1, Math.floor(MOST_PARTS / weight(tree)));
}

/** A number becomes another one near to it as often as one of the list. */
function leafValue(value: Leaf, n: number): Leaf {
  if (n % 2 === 0 && typeof value === 'bigint') return value + BigInt((n >> 1) % 5) - 2n;
  if (n % 2 === 0 && typeof value === 'number') return value + ((n >> 1) % 5) - 2;
  if (n % 3 === 0 && typeof value === 'bigint') return pick(NUMBERS, n);
  return pick(LEAVES, n);
}

function replaced(tree: Tree, changes: ReadonlyMap<Tree, readonly Tree[]>): Tree {
  if (tree.children === null) return tree;
  let isChanged = false;
  const children = tree.children.flatMap((child) => {
    const given = changes.get(child);
    if (given !== undefined) {
      isChanged = true;
      return given;
    }
    const now = replaced(child, changes);
    isChanged ||= now !== child;
    return [now];
  });
  return isChanged ? { ...tree, children } : tree;
}

function ofBytes(bytes: Uint8Array, { what, at, other }: Mutation, donor: Uint8Array): Uint8Array {
  const here = bytes.length === 0 ? 0 : at % bytes.length;
  // The beginning of a file says what the rest is: half of the changes are there.
  const place = other % 2 === 0 ? here % 64 : here;
  const length = 1 + (further(other) % 64);
  const copy = Uint8Array.from(bytes);
  switch (what) {
    case 'flip':
      copy[place] ^= 1 << (further(other) % 8);
      return copy;
    case 'set':
      copy[place] = pick([0, 1, 127, 128, 255], further(other));
      return copy;
    case 'insert':
      return Buffer.concat([bytes.subarray(0, place), new Uint8Array(length).fill(other), bytes.subarray(place)]);
    case 'cut':
      return Buffer.concat([bytes.subarray(0, place), bytes.subarray(place + length)]);
    case 'double':
      return Buffer.concat([bytes.subarray(0, place + length), bytes.subarray(place)]);
    case 'end':
      return bytes.subarray(0, place);
    case 'number': {
      const size = pick([1, 2, 4, 8], further(other));
      if (place + size > bytes.length) return bytes;
      const value = BigInt.asUintN(8 * size, pick(NUMBERS, at) - BigInt(other % 2));
      for (let i = 0; i < size; i++)
        copy[place + (other % 3 === 0 ? size - 1 - i : i)] = Number((value >> BigInt(8 * i)) & 255n);
      return copy;
    }
    default:
      return Buffer.concat([bytes.subarray(0, place), donor.subarray(other % (donor.length + 1))]);
  }
}
