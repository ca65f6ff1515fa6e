// The page of voices: a recording becomes one, a description does, and there they are.

import * as api from "./api.js";
import { Cloning } from "./clone.js";
import { Designing } from "./design.js";
import { choices } from "./form.js";
import { Library } from "./library.js";
import * as server from "./server.js";
import { Sound } from "./sound.js";

const $ = (id) => document.getElementById(id);

let models = [];

const page = {
  sound: new Sound((playing) => ($("stop").disabled = !playing)),
  /** Do something that may fail, and say so. */
  async attempt(work) {
    server.complain(null);
    try {
      await work();
    } catch (error) {
      server.complain(error);
    }
  },
  announce: (text) => ($("live").textContent = text),
  model: (task) => models.find((model) => model.task_type === task),
  /** Show the library as it has become; `voice` is what has been made or changed. */
  async saved(voice) {
    await refresh(voice?.id);
    if (voice) page.announce(`${voice.name} is kept`);
  },
};
const cloning = new Cloning(page);
const designing = new Designing(page);
const library = new Library(page);

async function refresh(fresh) {
  const [voices, chosen] = await Promise.all([api.voices(server.key()), api.defaultVoice(server.key())]);
  library.fill(voices, chosen?.id, fresh);
}

async function connect() {
  try {
    [models] = await server.connect();
    offerLanguages("clone-language", page.model("Base"), "Not stated");
    offerLanguages("design-language", page.model("VoiceDesign"), "Automatic");
    cloning.isServed = Boolean(page.model("Base"));
    designing.isServed = Boolean(page.model("VoiceDesign"));
    await refresh();
    server.complain(null);
  } catch (error) {
    server.complain(server.unreachable(error));
  }
}

function offerLanguages(id, model, none) {
  const languages = (model ?? models[0])?.languages.filter((language) => language !== "auto") ?? [];
  choices($(id), [["", [["", none], ...languages.map((language) => [language, server.titled(language)])]]]);
}

$("stop").addEventListener("click", () => page.sound.stop());
document.addEventListener("keydown", (event) => event.key === "Escape" && page.sound.stop());
server.rememberKey(connect);
connect();
