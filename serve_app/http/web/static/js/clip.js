// A recording in memory, and the file that is sent of it.

const HEADER_BYTES = 44;

/** Samples from -1 to 1 of one channel, at their rate; `file` is what they came from, where that was a file. */
export class Clip {
  constructor(samples, rateHz, file = null) {
    this.samples = samples;
    this.rateHz = rateHz;
    this.file = file;
  }

  get seconds() {
    return this.samples.length / this.rateHz;
  }

  /** The samples between two times in seconds. */
  between(fromS, uptoS) {
    return this.samples.subarray(Math.round(fromS * this.rateHz), Math.round(uptoS * this.rateHz));
  }

  /** From where to where something is heard, with a breath before and after it. */
  get sounding() {
    const peak = this.samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const loud = (value) => Math.abs(value) > peak / 30;
    const first = this.samples.findIndex(loud);
    if (first < 0) return [0, this.seconds];
    const last = this.samples.findLastIndex(loud);
    return [Math.max(0, first / this.rateHz - 0.15), Math.min(this.seconds, last / this.rateHz + 0.3)];
  }
}

/** A WAV file of 16-bit samples of one channel. */
export function wavOf(samples, rateHz) {
  const view = new DataView(new ArrayBuffer(HEADER_BYTES + 2 * samples.length));
  const write = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  write(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // whole numbers
  view.setUint16(22, 1, true);
  view.setUint32(24, rateHz, true);
  view.setUint32(28, 2 * rateHz, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  write(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(HEADER_BYTES + 2 * i, Math.round(Math.max(-1, Math.min(1, value)) * 32767), true));
  return new Blob([view], { type: "audio/wav" });
}

/** The first channels of a decoded file as one. */
export function mixed(audio) {
  const samples = audio.getChannelData(0).slice();
  if (audio.numberOfChannels < 2) return samples;
  const other = audio.getChannelData(1);
  return samples.map((value, i) => (value + other[i]) / 2);
}

export async function dataUrl(blob) {
  const reader = new FileReader();
  const read = new Promise((resolve, reject) => Object.assign(reader, { onload: resolve, onerror: reject }));
  reader.readAsDataURL(blob);
  await read;
  return reader.result;
}
