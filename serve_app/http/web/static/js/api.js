// The server's answers. Addresses are relative to the page, which may stand behind any prefix.

export const SERVER = globalThis.document ? new URL("../", document.baseURI) : new URL("http://localhost/");

const VOICES = "v1/audio/voices";
const CONSENTS = "v1/audio/voice_consents";
const DEFAULT = "v1/audio/default_voice";
const JSON_TYPE = { "Content-Type": "application/json" };

/** What a server refused or failed at, in its own words. */
export class ServerError extends Error {
  constructor(message, status, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(method, path, key, body, type = {}) {
  const sent = { method, headers: { ...headers(key), ...type }, body };
  const response = await fetch(new URL(path, SERVER), sent).catch((error) => {
    throw new Error("The server cannot be reached.", { cause: error });
  });
  if (!response.ok) throw await errorOf(response);
  return response;
}

const list = async (path, key) => (await (await ask("GET", path, key)).json()).data;
export const models = (key) => list("v1/models", key);
export const voices = (key) => list(VOICES, key);

/** Keep a voice: of a recording, or of a description. */
export const createVoice = async (fields, recording, key) =>
  (await ask("POST", VOICES, key, formOf(fields, "audio_sample", recording))).json();
/** Keep a recording in which somebody agrees to the use of their voice. */
export const createConsent = async (fields, recording, key) =>
  (await ask("POST", CONSENTS, key, formOf(fields, "recording", recording))).json();

function formOf(fields, name, recording) {
  const form = new FormData();
  for (const [field, value] of Object.entries(fields)) if (value) form.set(field, value);
  if (recording) form.set(name, recording, "recording");
  return form;
}

export const changeVoice = async (id, fields, key) =>
  (await ask("POST", `${VOICES}/${id}`, key, JSON.stringify(fields), JSON_TYPE)).json();
export const deleteVoice = (id, key) => ask("DELETE", `${VOICES}/${id}`, key);
/** The recording of a voice, as a file. */
export const recording = async (id, key) => (await ask("GET", `${VOICES}/${id}/download`, key)).blob();
/** The voice that answers where none is named, or null. */
export const defaultVoice = async (key) => (await (await ask("GET", DEFAULT, key)).json()).voice;
export const setDefaultVoice = (id, key) =>
  id ? ask("PUT", DEFAULT, key, JSON.stringify({ voice: id }), JSON_TYPE) : ask("DELETE", DEFAULT, key);

/** State of the server; a server that cannot serve answers as well, with 503. */
export async function health() {
  const response = await fetch(new URL("health", SERVER));
  return response.json();
}

/** Ask for speech; resolves when the first audio exists, with a response whose body streams. */
export async function speech(request, key, signal) {
  const response = await fetch(new URL("v1/audio/speech", SERVER), {
    method: "POST",
    headers: { ...JSON_TYPE, ...headers(key) },
    body: JSON.stringify(request),
    signal,
  });
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** OpenAI's error object where there is one, else the status in words. */
export async function errorOf(response) {
  const text = await response.text();
  try {
    const { message, param } = JSON.parse(text).error;
    return new ServerError(message, response.status, param);
  } catch {
    return new ServerError(`The server answered ${response.status} ${response.statusText}`.trim() + ".", response.status);
  }
}
