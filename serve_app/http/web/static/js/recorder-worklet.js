// On the audio thread: hands what the microphone hears to the page, some 20 ms at a time.

const SAMPLES = 1024;

class Recorder extends AudioWorkletProcessor {
  #samples = new Float32Array(SAMPLES);
  #filled = 0;

  process([[channel]]) {
    for (const value of channel ?? []) {
      this.#samples[this.#filled++] = value;
      if (this.#filled < SAMPLES) continue;
      this.port.postMessage(this.#samples, [this.#samples.buffer]);
      this.#samples = new Float32Array(SAMPLES);
      this.#filled = 0;
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
