// The list of the last takes.

const KEPT = 12;

const button = (text, label, onClick) => {
  const made = Object.assign(document.createElement("button"), { type: "button", className: "small", textContent: text });
  made.setAttribute("aria-label", `${text}: ${label}`);
  made.addEventListener("click", onClick);
  return made;
};

export class Takes {
  #list;
  #empty;

  constructor(list, empty) {
    this.#list = list;
    this.#empty = empty;
  }

  /** Put a take on top; `play` and `reuse` are called with it. */
  add(take, { play, reuse }) {
    const { input, voice, response_format: format } = take.request;
    const row = document.createElement("li");
    const text = Object.assign(document.createElement("p"), { className: "take-text", textContent: input });
    const parts = [voice, format, `${take.seconds.toFixed(1)} s`, take.firstAudioMs === null ? null : `${Math.round(take.firstAudioMs)} ms`];
    if (take.state !== "complete") parts.push(take.state);
    const facts = Object.assign(document.createElement("p"), { className: "hint", textContent: parts.filter(Boolean).join(" · ") });
    const label = input.slice(0, 60);
    const actions = Object.assign(document.createElement("div"), { className: "take-actions" });
    actions.append(
      button("Play", label, () => play(take)),
      button("Reuse", label, () => reuse(take)),
      button("Save", label, () => save(take)),
    );
    row.append(text, facts, actions);
    this.#list.prepend(row);
    while (this.#list.children.length > KEPT) this.#list.lastElementChild.remove();
    this.#empty.hidden = true;
  }
}

export function save(take) {
  const url = URL.createObjectURL(take.file());
  Object.assign(document.createElement("a"), { href: url, download: take.fileName }).click();
  // The browser has its own hold on it once the download began.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
