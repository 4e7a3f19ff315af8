// A text shaded by weights: plain text nodes with CSS highlights, no element for a token, so that a novel scrolls.
//
// Only paragraphs that are in view are shaded. Highlight names are global to the document, so each text has its own.

import { fill, h } from "./dom.js";
import { colorAt, figures, inkOn, positionOf } from "./scale.js";
import { labelOf, lastAtMost, paragraphsOf } from "./tokens.js";

const LEVELS = 12;
const SHORT_TEXT = 60; // tokens; set large, with room for arcs between the lines
const LONG_TEXT = 4_000; // tokens; paragraphs out of view are not laid out
const MAX_SHADED_AT_ONCE = 20_000; // tokens; a longer text is shaded where it is in view

let textViews = 0;

export class TextView {
  /**
   * @param {import("./app.js").App} app
   * @param {string} label
   * @param {(token: number, extend: boolean) => void} pick
   * @param {(token: number | null) => void} hover
   */
  constructor(app, label, pick, hover) {
    this.app = app;
    this.name = `clearhead${++textViews}`;
    this.pick = pick;
    this.sheet = new CSSStyleSheet();
    app.shadow.adoptedStyleSheets = [...app.shadow.adoptedStyleSheets, this.sheet];
    this.option = h("div", { role: "option", id: `${this.name}-token`, "aria-selected": "true" });
    this.cursor = h("div", {
      class: "cursor", role: "listbox", tabindex: "0", "aria-label": label, "aria-activedescendant": `${this.name}-token`,
      on: { keydown: (/** @type {KeyboardEvent} */ event) => this.#move(event) },
    }, this.option);
    this.body = h("div", {
      class: "paper",
      on: {
        click: (/** @type {MouseEvent} */ event) => {
          const token = this.tokenAt(event.clientX, event.clientY);
          if (token !== null) this.pick(token, event.shiftKey);
        },
        mousemove: (/** @type {MouseEvent} */ event) => hover(this.tokenAt(event.clientX, event.clientY)),
        mouseleave: () => hover(null),
      },
    });
    this.el = h("div", { class: "text" }, this.cursor, this.body);
    /** @type {import("./tokens.js").Paragraph[]} */
    this.paragraphs = [];
    /** @type {Text[]} */
    this.nodes = [];
    /** @type {number[]} */
    this.firsts = [];
    /** @type {Set<number>} */
    this.inView = new Set();
    /** @type {Highlight[]} */
    this.levels = [];
    this.pinned = 0;
    this.styled = "";
    /** @type {Float32Array | null} */
    this.values = null;
    this.offset = 0;
    this.floor = 1e-2;
    this.observer = new IntersectionObserver((entries) => this.#seen(entries), { root: null, rootMargin: "200px" });
    app.closing.signal.addEventListener("abort", () => this.close());
  }

  /**
   * Show an axis, or the part of it from one token to another.
   * @param {import("./tokens.js").Axis} axis
   * @param {number} from
   * @param {number} to
   */
  setAxis(axis, from = 0, to = axis.tokens.length) {
    if (axis === this.axis && from === this.from && to === this.end) return;
    Object.assign(this, { axis, from, end: to });
    this.axis = axis;
    this.paragraphs = paragraphsOf(axis, from, to);
    this.firsts = this.paragraphs.map((paragraph) => paragraph.first);
    this.nodes = this.paragraphs.map((paragraph) => document.createTextNode(paragraph.text));
    this.observer.disconnect();
    this.inView.clear();
    const elements = this.nodes.map((node, i) => h("p", { "data-i": String(i) }, node));
    this.body.classList.toggle("short", to - from <= SHORT_TEXT);
    this.body.classList.toggle("long", to - from > LONG_TEXT);
    fill(this.body, elements);
    this.everything = to - from <= MAX_SHADED_AT_ONCE;
    if (!this.everything) for (const element of elements) this.observer.observe(element);
    this.shade(null, 0, this.floor);
    this.#markSpecial();
  }

  /**
   * Shade tokens by their values; null takes the shading away.
   * @param {Float32Array | null} values
   * @param {number} offset The token that values[0] is of.
   * @param {number} floor
   */
  shade(values, offset, floor) {
    Object.assign(this, { values, offset, floor });
    this.#style();
    for (const level of this.levels) level.clear();
    if (!values || !this.axis) return;
    const shown = this.everything ? this.paragraphs.keys() : this.inView;
    for (const i of shown) this.#shadeParagraph(i, values);
  }

  #shadeParagraph(/** @type {number} */ i, /** @type {Float32Array} */ values) {
    const { first, starts } = this.paragraphs[i];
    for (let t = 0; t < starts.length; t++) {
      const level = Math.ceil(LEVELS * positionOf(values[first + t - this.offset], this.floor));
      if (level > 0) this.levels[level - 1].add(this.#range(i, t));
    }
  }

  #range(/** @type {number} */ i, /** @type {number} */ t) {
    const node = this.nodes[i];
    const { starts, ends } = this.paragraphs[i];
    return new StaticRange({ startContainer: node, startOffset: starts[t], endContainer: node, endOffset: ends[t] });
  }

  #markSpecial() {
    const highlight = new Highlight();
    const { special, prompt, tokens } = this.axis ?? { tokens: [] };
    // In a text that a model went on writing, what it was given is muted, too.
    const given = prompt !== null && prompt !== undefined && prompt < tokens.length ? prompt : 0;
    if ((special || given) && this.everything) {
      this.paragraphs.forEach(({ first, starts }, i) => {
        for (let t = 0; t < starts.length; t++) if (first + t < given || special?.[first + t]) highlight.add(this.#range(i, t));
      });
    }
    highlight.priority = -1;
    CSS.highlights.set(`${this.name}-special`, highlight);
  }

  /** Colors of the levels, anew where the theme changed. */
  #style() {
    const { theme } = this.app;
    if (theme === this.styled) return;
    this.styled = theme;
    const rules = [`::highlight(${this.name}-special) { color: ${this.app.palette.muted}; }`];
    this.levels = Array.from({ length: LEVELS }, (_, i) => {
      const highlight = new Highlight();
      CSS.highlights.set(`${this.name}-${i}`, highlight);
      const position = (i + 1) / LEVELS;
      const line = i >= 8 ? "text-decoration: underline 2px;" : i >= 5 ? "text-decoration: underline 1px;" : "";
      rules.push(`::highlight(${this.name}-${i}) { background-color: ${colorAt(theme, position)}; color: ${inkOn(theme, position)}; ${line} }`);
      return highlight;
    });
    this.sheet.replaceSync(rules.join("\n"));
  }

