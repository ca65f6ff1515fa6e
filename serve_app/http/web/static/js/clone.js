// The form that makes a voice of a recording.

import * as api from "./api.js";
import { Clip, dataUrl, mixed, wavOf } from "./clip.js";
import { Recorder } from "./recorder.js";
import { key } from "./server.js";
import { Trimmer } from "./trimmer.js";

const $ = (id) => document.getElementById(id);
// A little more than a server takes: what is too long is trimmed.
const LONGEST_RECORDING_S = 60;

export class Cloning {
  #page;
  #trimmer = new Trimmer();
  #recorder = null;
  #clip = null;

  /** `page` has `sound`, `attempt(work)`, `announce(text)`, `model(task)` and `saved(voice)`. */
  constructor(page) {
    this.#page = page;
    $("record").disabled = !Recorder.isPossible;
    if (!Recorder.isPossible) $("drop-hint").textContent = "or drop one here; recording takes a page over TLS";
    $("record").addEventListener("click", () => page.attempt(() => this.#record()));
    $("file").addEventListener("change", () => {
      page.attempt(() => this.#open($("file").files[0]));
    });
    const drop = $("drop");
    for (const kind of ["dragenter", "dragover"]) {
      drop.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.classList.add("over");
      });
    }
    for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      page.attempt(() => this.#open(event.dataTransfer.files[0]));
    });
    $("play-clip").addEventListener("click", () => page.attempt(() => page.sound.play(this.#trimmer.samples, this.#clip.rateHz)));
    $("discard").addEventListener("click", () => this.#take(null));
    $("hear-clone").addEventListener("click", () => page.attempt(() => this.#hear()));
    $("keep-consent").addEventListener("click", () => page.attempt(() => this.#keepConsent()));
    $("clone").addEventListener("submit", (event) => {
      event.preventDefault();
      page.attempt(() => this.#save());
    });
  }

  /** Whether there is a checkpoint that speaks with it. */
  set isServed(isServed) {
    $("no-clone").hidden = isServed;
    this.#ready();
  }

  async #record() {
    if (this.#recorder) return this.#recorded();
    this.#page.sound.stop();
    const recorder = new Recorder();
    this.#recorder = recorder;
    $("record").dataset.state = "starting";
    try {
      await recorder.start((peak, seconds) => {
        // Some pieces are still on their way when it has been stopped.
        if (this.#recorder !== recorder) return;
        $("level").style.setProperty("inline-size", `${Math.round(100 * Math.min(1, peak))}%`);
        $("record-label").textContent = `Stop, ${seconds.toFixed(1)} s`;
        if (seconds >= LONGEST_RECORDING_S) this.#page.attempt(() => this.#recorded());
      });
    } catch (error) {
      this.#rest();
      throw error;
    }
    $("record").dataset.state = "recording";
    $("meter").hidden = false;
    this.#page.announce("Recording");
  }

  async #recorded() {
    const recorder = this.#recorder;
    this.#rest();
    this.#take(await recorder.stop());
  }

  #rest() {
    this.#recorder = null;
    $("record").dataset.state = "";
    $("record-label").textContent = "Record";
    $("meter").hidden = true;
  }

  async #open(file) {
    if (!file) return;
    let audio;
    try {
      audio = await this.#page.sound.decoded(await file.arrayBuffer());
    } catch {
      // The server reads more than browsers do; what it is sent is the whole file then.
      this.#take(new Clip(new Float32Array(0), 24000, file));
      return;
    }
    this.#take(new Clip(mixed(audio), audio.sampleRate));
  }

  #take(clip) {
    this.#clip = clip;
    $("file").value = "";
    this.#trimmer.clip = clip?.samples.length ? clip : null;
    this.#ready();
    if (!clip) return;
    const what = clip.samples.length ? `${clip.seconds.toFixed(1)} seconds` : `${clip.file.name}, which this browser cannot show`;
    $("drop-hint").textContent = clip.samples.length ? "or drop another one here" : what;
    this.#page.announce(`Recording: ${what}`);
  }

  #ready() {
    $("save-clone").disabled = $("keep-consent").disabled = !this.#clip;
    $("hear-clone").disabled = !this.#clip || !this.#page.model("Base");
  }

  /** The part that is used, as a file. */
  get #file() {
    return this.#clip.samples.length ? wavOf(this.#trimmer.samples, this.#clip.rateHz) : this.#clip.file;
  }

  async #hear() {
    const model = this.#page.model("Base");
    const request = { model: model.id, input: $("sentence").value, ref_audio: await dataUrl(this.#file) };
    if ($("said").value.trim()) request.ref_text = $("said").value.trim();
    if ($("clone-consent").value.trim()) request.consent = $("clone-consent").value.trim();
    this.#page.announce("Waiting for the first audio");
    const take = await this.#page.sound.speak(request, model.sample_rate);
    if (take) this.#page.announce(`${take.seconds.toFixed(1)} seconds of audio`);
  }

  /** The recording is somebody who agrees: what is made next is made under that. */
  async #keepConsent() {
    const fields = { name: $("clone-name").value, language: $("clone-language").value };
    const consent = await api.createConsent(fields, this.#file, key());
    $("clone-consent").value = consent.id;
    this.#take(null);
    this.#page.announce(`The consent ${consent.name} is kept`);
  }

  async #save() {
    const fields = Object.fromEntries(new FormData($("clone")));
    if (fields.shared) fields.shared = "true";
    const voice = await api.createVoice(fields, this.#file, key());
    $("clone").reset();
    this.#take(null);
    await this.#page.saved(voice);
  }
}
