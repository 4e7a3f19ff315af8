// What all parts of the page share: the state, the questions that are out, one frame at a time, the theme.

import { START } from "./address.js";
import { fill, h } from "./dom.js";
import { Recent } from "./pyramid.js";
import { questionKey } from "./source.js";
import { sceneOf } from "./scene.js";
import { makeStore } from "./store.js";
import { hostTheme, readPalette, watchTheme } from "./theme.js";

const MAX_ANSWERS = 512;
const SPEECH_DELAY_MS = 150;

/** @typedef {import("./source.js").Answer} Answer */
/** @typedef {import("./address.js").View} View */

export class App {
  /**
   * @param {import("./source.js").Source} source
   * @param {HTMLElement} host Carries data-settled.
   * @param {ShadowRoot} shadow
   */
  constructor(source, host, shadow) {
    this.source = source;
    this.host = host;
    this.shadow = shadow;
    /** @type {import("./store.js").Store<View>} */
    this.store = makeStore({ ...START });
    /** @type {Map<string, any>} */
    this.metas = new Map();
    /** @type {Recent<Promise<Answer>>} */
    this.answers = new Recent(MAX_ANSWERS);
    /** @type {Set<() => void>} */
    this.parts = new Set();
    this.closing = new AbortController();
    /** What measuring found, by recording: effects by "layer.head". @type {Map<string, Map<string, number>>} */
    this.effects = new Map();
    /** @type {Set<string>} */
    this.askedPlaces = new Set();
    this.busyCount = 0;
    this.frame = 0;
    this.firstScene = "";
    this.theme = hostTheme();
    this.root = h("div", { class: "clearhead", "data-theme": this.theme });
    this.probe = h("span", { class: "probe", "aria-hidden": "true" });
    this.live = h("p", { class: "unseen", role: "status", "aria-live": "polite" });
    this.toast = h("div", { class: "toast", role: "alert" });
    this.root.append(this.probe, this.live, this.toast);
    shadow.append(this.root);
    this.palette = readPalette(this.probe);
    this.store.subscribe(() => this.changed());
    const stop = watchTheme(() => this.retheme());
    this.closing.signal.addEventListener("abort", stop);
  }

  /** @returns {View} */
  get view() {
    return this.store.get();
  }

  /** What is known of the recording, for the forward and the text that are shown; those of the last one meanwhile. */
  get meta() {
    const { scene, call, batch } = this.view;
    const id = scene || this.firstScene;
    if (call === -1 && batch === 0) return this.metas.get(id);
    const place = `${id} ${call} ${batch}`;
    if (!this.metas.has(place) && !this.askedPlaces.has(place)) {
      this.askedPlaces.add(place);
      this.ask("meta", { scene: id, call, batch }).then(({ meta }) => {
        this.metas.set(place, { ...meta, call, batch_index: batch });
        this.changed();
      }, (error) => this.fail(error));
    }
    return this.metas.get(place) ?? this.metas.get(id);
  }

  get scene() {
    return sceneOf(this.meta, this.view);
  }

  /** Put off being settled until `done` is called. */
  busy() {
    this.busyCount += 1;
    this.host.removeAttribute("data-settled");
  }

  done() {
    this.busyCount -= 1;
    if (this.busyCount === 0) setTimeout(() => this.settle());
  }

  async settle() {
    await document.fonts?.ready;
    if (this.busyCount === 0) this.host.setAttribute("data-settled", "");
  }

  /** Draw every part anew in the next frame. */
  changed() {
    if (this.frame || this.closing.signal.aborted) return;
    this.busy();
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (this.meta) for (const part of this.parts) part();
      this.done();
    });
  }

  /**
   * Ask, or take the answer that was given before: a recording does not change.
   * @param {string} name
   * @param {Record<string, any>} parameters
   * @returns {Promise<Answer>}
   */
  ask(name, parameters) {
    const key = questionKey(name, parameters);
    const known = this.answers.get(key);
    if (known) return known;
    this.busy();
    const answer = this.source.ask(name, parameters, this.closing.signal).finally(() => this.done());
    answer.catch(() => this.answers.entries.delete(key));
    this.answers.set(key, answer);
    return answer;
  }

  /**
   * A place that holds the answer to the question asked last; earlier answers that come later are dropped.
   * @param {(answer: Answer | null) => void} arrived Called with null while a new answer is on its way, if it takes
   *   longer than a frame.
   */
  slot(arrived) {
    let current = "";
    return (/** @type {string} */ name, /** @type {Record<string, any> | null} */ parameters) => {
      const key = parameters ? questionKey(name, parameters) : "";
      if (key === current) return;
      current = key;
      if (!parameters) return arrived(null);
      this.ask(name, parameters).then(
        (answer) => {
          if (current === key && !this.closing.signal.aborted) arrived(answer);
        },
        (error) => {
          if (current === key) this.fail(error);
        },
      );
    };
  }

  /** Say a sentence to who cannot see the page, once the moving stops.
   * @param {string} sentence
   */
  say(sentence) {
    clearTimeout(this.speech);
    this.speech = setTimeout(() => {
      this.live.textContent = sentence;
    }, SPEECH_DELAY_MS);
  }

  /** Show what went wrong, in a sentence that stays until it is closed.
   * @param {unknown} error
   */
  fail(error) {
    if (this.closing.signal.aborted || /** @type {any} */ (error)?.name === "AbortError") return;
    this.tell(error instanceof Error ? error.message : String(error));
  }

  /** @param {string} sentence */
  tell(sentence) {
    const close = h("button", { type: "button", "aria-label": "Close", text: "×", on: { click: () => fill(this.toast, []) } });
    fill(this.toast, [h("p", { text: sentence }), close]);
  }

  retheme() {
    const theme = hostTheme();
    this.root.dataset.theme = theme;
    this.theme = theme;
    this.palette = readPalette(this.probe);
    this.changed();
  }

  /** Call `part` in every frame in which something changed.
   * @param {() => void} part
   */
  draws(part) {
    this.parts.add(part);
    this.changed();
    return () => this.parts.delete(part);
  }

  close() {
    this.closing.abort();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.speech);
    this.parts.clear();
  }
}

/**
 * Numbers of an answer, as float32; the server sends little-endian.
 * @param {Answer | null} answer
 */
export function floatsOf(answer) {
  return answer?.bytes ? new Float32Array(answer.bytes) : null;
}
