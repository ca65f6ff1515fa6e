// One request and what came of it.

import * as api from "./api.js";
import { decoderFor } from "./decoding.js";
import { joined, withSizes } from "./pcm.js";

const TYPES = { wav: "audio/wav", pcm: "audio/pcm", mp3: "audio/mpeg", opus: "audio/ogg", aac: "audio/aac", flac: "audio/flac" };

export class Take {
  #parts = [];
  #pieces = [];
  #startedMs = 0;
  #lastByteMs = 0;
  #answered = false;

  request;
  sampleRate;
  bytes = 0;
  samples = 0;
  firstAudioMs = null;
  /** making, complete, stopped, or failed. */
  state = "making";

  constructor(request, sampleRate) {
    this.request = request;
    this.sampleRate = sampleRate;
  }

  /** Ask, and hand on samples as they come; `onProgress` is called at every change. */
  async make({ key, signal, player, onSamples, onProgress }) {
    const emit = (samples) => {
      if (signal.aborted) return;
      this.firstAudioMs ??= performance.now() - this.#startedMs;
      this.samples += samples.length;
      this.#pieces.push(samples);
      onSamples(samples);
      onProgress();
    };
    const decoder = decoderFor(this.request.response_format, player.context, emit, () => player.ahead());
    this.#startedMs = performance.now();
    try {
      const response = await api.speech(this.request, key, signal);
      this.#answered = true;
      await this.#read(response.body.getReader(), decoder, onProgress);
      await decoder.end();
      this.state = "complete";
    } catch (error) {
      this.state = signal.aborted ? "stopped" : "failed";
      if (!signal.aborted) throw this.#explained(error);
    }
  }

  async #read(reader, decoder, onProgress) {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this.#lastByteMs = performance.now();
      this.#parts.push(value);
      this.bytes += value.length;
      decoder.push(value);
      onProgress();
    }
  }

  #explained(error) {
    if (!(error instanceof TypeError)) return error;
    const why = this.#answered
      ? `The answer broke off after ${this.seconds.toFixed(1)} s of audio; what came is kept.`
      : "The server cannot be reached.";
    return new Error(why, { cause: error });
  }

  get seconds() {
    return this.samples / this.sampleRate;
  }

  /** Time to receive it, divided by its length; null before there is any. */
  get realTimeFactor() {
    return this.seconds && this.#lastByteMs ? (this.#lastByteMs - this.#startedMs) / 1000 / this.seconds : null;
  }

  /** All samples so far. */
  audio() {
    return joined(this.#pieces, Float32Array);
  }

  get fileName() {
    return `speech.${this.request.response_format}`;
  }

  file() {
    const format = this.request.response_format;
    const whole = joined(this.#parts, Uint8Array);
    return new Blob([format === "wav" ? withSizes(whole) : whole], { type: TYPES[format] });
  }
}
