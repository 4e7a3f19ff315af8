// The text, the picture, or the source and the target, with what the pinned word looks at or what looks at it.

import { floatsOf } from "./app.js";
import { fill, h, segments } from "./dom.js";
import { PictureView } from "./patches.js";
import { figures, percent, usualFloor } from "./scale.js";
import { headOf } from "./scene.js";
import { TextView } from "./text.js";
import { fewest, findToken, spanName, summedOverWords, wordAt } from "./tokens.js";

/** @typedef {import("./scene.js").Scene} Scene */
/** @typedef {import("./tokens.js").Axis} Axis */

const MAX_ARCS = 40;

export class Reading {
  /**
   * @param {import("./app.js").App} app
   * @param {{large: boolean}} options
   */
  constructor(app, { large }) {
    this.app = app;
    /** @type {{layer: number, head: number} | null} */
    this.preview = null;
    this.views = h("div", { class: "views" });
    this.arcs = h("svg", { class: "arcs", "aria-hidden": "true" });
    this.look = segments("Direction", [["from", "looks at"], ["to", "is looked at by"]], (look) => this.#turn(/** @type {"from" | "to"} */ (look)));
    this.words = h("input", { type: "checkbox", on: { change: () => app.store.set({ words: this.words.checked }) } });
    this.cover = h("input", { type: "range", min: "0.3", max: "1", step: "0.01", "aria-label": "Share of the weight that links cover", on: { input: () => app.store.set({ cover: Number(this.cover.value) }) } });
    this.count = h("span", { class: "count" });
    this.find = h("input", { type: "search", placeholder: "Find a word", "aria-label": "Find a word", on: { keydown: (/** @type {KeyboardEvent} */ event) => this.#find(event) } });
    this.list = h("p", { class: "links" });
    this.who = h("span", { class: "who" });
    this.stage = h("div", { class: "stage" }, this.views, this.arcs);
    this.el = h("section", { class: `reading${large ? " large" : ""}`, "aria-label": "The text" },
      this.stage,
      h("div", { class: "tools" }, this.who, this.look.el, h("label", { class: "cover" }, this.cover, this.count),
        h("label", { class: "check" }, this.words, "whole words"), this.find),
      this.list);
    /** @type {Map<string, {axis: Axis, el: HTMLElement, text: TextView | null, after: TextView | null, picture: PictureView | null}>} */
    this.shown = new Map();
    /** @type {Float32Array | null} */
    this.values = null;
    this.row = app.slot((answer) => {
      this.values = floatsOf(answer);
      app.changed();
    });
    this.views.addEventListener("scroll", () => this.#arcs(), true);
    const observer = new ResizeObserver(() => app.changed());
    observer.observe(this.stage);
    app.closing.signal.addEventListener("abort", () => observer.disconnect());
  }

  /** @param {Scene} scene */
  update(scene) {
    const { view } = this.app;
    this.scene = scene;
    const [first, last] = this.#pinned(scene);
    const place = this.preview ? { ...headOf(scene), ...this.preview } : headOf(scene);
    if (view.look === "from") this.row("row", { ...place, query: first, to: last > first ? last : null });
    else this.row("column", { ...place, key: first, to: last > first ? last : null });
    this.#show(scene);
    this.look.set(view.look);
    this.words.checked = view.words;
    this.words.parentElement.hidden = !scene.queries.words?.some(([a, b]) => b > a + 1) && !scene.keys.words?.some(([a, b]) => b > a + 1);
    if (this.app.shadow.activeElement !== this.cover) this.cover.value = String(view.cover);
    this.#shade(scene, first, last);
  }

  /** The pinned positions, on the axis that the direction begins from: rows of the call, or keys. */
  #pinned(/** @type {Scene} */ scene) {
    const { look, to, words, key } = this.app.view;
    if (look === "to") {
      const pinned = key ?? scene.key;
      return words && to === null ? wordAt(scene.keys, pinned) : [pinned, Math.max(pinned, to ?? pinned)];
    }
    if (scene.to > scene.query || !words) return [scene.query, scene.to];
    const [first, last] = wordAt(scene.queries, scene.query + scene.first);
    return [Math.max(0, first - scene.first), Math.min(scene.nQueries - 1, last - scene.first)];
  }

  /** Make the views of the axes that are not there yet. */
  #show(/** @type {Scene} */ scene) {
    const axes = scene.queries === scene.keys ? [scene.queries] : [scene.keys, scene.queries];
    const names = axes.map((axis) => axis.name);
    if (names.join() !== [...this.shown.keys()].join()) {
      this.shown.clear();
      for (const axis of axes) this.shown.set(axis.name, this.#makeView(axis));
      fill(this.views, [...this.shown.values()].map((one) => one.el));
    }
    for (const axis of axes) {
      const one = /** @type {any} */ (this.shown.get(axis.name));
      one.axis = axis;
      if (axis.image) {
        const end = axis.image.first + axis.image.rows * axis.image.cols;
        one.picture.setAxis(axis);
        one.text?.setAxis(axis, 0, axis.image.first);
        one.after?.setAxis(axis, end);
      } else {
        one.text.setAxis(axis);
      }
    }
  }

  #makeView(/** @type {Axis} */ axis) {
    const label = { source: "Source", target: "Target", patches: "Picture", keys: "Positions" }[axis.name] ?? "Text";
    const pick = (/** @type {number} */ token, /** @type {boolean} */ extend) => this.#pick(axis.name, token, extend);
    const hover = (/** @type {number | null} */ token) => this.#hover(axis.name, token);
    const make = () => new TextView(this.app, label, pick, hover);
    const picture = axis.image ? new PictureView(this.app, label, pick, hover) : null;
    const text = !axis.image || axis.image.first > 0 ? make() : null;
    const after = axis.image && axis.image.first + axis.image.rows * axis.image.cols < axis.tokens.length ? make() : null;
    const el = h("div", { class: "axisview" }, this.#titled(axis) ? h("p", { class: "axisname", text: label }) : null, text?.el, picture?.el, after?.el);
    return { axis, el, text, after, picture };
  }

  #titled(/** @type {Axis} */ axis) {
    return axis.name === "source" || axis.name === "target";
  }

  #pick(/** @type {string} */ name, /** @type {number} */ token, /** @type {boolean} */ extend) {
    const scene = /** @type {Scene} */ (this.scene);
    const { look } = this.app.view;
    const same = scene.queries === scene.keys;
    const toQueries = same ? look === "from" : name === scene.queries.name;
    if (!toQueries) {
      const start = this.app.view.key ?? scene.key;
      this.app.store.set(extend ? { to: Math.max(start, token) } : { key: token, to: null, look: "to" }, { undo: true });
      return;
    }
    const row = token - scene.first;
    if (row >= 0 && row < scene.nQueries) {
      this.app.store.set(extend ? { query: Math.min(scene.query, row), to: Math.max(scene.query, row) } : { query: row, to: null, look: "from" }, { undo: true });
      return;
    }
    const call = scene.meta.calls.find((/** @type {any} */ one) => token >= one.first && token < one.first + one.n_queries);
    if (call) this.app.store.set({ call: call.call, query: token - call.first, to: null, look: "from" }, { undo: true });
  }

  #turn(/** @type {"from" | "to"} */ look) {
    const scene = /** @type {Scene} */ (this.scene);
    if (look === this.app.view.look) return;
    const same = scene.queries === scene.keys;
    const pinned = this.#pinned(scene)[0];
    if (look === "to") this.app.store.set({ look, to: null, key: same ? pinned + scene.first : scene.key }, { undo: true });
    else this.app.store.set({ look, to: null, ...(same ? { query: Math.max(0, pinned - scene.first) } : {}) }, { undo: true });
  }

  #hover(/** @type {string} */ name, /** @type {number | null} */ token) {
    const scene = this.scene;
    if (!scene || !this.values) return;
    const { look } = this.app.view;
    const axis = look === "from" ? scene.keys : scene.queries;
    const offset = look === "from" ? 0 : scene.first;
    if (token === null || name !== axis.name || this.values[token - offset] === undefined) {
      this.hovered = null;
    } else {
      this.hovered = `${spanName(axis, token, token)} ${figures(this.values[token - offset])}`;
    }
    this.count.textContent = this.hovered ?? this.counted ?? "";
  }

