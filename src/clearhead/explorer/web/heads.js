// All heads at once: layers x heads, each cell the exact overview of its map and a glyph for what the head does.

import { headTitle, METRICS, metricValue } from "./metrics.js";
import { button, choice, contextOf, fill, h } from "./dom.js";
import { Exactness } from "./exact.js";
import { glyph } from "./glyphs.js";
import { figures, tileTable, usualFloor } from "./scale.js";
import { KINDS, layerName, placeOf } from "./scene.js";

/** @typedef {import("./app.js").App} App */

export class HeadGrid {
  /**
   * @param {App} app
   * @param {{open: (layer: number, head: number) => void, hover: (place: {layer: number, head: number} | null) => void}} actions
   */
  constructor(app, actions) {
    this.app = app;
    this.actions = actions;
    /** @type {any[]} */
    this.rows = [];
    /** @type {Map<string, {el: HTMLElement, canvas: HTMLCanvasElement}>} */
    this.cells = new Map();
    /** @type {Map<number, any>} */
    this.overviews = new Map();
    this.built = "";
    this.painted = "";
    this.version = 0;
    this.sort = choice("Sort", (sort) => app.store.set({ sort }));
    this.chips = h("div", { class: "chips", role: "group", "aria-label": "Kinds of heads" });
    this.grid = h("div", {
      class: "heads", role: "grid", "aria-label": "All heads",
      on: { keydown: (/** @type {KeyboardEvent} */ event) => this.#move(event), mouseleave: () => actions.hover(null) },
    });
    this.tools = h("div", { class: "tools" }, this.chips, this.sort.el);
    this.el = h("section", { class: "allheads", "aria-label": "All heads" }, this.tools, this.grid);
    this.exactness = new Exactness(app, (event) => this.#completed(event));
    this.el.append(this.exactness.el);
    this.heads = app.slot((answer) => {
      this.sampledRows = answer?.meta.exact === false ? answer.meta.sampled : null;
      this.rows = answer?.meta.heads ?? [];
      app.changed();
    });
  }

  /** @param {import("./scene.js").Scene} scene */
  update(scene) {
    const { app } = this;
    this.heads("heads", placeOf(scene));
    const effects = app.effects.get(scene.meta.id);
    const rows = effects ? this.rows.map((row) => ({ ...row, effect: effects.get(`${row.layer}.${row.head}`) ?? null })) : this.rows;
    const { sort, kind } = app.view;
    const build = JSON.stringify([scene.meta.id, scene.call, scene.batch, sort, kind, rows.length, effects?.size ?? 0]);
    if (build !== this.built) {
      this.built = build;
      this.painted = "";
      this.#tools(rows);
      this.#build(scene, rows);
      this.#ask(scene);
    }
    const rough = [...this.overviews].find(([, overview]) => overview.meta.exact === false);
    this.exactness.update(scene, rough ? { layer: rough[0], head: null, mode: "sum", error: rough[1].meta.error } : null);
    const floor = usualFloor(Math.min(32, scene.nKeys));
    const paint = `${app.theme} ${floor} ${[...this.overviews.keys()]} ${this.version}`;
    if (paint !== this.painted) {
      this.painted = paint;
      const table = tileTable(app.theme, floor);
      for (const [layer, overview] of this.overviews) this.#paint(layer, overview, table);
    }
    for (const [place, { el }] of this.cells) {
      const chosen = place === `${scene.layer.index}.${scene.head}`;
      el.setAttribute("aria-selected", String(chosen));
      el.tabIndex = chosen ? 0 : -1;
    }
  }

  #tools(/** @type {any[]} */ rows) {
    const { app } = this;
    const { kind, sort } = app.view;
    const measured = Object.entries(METRICS).filter(([name]) => rows.some((row) => metricValue(row, name) !== null));
    this.sort.set([["model", "as in the model"], ["kind", "kind"], ...measured.map(([name, one]) => /** @type {[string, string]} */ ([name, one.label]))], sort);
    const counts = new Map();
    for (const row of rows) counts.set(row.kind, (counts.get(row.kind) ?? 0) + 1);
    fill(this.chips, [...counts].sort((a, b) => b[1] - a[1]).map(([name, n]) =>
      h("button", {
        type: "button", class: "chip", "aria-pressed": String(kind === name), title: KINDS[/** @type {keyof typeof KINDS} */ (name)],
        on: { click: () => app.store.set({ kind: kind === name ? "" : name }) },
      }, glyph(name), `${name} `, h("span", { class: "count", text: String(n) }))));
  }

  #build(/** @type {import("./scene.js").Scene} */ scene, /** @type {any[]} */ rows) {
    const { sort, kind } = this.app.view;
    const known = new Map(rows.map((row) => [`${row.layer}.${row.head}`, row]));
    this.cells.clear();
    const widest = Math.max(...scene.meta.layers.map((/** @type {any} */ layer) => layer.heads.length));
    this.grid.style.setProperty("--heads", String(Math.max(4, widest)));
    const hides = (/** @type {any} */ row) => kind && row && row.kind !== kind;
    if (sort !== "model") {
      const shown = rows.filter((row) => !hides(row));
      const of = (/** @type {any} */ row) => metricValue(row, sort) ?? -Infinity;
      shown.sort(sort === "kind" ? (a, b) => a.kind.localeCompare(b.kind) : (a, b) => of(b) - of(a));
      fill(this.grid, [h("div", { class: "line flat", role: "row" }, ...shown.map((row) => this.#cell(row.layer, row.head, row, sort)))]);
      return;
    }
    const parts = new Set(scene.meta.layers.map((/** @type {any} */ layer) => layer.part));
    fill(this.grid, scene.meta.layers.map((/** @type {any} */ layer) => h("div", { class: "line", role: "row", "data-part": parts.size > 1 ? layer.part : false },
      h("span", { class: "layer", role: "rowheader", title: layer.name, text: layerName(layer) }),
      layer.empty
        ? h("span", { class: "empty", role: "gridcell", text: layer.empty })
        : layer.heads.map((/** @type {number} */ head) => {
          const row = known.get(`${layer.index}.${head}`);
          const cell = this.#cell(layer.index, head, row, "");
          cell.classList.toggle("dim", Boolean(hides(row)));
          return cell;
        }).reduce((/** @type {DocumentFragment} */ all, /** @type {HTMLElement} */ cell) => (all.append(cell), all), document.createDocumentFragment()))));
  }

  #cell(/** @type {number} */ layer, /** @type {number} */ head, /** @type {any} */ row, /** @type {string} */ sort) {
    const canvas = h("canvas", { "aria-hidden": "true", width: "32", height: "32" });
    const value = row && sort && sort !== "kind" ? metricValue(row, sort) : null;
    const name = `${layer}.${head}`;
    const el = h("div", {
      class: "cell", role: "gridcell", tabindex: "-1", "data-head": name, "aria-label": headTitle(layer, head, row, sort),
      on: {
        click: () => this.actions.open(layer, head),
        mouseenter: () => this.actions.hover({ layer, head }),
        focus: () => this.actions.hover({ layer, head }),
      },
    }, canvas, h("span", { class: "caption" },
      row ? glyph(row.kind) : null,
      h("span", { class: "kind", text: value !== null ? figures(value) : row?.kind ?? "" }),
      h("span", { class: "name", text: sort ? name : String(head) })));
    this.cells.set(name, { el, canvas });
    return el;
  }

  #ask(/** @type {import("./scene.js").Scene} */ scene) {
    const place = placeOf(scene);
    const asked = JSON.stringify(place);
    if (asked !== this.asked) this.overviews.clear();
    this.asked = asked;
    for (const layer of scene.meta.layers) {
      if (layer.empty || this.overviews.has(layer.index)) continue;
      this.app.ask("overview", { ...place, layer: layer.index, mode: "sum" }).then((answer) => {
        if (asked !== this.asked) return;
        this.overviews.set(layer.index, answer);
        this.app.changed();
      }, (error) => this.app.fail(error));
    }
  }

  /** Put blocks that became exact into the overviews of the layer that is being completed. */
  #completed(/** @type {any} */ event) {
    const rough = [...this.overviews.values()].find((overview) => overview.meta.exact === false);
    if (!rough) return;
    if (event.event === "block" && event.bytes) {
      const all = new Uint8Array(rough.bytes);
      const size = rough.meta.rows * rough.meta.cols;
      const block = Uint8Array.from(atob(event.bytes), (letter) => letter.charCodeAt(0));
      const part = block.length / rough.meta.heads.length;
      for (let i = 0; i * part < block.length; i++) all.set(block.subarray(i * part, (i + 1) * part), i * size + event.row * rough.meta.cols);
    } else if (event.event === "done") {
      rough.meta = { ...rough.meta, exact: true, error: 0 };
    }
    this.version += 1;
    this.app.changed();
  }

  #paint(/** @type {number} */ layer, /** @type {any} */ { meta, bytes }, /** @type {Uint32Array} */ table) {
    const all = new Uint8Array(bytes);
    const size = meta.rows * meta.cols;
    meta.heads.forEach((/** @type {number} */ head, /** @type {number} */ i) => {
      const cell = this.cells.get(`${layer}.${head}`);
      if (cell) paintBytes(cell.canvas, all.subarray(i * size, (i + 1) * size), meta.rows, meta.cols, table);
    });
  }

