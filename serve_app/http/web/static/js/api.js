// The server's answers. Addresses are relative to the page, which may stand behind any prefix.

export const SERVER = globalThis.document ? new URL("../", document.baseURI) : new URL("http://localhost/");

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

async function list(path, key) {
  const response = await fetch(new URL(path, SERVER), { headers: headers(key) });
  if (!response.ok) throw await errorOf(response);
  return response.json();
}

export const models = async (key) => (await list("v1/models", key)).data;
export const voices = async (key) => (await list("v1/audio/voices", key)).data;

/** State of the server; a server that cannot serve answers as well, with 503. */
export async function health() {
  const response = await fetch(new URL("health", SERVER));
  return response.json();
}

/** Ask for speech; resolves when the first audio exists, with a response whose body streams. */
export async function speech(request, key, signal) {
  const response = await fetch(new URL("v1/audio/speech", SERVER), {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
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
