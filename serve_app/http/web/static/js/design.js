// The form that makes voices of a description: variants are heard, and one is kept.

import * as api from "./api.js";
import { key } from "./server.js";

const $ = (id) => document.getElementById(id);
const FIELDS = ["prompt", "script", "design-language"];

export class Designing {
  #page;
  #variants = []; // {fields, seed, take}

  /** `page` as for `Cloning`. */
  constructor(page) {
    this.#page = page;
    $("variant").addEventListener("click", () => page.attempt(() => this.#another()));
    $("variants").addEventListener("change", () => this.#ready());
    $("design").addEventListener("submit", (event) => {
      event.preventDefault();
      page.attempt(() => this.#save());
    });
  }

  set isServed(isServed) {
    $("no-design").hidden = isServed;
    $("design-fields").disabled = !isServed;
  }

  async #another() {
    const model = this.#page.model("VoiceDesign");
    const seed = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
    const [prompt, script, language] = FIELDS.map((id) => $(id).value.trim());
    const request = { model: model.id, task_type: "VoiceDesign", input: script, instructions: prompt, seed };
    if (language) request.language = language;
    $("design-state").textContent = "waiting for the first audio";
    $("variant").disabled = true;
    try {
      const take = await this.#page.sound.speak(request, model.sample_rate);
      if (take) this.#add({ fields: { prompt, script_hint: script, language, seed }, take });
    } finally {
      $("variant").disabled = false;
      $("design-state").textContent = "each time another voice of this description";
    }
  }

  #add(variant) {
    const number = this.#variants.push(variant);
    const row = document.createElement("li");
    const choice = Object.assign(document.createElement("input"), { type: "radio", name: "variant", value: number - 1, id: `variant-${number}` });
    const label = Object.assign(document.createElement("label"), { htmlFor: choice.id, textContent: `Variant ${number}` });
    const facts = Object.assign(document.createElement("p"), { className: "hint", textContent: `${variant.take.seconds.toFixed(1)} s · seed ${variant.fields.seed} · ${variant.fields.prompt}` });
    const play = Object.assign(document.createElement("button"), { type: "button", className: "small", textContent: "Play" });
    play.setAttribute("aria-label", `Play: variant ${number}`);
    play.addEventListener("click", () => this.#page.attempt(() => this.#page.sound.play(variant.take.audio(), variant.take.sampleRate)));
    const head = Object.assign(document.createElement("p"), { className: "check" });
    head.append(choice, label);
    const actions = Object.assign(document.createElement("div"), { className: "take-actions" });
    actions.append(play);
    row.append(head, facts, actions);
    $("variants").append(row);
    choice.checked = true;
    this.#ready();
    this.#page.announce(`Variant ${number}: ${variant.take.seconds.toFixed(1)} seconds`);
  }

  get #chosen() {
    return this.#variants[$("variants").querySelector("input:checked")?.value];
  }

  #ready() {
    $("save-design").disabled = !this.#chosen;
  }

  /** The seed that it was heard with makes it again. */
  async #save() {
    const fields = { type: "prompt", name: $("design-name").value, ...this.#chosen.fields };
    const voice = await api.createVoice(fields, null, key());
    this.#variants = [];
    $("variants").replaceChildren();
    $("design-name").value = "";
    this.#ready();
    await this.#page.saved(voice);
  }
}
