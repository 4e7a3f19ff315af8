// One head's map at any zoom: tiles on a canvas, a cross-hair, a cell that the keyboard moves and a screen reader reads.

import { floatsOf } from "./app.js";
import { drawAxes, gutters } from "./axes.js";
import { contextOf, densityOf, h, hatchingOf } from "./dom.js";
import { Exactness } from "./exact.js";
import { listen } from "./gestures.js";
import { paintBytes } from "./heads.js";
import { MiniMap } from "./minimap.js";
import { layPlane, partInView } from "./plane.js";
import { ancestorOf, coarsestScale, Recent, scaleFor, TILE_SIZE, TileQueue, tilesIn } from "./pyramid.js";
import { blockText, cellText, pixelText } from "./say.js";
import { differenceTable, grouped, tileTable, usualFloor } from "./scale.js";
import { headOf } from "./scene.js";

const MAX_TILE_CANVASES = 128;
const MAX_EXACT_ROWS = 48; // rows whose numbers are written into the cells
const NUMBERS_FROM = 34; // pixels of a cell

/** @typedef {import("./scene.js").Scene} Scene */

export class MapView {
  /**
   * @param {import("./app.js").App} app
   * @param {"now" | "before" | "difference"} shows
   */
  constructor(app, shows = "now") {
    this.app = app;
    this.shows = shows;
    this.name = `map-${shows}`;
    this.tiles = h("canvas", { class: "tiles", "aria-hidden": "true" });
    this.over = h("canvas", { class: "over", "aria-hidden": "true" });
    this.mini = new MiniMap(app);
    this.cell = h("div", { role: "gridcell", id: `${this.name}-cell`, "aria-selected": "true" });
    this.rowElement = h("div", { role: "row" }, this.cell);
    this.window = h("div", { class: "window", role: "grid", tabindex: "0", "aria-activedescendant": `${this.name}-cell` }, this.rowElement);
    this.el = h("div", { class: "map" }, this.tiles, this.over, this.window, this.mini.el);
    this.status = h("p", { class: "status" });
    /** @type {string[]} */
    this.shownKeys = [];
    /** @type {any} */
    this.sampledNow = null;
    /** @type {Map<string, any>} */
    this.specs = new Map();
    /** @type {Recent<{answer: import("./source.js").Answer, canvas: OffscreenCanvas}>} */
    this.canvases = new Recent(MAX_TILE_CANVASES);
    this.queue = new TileQueue((key, signal) => {
      app.busy();
      const { name, parameters } = this.specs.get(key);
      return app.source.ask(name, parameters, signal).finally(() => app.done());
    }, () => app.changed(), (error) => app.fail(error));
    this.received = app.slot((answer) => {
      this.margins = answer;
      app.changed();
    });
    this.exact = app.slot((answer) => {
      this.row = floatsOf(answer);
      this.#speak();
      app.changed();
    });
    this.hoverRow = app.slot((answer) => {
      this.hoverValues = floatsOf(answer);
      this.#overlay();
    });
    /** @type {{query: number, key: number} | null} */
    this.hovered = null;
    /** @type {Map<number, Float32Array>} */
    this.numbers = new Map();
    this.exactness = new Exactness(app, (event) => {
      // Tiles are asked for anew when a tenth more is exact, and at the end.
      const tenth = event.event === "done" ? 11 : Math.floor((10 * event.done) / event.of);
      if (tenth === this.tenth) return;
      this.tenth = tenth;
      this.queue.refresh((answer) => answer.meta.exact === false);
      app.changed();
    });
    listen(this);
    const observer = new ResizeObserver(() => app.changed());
    observer.observe(this.el);
    app.closing.signal.addEventListener("abort", () => observer.disconnect());
  }

