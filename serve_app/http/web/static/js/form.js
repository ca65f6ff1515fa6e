// The form: what can be chosen follows from what is served.

import { key, titled } from "./server.js";

const $ = (id) => document.getElementById(id);

/** The list has each name once, for the first model that has it: what it stands for is known for that one. */
function aliasLabel(voice, model) {
  const name = titled(voice.name);
  return voice.model === model.id ? `${name} → ${titled(voice.alias_of)}` : name;
}

export class Form {
  #models = [];
  #voices = [];

  constructor(onChange) {
    $("form").addEventListener("input", () => {
      this.#show();
      onChange();
    });
    $("model").addEventListener("change", () => {
      this.#fillModel();
      onChange();
    });
    this.#show();
  }

  /** Offer what a server has; choices that it has as well stay. `wanted` is a voice of the library to begin with. */
  fill(models, voices, wanted) {
    const isFirst = !this.#models.length;
    this.#models = models;
    this.#voices = voices;
    choices($("model"), [["", models.map((model) => [model.id, model.id])]]);
    const clones = models.find((model) => model.task_type === "Base");
    const isThere = isFirst && clones && voices.some((voice) => voice.id === wanted);
    if (isThere) $("model").value = clones.id;
    this.#fillModel();
    if (isThere) $("voice").value = wanted;
  }

  get model() {
    return this.#models.find((model) => model.id === $("model").value);
  }

  get key() {
    return key();
  }

  /** The body of the request; fields that are left as they are by default are left out. */
  request() {
    const body = { model: $("model").value || undefined, input: $("input").value };
    if (!$("voice-field").hidden) body.voice = $("voice").value;
    if (!$("instructions-field").hidden) body.instructions = $("instructions").value.trim() || undefined;
    if ($("language").value !== "auto") body.language = $("language").value;
    body.response_format = $("format").value;
    if (Number($("speed").value) !== 1) body.speed = Number($("speed").value);
    if ($("seed").value !== "") body.seed = Number($("seed").value);
    return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== undefined && value !== ""));
  }

  /** Set the fields as they were for a request. */
  restore(request) {
    $("model").value = request.model ?? "";
    this.#fillModel();
    $("input").value = request.input;
    $("voice").value = request.voice ?? $("voice").value;
    $("instructions").value = request.instructions ?? "";
    $("language").value = request.language ?? "auto";
    $("format").value = request.response_format;
    $("speed").value = request.speed ?? 1;
    $("seed").value = request.seed ?? "";
    this.#show();
  }

  /** Mark the field that the server complains of, or none. */
  blame(param) {
    for (const field of $("form").elements) field.removeAttribute("aria-invalid");
    const field = param && $("form").elements.namedItem(param);
    if (!field) return;
    field.closest("details")?.setAttribute("open", "");
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }

  #fillModel() {
    const model = this.model;
    if (!model) return;
    const clones = model.task_type === "Base"; // no other model speaks with what the library holds
    const custom = this.#voices.filter((voice) => clones && !["builtin", "alias"].includes(voice.type));
    const aliases = this.#voices.filter((voice) => voice.type === "alias");
    const named = model.voices.map((voice) => [voice.id, voice.language ? `${titled(voice.name)} (${titled(voice.language)})` : titled(voice.name)]);
    choices($("voice"), [
      ["Library", custom.map((voice) => [voice.id, voice.name])],
      ["Speakers of the model", named],
      ["Other names", named.length ? aliases.map((voice) => [voice.id, aliasLabel(voice, model)]) : []],
    ]);
    $("voice-field").hidden = !$("voice").options.length;
    const languages = model.languages.filter((language) => language !== "auto");
    choices($("language"), [["", [["auto", "Automatic"], ...languages.map((language) => [language, titled(language)])]]]);
    const designs = model.task_type === "VoiceDesign";
    $("instructions-field").hidden = !model.supports_instructions;
    $("instructions").required = designs;
    $("instructions-label").textContent = designs ? "Description of the voice" : "Instructions";
    $("instructions-hint").textContent = designs ? "needed: who speaks, and how" : "optional: how to say it";
    this.#show();
  }

  #show() {
    $("count").textContent = `${[...$("input").value].length.toLocaleString("en")} characters`;
    $("speed-value").textContent = `${Number($("speed").value).toFixed(2)}×`;
  }
}

/** Fill a select with groups of [value, label]; what was chosen stays chosen where it is left. */
export function choices(select, groups) {
  const before = select.value;
  select.replaceChildren();
  for (const [label, entries] of groups) {
    if (!entries.length) continue;
    const options = entries.map(([value, text]) => new Option(text, value));
    if (!label) {
      select.append(...options);
      continue;
    }
    const group = document.createElement("optgroup");
    group.label = label;
    group.append(...options);
    select.append(group);
  }
  if ([...select.options].some((option) => option.value === before)) select.value = before;
}
