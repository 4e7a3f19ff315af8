// The first page: the strongest thing the recording says for the pinned word, the text, and all heads at once.

import { choice, fill, h } from "./dom.js";
import { showAnswer } from "./glyphs.js";
import { effectButton, HeadGrid } from "./heads.js";
import { Legend } from "./legend.js";
import { Scatter } from "./metrics.js";
import { Reading } from "./reading.js";
import { figures, percent, usualFloor } from "./scale.js";
import { layerName, placeOf } from "./scene.js";
import { Steps } from "./steps.js";
import { spanName } from "./tokens.js";

export class FrontPage {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    const open = (/** @type {number} */ layer, /** @type {number} */ head) => app.store.set({ layer, head, page: "head", zoom: null }, { undo: true });
    const hover = (/** @type {{layer: number, head: number} | null} */ place) => {
      this.reading.preview = place;
      app.changed();
    };
    this.open = open;
    this.sentence = h("h1", { class: "sentence" });
    this.answer = h("section", { class: "answers", "aria-label": "Answer" });
    this.reading = new Reading(app, { large: true });
    this.steps = new Steps(app);
    this.effect = effectButton(app);
    this.grid = new HeadGrid(app, { open, hover });
    this.grid.tools.append(this.effect.el);
    this.scatter = new Scatter(app, open, hover);
    this.legend = new Legend(app);
    this.call = choice("Forward", (call) => app.store.set({ call: Number(call), query: null, key: null }));
    this.batch = choice("Text", (batch) => app.store.set({ batch: Number(batch), query: null, key: null }));
    this.el = h("div", { class: "front" },
      this.sentence,
      h("div", { class: "lead" }, this.reading.el, this.answer),
      this.steps.el,
      h("div", { class: "tools pickers" }, this.batch.el, this.call.el),
      h("div", { class: "overview" }, h("div", null, this.grid.el, this.legend.el), this.scatter.el));
    this.strongest = app.slot((answer) => {
      this.said = answer?.meta.strongest ?? null;
      app.changed();
    });
  }

  /** @param {import("./scene.js").Scene} scene */
  update(scene) {
    const { app } = this;
    const { meta } = scene;
    const { view } = app;
    const pinned = view.query !== null && view.query !== meta.strongest?.query;
    this.strongest("hardest", pinned ? { ...placeOf(scene), query: scene.query } : null);
    this.#say(scene, pinned ? this.said : meta.strongest);
    showAnswer(this.answer, meta.answer, app.metas.get(view.before)?.answer);
    this.steps.update(scene);
    this.batch.el.hidden = meta.batch.length < 2;
    this.batch.set(meta.batch.map((/** @type {any} */ one) => [String(one.index), one.label]), String(scene.batch));
    this.call.el.hidden = meta.calls.length < 2 || meta.calls.length > 12;
    this.call.set(meta.calls.map((/** @type {any} */ one) => [String(one.call), one.label]), String(scene.call < 0 ? meta.calls.length - 1 : scene.call));
    this.effect.update();
    this.grid.update(scene);
    this.scatter.update(this.grid.rows, `${scene.layer.index}.${scene.head}`, view.kind);
    const masked = meta.layers.some((/** @type {any} */ one) => one.hidden);
    const cell = scene.nKeys > 32 || scene.nQueries > 32 ? " A cell is a block of tokens: summed over keys, averaged over queries." : " A cell is one weight.";
    this.legend.update(usualFloor(Math.min(32, scene.nKeys)), true, `Rows look, columns are looked at.${cell}`, masked);
    this.reading.update(scene);
  }

  /** The sentence, with a way to the head that it is about. */
  #say(/** @type {import("./scene.js").Scene} */ scene, /** @type {any} */ link) {
    if (!link) return;
    const layer = scene.meta.layers.find((/** @type {any} */ one) => one.index === link.layer) ?? scene.layer;
    const [queries, keys] = [scene.meta.axes[layer.query_axis], scene.meta.axes[layer.key_axis]];
    const key = JSON.stringify([scene.meta.id, link]);
    if (key === this.shown) return;
    this.shown = key;
    const name = (/** @type {any} */ axis, /** @type {number} */ at) => {
      const word = axis.words?.find((/** @type {number[]} */ [a, b]) => a <= at && at < b) ?? [at, at + 1];
      return spanName(axis, word[0], word[1] - 1);
    };
    fill(this.sentence, [
      h("span", { class: "word", text: name(queries, link.query + scene.first) }), " looks at ",
      h("span", { class: "word", text: name(keys, link.key) }), " with ",
      h("b", { text: percent(link.weight) }), " of its attention in ",
      h("button", { type: "button", class: "inline", text: `${layerName(layer).toLowerCase()}, head ${link.head}`, on: { click: () => this.open(link.layer, link.head) } }), ".",
    ]);
    this.sentence.title = `weight ${figures(link.weight)}`;
    this.app.say(this.sentence.textContent);
  }
}