  #seen(/** @type {IntersectionObserverEntry[]} */ entries) {
    for (const entry of entries) {
      const i = Number(/** @type {HTMLElement} */ (entry.target).dataset.i);
      if (entry.isIntersecting) this.inView.add(i);
      else this.inView.delete(i);
    }
    if (this.values) this.shade(this.values, this.offset, this.floor);
  }

  /**
   * Say where the cursor of the keyboard is, and what is there.
   * @param {number} token
   */
  setCursor(token) {
    if (!this.axis) return;
    this.pinned = token;
    const value = this.values?.[token - this.offset];
    const words = [`${labelOf(this.axis, token)}, token ${token + 1} of ${this.axis.tokens.length}`];
    if (value !== undefined) words.push(figures(value));
    this.option.textContent = words.join(", ");
    this.option.setAttribute("aria-setsize", String(this.axis.tokens.length));
    this.option.setAttribute("aria-posinset", String(token + 1));
  }

  #move(/** @type {KeyboardEvent} */ event) {
    if (!this.axis || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = /** @type {Record<string, number>} */ ({ ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -1e9, End: 1e9 })[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const next = Math.min((this.end ?? 0) - 1, Math.max(this.from ?? 0, this.pinned + step));
    this.pinned = next;
    this.pick(next, event.shiftKey && event.key !== "ArrowUp" && event.key !== "ArrowDown");
    this.scrollTo(next);
  }

  /**
   * The token under a point of the screen, or null.
   * @param {number} x
   * @param {number} y
   */
  tokenAt(x, y) {
    let node;
    let offset = 0;
    if (document.caretPositionFromPoint) {
      const place = document.caretPositionFromPoint(x, y, /** @type {any} */ ({ shadowRoots: [this.app.shadow] }));
      node = place?.offsetNode;
      offset = place?.offset ?? 0;
    } else {
      const place = document.caretRangeFromPoint?.(x, y);
      node = place?.startContainer;
      offset = place?.startOffset ?? 0;
    }
    const i = this.nodes.indexOf(/** @type {Text} */ (node));
    if (i < 0) return null;
    const { first, starts, ends } = this.paragraphs[i];
    const t = lastAtMost(starts, offset);
    for (const candidate of [t, t - 1]) {
      if (candidate < 0 || offset > ends[candidate]) continue;
      const hit = [...this.#domRange(i, candidate).getClientRects()].some((rect) => x >= rect.left - 2 && x <= rect.right + 2 && y >= rect.top - 4 && y <= rect.bottom + 4);
      if (hit) return first + candidate;
    }
    return null;
  }

  #domRange(/** @type {number} */ i, /** @type {number} */ t) {
    const range = document.createRange();
    range.setStart(this.nodes[i], this.paragraphs[i].starts[t]);
    range.setEnd(this.nodes[i], this.paragraphs[i].ends[t]);
    return range;
  }

  #placeOf(/** @type {number} */ token) {
    const i = lastAtMost(this.firsts, token);
    if (i < 0 || token >= (this.end ?? 0)) return null;
    return { i, t: token - this.paragraphs[i].first };
  }

  /**
   * Where tokens stand on the screen, or null where they are scrolled away.
   * @param {number} first
   * @param {number} last
   * @returns {DOMRect | null}
   */
  rectOf(first, last = first) {
    const [from, to] = [this.#placeOf(first), this.#placeOf(last)];
    if (!from || !to || (!this.everything && !this.inView.has(from.i))) return null;
    const range = this.#domRange(from.i, from.t);
    if (to.i === from.i) range.setEnd(this.nodes[to.i], this.paragraphs[to.i].ends[to.t]);
    const [rect] = range.getClientRects();
    const room = this.body.getBoundingClientRect();
    return rect && rect.bottom > room.top - 1 && rect.top < room.bottom + 1 ? rect : null;
  }

  /** @param {number} token */
  scrollTo(token) {
    const place = this.#placeOf(token);
    if (!place) return;
    const paragraph = /** @type {HTMLElement} */ (this.nodes[place.i].parentElement);
    const room = this.body.getBoundingClientRect();
    const at = () => this.#domRange(place.i, place.t).getBoundingClientRect();
    if (!at().height) this.body.scrollTop = paragraph.offsetTop - this.body.offsetTop;
    const rect = at();
    if (rect.top < room.top + 8 || rect.bottom > room.bottom - 8) {
      this.body.scrollTop += rect.top - room.top - room.height / 2;
    }
  }

  close() {
    this.observer.disconnect();
    for (const suffix of ["special", ...Array(LEVELS).keys()]) CSS.highlights.delete(`${this.name}-${suffix}`);
  }
}