  /** @param {Scene} scene */
  update(scene) {
    const { app } = this;
    const width = this.el.clientWidth;
    const height = this.el.clientHeight;
    if (!width || !height) return;
    this.scene = scene;
    this.gutter = gutters(scene, width);
    const room = { width: width - this.gutter.left - this.gutter.right, height: height - this.gutter.top - this.gutter.bottom };
    this.room = room;
    this.plane = layPlane(scene, room, app.view);
    this.floor = app.view.floor ?? usualFloor(scene.nKeys);
    const { style } = this.window;
    style.setProperty("left", `${this.gutter.left}px`);
    style.setProperty("top", `${this.gutter.top}px`);
    style.setProperty("width", `${room.width}px`);
    style.setProperty("height", `${room.height}px`);
    style.setProperty("touch-action", app.view.zoom === null ? "pan-y" : "none");
    for (const [key, value] of Object.entries({ left: this.gutter.left, top: this.gutter.top, width: room.width, height: room.height })) this.tiles.style.setProperty(key, `${value}px`);
    this.received("margins", this.shows === "difference" ? null : headOf(scene));
    this.exact("row", this.shows === "difference" ? null : { ...headOf(scene), query: scene.query });
    this.#draw();
    if (this.shows === "now") this.exactness.update(scene, this.#sampled(scene));
    this.#numbers();
    this.#overlay();
    if (this.shows === "now") this.mini.update(scene, this.plane);
    this.#speak();
  }

  /** The plane as the state has it now, which the next frame will draw: several keys may be pressed between two frames. */
  get nextPlane() {
    return layPlane(this.app.scene, this.room, this.app.view);
  }

  #question(/** @type {Scene} */ scene, /** @type {import("./pyramid.js").Tile} */ tile) {
    const parameters = { ...headOf(scene), mode: this.app.view.mode, s: tile.scale, ty: tile.row, tx: tile.col };
    if (this.shows === "difference") return { name: "difference", parameters: { ...parameters, scene: this.app.view.before, other: scene.meta.id } };
    return { name: "tile", parameters };
  }

  #draw() {
    const { app, plane, tiles } = this;
    const scene = /** @type {Scene} */ (this.scene);
    const context = contextOf(tiles, plane.width, plane.height, densityOf());
    context.clearRect(0, 0, plane.width, plane.height);
    const part = partInView(plane);
    context.fillStyle = hatchingOf(context, app.palette.muted);
    context.fillRect(Math.max(0, plane.left), Math.max(0, plane.top), (part.right - part.left) * plane.across, (part.bottom - part.top) * plane.down);
    const coarsest = coarsestScale(scene.nQueries, scene.nKeys);
    this.scale = scaleFor(Math.min(plane.across, plane.down), coarsest);
    const wanted = tilesIn(part, this.scale, scene.nQueries, scene.nKeys);
    const keys = [];
    this.missing = 0;
    for (const tile of wanted) {
      const key = this.#key(scene, tile);
      keys.push(key);
      if (!this.#drawTile(context, scene, tile, coarsest)) this.missing += 1;
    }
    if (this.scale < coarsest && wanted.length) keys.push(this.#key(scene, ancestorOf(wanted[0], coarsest - this.scale).tile));
    this.shownKeys = keys;
    this.queue.want(keys);
  }

  #key(/** @type {Scene} */ scene, /** @type {import("./pyramid.js").Tile} */ tile) {
    const question = this.#question(scene, tile);
    const key = JSON.stringify(question);
    this.specs.set(key, question);
    return key;
  }

