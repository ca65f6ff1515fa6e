// Waveform and spectrogram, drawn while the audio comes.

import { Analyser, BANDS, HOP_S } from "./spectrum.js";

// The time axis begins with this much and grows in steps, so that the picture does not creep.
const FIRST_SPAN_S = 4;
const SPAN_GROWTH = 1.5;

export class Pictures {
  #waveform;
  #spectrogram;
  #axisEnd;
  #columns = [];
  #analyser = null;
  #spanS = FIRST_SPAN_S;
  #levels = document.createElement("canvas"); // one pixel per hop and band
  #painted = 0; // columns on #levels
  #position = null;
  #frame = 0;

  constructor(waveform, spectrogram, axisEnd) {
    this.#waveform = waveform;
    this.#spectrogram = spectrogram;
    this.#axisEnd = axisEnd;
    new ResizeObserver(() => this.#redraw()).observe(waveform);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#repaint());
    this.#redraw();
  }

  begin(rateHz) {
    this.#analyser = new Analyser(rateHz);
    this.#columns = [];
    this.#spanS = FIRST_SPAN_S;
    this.#position = null;
    this.#repaint();
  }

  push(samples) {
    for (const column of this.#analyser.push(samples)) this.#columns.push(column);
    while (this.#seconds > this.#spanS) this.#spanS *= SPAN_GROWTH;
    this.#redraw();
  }

  /** All of it is there: it fills the picture. */
  finish() {
    if (this.#columns.length) this.#spanS = this.#seconds;
    this.#redraw();
  }

  /** Seconds heard so far, or null where nothing plays. */
  set position(seconds) {
    if (seconds === this.#position) return;
    this.#position = seconds;
    this.#redraw();
  }

  get #seconds() {
    return this.#columns.length * HOP_S;
  }

  #repaint() {
    this.#painted = 0;
    this.#redraw();
  }

  #redraw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const colours = palette();
      this.#drawWaveform(colours);
      this.#drawSpectrogram(colours);
      this.#describe();
    });
  }

  #describe() {
    const what = this.#columns.length ? `${this.#seconds.toFixed(1)} seconds of audio` : "no audio yet";
    this.#waveform.setAttribute("aria-label", `Waveform: ${what}`);
    this.#spectrogram.setAttribute("aria-label", `Spectrogram: ${what}`);
    this.#axisEnd.textContent = `${this.#spanS.toFixed(1)} s`;
  }

  #drawWaveform({ wave, heard, line }) {
    const { pen, width, height } = sized(this.#waveform);
    const middle = height / 2;
    pen.fillStyle = line;
    pen.fillRect(0, middle, width, 1);
    const perPixel = this.#spanS / HOP_S / width;
    const heardX = this.#position === null ? 0 : (this.#position / this.#spanS) * width;
    for (let x = 0; x < width; x++) {
      const from = Math.floor(x * perPixel);
      if (from >= this.#columns.length) break;
      const upTo = Math.min(this.#columns.length, Math.max(from + 1, Math.ceil((x + 1) * perPixel)));
      let low = 0;
      let high = 0;
      for (let i = from; i < upTo; i++) {
        low = Math.min(low, this.#columns[i].low);
        high = Math.max(high, this.#columns[i].high);
      }
      pen.fillStyle = x < heardX ? heard : wave;
      pen.fillRect(x, middle - high * middle * 0.95, 1, Math.max(1, (high - low) * middle * 0.95));
    }
    this.#drawPosition(pen, width, height, heard);
  }

  #drawSpectrogram({ scale, heard }) {
    this.#paintLevels(scale);
    const { pen, width, height } = sized(this.#spectrogram);
    pen.fillStyle = `rgb(${scale[0].join()})`;
    pen.fillRect(0, 0, width, height);
    const share = this.#seconds / this.#spanS;
    if (this.#columns.length) pen.drawImage(this.#levels, 0, 0, this.#columns.length, BANDS, 0, 0, width * share, height);
    this.#drawPosition(pen, width, height, heard);
  }

  #drawPosition(pen, width, height, colour) {
    if (this.#position === null) return;
    pen.fillStyle = colour;
    pen.fillRect((this.#position / this.#spanS) * width, 0, 2, height);
  }

  /** Bring #levels up to date; it is made larger in steps, as that loses what it shows. */
  #paintLevels(scale) {
    const needed = this.#columns.length;
    if (needed > this.#levels.width || this.#painted === 0) {
      this.#levels.width = Math.max(512, 2 * needed);
      this.#levels.height = BANDS;
      this.#painted = 0;
    }
    const fresh = needed - this.#painted;
    if (!fresh) return;
    const pen = this.#levels.getContext("2d");
    const image = pen.createImageData(fresh, BANDS);
    for (let x = 0; x < fresh; x++) {
      const { levels } = this.#columns[this.#painted + x];
      for (let band = 0; band < BANDS; band++) {
        const at = 4 * ((BANDS - 1 - band) * fresh + x);
        image.data.set(scale[levels[band]], at);
        image.data[at + 3] = 255;
      }
    }
    pen.putImageData(image, this.#painted, 0);
    this.#painted = needed;
  }
}

/** The pen of a canvas that has one pixel for each of the screen, wiped. */
export function sized(canvas) {
  const ratio = devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

/** Colours of the style sheet; `scale` goes through --scale-0 ... --scale-4 in 256 steps. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  const stops = [0, 1, 2, 3, 4].map((i) => rgb(value(`--scale-${i}`)));
  const scale = Array.from({ length: 256 }, (_, level) => {
    const at = (level / 255) * (stops.length - 1);
    const i = Math.min(stops.length - 2, Math.floor(at));
    return stops[i].map((from, channel) => Math.round(from + (at - i) * (stops[i + 1][channel] - from)));
  });
  return { wave: value("--wave"), heard: value("--accent"), line: value("--line"), scale };
}

/** [r, g, b] of #rrggbb. */
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
