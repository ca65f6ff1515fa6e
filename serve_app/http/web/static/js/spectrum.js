// What is drawn of a sound: the extremes and the mel spectrum of each hop of 10 ms.

export const HOP_S = 0.01;
export const BANDS = 80;
const SIZE = 512;
const FLOOR_DB = -80;
const LOWEST_HZ = 50;

const mel = (hz) => 2595 * Math.log10(1 + hz / 700);
const hzOfMel = (value) => 700 * (10 ** (value / 2595) - 1);

/** Triangles on the mel scale: for each band [first bin, weights]. */
export function melFilters(rateHz, size = SIZE, bands = BANDS) {
  const low = mel(LOWEST_HZ);
  const high = mel(rateHz / 2);
  const edges = Array.from({ length: bands + 2 }, (_, i) => (hzOfMel(low + ((high - low) * i) / (bands + 1)) * size) / rateHz);
  return Array.from({ length: bands }, (_, band) => {
    const [left, middle, right] = edges.slice(band, band + 3);
    // Narrow bands lie between two bins: the nearest bin stands for them.
    const first = Math.min(Math.ceil(left), Math.round(middle));
    const last = Math.max(Math.floor(right), Math.round(middle));
    const weights = [];
    for (let bin = first; bin <= last; bin++) {
      const slope = bin <= middle ? (bin - left) / (middle - left) : (right - bin) / (right - middle);
      weights.push(Math.max(slope, first === last ? 1 : 0));
    }
    return [first, weights];
  });
}

/** In-place FFT of complex values, a power of two of them. */
export function fft(real, imaginary) {
  const n = real.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
    }
  }
  for (let span = 2; span <= n; span <<= 1) {
    const half = span >> 1;
    for (let k = 0; k < half; k++) {
      const angle = (-2 * Math.PI * k) / span;
      const c = Math.cos(angle);
      const s = Math.sin(angle);
      for (let at = k; at < n; at += span) {
        const other = at + half;
        const re = real[other] * c - imaginary[other] * s;
        const im = real[other] * s + imaginary[other] * c;
        real[other] = real[at] - re;
        imaginary[other] = imaginary[at] - im;
        real[at] += re;
        imaginary[at] += im;
      }
    }
  }
}

/** Takes samples as they come and gives columns: {low, high} and a Uint8Array of BANDS levels. */
export class Analyser {
  #hop;
  #filters;
  #window;
  #kept = new Float32Array(SIZE); // the latest SIZE samples
  #pending = new Float32Array(0);

  constructor(rateHz) {
    this.#hop = Math.round(HOP_S * rateHz);
    this.#filters = melFilters(rateHz);
    this.#window = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
  }

  push(samples) {
    const all = new Float32Array(this.#pending.length + samples.length);
    all.set(this.#pending);
    all.set(samples, this.#pending.length);
    const columns = [];
    let at = 0;
    for (; at + this.#hop <= all.length; at += this.#hop) columns.push(this.#column(all.subarray(at, at + this.#hop)));
    this.#pending = all.slice(at);
    return columns;
  }

  #column(hop) {
    let low = 1;
    let high = -1;
    for (const value of hop) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    this.#kept.copyWithin(0, hop.length);
    this.#kept.set(hop, SIZE - hop.length);
    const real = this.#kept.map((value, i) => value * this.#window[i]);
    const imaginary = new Float32Array(SIZE);
    fft(real, imaginary);
    const levels = new Uint8Array(BANDS);
    this.#filters.forEach(([first, weights], band) => {
      let power = 0;
      weights.forEach((weight, i) => {
        const bin = first + i;
        power += weight * (real[bin] ** 2 + imaginary[bin] ** 2);
      });
      // A sine of full scale is 0 dB: the window halves it, a half of it is at a negative frequency.
      const db = 10 * Math.log10(power / (SIZE / 4) ** 2 + 1e-12);
      levels[band] = Math.round(255 * Math.min(1, Math.max(0, 1 - db / FLOOR_DB)));
    });
    return { low, high, levels };
  }
}
