/**
 * Sets own properties of one object, those that are not undefined.
 * @returns puts back what was there: the same own properties, or none
 */
export function override(target: object, properties: object): () => void {
  const given = Object.entries(properties).filter(([, value]) => value !== undefined);
  const before = given.map(([name]) => [name, Object.getOwnPropertyDescriptor(target, name)] as const);
  for (const [name, value] of given)
    Object.defineProperty(target, name, { value, writable: true, configurable: true, enumerable: true });
  return () => {
    for (const [name, descriptor] of before)
      if (descriptor) Object.defineProperty(target, name, descriptor);
      else Reflect.deleteProperty(target, name);
  };
}
