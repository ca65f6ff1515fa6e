// What a page shows of the server: its state, what is wrong, and the key that it is asked with.

import * as api from "./api.js";

const $ = (id) => document.getElementById(id);
const KEY = "api-key";

/** The key of the field, which a tab remembers; `onChange` is called when it is another. */
export function rememberKey(onChange) {
  $("key").value = sessionStorage.getItem(KEY) ?? "";
  $("key").addEventListener("change", () => {
    sessionStorage.setItem(KEY, key());
    onChange();
  });
}

export const key = () => $("key").value.trim();

/** Show how the server is, and resolve with its models and voices. */
export async function connect() {
  const state = await api.health();
  $("server").textContent = `${state.status}, version ${state.version}`;
  $("server-dot").dataset.state = state.status;
  $("note").textContent = state.note ?? "";
  $("note").hidden = !state.note;
  return Promise.all([api.models(key()), api.voices(key())]);
}

/** Show that it does not answer, and return the error to complain of. */
export function unreachable(error) {
  $("server-dot").dataset.state = "unhealthy";
  if (!(error instanceof api.ServerError)) $("server").textContent = "not reachable";
  return error instanceof TypeError ? new Error("The server cannot be reached.") : error;
}

/** Show an error in its own words, or none. */
export function complain(error) {
  $("error").textContent = error?.message ?? "";
  $("error").hidden = !error;
  if (error?.status === 401) {
    $("more").open = true;
    $("key").focus();
  }
  if (error) $("error").scrollIntoView({ block: "nearest" });
}

export const titled = (name) => name.replaceAll("_", " ").replace(/(^|\s)\p{L}/gu, (letter) => letter.toUpperCase());
