// What colors mean, in real values.

import { choice, fill, h } from "./dom.js";
import { colorAt, legendTicks, positionOf } from "./scale.js";

const FLOORS = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6];

export class Legend {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.strip = h("span", { class: "strip" });
    this.ticks = h("span", { class: "ticks" });
    this.hatch = h("span", { class: "swatch" }, h("span", { class: "hatched" }), "may not be looked at");
    this.note = h("span", { class: "note" });
    this.floor = choice("From", (value) => app.store.set({ floor: Number(value) || null }));
    this.el = h("div", { class: "legend" }, h("span", { class: "scale", "aria-hidden": "true" }, this.strip, this.ticks), this.hatch, this.floor.el, this.note);
    this.drawn = "";
  }

  /**
   * @param {number} floor
   * @param {boolean} fixed Whether the floor cannot be chosen here.
   * @param {string} note
   * @param {boolean} masked
   */
  update(floor, fixed, note, masked = true) {
    const { theme, view } = this.app;
    this.floor.el.hidden = fixed;
    this.floor.set([["0", "automatic"], ...FLOORS.map((one) => /** @type {[string, string]} */ ([String(one), tickName(one)]))], String(view.floor ?? 0));
    this.hatch.hidden = !masked;
    this.note.textContent = note;
    if (this.drawn === `${theme} ${floor}`) return;
    this.drawn = `${theme} ${floor}`;
    const stops = Array.from({ length: 17 }, (_, i) => colorAt(theme, i / 16));
    this.strip.style.setProperty("background", `linear-gradient(to right, ${stops.join(", ")})`);
    const ticks = legendTicks(floor);
    const every = ticks.length > 5 ? 2 : 1;
    fill(this.ticks, ticks.filter((_, i) => (ticks.length - 1 - i) % every === 0).map((tick) => h("span", { style: { left: `${100 * positionOf(tick, floor)}%` }, text: tickName(tick) })));
  }
}

function tickName(/** @type {number} */ tick) {
  return tick >= 1e-3 ? String(tick) : `10${[..."⁰¹²³⁴⁵⁶"][Math.round(-Math.log10(tick))].replace(/^/, "⁻")}`;
}