  #shade(/** @type {Scene} */ scene, /** @type {number} */ first, /** @type {number} */ last) {
    const { view } = this.app;
    const from = view.look === "from";
    const [pinnedAxis, shadedAxis] = from ? [scene.queries, scene.keys] : [scene.keys, scene.queries];
    const [pinnedOffset, offset] = from ? [scene.first, 0] : [0, scene.first];
    const floor = view.floor ?? usualFloor(scene.nKeys);
    const values = this.values && view.words && offset === 0 && this.values.length === shadedAxis.tokens.length ? summedOverWords(this.values, shadedAxis) : this.values;
    for (const { axis, text, after, picture } of this.shown.values()) {
      const shaded = axis === shadedAxis ? values : null;
      const pinned = axis === pinnedAxis ? /** @type {[number, number]} */ ([first + pinnedOffset, last + pinnedOffset]) : null;
      for (const one of [text, after]) {
        one?.shade(shaded, offset, floor);
        one?.setCursor(pinned ? pinned[0] : view.key ?? scene.key);
      }
      picture?.shade(shaded, offset, floor, pinned);
    }
    const found = this.values ? fewest(this.values, view.cover) : { links: [], carried: 0 };
    this.links = found.links.map(({ key, weight }) => ({ at: key + offset, weight }));
    const { carried } = found;
    const n = found.links.length;
    const verb = from ? (n === 1 ? "link carries" : "links carry") : n === 1 ? "query sends" : "queries send";
    this.counted = this.values ? `${n} ${verb} ${percent(carried)}` : "";
    if (!this.hovered) this.count.textContent = this.counted;
    this.who.textContent = spanName(pinnedAxis, first + pinnedOffset, last + pinnedOffset);
    fill(this.list, this.links.slice(0, 12).map(({ at, weight }) =>
      h("span", { class: "link" }, spanName(shadedAxis, at, at), " ", h("b", { text: figures(weight) }))));
    const shown = `${scene.meta.id} ${pinnedAxis.name} ${first}`;
    if (shown !== this.scrolled && this.shown.get(pinnedAxis.name)?.axis === pinnedAxis) {
      this.scrolled = shown;
      this.shown.get(pinnedAxis.name)?.text?.scrollTo(first + pinnedOffset);
    }
    this.mark = { pinnedAxis, shadedAxis, first: first + pinnedOffset, last: last + pinnedOffset };
    this.#arcs();
  }

  /** Links as arcs over the text, and a frame around the pinned word; only where both ends are in view. */
  #arcs() {
    if (!this.mark) return;
    const { pinnedAxis, shadedAxis, first, last } = this.mark;
    const room = this.stage.getBoundingClientRect();
    const rect = (/** @type {Axis} */ axis, /** @type {number} */ a, /** @type {number} */ b) => {
      const one = this.shown.get(axis.name);
      return one?.text?.rectOf(a, b) ?? one?.picture?.rectOf(a, b) ?? one?.after?.rectOf(a, b) ?? null;
    };
    const shapes = [];
    const pin = rect(pinnedAxis, first, last);
    if (pin) {
      shapes.push(h("rect", { class: "pin", x: pin.left - room.left - 4, y: pin.top - room.top - 2, width: pin.width + 8, height: pin.height + 4, rx: 4 }));
      for (const { at, weight } of (this.links ?? []).slice(0, MAX_ARCS)) {
        if (pinnedAxis === shadedAxis && at >= first && at <= last) continue;
        const end = rect(shadedAxis, at, at);
        if (end) shapes.push(...arc(pin, end, room, weight));
      }
    }
    fill(this.arcs, shapes);
  }

  #find(/** @type {KeyboardEvent} */ event) {
    event.stopPropagation();
    const scene = /** @type {Scene} */ (this.scene);
    if (event.key === "Escape") return this.find.blur();
    if (event.key !== "Enter") return;
    const axes = scene.queries === scene.keys ? [scene.queries] : [scene.queries, scene.keys];
    for (const axis of axes) {
      const start = axis === scene.queries ? scene.query + scene.first + (event.shiftKey ? -1 : 1) : (this.app.view.key ?? 0) + 1;
      const found = findToken(axis, this.find.value, start, event.shiftKey ? -1 : 1);
      if (found < 0) continue;
      this.#pick(axis.name, found, false);
      this.shown.get(axis.name)?.text?.scrollTo(found);
      return;
    }
    this.app.tell(`“${this.find.value}” is not in the text.`);
  }
}

