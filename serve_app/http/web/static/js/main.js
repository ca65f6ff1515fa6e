// The page: a form, one take at a time, and what is shown of it.

import { Example } from "./example.js";
import { Form } from "./form.js";
import { Pictures } from "./pictures.js";
import { Player } from "./player.js";
import * as server from "./server.js";
import { Take } from "./take.js";
import { Takes, save } from "./takes.js";

const $ = (id) => document.getElementById(id);
const DEFAULT_RATE_HZ = 24000;
// A voice of the library that another page has sent here.
const WANTED = new URLSearchParams(location.search).get("voice");
// Where motion is unwanted, the mark of what is heard moves in steps.
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// One column: what is heard is drawn below the form.
const narrow = matchMedia("(max-width: 60rem)");

const pictures = new Pictures($("waveform"), $("spectrogram"), $("axis-end"));
const takes = new Takes($("takes"), $("no-takes"));
server.rememberKey(connect);
const form = new Form(() => example.show());
const example = new Example(form);

let player = null;
let making = null; // the AbortController of the take being made
let shown = null; // the take in the pictures
let replaying = false;
let ticking = 0;

async function connect() {
  try {
    const [models, voices] = await server.connect();
    form.fill(models, voices, WANTED);
    complain(null);
  } catch (error) {
    complain(server.unreachable(error));
  }
  example.show();
}

function complain(error) {
  server.complain(error);
  form.blame(error?.param);
  if (error?.status === 401) $("key").focus();
}

/** The player at a sample rate, made after a click, as browsers want. */
async function playerAt(rateHz) {
  if (player?.sampleRate !== rateHz) {
    await player?.context.close();
    player = new Player(rateHz);
  }
  player.stop();
  await player.resume();
  return player;
}

function present(take) {
  shown = take;
  pictures.begin(take.sampleRate);
  read();
}

/** Bring the read-outs up to date with the take that is shown. */
function read() {
  const { firstAudioMs, realTimeFactor, seconds, bytes } = shown;
  $("first-audio").textContent = firstAudioMs === null ? "–" : `${Math.round(firstAudioMs)} ms`;
  $("rtf").textContent = realTimeFactor === null ? "–" : realTimeFactor.toFixed(realTimeFactor < 0.1 ? 3 : 2);
  $("length").textContent = seconds ? `${seconds.toFixed(1)} s` : "–";
  $("size").textContent = bytes ? `${(bytes / 1000).toFixed(bytes < 10_000 ? 1 : 0)} kB` : "–";
}

function tell(text) {
  $("state").textContent = text;
}

function announce(text) {
  tell(text);
  $("live").textContent = text;
}

function ready(take) {
  const saved = Boolean(take?.bytes) && take.state !== "making";
  $("replay").disabled = !saved || !take.samples;
  $("download").disabled = !saved;
}

async function speak() {
  stop();
  complain(null);
  const controller = new AbortController();
  making = controller;
  $("stop").disabled = false;
  const output = await playerAt(form.model?.sample_rate ?? DEFAULT_RATE_HZ);
  if (controller.signal.aborted) return;
  const take = new Take(form.request(), output.sampleRate);
  present(take);
  ready(take);
  announce("Waiting for the first audio");
  const onSamples = (samples) => {
    if (take.samples === samples.length) {
      announce(`Speaking, first audio after ${Math.round(take.firstAudioMs)} milliseconds`);
      if (narrow.matches) $("listen").scrollIntoView({ behavior: calm.matches ? "auto" : "smooth" });
    }
    output.push(samples);
    pictures.push(samples);
    tick();
  };
  const current = () => making === controller;
  let failure = null;
  try {
    await take.make({ key: form.key, signal: controller.signal, player: output, onSamples, onProgress: () => current() && read() });
  } catch (error) {
    failure = error;
  }
  if (take.bytes) takes.add(take, { play, reuse });
  if (shown !== take) return; // another one has been asked for meanwhile
  if (current()) making = null;
  read();
  ready(take);
  if (take.samples) pictures.finish();
  if (failure) {
    complain(failure);
    tell("failed");
  } else if (take.state === "complete") {
    announce(`Complete: ${take.seconds.toFixed(1)} seconds of audio`);
  }
  if (!take.samples || take.state === "stopped") $("stop").disabled = true;
}

function stop() {
  const was = making ?? (player?.ahead() ? player : null);
  making?.abort();
  making = null;
  player?.stop();
  pictures.position = null;
  replaying = false;
  $("stop").disabled = true;
  if (was) announce("Stopped");
}

async function play(take) {
  stop();
  const output = await playerAt(take.sampleRate);
  const audio = take.audio();
  present(take);
  ready(take);
  pictures.push(audio);
  pictures.finish();
  output.push(audio);
  $("stop").disabled = false;
  replaying = true;
  announce(`Playing ${take.seconds.toFixed(1)} seconds`);
  tick();
}

function reuse(take) {
  form.restore(take.request);
  example.show();
  $("input").focus();
}

/** Follow what is heard until nothing is left to play. */
function tick() {
  ticking ||= requestAnimationFrame(() => {
    ticking = 0;
    const playing = Boolean(player.ahead());
    const heard = player.position();
    pictures.position = playing ? (calm.matches ? Math.floor(2 * heard) / 2 : heard) : null;
    if (playing || making) return tick();
    $("stop").disabled = true;
    if (replaying) tell("Played");
    replaying = false;
  });
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
$("stop").addEventListener("click", stop);
$("replay").addEventListener("click", () => play(shown));
$("download").addEventListener("click", () => save(shown));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("form").requestSubmit();
  } else if (event.key === "Escape") {
    stop();
  } else if (event.altKey && event.code === "KeyR" && !$("replay").disabled) {
    event.preventDefault();
    play(shown);
  } else if (event.altKey && event.code === "KeyS" && !$("download").disabled) {
    event.preventDefault();
    save(shown);
  }
});
connect();
