// Taking a view away: as a command, as Python, as a figure, as numbers. What leaves never holds the token.

import { asCommand, asPython, formatView } from "./address.js";
import { button, h } from "./dom.js";

export class ShareMenu {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.items = [
      button("Copy as command", () => this.#copy("The command", asCommand(app.view, app.meta.commands.command))),
      button("Copy as Python", () => this.#copy("The Python", asPython(this.#filled(), app.meta.commands.python))),
      button("Copy the view", () => this.#copy("The view", `#${formatView(app.view)}`)),
    ];
    this.el = h("details", { class: "menu share" }, h("summary", { text: "Share" }), h("div", { class: "items" }, ...this.items));
  }

  update() {
    this.items[0].hidden = !this.app.meta.commands?.command;
    this.items[1].hidden = !this.app.meta.commands?.python;
  }

  #filled() {
    const { scene, view } = this.app;
    return view.page === "heads" ? { ...view, layer: null } : { ...view, layer: scene.layer.index, head: scene.head, query: scene.query };
  }

  async #copy(/** @type {string} */ what, /** @type {string} */ text) {
    this.el.open = false;
    try {
      await navigator.clipboard.writeText(text);
      this.app.tell(`${what} is in the clipboard: ${text}`);
    } catch {
      this.app.tell(`${what}, to copy by hand: ${text}`);
    }
  }
}