/**
 * One link: a line from the pinned word to another, as strong as its weight.
 * @param {DOMRect} pin
 * @param {DOMRect} end
 * @param {DOMRect} room
 * @param {number} weight
 */
function arc(pin, end, room, weight) {
  const x1 = pin.left + pin.width / 2 - room.left;
  const x2 = end.left + end.width / 2 - room.left;
  const sameLine = Math.abs(pin.top - end.top) < 4;
  let path;
  if (sameLine) {
    const y = pin.top - room.top - 2;
    const rise = Math.min(44, 10 + Math.abs(x2 - x1) / 7);
    path = `M${x1} ${y}C${x1} ${y - rise} ${x2} ${y - rise} ${x2} ${y}`;
  } else {
    const down = end.top > pin.top;
    const y1 = (down ? pin.bottom : pin.top) - room.top + (down ? 2 : -2);
    const y2 = (down ? end.top : end.bottom) - room.top + (down ? -1 : 1);
    const middle = (y1 + y2) / 2;
    path = `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`;
  }
  const style = { "stroke-width": `${(0.8 + 3 * weight).toFixed(2)}px`, opacity: (0.25 + 0.75 * Math.sqrt(weight)).toFixed(2) };
  return [h("path", { class: "arc", d: path, style }), h("circle", { class: "dot", cx: x2, cy: sameLine ? pin.top - room.top - 2 : end.top > pin.top ? end.top - room.top - 1 : end.bottom - room.top + 1, r: 1.5 + 1.5 * weight })];
}
