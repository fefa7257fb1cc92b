/**
 * The field numbers and type codes of onnx.proto (github.com/onnx/onnx, onnx/onnx.proto) that this package reads or writes.
 */
export const ModelField = { irVersion: 1, graph: 7, opsetImport: 8, functions: 25 } as const;
export const FunctionField = { node: 7 } as const;
export const OpsetField = { domain: 1, version: 2 } as const;
export const GraphField = {
  node: 1,
  name: 2,
  initializer: 5,
  input: 11,
  output: 12,
  valueInfo: 13,
  sparseInitializer: 15,
} as const;
export const NodeField = { input: 1, output: 2, name: 3, opType: 4, attribute: 5, domain: 7 } as const;
export const AttributeField = {
  name: 1,
  f: 2,
  i: 3,
  s: 4,
  t: 5,
  g: 6,
  floats: 7,
  ints: 8,
  tensors: 10,
  graphs: 11,
  type: 20,
  sparse: 22,
  sparses: 23,
} as const;
export const AttributeType = { float: 1, int: 2, string: 3, tensor: 4, graph: 5, ints: 7 } as const;
export const SparseField = { values: 1, indices: 2 } as const;
export const TensorField = {
  dims: 1,
  dataType: 2,
  floatData: 4,
  int32Data: 5,
  stringData: 6,
  int64Data: 7,
  name: 8,
  rawData: 9,
  doubleData: 10,
  uint64Data: 11,
  externalData: 13,
  dataLocation: 14,
} as const;
export const EntryField = { key: 1, value: 2 } as const;
export const ValueField = { name: 1, type: 2 } as const;
export const TypeField = { tensor: 1 } as const;
export const TensorTypeField = { elementType: 1, shape: 2 } as const;
export const ShapeField = { dim: 1 } as const;
export const DimField = { value: 1, parameter: 2 } as const;

/** TensorProto.DataType. */
export const DataType = {
  undefined: 0,
  float: 1,
  uint8: 2,
  int8: 3,
  uint16: 4,
  int16: 5,
  int32: 6,
  int64: 7,
  string: 8,
  bool: 9,
  float16: 10,
  double: 11,
  uint32: 12,
  uint64: 13,
  bfloat16: 16,
  uint4: 21,
  int4: 22,
} as const;

const ITEM_SIZE: Readonly<Record<number, number>> = {
  [DataType.float]: 4,
  [DataType.uint8]: 1,
  [DataType.int8]: 1,
  [DataType.uint16]: 2,
  [DataType.int16]: 2,
  [DataType.int32]: 4,
  [DataType.int64]: 8,
  [DataType.bool]: 1,
  [DataType.float16]: 2,
  [DataType.double]: 8,
  [DataType.uint32]: 4,
  [DataType.uint64]: 8,
  [DataType.bfloat16]: 2,
};

/** Bytes of one element, or undefined for types that are not whole bytes (strings, 4-bit numbers). */
export const itemSize = (type: number): number | undefined => ITEM_SIZE[type];

/** The name of an element type, as ONNX writes it. */
export function typeName(type: number): string {
  return Object.entries(DataType).find(([, code]) => code === type)?.[0] ?? `type ${type}`;
}

/** Whether a tensor of this type holds floating-point numbers. */
export function isFloat(type: number): boolean {
  return type === DataType.float || type === DataType.float16 || type === DataType.double || type === DataType.bfloat16;
}
