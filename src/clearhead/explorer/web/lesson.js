// The lesson: attention step by step on the visitor's own sentence, one screen a step, one thing to do on each.

import { button, fill, h } from "./dom.js";
import { OUTPUT_SCREENS } from "./lessonoutputs.js";
import { formulaOf } from "./lessonparts.js";
import { SCORE_SCREENS } from "./lessonscreens.js";
import { headOf, sceneOf } from "./scene.js";
import { nameOf } from "./tokens.js";

const LESSON_SCREENS = [...SCORE_SCREENS, ...OUTPUT_SCREENS];
/** Steps that are about layers of one kind: there the lesson takes the first of these, unless one is chosen. */
const LESSON_LAYERS = {
  mask: (/** @type {any} */ layer) => (layer.hidden?.last_offset ?? null) !== null,
  source: (/** @type {any} */ layer) => layer.part === "cross",
};

export class LessonPage {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.seed = 0;
    /** What the present screen is made of. @type {any} */
    this.current = null;
    /** @type {any} */
    this.parts = null;
    this.list = h("ol", { class: "lessonsteps", "aria-label": "Steps" });
    this.source = h("details", { class: "source" });
    this.screen = h("div");
    this.el = h("div", { class: "lesson", on: { keydown: (/** @type {KeyboardEvent} */ event) => this.#press(event) } }, this.list, this.screen);
    document.addEventListener("keydown", (event) => {
      if (event.target === document.body && this.el.isConnected && event.key.startsWith("Arrow")) this.#press(event);
    }, { signal: app.closing.signal });
    /** The page as screens see it. */
    const page = this;
    this.place = { app, redraw: () => this.redraw(), get seed() { return page.seed; }, set seed(seed) { page.seed = seed; } };
    this.asked = "";
  }

  /** The steps that the recording has. */
  get screens() {
    return LESSON_SCREENS.filter((one) => one.fits?.(this.app.meta) ?? true);
  }

  /** @param {import("./scene.js").Scene} scene */
  update(scene) {
    const { app, screens } = this;
    const at = Math.max(0, screens.findIndex((one) => one.id === app.view.step));
    const screen = screens[at];
    this.scene = this.#sceneFor(screen.id, scene);
    this.wanted = `${screen.id} ${scene.meta.id}`;
    this.redraw();
  }

  /** The scene of a step: of a layer that has what the step is about. */
  #sceneFor(/** @type {string} */ id, /** @type {import("./scene.js").Scene} */ scene) {
    const wanted = LESSON_LAYERS[/** @type {keyof typeof LESSON_LAYERS} */ (id)];
    if (!wanted || wanted(scene.layer)) return scene;
    const layer = scene.meta.layers.find((/** @type {any} */ one) => !one.empty && wanted(one));
    return sceneOf(scene.meta, { ...this.app.view, layer: layer.index, head: null });
  }

  /** Put up the screen that is wanted, once there is something to show on it. All of it is new, so that nothing shifts. */
  #enter() {
    if (this.wanted === this.shown) return;
    this.shown = this.wanted;
    const { app, screens } = this;
    const at = Math.max(0, screens.findIndex((one) => one.id === app.view.step));
    const screen = screens[at];
    const moves = Boolean(app.shadow.activeElement) || document.activeElement === document.body;
    fill(this.list, screens.map((one, i) => h("li", null,
      button(String(i + 1), () => app.store.set({ step: one.id }), { "aria-label": `Step ${i + 1} of ${screens.length}: ${one.title}`, "aria-current": i === at ? "step" : false, title: one.title }))));
    this.current = screen;
    this.parts = screen.make(this.place);
    this.said = "";
    this.title = h("h1", { tabindex: "-1", text: screen.title });
    this.equation = h("p", { class: "equation" });
    this.body = h("div", { class: "lessonbody" });
    this.shows = h("p", { class: "shows", "aria-live": "polite" });
    const next = at + 1 < screens.length ? "Next ›" : "See the whole map of this head ›";
    const made = h("div", { class: "lessonscreen" },
      h("div", { class: "lessontext" }, this.title, this.equation, h("p", { class: "about" }, ...formulaOf(screen.about)), h("p", { class: "task", text: screen.task })),
      h("section", { class: "lessonpicture", "aria-label": "What there is to see" }, this.body),
      h("div", { class: "lessonend" }, this.shows,
        h("div", { class: "tools" }, button("‹ Back", () => this.go(-1), { disabled: at === 0 }),
          button(next, () => this.go(1), { class: "primary", "aria-keyshortcuts": "ArrowRight n" }), h("span", { class: "note", text: "or the arrow keys, or n" })),
        this.source));
    this.screen.replaceWith(made);
    this.screen = made;
    if (moves) this.title.focus();
  }

