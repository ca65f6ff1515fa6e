// A recording as a picture, and which part of it is used.

import { sized } from "./pictures.js";

const $ = (id) => document.getElementById(id);
// What a server takes at least and at most, unless it says otherwise.
const LEAST_S = 1;
const MOST_S = 30;

export class Trimmer {
  #clip = null;
  #drawing = 0;

  constructor() {
    for (const [id, other, later] of [["from", "upto", false], ["upto", "from", true]]) {
      $(id).addEventListener("input", () => {
        const gap = Math.min(LEAST_S, this.#clip.seconds);
        const bound = Number($(other).value) + (later ? gap : -gap);
        if (later ? Number($(id).value) < bound : Number($(id).value) > bound) $(id).value = bound;
        this.#show();
      });
    }
    new ResizeObserver(() => this.#draw()).observe($("clip"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  set clip(clip) {
    this.#clip = clip;
    $("trim").hidden = !clip;
    if (!clip) return;
    const [fromS, uptoS] = clip.sounding;
    for (const id of ["from", "upto"]) $(id).max = clip.seconds.toFixed(2);
    $("from").value = fromS;
    $("upto").value = Math.min(uptoS, fromS + MOST_S);
    this.#show();
  }

  get samples() {
    return this.#clip.between(...this.#bounds);
  }

  get #bounds() {
    return [Number($("from").value), Number($("upto").value)];
  }

  #show() {
    const [fromS, uptoS] = this.#bounds;
    const seconds = uptoS - fromS;
    $("from-value").textContent = `${fromS.toFixed(2)} s`;
    $("upto-value").textContent = `${uptoS.toFixed(2)} s`;
    const advice = seconds < LEAST_S ? ", too short" : seconds > MOST_S ? ", too long" : "";
    $("clip-length").textContent = `${seconds.toFixed(1)} s are used${advice}`;
    $("clip").setAttribute("aria-label", `Recording of ${this.#clip.seconds.toFixed(1)} seconds, ${seconds.toFixed(1)} of them used`);
    this.#draw();
  }

  #draw() {
    if (!this.#clip || $("trim").hidden) return;
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      const { pen, width, height } = sized($("clip"));
      const style = getComputedStyle(document.documentElement);
      const [inside, outside, line] = ["--accent", "--line", "--edge"].map((name) => style.getPropertyValue(name).trim());
      const { samples, rateHz } = this.#clip;
      const bounds = this.#bounds.map((seconds) => ((seconds * rateHz) / samples.length) * width);
      const middle = height / 2;
      for (let x = 0; x < width; x++) {
        const part = samples.subarray(Math.floor((x * samples.length) / width), Math.ceil(((x + 1) * samples.length) / width));
        const peak = part.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
        pen.fillStyle = x >= bounds[0] && x <= bounds[1] ? inside : outside;
        pen.fillRect(x, middle - peak * middle * 0.95, 1, Math.max(1, 2 * peak * middle * 0.95));
      }
      pen.fillStyle = line;
      for (const x of bounds) pen.fillRect(Math.min(width - 2, Math.max(0, x - 1)), 0, 2, height);
    });
  }
}
