// JSON that keeps what values of OrbitDB hold: bytes stand as DAG-JSON writes them, and whole numbers are read and written exactly.

const isBytes = (value) => typeof value === "object" && value !== null && Object.keys(value).join() === "/" && typeof value["/"]?.bytes === "string";

/** Reads a line. Whole numbers beyond 2^53 become BigInt, `{"/": {"bytes": "..."}}` becomes a Uint8Array. */
export function parse(text) {
  return JSON.parse(text, (_, value, { source }) => {
    if (typeof value === "number" && /^-?\d+$/.test(source) && !Number.isSafeInteger(value)) return BigInt(source);
    if (isBytes(value)) return Uint8Array.from(Buffer.from(value["/"].bytes, "base64"));
    return value;
  });
}

/** Writes a line, which `parse` reads again. */
export function stringify(value) {
  return JSON.stringify(value, (_, one) => {
    if (typeof one === "bigint") return JSON.rawJSON(one.toString());
    if (one instanceof Uint8Array) return { "/": { bytes: Buffer.from(one).toString("base64").replace(/=+$/, "") } };
    return one;
  });
}