  /** Ask for the numbers of what is pinned, and draw once they are there. */
  redraw() {
    const scene = /** @type {import("./scene.js").Scene} */ (this.scene);
    const parameters = { ...headOf(scene), query: scene.query, seed: this.seed };
    const asked = JSON.stringify(parameters);
    if (asked === this.asked) return this.#draw();
    this.asked = asked;
    this.app.ask("lesson", parameters).then(
      (answer) => {
        if (this.asked !== asked) return;
        this.data = answer.meta;
        this.dataOf = asked;
        this.#draw();
      },
      (error) => {
        if (this.asked !== asked) return;
        this.asked = "";
        this.#refuse(`The numbers of this lesson are not here: ${error.message}`);
      });
  }

  #draw() {
    const { data, scene } = this;
    if (!data || !scene || this.dataOf !== this.asked) return;
    this.#enter();
    const { parts, current } = this;
    const step = data.steps[current.id];
    fill(this.equation, formulaOf(step?.equation ?? ""));
    this.#fillSource(step);
    const missing = current.needs && (data.missing[current.needs] ?? (current.needs === "projection" ? data.missing.values : undefined));
    if (missing) return this.#refuse(missing);
    if (this.body.firstChild !== parts.nodes[0]) fill(this.body, parts.nodes);
    const name = (/** @type {number} */ key) => ({ key, text: nameOf(scene.keys, key) });
    const said = parts.update({ scene, data, name, asker: nameOf(scene.queries, scene.query + scene.first) });
    const text = said.map((/** @type {any} */ part) => part.text ?? part).join("");
    if (text === this.said) return;
    this.said = text;
    fill(this.shows, said.map((/** @type {any} */ part) => (typeof part === "string" ? part : this.#named(part))));
  }

  /** Say in place of the picture why there is none. */
  #refuse(/** @type {string} */ sentence) {
    this.#enter();
    this.said = sentence;
    fill(this.body, []);
    this.shows.textContent = sentence;
  }

  /** A word in a sentence that lights up its row. */
  #named(/** @type {{key: number, text: string}} */ { key, text }) {
    const light = (/** @type {boolean} */ on) => {
      for (const row of this.body.querySelectorAll("[data-key]")) row.classList.toggle("lit", on && row.dataset.key === String(key));
    };
    return h("b", { class: "named", text, on: { mouseenter: () => light(true), mouseleave: () => light(false) } });
  }

  #fillSource(/** @type {any} */ step) {
    this.source.hidden = !step?.code;
    if (!step?.code) return;
    const open = this.source.open;
    fill(this.source, [h("summary", { text: "The lines of source that do it" }),
      h("p", { class: "note", text: step.sentence }), h("pre", { tabindex: "0" }, h("code", { text: step.code })),
      h("p", { class: "note", text: `${step.file}:${step.line}` })]);
    this.source.open = open;
  }

  /** @param {number} step 1 or -1 */
  go(step) {
    const { app, screens } = this;
    const at = screens.findIndex((one) => one.id === this.current?.id) + step;
    if (at < 0) return;
    if (at < screens.length) app.store.set({ step: screens[at].id });
    else app.store.set({ page: "head", layer: this.scene?.layer.index ?? null, head: this.scene?.head ?? null }, { undo: true });
  }

  #press(/** @type {KeyboardEvent} */ event) {
    const target = /** @type {HTMLElement} */ (event.composedPath()[0]);
    if (event.ctrlKey || event.metaKey || event.altKey || /^(input|textarea|select|pre)$/i.test(target.tagName)) return;
    const step = { ArrowRight: 1, n: 1, ArrowLeft: -1, p: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.go(step);
  }
}