  /** Arrows go from cell to cell, up and down to the nearest of the next line. */
  #move(/** @type {KeyboardEvent} */ event) {
    const cells = [...this.cells.values()].map((cell) => cell.el);
    const focused = cells.indexOf(/** @type {HTMLElement} */ (this.app.shadow.activeElement));
    if (focused < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const here = cells[focused].getBoundingClientRect();
    let next;
    if (event.key === "ArrowRight") next = cells[focused + 1];
    else if (event.key === "ArrowLeft") next = cells[focused - 1];
    else if (event.key === "Home") next = cells[0];
    else if (event.key === "End") next = cells.at(-1);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const down = event.key === "ArrowDown";
      const beyond = cells.filter((cell) => (down ? cell.getBoundingClientRect().top > here.top + 4 : cell.getBoundingClientRect().top < here.top - 4));
      const away = (/** @type {HTMLElement} */ cell) => {
        const there = cell.getBoundingClientRect();
        return 1e4 * Math.abs(there.top - here.top) + Math.abs(there.left - here.left);
      };
      next = beyond.sort((a, b) => away(a) - away(b))[0];
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      event.stopPropagation();
      const [layer, head] = /** @type {string} */ (cells[focused].dataset.head).split(".").map(Number);
      this.actions.open(layer, head);
      return;
    }
    if (!next) return;
    event.preventDefault();
    event.stopPropagation();
    next.focus();
  }
}