  /** Draw a tile, or the part of an ancestor that covers it; false where the tile itself is not there. */
  #drawTile(/** @type {CanvasRenderingContext2D} */ context, /** @type {Scene} */ scene, /** @type {import("./pyramid.js").Tile} */ tile, /** @type {number} */ coarsest) {
    const { plane } = this;
    const block = 2 ** tile.scale;
    const x = plane.left + tile.col * TILE_SIZE * block * plane.across;
    const y = plane.top + tile.row * TILE_SIZE * block * plane.down;
    const side = (/** @type {number} */ at, /** @type {number} */ n) => Math.min(TILE_SIZE, Math.ceil((n - at * TILE_SIZE * block) / block));
    const [cols, rows] = [side(tile.col, scene.nKeys), side(tile.row, scene.nQueries)];
    for (let up = 0; up <= coarsest - tile.scale; up++) {
      const above = ancestorOf(tile, up);
      const canvas = this.#canvas(this.#key(scene, above.tile));
      if (!canvas) continue;
      const part = 2 ** up;
      if (up > 0) context.clearRect(x, y, cols * block * plane.across, rows * block * plane.down);
      context.drawImage(canvas, above.x, above.y, cols / part, rows / part, x, y, cols * block * plane.across, rows * block * plane.down);
      return up === 0;
    }
    context.clearRect(x, y, cols * block * plane.across, rows * block * plane.down);
    return false;
  }

  /** What of the tiles in view comes from a sample, with its largest error; null where all are exact. */
  #sampled(/** @type {Scene} */ scene) {
    const rough = this.shownKeys.map((key) => this.queue.get(key)?.meta).filter((meta) => meta && meta.exact === false);
    if (!rough.length) return this.missing && this.exactness.key ? this.sampledNow : null;
    const errors = rough.map((meta) => meta.error).filter((error) => typeof error === "number");
    this.sampledNow = { layer: scene.layer.index, head: scene.head, mode: this.app.view.mode, error: errors.length ? Math.max(...errors) : null };
    return this.sampledNow;
  }

  #canvas(/** @type {string} */ key) {
    const answer = this.queue.get(key);
    if (!answer) return null;
    const { theme } = this.app;
    const name = `${theme} ${this.floor} ${key}`;
    const known = this.canvases.get(name);
    if (known?.answer === answer) return known.canvas;
    const canvas = new OffscreenCanvas(1, 1);
    const table = this.shows === "difference" ? differenceTable(theme) : tileTable(theme, this.floor);
    paintBytes(/** @type {any} */ (canvas), new Uint8Array(/** @type {ArrayBuffer} */ (answer.bytes)), answer.meta.rows, answer.meta.cols, table);
    this.canvases.set(name, { answer, canvas });
    return canvas;
  }

  /** Ask for the exact rows in view, where cells are large enough to write their numbers into. */
  #numbers() {
    const { app, plane } = this;
    const scene = /** @type {Scene} */ (this.scene);
    const place = JSON.stringify(headOf(scene));
    if (place !== this.numbered) this.numbers.clear();
    this.numbered = place;
    const part = partInView(plane);
    const few = part.bottom - part.top <= MAX_EXACT_ROWS;
    this.written = this.shows !== "difference" && few && plane.across >= NUMBERS_FROM && plane.down >= 16;
    if (!this.written) return;
    for (let query = Math.floor(part.top); query < Math.ceil(part.bottom); query++) {
      if (this.numbers.has(query)) continue;
      this.numbers.set(query, new Float32Array(0));
      app.ask("row", { ...headOf(scene), query }).then((answer) => {
        if (place !== this.numbered) return;
        this.numbers.set(query, /** @type {Float32Array} */ (floatsOf(answer)));
        app.changed();
      }, (error) => app.fail(error));
    }
  }

  #overlay() {
    if (!this.plane || !this.scene) return;
    const context = contextOf(this.over, this.el.clientWidth, this.el.clientHeight, densityOf());
    drawAxes(context, {
      app: this.app, scene: this.scene, plane: this.plane, gutter: this.gutter, floor: /** @type {number} */ (this.floor),
      hovered: this.hovered, margins: floatsOf(this.margins ?? null), numbers: this.written ? this.numbers : null, scale: this.scale ?? 0,
    });
    this.#describe();
  }

  /** What is under the cross-hair, in exact numbers, and what a pixel is. */
  #describe() {
    const scene = /** @type {Scene} */ (this.scene);
    const block = 2 ** (this.scale ?? 0);
    const size = pixelText(block, this.plane.across >= 2, this.app.view.mode);
    let here = "";
    const at = this.hovered ?? { query: scene.query, key: scene.key };
    const values = this.hovered ? this.hoverValues : this.row;
    if (this.shows !== "difference" && values && values.length === scene.nKeys && (!this.hovered || this.hoverAt === this.#hoverName())) {
      here = block === 1 || !this.hovered ? cellText(scene, at.query, at.key, values) : blockText(scene, at, values, block);
    }
    this.status.textContent = here ? `${here}. ${size}.` : `${size}.`;
  }

  #speak() {
    const scene = this.scene;
    if (!scene) return;
    this.window.setAttribute("aria-label", `${this.shows === "difference" ? "Difference of two maps" : "Map"}: ${grouped(scene.nQueries)} queries, ${grouped(scene.nKeys)} keys`);
    this.window.setAttribute("aria-rowcount", String(scene.nQueries));
    this.window.setAttribute("aria-colcount", String(scene.nKeys));
    this.rowElement.setAttribute("aria-rowindex", String(scene.query + 1));
    this.cell.setAttribute("aria-colindex", String(scene.key + 1));
    const text = this.row?.length === scene.nKeys ? cellText(scene, scene.query, scene.key, this.row) : `query ${scene.query}, key ${scene.key}`;
    if (this.cell.textContent === text) return;
    this.cell.textContent = text;
    if (this.app.shadow.activeElement === this.window) this.app.say(text);
  }

  #hoverName() {
    const block = 2 ** (this.scale ?? 0);
    return this.hovered ? `${this.hovered.query - (this.hovered.query % block)} ${block}` : "";
  }

  /** Show the cross-hair at a position, with the exact numbers that lie there; null takes it away.
   * @param {{query: number, key: number} | null} at
   */
  hover(at) {
    if (at?.query === this.hovered?.query && at?.key === this.hovered?.key) return;
    this.hovered = at;
    if (at && this.shows !== "difference") {
      const scene = /** @type {Scene} */ (this.scene);
      const block = 2 ** (this.scale ?? 0);
      const first = at.query - (at.query % block);
      const last = Math.min(scene.nQueries, first + block) - 1;
      if (this.#hoverName() !== this.hoverAt) this.hoverValues = null;
      this.hoverAt = this.#hoverName();
      this.hoverRow("row", { ...headOf(scene), query: first, to: last > first ? last : null });
    }
    this.#overlay();
  }
}
