// What a page plays: one thing at a time.

import { Player } from "./player.js";
import { key } from "./server.js";
import { Take } from "./take.js";

export class Sound {
  #player = null;
  #making = null; // the AbortController of speech that is being made
  #watching = 0;
  #onChange;

  /** `onChange(playing)` is called when something begins to be heard, and when nothing is any more. */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  /** Decode a file that a browser reads. */
  async decoded(data) {
    // Any rate does: nothing is heard of it.
    return new OfflineAudioContext(1, 1, 24000).decodeAudioData(data);
  }

  async play(samples, rateHz) {
    (await this.#begun(rateHz)).push(samples);
    this.#watch();
  }

  /** Have a request spoken; resolves with its take when all of it is there, or null when it was stopped. */
  async speak(request, rateHz) {
    const player = await this.#begun(rateHz);
    const making = (this.#making = new AbortController());
    const take = new Take({ ...request, response_format: "wav" }, rateHz);
    const onSamples = (samples) => {
      player.push(samples);
      this.#watch();
    };
    this.#onChange(true);
    try {
      await take.make({ key: key(), signal: making.signal, player, onSamples, onProgress() {} });
    } finally {
      if (this.#making === making) this.#making = null;
      if (!player.ahead()) this.#watch();
    }
    return take.state === "complete" ? take : null;
  }

  stop() {
    this.#making?.abort();
    this.#making = null;
    this.#player?.stop();
  }

  async #begun(rateHz) {
    this.stop();
    if (this.#player?.sampleRate !== rateHz) {
      await this.#player?.context.close();
      this.#player = new Player(rateHz);
    }
    await this.#player.resume();
    return this.#player;
  }

  #watch() {
    this.#onChange(true);
    this.#watching ||= requestAnimationFrame(() => {
      this.#watching = 0;
      if (this.#making || this.#player.ahead()) return this.#watch();
      this.#onChange(false);
    });
  }
}
