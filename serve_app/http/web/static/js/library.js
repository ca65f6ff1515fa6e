// The voices that there are, and what can be done with each.

import * as api from "./api.js";
import { mixed } from "./clip.js";
import { key, titled } from "./server.js";

const $ = (id) => document.getElementById(id);
const KINDS = { audio_sample: "recorded", prompt: "described", embedding: "vector" };
const DELETE_MS = 4000;

const element = (name, properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

export class Library {
  #page;

  /** `page` as for `Cloning`. */
  constructor(page) {
    this.#page = page;
  }

  /** Show what a server has; `fresh` is the id of a voice that has just been made. */
  fill(voices, defaultId, fresh) {
    const own = voices.filter((voice) => voice.type in KINDS);
    const open = new Set([...$("voices").querySelectorAll("details[open]")].map((details) => details.closest("li").dataset.id));
    $("no-voices").hidden = own.length > 0;
    $("voices").replaceChildren(...own.map((voice) => this.#row(voice, voice.id === defaultId, open.has(voice.id))));
    if (fresh) $("voices").querySelector(`[data-id="${fresh}"]`)?.scrollIntoView({ block: "nearest" });
  }

  #row(voice, isDefault, isOpen) {
    const facts = [
      KINDS[voice.type],
      voice.language && titled(voice.language),
      voice.duration_seconds && `${voice.duration_seconds.toFixed(1)} s`,
      voice.ref_text ? "in context" : voice.type !== "embedding" && "by its vector",
      voice.shared && "shared",
      isDefault && "default",
      ...voice.aliases.map((alias) => `also ${alias}`),
    ];
    const named = (text, does) => {
      const made = element("button", { type: "button", className: "small", textContent: text });
      made.setAttribute("aria-label", `${text}: ${voice.name}`);
      made.addEventListener("click", () => this.#page.attempt(does));
      return made;
    };
    const actions = element("div", { className: "take-actions" });
    if (voice.preview_url) actions.append(named("Play", () => this.#play(voice)));
    if (this.#page.model("Base")) actions.append(named("Speak", () => this.#speak(voice)));
    const row = element(
      "li",
      {},
      element("p", { className: "take-text" }, element("strong", { textContent: voice.name })),
      element("p", { className: "hint", textContent: facts.filter(Boolean).join(" · ") }),
      actions,
      this.#details(voice, isDefault, isOpen, named),
    );
    row.dataset.id = voice.id;
    return row;
  }

  #details(voice, isDefault, isOpen, named) {
    const details = element("details", { className: "more", open: isOpen }, element("summary", { textContent: "More" }));
    details.firstChild.setAttribute("aria-label", `More: ${voice.name}`);
    const fields = element("div", { className: "grid" });
    const field = (label, name, value) => {
      const id = `${name}-${voice.id}`;
      const input = element("input", { id, name, value: value ?? "", spellcheck: false, disabled: !voice.mine });
      fields.append(element("div", { className: name === "ref_text" ? "field wide" : "field" }, element("label", { htmlFor: id, textContent: label }), input));
      return input;
    };
    const inputs = [
      field("Name", "name", voice.name),
      field("Language", "language", voice.language),
      field("Description", "speaker_description", voice.description),
    ];
    if (voice.type !== "embedding") inputs.push(field("What is said in it", "ref_text", voice.ref_text));
    const sharedId = `shared-${voice.id}`;
    const shared = element("input", { type: "checkbox", id: sharedId, checked: voice.shared, disabled: !voice.mine });
    const sharing = element("p", { className: "check" }, shared, element("label", { htmlFor: sharedId, textContent: "Others may speak with it" }));
    const actions = element("div", { className: "actions" });
    if (voice.mine) {
      actions.append(
        named("Save changes", async () => {
          const changes = Object.fromEntries(inputs.map((input) => [input.name, input.value.trim()]));
          await api.changeVoice(voice.id, { ...changes, shared: shared.checked }, key());
          await this.#page.saved(voice);
        }),
      );
    }
    if (voice.preview_url) actions.append(named("Download", () => this.#download(voice)));
    actions.append(
      named(isDefault ? "Not the default" : "Make default", async () => {
        await api.setDefaultVoice(isDefault ? null : voice.id, key());
        await this.#page.saved(voice);
      }),
      element("a", { className: "button small", href: `./?voice=${voice.id}`, textContent: "Playground" }),
    );
    actions.lastChild.setAttribute("aria-label", `Playground: ${voice.name}`);
    if (voice.mine) actions.append(this.#deleting(voice, named));
    details.append(fields, sharing, actions);
    return details;
  }

  /** A button that means it when it is pressed a second time. */
  #deleting(voice, named) {
    const button = named("Delete", async () => {
      if (button.dataset.state !== "sure") {
        button.dataset.state = "sure";
        button.textContent = "Really delete?";
        button.setAttribute("aria-label", `Really delete? ${voice.name}`);
        setTimeout(() => {
          button.dataset.state = "";
          button.textContent = "Delete";
          button.setAttribute("aria-label", `Delete: ${voice.name}`);
        }, DELETE_MS);
        return;
      }
      await api.deleteVoice(voice.id, key());
      this.#page.announce(`${voice.name} is deleted`);
      await this.#page.saved();
    });
    button.classList.add("bad");
    return button;
  }

  async #play(voice) {
    const audio = await this.#page.sound.decoded(await (await api.recording(voice.id, key())).arrayBuffer());
    await this.#page.sound.play(mixed(audio), audio.sampleRate);
    this.#page.announce(`Playing the recording of ${voice.name}`);
  }

  async #speak(voice) {
    const model = this.#page.model("Base");
    $("heard").textContent = "waiting for the first audio";
    try {
      const take = await this.#page.sound.speak({ model: model.id, voice: voice.id, input: $("sentence").value }, model.sample_rate);
      $("heard").textContent = take ? `first audio after ${Math.round(take.firstAudioMs)} ms` : "";
      if (take) this.#page.announce(`${voice.name}: ${take.seconds.toFixed(1)} seconds of audio`);
    } catch (error) {
      $("heard").textContent = "";
      throw error;
    }
  }

  async #download(voice) {
    const url = URL.createObjectURL(await api.recording(voice.id, key()));
    element("a", { href: url, download: `${voice.name}.flac` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
}
