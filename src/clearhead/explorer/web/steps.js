// The scrubber over a generation: one step for every token that the model wrote.

import { button, h } from "./dom.js";
import { labelOf } from "./tokens.js";

export class Steps {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.slider = h("input", { type: "range", step: "1", "aria-label": "Token that is being written", on: { input: () => this.#go(Number(this.slider.value)) } });
    this.label = h("output", { class: "step" });
    this.el = h("section", { class: "steps", "aria-label": "Generation", hidden: true },
      button("‹", () => this.#go(this.at - 1), { "aria-label": "Token before" }), this.slider,
      button("›", () => this.#go(this.at + 1), { "aria-label": "Token after" }), this.label);
    this.at = 0;
    /** @type {{call: number, row: number, token: number}[]} */
    this.stops = [];
  }

  /** @param {import("./scene.js").Scene} scene */
  update(scene) {
    const { calls } = scene.meta;
    const { prompt } = scene.queries;
    const written = prompt !== null && prompt !== undefined && prompt < scene.queries.tokens.length;
    this.el.hidden = !written && calls.length < 2;
    if (this.el.hidden) return;
    this.stops = calls.length > 1
      ? calls.map((/** @type {any} */ one) => ({ call: one.call, row: one.n_queries - 1, token: one.first + one.n_queries - 1, label: one.label }))
      : Array.from({ length: scene.queries.tokens.length - /** @type {number} */ (prompt) + 1 }, (_, i) => {
        const token = /** @type {number} */ (prompt) + i - 1;
        return { call: -1, row: token - scene.first, token, label: "" };
      });
    const now = scene.query + scene.first;
    const found = this.stops.findIndex((stop) => stop.token === now);
    this.at = found < 0 ? this.stops.length - 1 : found;
    Object.assign(this.slider, { min: "0", max: String(this.stops.length - 1) });
    this.slider.value = String(this.at);
    const next = scene.queries.tokens[now + 1] === undefined ? null : labelOf(scene.queries, now + 1);
    this.label.textContent = `step ${this.at + 1} of ${this.stops.length}: after “${labelOf(scene.queries, now)}”${next ? ` comes “${next}”` : ""}`;
  }

  #go(/** @type {number} */ at) {
    const stop = this.stops[Math.min(this.stops.length - 1, Math.max(0, at))];
    this.at = this.stops.indexOf(stop);
    if (stop) this.app.store.set({ call: stop.call, query: stop.row, to: null, look: "from" });
  }
}
