// The microphone, as samples.

import { Clip } from "./clip.js";
import { joined } from "./pcm.js";

/** Why there is no microphone, in words for who wants to use it. */
function explained(error) {
  const reasons = {
    NotAllowedError: "The browser was not allowed to use the microphone.",
    NotFoundError: "No microphone was found.",
    NotReadableError: "The microphone is in use by another program.",
  };
  return new Error(reasons[error.name] ?? `The microphone cannot be used: ${error.message}`, { cause: error });
}

export class Recorder {
  #context = null;
  #stream = null;
  #parts = [];
  #samples = 0;

  /** Browsers give the microphone to pages over TLS and of this machine only. */
  static get isPossible() {
    return Boolean(navigator.mediaDevices && globalThis.AudioWorkletNode);
  }

  /** Begin; `onLevel(peak, seconds)` is called while it records. */
  async start(onLevel) {
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      throw explained(error);
    }
    this.#context = new AudioContext();
    await this.#context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
    const node = new AudioWorkletNode(this.#context, "recorder", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = ({ data }) => {
      this.#parts.push(data);
      this.#samples += data.length;
      onLevel(data.reduce((most, value) => Math.max(most, Math.abs(value)), 0), this.#samples / this.#context.sampleRate);
    };
    this.#context.createMediaStreamSource(this.#stream).connect(node);
    await this.#context.resume();
  }

  /** End, and let go of the microphone. */
  async stop() {
    const rateHz = this.#context.sampleRate;
    this.#stream.getTracks().forEach((track) => track.stop());
    await this.#context.close();
    return new Clip(joined(this.#parts, Float32Array), rateHz);
  }
}
