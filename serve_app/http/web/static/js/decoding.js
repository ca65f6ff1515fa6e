// Samples of a body while it arrives, in every format.
//
// Browsers decode compressed audio as whole files only. The beginning of a file is a shorter file,
// so it is decoded again as more of it comes, and what is new is handed on: at once while little is
// left to play, else when half as much again has come, so that all decoding together costs about
// three times that of the whole.

import { PcmReader, joined } from "./pcm.js";

const SOON_S = 0.6;
const GROWTH = 1.5;
// The end of a part is not yet what it will be: a codec's frames overlap.
const UNSETTLED_S = 0.03;

/** `emit(samples)` gets what has become playable, `ahead()` says how many seconds are left to play. */
export function decoderFor(format, context, emit, ahead) {
  if (format === "pcm" || format === "wav") return new PlainDecoder(format, emit);
  return new PrefixDecoder(context, emit, ahead);
}

class PlainDecoder {
  #reader;
  #emit;

  constructor(format, emit) {
    this.#reader = new PcmReader(format === "wav");
    this.#emit = emit;
  }

  push(bytes) {
    const samples = this.#reader.read(bytes);
    if (samples.length) this.#emit(samples);
  }

  async end() {}
}

class PrefixDecoder {
  #context;
  #emit;
  #ahead;
  #parts = [];
  #bytes = 0;
  #decodedBytes = 0;
  #emitted = 0;
  #working = null;

  constructor(context, emit, ahead) {
    this.#context = context;
    this.#emit = emit;
    this.#ahead = ahead;
  }

  push(bytes) {
    this.#parts.push(bytes);
    this.#bytes += bytes.length;
    this.#work();
  }

  /** Hands on the rest; rejects where this browser cannot decode the format. */
  async end() {
    await this.#working;
    if (this.#bytes) await this.#decode(true);
  }

  #due() {
    if (this.#bytes === this.#decodedBytes) return false;
    return this.#bytes >= GROWTH * this.#decodedBytes || this.#ahead() < SOON_S;
  }

  #work() {
    if (this.#working || !this.#due()) return;
    this.#working = this.#decode(false).finally(() => {
      this.#working = null;
      this.#work();
    });
  }

  async #decode(whole) {
    const file = joined(this.#parts, Uint8Array);
    this.#parts = [file];
    this.#decodedBytes = file.length;
    let audio;
    try {
      // It takes the buffer away, and `file` is needed again.
      audio = await this.#context.decodeAudioData(file.slice().buffer);
    } catch (error) {
      if (whole) throw new Error("This browser cannot play this format; the file can be downloaded.", { cause: error });
      return; // too little of it yet
    }
    const unsettled = whole ? 0 : Math.round(UNSETTLED_S * audio.sampleRate);
    const settled = audio.length - unsettled;
    if (settled > this.#emitted) {
      const samples = audio.getChannelData(0).slice(this.#emitted, settled);
      this.#emitted = settled;
      this.#emit(samples);
    }
  }
}
