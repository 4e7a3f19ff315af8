// Touch it: switch a head off, cut a link, hide a token, change the temperature; the model runs again and the answer moves.

import { formatEdit } from "./address.js";
import { button, fill, h } from "./dom.js";
import { showAnswer } from "./glyphs.js";
import { nameOf } from "./tokens.js";

/** @typedef {import("./address.js").Edit} Edit */
/** @typedef {import("./scene.js").Scene} Scene */

export class Touch {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.off = button("", () => this.#add({ off: { layer: this.scene.layer.index, head: this.scene.head } }));
    this.cut = button("", () => this.#add({ cut: { layer: this.scene.layer.index, head: this.scene.head, query: this.scene.query, key: this.scene.key } }));
    this.hide = button("", () => this.#add({ hide: { token: this.scene.key } }));
    this.heat = h("input", { type: "range", min: "-2", max: "2", step: "0.1", value: "0", on: { input: () => this.#heatText(), change: () => this.#heat() } });
    this.heatLabel = h("output");
    this.list = h("ul", { class: "edits" });
    this.progress = h("progress", { max: "1", hidden: true });
    this.answer = h("div", { class: "answers" });
    this.compare = button("See the difference", () => app.store.set({ page: "compare" }, { undo: true }), { class: "quiet" });
    this.el = h("section", { class: "touch", "aria-label": "Test it" }, h("h2", { text: "Test it" }),
      h("div", { class: "buttons" }, this.off, this.cut, this.hide),
      h("label", { class: "heat" }, "Temperature of this head", this.heat, this.heatLabel),
      this.progress, this.list, this.answer, this.compare);
    /** @type {AbortController | null} */
    this.running = null;
  }

  /** @param {Scene} scene */
  update(scene) {
    this.scene = scene;
    const { app } = this;
    const { view } = app;
    this.el.hidden = !scene.meta.can.edit;
    this.off.textContent = `Switch head ${scene.layer.index}.${scene.head} off`;
    this.cut.textContent = `Cut ${nameOf(scene.queries, scene.query + scene.first)} → ${nameOf(scene.keys, scene.key)}`;
    this.hide.textContent = `Hide ${nameOf(scene.keys, scene.key)} everywhere`;
    this.heat.parentElement.hidden = !scene.meta.can.temperature;
    this.hide.hidden = scene.queries !== scene.keys;
    const heat = view.edits.find((edit) => "temperature" in edit && edit.temperature.layer === scene.layer.index && edit.temperature.head === scene.head);
    if (app.shadow.activeElement !== this.heat) this.heat.value = String(heat && "temperature" in heat ? Math.log2(heat.temperature.factor) : 0);
    this.#heatText();
    const key = JSON.stringify(view.edits);
    if (key !== this.listed) {
      this.listed = key;
      fill(this.list, view.edits.map((edit) => h("li", null, describeEdit(edit, scene), button("×", () => this.#remove(edit), { class: "quiet", "aria-label": `Take back: ${describeEdit(edit, scene)}` }))));
    }
    this.compare.hidden = !view.before;
    showAnswer(this.answer, scene.meta.answer, app.metas.get(view.before)?.answer);
  }

  #heatText() {
    const factor = 2 ** Number(this.heat.value);
    this.heatLabel.textContent = Math.abs(factor - 1) < 0.01 ? "as it is" : `× ${factor.toFixed(2)}`;
  }

  #heat() {
    const { layer, head } = this.scene;
    const factor = 2 ** Number(this.heat.value);
    const others = this.app.view.edits.filter((edit) => !("temperature" in edit && edit.temperature.layer === layer.index && edit.temperature.head === head));
    this.run(Math.abs(factor - 1) < 0.01 ? others : [...others, { temperature: { layer: layer.index, head, factor: Math.round(factor * 1000) / 1000 } }]);
  }

  #add(/** @type {Edit} */ edit) {
    const known = this.app.view.edits.some((one) => formatEdit(one) === formatEdit(edit));
    if (!known) this.run([...this.app.view.edits, edit]);
  }

  #remove(/** @type {Edit} */ edit) {
    this.run(this.app.view.edits.filter((one) => one !== edit));
  }

  /** @param {Edit[]} edits */
  async run(edits) {
    this.running?.abort();
    const running = new AbortController();
    this.running = running;
    this.progress.hidden = false;
    this.progress.removeAttribute("value");
    await runEdits(this.app, edits, running.signal, (share) => { this.progress.value = share; });
    if (this.running === running) {
      this.progress.hidden = true;
      this.running = null;
    }
  }
}

/**
 * Run the model under these changes, and show what it gives beside the run without them.
 * @param {import("./app.js").App} app
 * @param {Edit[]} edits
 * @param {AbortSignal} signal
 * @param {(share: number) => void} progressed
 */
export async function runEdits(app, edits, signal, progressed) {
  const base = app.view.before || app.meta.id;
  if (!edits.length) {
    app.store.set({ scene: base, before: "", edits: [] }, { undo: true });
    return;
  }
  app.busy();
  try {
    await app.source.stream("run", { scene: base, edits }, (event) => {
      if (event.event === "progress" && event.of) progressed(event.done / event.of);
      else if (event.event === "error") app.tell(event.message);
      else if (event.event === "done") {
        app.metas.set(event.scene, event.meta);
        app.store.set({ scene: event.scene, before: base, edits }, { undo: true });
        app.say(`The model ran again under ${edits.length} ${edits.length === 1 ? "change" : "changes"}.`);
      }
    }, signal);
  } catch (error) {
    app.fail(error);
  } finally {
    app.done();
  }
}

/**
 * A change in words.
 * @param {any} edit
 * @param {Scene} scene
 */
export function describeEdit(edit, scene) {
  const where = (/** @type {any} */ { layer, head }) => `${layer === null ? "all layers" : `layer ${layer}`}, ${head === null ? "all heads" : `head ${head}`}`;
  if (edit.off) return `Off: ${where(edit.off)}`;
  if (edit.cut) return `Cut: ${nameOf(scene.queries, edit.cut.query + scene.first)} → ${nameOf(scene.keys, edit.cut.key)} in ${where(edit.cut)}`;
  if (edit.hide) return `Hidden: ${nameOf(scene.keys, edit.hide.token)}`;
  return `Temperature × ${edit.temperature.factor}: ${where(edit.temperature)}`;
}
