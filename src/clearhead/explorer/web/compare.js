// Two recordings side by side, before and after a change or one text and another, with their difference drawn.

import { Changes } from "./changes.js";
import { choice, fill, h } from "./dom.js";
import { bar, showAnswer } from "./glyphs.js";
import { Legend } from "./legend.js";
import { MapView } from "./map.js";
import { colorOfDifference, figures, usualFloor } from "./scale.js";
import { headOf, layerName, sceneOf } from "./scene.js";
import { floatsOf } from "./app.js";
import { spanName } from "./tokens.js";

const N_MOVED = 8;

export class ComparePage {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.title = h("h1");
    this.before = choice("Before", (id) => this.#choose("before", id));
    this.after = choice("After", (id) => this.#choose("scene", id));
    this.maps = { before: new MapView(app, "before"), now: new MapView(app, "now"), difference: new MapView(app, "difference") };
    const panel = (/** @type {string} */ label, /** @type {MapView} */ map) => h("section", { "aria-label": label }, h("h2", { text: label }), map.el, map.status);
    this.columns = h("div", { class: "compared" }, panel("Before", this.maps.before), panel("After", this.maps.now), panel("Difference: after less before", this.maps.difference));
    this.none = h("p", { class: "nothing", text: "Nothing to compare yet. Switch a head off on the page of one head, or choose two recordings above." });
    this.answer = h("section", { class: "answers", "aria-label": "Answer" });
    this.moved = h("section", { class: "moved", "aria-label": "What the pinned word looks at" });
    this.changes = new Changes(app, (layer, head) => app.store.set({ layer, head }, { undo: true }));
    this.legend = new Legend(app);
    this.scaleOfDifference = h("p", { class: "legend" });
    this.el = h("div", { class: "comparepage" },
      h("div", { class: "headtop" }, this.title, h("div", { class: "tools" }, this.before.el, this.after.el)),
      this.none, this.columns, this.legend.el, this.scaleOfDifference, h("div", { class: "lead" }, this.moved, this.answer), this.changes.el);
    this.rows = { before: app.slot((answer) => this.#got("before", answer)), now: app.slot((answer) => this.#got("now", answer)) };
    /** @type {Record<string, Float32Array | null>} */
    this.values = { before: null, now: null };
  }

  #got(/** @type {string} */ which, /** @type {any} */ answer) {
    this.values[which] = floatsOf(answer);
    this.app.changed();
  }

  /** Show another recording on one side, once what it is of is known. */
  async #choose(/** @type {"before" | "scene"} */ side, /** @type {string} */ id) {
    const { app } = this;
    try {
      if (id && !app.metas.has(id)) app.metas.set(id, (await app.ask("meta", { scene: id })).meta);
      const edits = side === "scene" ? app.metas.get(id)?.edits ?? [] : app.view.edits;
      app.store.set(side === "scene" ? { scene: id, edits } : { before: id }, { undo: true });
    } catch (error) {
      app.fail(error);
    }
  }

  /** @param {import("./scene.js").Scene} scene */
  update(scene) {
    const { app } = this;
    const { view } = app;
    const known = new Map([...(app.metas.get(app.firstScene)?.scenes ?? []), ...[...app.metas.values()].map(({ id, title, edits }) => ({ id, title, edits }))].map((one) => [one.id, one]));
    const options = [...known.values()].map((one) => /** @type {[string, string]} */ ([one.id, `${one.title}${one.edits?.length ? ` (${one.edits.length} changed)` : ""}`]));
    this.before.set([["", "nothing"], ...options], view.before);
    this.after.set(options, scene.meta.id);
    this.title.textContent = `${layerName(scene.layer)}, head ${scene.head}, twice`;
    const other = app.metas.get(view.before);
    const alike = Boolean(other && sameSize(other, scene));
    this.columns.hidden = !other;
    this.none.hidden = Boolean(other);
    this.legend.el.hidden = !other;
    this.answer.hidden = this.moved.hidden = this.changes.el.hidden = !other;
    /** @type {HTMLElement} */ (this.maps.difference.el.parentElement).hidden = !alike;
    this.scaleOfDifference.hidden = !alike;
    showAnswer(this.answer, other ? scene.meta.answer : null, other?.answer);
    if (!other) return;
    const was = sceneOf(other, { ...view, scene: other.id });
    this.maps.before.update(was);
    this.maps.now.update(scene);
    if (alike) this.maps.difference.update(scene);
    this.legend.update(view.floor ?? usualFloor(scene.nKeys), false, "", Boolean(/** @type {any} */ (scene.layer).hidden));
    this.#differenceLegend();
    this.rows.before("row", { ...headOf(was), query: was.query });
    this.rows.now("row", { ...headOf(scene), query: scene.query });
    this.#moved(scene, alike);
    this.changes.update(was, scene);
  }

  #differenceLegend() {
    const { theme } = this.app;
    if (theme === this.drawn) return;
    this.drawn = theme;
    const swatch = (/** @type {number} */ value) => h("span", { class: "swatch" }, h("span", { class: "patch", style: { background: colorOfDifference(theme, value) } }), `${value > 0 ? "+" : ""}${figures(value)}`);
    fill(this.scaleOfDifference, ["Difference of shares:", ...[-1, -0.1, -0.01, 0.01, 0.1, 1].map(swatch)]);
  }

  /** The keys whose weight from the pinned word changed most. */
  #moved(/** @type {import("./scene.js").Scene} */ scene, /** @type {boolean} */ alike) {
    const { before, now } = this.values;
    if (!alike || !before || !now || before.length !== now.length) return fill(this.moved, []);
    const order = [...now.keys()].sort((a, b) => Math.abs(now[b] - before[b]) - Math.abs(now[a] - before[a])).slice(0, N_MOVED);
    const word = spanName(scene.queries, scene.query + scene.first, scene.query + scene.first);
    fill(this.moved, [h("h2", { text: `What ${word} looks at, before and after` }), ...order.map((key) => bar(spanName(scene.keys, key, key), now[key], before[key]))]);
  }
}

function sameSize(/** @type {any} */ other, /** @type {import("./scene.js").Scene} */ scene) {
  const layer = other.layers.find((/** @type {any} */ one) => one.index === scene.layer.index);
  return layer && layer.n_queries === scene.nQueries && layer.n_keys === scene.nKeys && layer.heads.includes(scene.head);
}
