// The panel with the same request as a program: tabs, and a button that copies.

import { SERVER } from "./api.js";
import { snippet } from "./snippets.js";

const $ = (id) => document.getElementById(id);

export class Example {
  #form;
  #tabs = [...document.querySelectorAll("[role=tab]")];

  constructor(form) {
    this.#form = form;
    this.#tabs.forEach((tab, index) => {
      tab.addEventListener("click", () => this.#select(index));
      tab.addEventListener("keydown", (event) => this.#move(event, index));
    });
    $("copy").addEventListener("click", () => this.#copy());
    this.show();
  }

  show() {
    const { language } = this.#tabs.find((tab) => tab.ariaSelected === "true").dataset;
    $("snippet-code").textContent = snippet(language, this.#form.request(), SERVER, Boolean(this.#form.key));
  }

  #select(index) {
    this.#tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
    });
    $("snippet").setAttribute("aria-labelledby", this.#tabs[index].id);
    this.show();
  }

  #move(event, index) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (index + step + this.#tabs.length) % this.#tabs.length;
    this.#tabs[next].focus();
    this.#select(next);
  }

  async #copy() {
    const text = $("snippet-code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // No clipboard without TLS: select it, so that a key copies it.
      getSelection().selectAllChildren($("snippet-code"));
      $("copy").textContent = "Press Ctrl+C";
      setTimeout(() => ($("copy").textContent = "Copy"), 3000);
      return;
    }
    $("copy").textContent = "Copied";
    setTimeout(() => ($("copy").textContent = "Copy"), 1500);
  }
}
