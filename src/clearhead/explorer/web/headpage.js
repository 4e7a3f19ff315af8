// One head: its map, the text beside it, the number under the cross-hair taken apart, and what can be changed.

import { button, fill, h, segments } from "./dom.js";
import { Touch } from "./edits.js";
import { zoomBy } from "./gestures.js";
import { glyph } from "./glyphs.js";
import { Legend } from "./legend.js";
import { MapView } from "./map.js";
import { Reading } from "./reading.js";
import { figures, percent, usualFloor } from "./scale.js";
import { headOf, KINDS, layerName, neighbour, placeOf } from "./scene.js";
import { Steps } from "./steps.js";
import { nameOf } from "./tokens.js";
import { Why } from "./why.js";

const N_STRONGEST = 20;

export class HeadPage {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    const go = (/** @type {number} */ step, /** @type {boolean} */ byLayer) => {
      const next = neighbour(app.scene, step, byLayer);
      if (next) app.store.set(next, { undo: true });
    };
    this.title = h("h1");
    this.kind = h("p", { class: "kindline" });
    this.map = new MapView(app);
    this.reading = new Reading(app, { large: false });
    this.why = new Why(app);
    this.touch = new Touch(app);
    this.steps = new Steps(app);
    this.legend = new Legend(app);
    this.mode = segments("What a pixel holds", [["sum", "sum"], ["max", "maximum"]], (mode) => app.store.set({ mode: /** @type {"sum" | "max"} */ (mode) }));
    this.table = h("table");
    this.details = h("details", { class: "strongest", on: { toggle: () => app.changed() } }, h("summary", { text: "The strongest links of this head, as a table" }), this.table);
    this.el = h("div", { class: "headpage" },
      h("div", { class: "headtop" },
        h("div", null, this.title, this.kind),
        h("div", { class: "tools" },
          stepper("layer", () => go(-1, true), () => go(1, true)), stepper("head", () => go(-1, false), () => go(1, false)))),
      h("div", { class: "columns" },
        h("div", { class: "left" },
          h("div", { class: "tools maptools" }, this.mode.el,
            button("−", () => zoomBy(this.map, -1), { "aria-label": "Zoom out" }), button("+", () => zoomBy(this.map, 1), { "aria-label": "Zoom in" }),
            button("All in view", () => app.store.set({ zoom: null }))),
          this.map.el, this.map.exactness.el, this.map.status, this.legend.el, this.details),
        h("div", { class: "right" }, this.steps.el, this.reading.el, this.touch.el)),
      this.why.el);
    this.heads = app.slot((answer) => {
      this.rows = answer?.meta.heads ?? [];
      app.changed();
    });
    this.strongest = app.slot((answer) => this.#fillTable(answer?.meta.links ?? []));
  }

  /** @param {import("./scene.js").Scene} scene */
  update(scene) {
    const { app } = this;
    this.scene = scene;
    this.heads("heads", placeOf(scene));
    const row = this.rows?.find((/** @type {any} */ one) => one.layer === scene.layer.index && one.head === scene.head);
    this.title.textContent = `${layerName(scene.layer)}, head ${scene.head}`;
    this.#describe(row, scene);
    this.mode.set(app.view.mode);
    this.map.update(scene);
    this.reading.update(scene);
    this.steps.update(scene);
    this.why.update(scene);
    this.touch.update(scene);
    const hidden = /** @type {any} */ (scene.layer).hidden;
    const masked = Boolean(hidden && ((hidden.last_offset ?? null) !== null || (hidden.first_offset ?? null) !== null));
    this.legend.update(app.view.floor ?? usualFloor(scene.nKeys), false, "", masked);
    if (this.details.open) this.strongest("strongest", { ...headOf(scene), count: N_STRONGEST });
  }

  #describe(/** @type {any} */ row, /** @type {import("./scene.js").Scene} */ scene) {
    const key = `${row?.kind} ${row?.layer} ${row?.head} ${scene.meta.id}`;
    if (key === this.described) return;
    this.described = key;
    if (!row) return fill(this.kind, []);
    const facts = [`entropy ${figures(row.entropy)} nats`];
    if (scene.queries === scene.keys) facts.push(`distance ${figures(row.distance)}`);
    const heaviest = nameOf(scene.keys, row.heaviest);
    facts.push(`${percent(row.heaviest_share)} to ${heaviest}`);
    fill(this.kind, [glyph(row.kind), h("b", { text: row.kind }), `: ${KINDS[/** @type {keyof typeof KINDS} */ (row.kind)] ?? ""}. `, h("span", { class: "facts", text: facts.join(" · ") })]);
  }

  #fillTable(/** @type {any[]} */ links) {
    const scene = /** @type {import("./scene.js").Scene} */ (this.scene);
    const head = h("tr", null, ...["From", "To", "Weight"].map((text) => h("th", { scope: "col", text })));
    fill(this.table, [h("thead", null, head), h("tbody", null, ...links.map((link) => h("tr", null,
      h("td", null, h("button", { type: "button", class: "inline", text: `${nameOf(scene.queries, link.query + scene.first)} (${link.query})`, on: { click: () => this.app.store.set({ query: link.query, key: link.key, to: null }, { undo: true }) } })),
      h("td", { text: `${nameOf(scene.keys, link.key)} (${link.key})` }),
      h("td", { class: "number", text: figures(link.weight) }))))]);
  }
}

function stepper(/** @type {string} */ what, /** @type {() => void} */ before, /** @type {() => void} */ after) {
  return h("span", { class: "stepper" }, button("‹", before, { "aria-label": `${what} before` }), h("span", { text: what }), button("›", after, { "aria-label": `${what} after` }));
}
