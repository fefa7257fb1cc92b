import { readSync } from 'node:fs';
import { BinaryReader, WireType } from '@bufbuild/protobuf/wire';
import { DesapError } from '../../errors.js';
import { withFileSync } from '../../files.js';

/** Bytes that a protobuf message is read from: memory, or a file seen through a small window. */
export interface ByteSource {
  /** What error messages call it. */
  readonly name: string;
  readonly size: number;
  /** Whether all bytes are in memory, so that a view costs nothing. */
  readonly resident: boolean;
  /** A view of `length` bytes; valid until the next call. */
  bytes(offset: number, length: number): Uint8Array;
}

/** Memory as a {@link ByteSource}. */
export function memorySource(name: string, given: Uint8Array): ByteSource {
  // A Buffer's slice would not copy.
  const memory = new Uint8Array(given.buffer, given.byteOffset, given.byteLength);
  const bytes = (offset: number, length: number) => memory.subarray(offset, offset + length);
  return { name, size: memory.length, resident: true, bytes };
}

/** Read at a time: enough for many nodes, little where every weight between is skipped. */
const WINDOW = 4 * 1024;

/**
 * Opens a file, hands it to `read` as a {@link ByteSource} and closes it. Only the bytes that are asked for are read.
 * @throws DesapError `ERR_FILE` when the file cannot be opened or read
 */
export function withFileSource<T>(name: string, path: string, read: (source: ByteSource) => T): T {
  const open = (file: number, size: number) => {
    const fill = (target: Uint8Array, offset: number) => {
      for (let done = 0; done < target.length; ) {
        const count = readSync(file, target, done, target.length - done, offset + done);
        if (count === 0) throw new Error('the file became shorter while it was read');
        done += count;
      }
      return target;
    };
    let start = 0;
    let window = new Uint8Array(0);
    const bytes = (offset: number, length: number) => {
      try {
        if (length > WINDOW) return fill(new Uint8Array(length), offset);
        if (offset < start || offset + length > start + window.length) {
          window = new Uint8Array(Math.min(WINDOW, size - offset));
          start = offset;
          fill(window, offset);
        }
        return window.subarray(offset - start, offset - start + length);
      } catch (cause) {
        throw new DesapError('ERR_FILE', `${name}: cannot be read: ${(cause as Error).message}`, { cause });
      }
    };
    return read({ name, size, resident: false, bytes });
  };
  return withFileSync(path, open, name);
}

/** One field of a protobuf message: where its payload lies and, for a varint, its value. */
export interface Field {
  readonly number: number;
  readonly wire: WireType;
  /** Where the field's tag begins. */
  readonly tag: number;
  readonly start: number;
  readonly end: number;
  /** The value of a varint as a signed 64-bit number; 0 for other wire types. */
  readonly value: number;
}

/** The longest tag and length (or value) that protobuf allows. */
const MAX_PREFIX = 20;

/**
 * The fields of the message that lies in `source` from `start` to `end`, in file order. Every length is checked against
 * the message before it is used, and every step moves forward.
 * @throws DesapError `ERR_FILE` where the bytes are not a protobuf message
 */
export function* fields(source: ByteSource, start = 0, end = source.size): Generator<Field> {
  for (let tag = start; tag < end; ) {
    const field = fieldAt(source, tag, end);
    yield field;
    tag = field.end;
  }
}

function fieldAt(source: ByteSource, tag: number, end: number): Field {
  const fail = (why: string, cause?: unknown) =>
    new DesapError('ERR_FILE', `${source.name}: not an ONNX model: at byte ${tag}: ${why}`, { cause });
  const reader = new BinaryReader(source.bytes(tag, Math.min(MAX_PREFIX, end - tag)));
  let number: number;
  let wire: WireType;
  let value = 0;
  let length: number;
  try {
    [number, wire] = reader.tag();
    const begin = reader.pos;
    if (wire === WireType.Varint) value = Number(reader.int64());
    length = wire === WireType.LengthDelimited ? reader.uint32() : reader.pos - begin;
  } catch (cause) {
    throw fail(`no protobuf field (${(cause as Error).message})`, cause);
  }
  if (wire === WireType.Bit32) length = 4;
  else if (wire === WireType.Bit64) length = 8;
  else if (wire !== WireType.Varint && wire !== WireType.LengthDelimited)
    throw fail(`wire type ${wire}, which ONNX does not use`);
  const begin = tag + reader.pos - (wire === WireType.Varint ? length : 0);
  if (begin + length > end) throw fail(`field ${number} claims ${length} bytes, ${end - begin} are left`);
  return { number, wire, tag, start: begin, end: begin + length, value };
}

/** The payload of a length-delimited field as a copy. */
export function payload(source: ByteSource, { start, end }: Field): Uint8Array {
  return source.bytes(start, end - start).slice();
}

const UTF8 = new TextDecoder();

/** The payload of a field as text. */
export function text(source: ByteSource, { start, end }: Field): string {
  return UTF8.decode(source.bytes(start, end - start));
}

/** The numbers of a repeated integer field, packed or one by one. Beyond 2^53 they are rounded. */
export function integers(source: ByteSource, field: Field): number[] {
  return field.wire === WireType.Varint ? [field.value] : longs(source, field).map(Number);
}

/** The same without rounding. Those of uint64 from 2^63 on come as negative ones of the same bits. */
export function longs(source: ByteSource, field: Field): bigint[] {
  const reader = new BinaryReader(source.bytes(field.start, field.end - field.start));
  const values: bigint[] = [];
  try {
    while (reader.pos < reader.len) values.push(BigInt(reader.int64()));
  } catch (cause) {
    throw new DesapError('ERR_FILE', `${source.name}: not an ONNX model: at byte ${field.start}: broken integers`, {
      cause,
    });
  }
  return values;
}

/** The numbers of a repeated float32 field, packed or one by one. */
export function floats(source: ByteSource, { start, end }: Field): number[] {
  const bytes = source.bytes(start, end - start);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: Math.floor(bytes.length / 4) }, (_, i) => view.getFloat32(4 * i, true));
}
