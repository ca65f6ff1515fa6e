// Bytes to samples, as they come: pieces of a body may end in the middle of a sample or a header.

const WAV_HEADER_BYTES = 44;

/** Reads 16-bit little-endian mono samples, behind a WAV header of 44 bytes where there is one. */
export class PcmReader {
  #rest = new Uint8Array(0);
  #skip;

  constructor(withHeader) {
    this.#skip = withHeader ? WAV_HEADER_BYTES : 0;
  }

  /** Float32Array of the samples that are complete now, from -1 to 1. */
  read(bytes) {
    let data = bytes;
    if (this.#rest.length) {
      data = new Uint8Array(this.#rest.length + bytes.length);
      data.set(this.#rest);
      data.set(bytes, this.#rest.length);
    }
    if (this.#skip) {
      const skipped = Math.min(this.#skip, data.length);
      this.#skip -= skipped;
      data = data.subarray(skipped);
    }
    const count = data.length >> 1;
    this.#rest = data.slice(2 * count);
    const view = new DataView(data.buffer, data.byteOffset, 2 * count);
    const samples = new Float32Array(count);
    for (let i = 0; i < count; i++) samples[i] = view.getInt16(2 * i, true) / 32768;
    return samples;
  }
}

/** A copy of a WAV file whose header states the sizes: one that was streamed could not know them. */
export function withSizes(file) {
  const copy = file.slice();
  if (copy.length < WAV_HEADER_BYTES) return copy;
  const view = new DataView(copy.buffer);
  view.setUint32(4, copy.length - 8, true);
  view.setUint32(40, copy.length - WAV_HEADER_BYTES, true);
  return copy;
}

/** One array of many. */
export function joined(parts, Type) {
  const whole = new Type(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
