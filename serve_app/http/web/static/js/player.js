// Plays samples while they come, each piece exactly behind the one before.
//
// Scheduled buffers and no AudioWorklet: a worklet is missing where the page comes over plain HTTP
// from another machine, which is how a server at home is used.

// Before the first piece, which may be 20 ms long, so that a late second one does not interrupt it.
const LEAD_S = 0.1;

export class Player {
  #context;
  #pieces = []; // {startS, atS, seconds, source}: when, and which part of the audio
  #endS = 0;
  #audioS = 0;

  constructor(sampleRate) {
    this.#context = new AudioContext({ sampleRate });
  }

  get context() {
    return this.#context;
  }

  get sampleRate() {
    return this.#context.sampleRate;
  }

  /** Needs a click or a key of the user before it. */
  resume() {
    return this.#context.resume();
  }

  push(samples) {
    const { currentTime, sampleRate } = this.#context;
    const buffer = this.#context.createBuffer(1, samples.length, sampleRate);
    buffer.copyToChannel(samples, 0);
    const source = this.#context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.#context.destination);
    const startS = Math.max(this.#endS, currentTime + (this.#pieces.length ? 0 : LEAD_S));
    source.start(startS);
    this.#pieces.push({ startS, atS: this.#audioS, seconds: buffer.duration, source });
    this.#endS = startS + buffer.duration;
    this.#audioS += buffer.duration;
  }

  /** Seconds that are left to play. */
  ahead() {
    return Math.max(0, this.#endS - this.#context.currentTime);
  }

  /** Seconds of the audio that have been heard. */
  position() {
    const now = this.#context.currentTime;
    const piece = this.#pieces.findLast((one) => one.startS <= now);
    return piece ? piece.atS + Math.min(now - piece.startS, piece.seconds) : 0;
  }

  stop() {
    for (const { source } of this.#pieces) source.stop();
    this.#pieces = [];
    this.#endS = this.#audioS = 0;
  }
}