/**
 * Draw bytes of a tile, one pixel each.
 * @param {HTMLCanvasElement} canvas
 * @param {Uint8Array} bytes
 * @param {number} rows
 * @param {number} cols
 * @param {Uint32Array} table
 */
export function paintBytes(canvas, bytes, rows, cols, table) {
  const context = contextOf(canvas, cols, rows, 1);
  const image = context.createImageData(cols, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < bytes.length; i++) pixels[i] = table[bytes[i]];
  context.putImageData(image, 0, 0);
}

/**
 * The button that measures what every head does to the answer, with its progress.
 * @param {App} app
 */
export function effectButton(app) {
  const progress = h("progress", { max: "1", value: "0", hidden: true });
  /** @type {AbortController | null} */
  let running = null;
  const el = button("Measure every head’s effect", async () => {
    if (running) return running.abort();
    running = new AbortController();
    const { meta } = app.scene;
    const nHeads = meta.layers.reduce((/** @type {number} */ sum, /** @type {any} */ layer) => sum + layer.heads.length, 0);
    el.textContent = "Stop measuring";
    progress.hidden = false;
    app.busy();
    try {
      await app.source.stream("effect", { scene: meta.id, over: "heads" }, (event) => {
        if (event.event === "progress") progress.value = event.done / (event.of || nHeads);
        else if (event.event === "error") app.tell(event.message);
        else if (event.event === "done") {
          app.effects.set(meta.id, new Map(event.rows.map((/** @type {any} */ row) => [`${row.layer}.${row.head}`, row.effect])));
          app.store.set({ sort: "effect" });
        }
      }, running.signal);
    } catch (error) {
      app.fail(error);
    } finally {
      running = null;
      el.textContent = "Measure every head’s effect";
      progress.hidden = true;
      app.done();
      app.changed();
    }
  });
  return { el: h("span", { class: "effect" }, el, progress), update: () => setHidden(el, !app.meta.can.effect) };
}

function setHidden(/** @type {HTMLElement} */ el, /** @type {boolean} */ hidden) {
  el.hidden = hidden;
}
