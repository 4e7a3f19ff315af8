// What the screens of the lesson are built of: rows of words with bars, a vector as a strip, words to pin.
//
// All are made once a screen and changed in place, so that bars move and the focus stays where it is.

import { button, fill, h } from "./dom.js";
import { figures } from "./scale.js";
import { nameOf } from "./tokens.js";

const MAX_LESSON_ROWS = 14;
const WORDS_AROUND = 10; // to pin, on either side of the one that is pinned

/**
 * @typedef {object} BarRow
 * @property {string} label
 * @property {number} value
 * @property {string} [text] In place of the value.
 * @property {number} [key] Which key it is of: what the sentence names lights up its row.
 * @property {boolean} [struck]
 * @property {boolean} [pressed] For rows that are buttons.
 */

/** Rows of a label, a bar and a number. Bars are as long as their values, the longest fills its track. */
export class BarRows {
  /**
   * @param {string} label What the rows are, for screen readers.
   * @param {((index: number) => void) | null} press Makes every row a button.
   */
  constructor(label, press = null) {
    this.press = press;
    this.el = h("ul", { class: "lessonrows", "aria-label": label });
    /** @type {any[]} */
    this.made = [];
  }

  /**
   * @param {BarRow[]} rows
   * @param {number} [most] The value that fills a track; the largest where not given.
   */
  set(rows, most = Math.max(...rows.map((row) => Math.abs(row.value)), 1e-12)) {
    while (this.made.length > rows.length) this.made.pop().item.remove();
    const signed = rows.some((row) => row.value < 0);
    rows.forEach((row, i) => {
      const made = (this.made[i] ??= this.#make(i));
      const width = (signed ? 50 : 100) * Math.min(1, Math.abs(row.value) / most);
      made.label.textContent = row.label;
      made.number.textContent = row.text ?? figures(row.value);
      made.track.classList.toggle("signed", signed);
      made.bar.className = row.value < 0 ? "minus" : "plus";
      made.bar.style.setProperty("width", `${width}%`);
      made.bar.style.setProperty("left", `${signed ? (row.value < 0 ? 50 - width : 50) : 0}%`);
      made.item.classList.toggle("struck", Boolean(row.struck));
      made.item.dataset.key = String(row.key ?? "");
      if (this.press && row.pressed !== undefined) made.row.setAttribute("aria-pressed", String(row.pressed));
    });
  }

  #make(/** @type {number} */ i) {
    const made = {
      label: h("span", { class: "bar-label" }), bar: h("span", { class: "plus" }), number: h("span", { class: "bar-value" }),
      track: h("span", { class: "lessontrack", "aria-hidden": "true" }), row: /** @type {any} */ (null), item: /** @type {any} */ (null),
    };
    made.track.append(made.bar);
    made.row = this.press
      ? h("button", { type: "button", class: "lessonrow", on: { click: () => this.press?.(i) } }, made.label, made.track, made.number)
      : h("div", { class: "lessonrow" }, made.label, made.track, made.number);
    made.item = h("li", null, made.row);
    this.el.append(made.item);
    return made;
  }
}

/** Two vectors over one another, a bar a channel: the one that is meant, and another to compare it with. */
export class Strip {
  /** @param {string} label */
  constructor(label) {
    this.other = h("path", { class: "other" });
    this.own = h("path", { class: "own" });
    this.svg = h("svg", { class: "strip-vector", preserveAspectRatio: "none", role: "img", "aria-label": label }, this.other, this.own);
    this.el = h("figure", { class: "lessonstrip" }, this.svg, h("figcaption", { class: "note", text: label }));
  }

  /**
   * @param {number[]} own
   * @param {number[] | null} other
   */
  set(own, other = null) {
    const most = Math.max(...own.map(Math.abs), ...(other ?? []).map(Math.abs), 1e-12);
    const path = (/** @type {number[]} */ vector) => vector.map((x, c) => `M${c + 0.1} 1h.8V${(1 - x / most).toFixed(4)}h-.8z`).join("");
    this.svg.setAttribute("viewBox", `0 0 ${own.length} 2`);
    this.own.setAttribute("d", path(own));
    this.other.setAttribute("d", other ? path(other) : "");
  }
}

/** Buttons for the words around the pinned one; each pins its own. */
export class Pinner {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.el = h("div", { class: "pinner", role: "group", "aria-label": "Pin a word" });
    this.shown = "";
  }

  /** @param {import("./scene.js").Scene} scene */
  set(scene) {
    const last = scene.nQueries - 1;
    const from = Math.max(0, Math.min(scene.query - WORDS_AROUND, last - 2 * WORDS_AROUND));
    const to = Math.min(last, from + 2 * WORDS_AROUND);
    const shown = `${scene.meta.id} ${scene.layer.index} ${scene.call} ${from} ${to}`;
    if (shown !== this.shown) {
      const focused = this.el.contains(/** @type {any} */ (this.el.getRootNode()).activeElement);
      this.shown = shown;
      this.first = from;
      this.words = Array.from({ length: to - from + 1 }, (_, i) =>
        button(wordName(scene, from + i), () => this.app.store.set({ query: from + i, to: null }, { undo: true })));
      fill(this.el, [from > 0 ? "… " : null, ...this.words, to < last ? " …" : null]);
      if (focused) this.words[scene.query - from]?.focus();
    }
    this.words?.forEach((one, i) => one.setAttribute("aria-pressed", String(from + i === scene.query)));
  }
}

function wordName(/** @type {import("./scene.js").Scene} */ scene, /** @type {number} */ query) {
  return nameOf(scene.queries, query + scene.first).replace(/^“(.*)”$/s, "$1");
}

/**
 * A formula with its indices below and its powers above: v_j, R^(32×384).
 * @param {string} text
 */
export function formulaOf(text) {
  return text.split(/([_^](?:\([^)]*\)|[A-Za-z0-9]+))/).map((part) =>
    /^[_^]./.test(part) ? h(part[0] === "_" ? "sub" : "sup", { text: part.slice(1).replace(/^\((.*)\)$/, "$1") }) : part);
}

/**
 * Which of the keys that the answer lists have a row: those that may be looked at, the heaviest where they are many.
 * @param {any} data
 * @returns {number[]} Indices into `data.keys`, in the order of the text.
 */
export function rowsOf(data) {
  const all = data.keys.map((/** @type {number} */ _, /** @type {number} */ i) => i).filter((/** @type {number} */ i) => data.allowed[i]);
  const heaviest = [...all].sort((a, b) => data.weights[b] - data.weights[a] || a - b).slice(0, MAX_LESSON_ROWS);
  return heaviest.sort((a, b) => a - b);
}

/**
 * The keys around the one that asks, whether it may look at them or not.
 * @param {any} data
 * @param {number} own The key that asks.
 */
export function rowsAround(data, own) {
  const nearest = data.keys.map((/** @type {number} */ _, /** @type {number} */ i) => i).sort((/** @type {number} */ a, /** @type {number} */ b) => Math.abs(data.keys[a] - own) - Math.abs(data.keys[b] - own) || a - b);
  return nearest.slice(0, MAX_LESSON_ROWS).sort((/** @type {number} */ a, /** @type {number} */ b) => a - b);
}

/** How many keys that may be looked at have no row, in words.
 * @param {any} data
 * @param {number[]} rows
 */
export function moreThan(data, rows) {
  const more = data.n_allowed - rows.length;
  return more > 0 ? `and ${more} more ${more === 1 ? "token" : "tokens"}` : "";
}
