// Taking a view away: as a command, as Python, as a figure, as numbers. What leaves never holds the token.

import { asCommand, asPython, formatView } from "./address.js";
import { floatsOf } from "./app.js";
import { button, h, hatchingOf } from "./dom.js";
import { enlargement, FIGURE_WIDTHS, mapFigure, toCsv } from "./figure.js";
import { HIDDEN_BYTE, colorAt, figures, legendTicks, PAGE, percent, positionOf, tileTable, usualFloor } from "./scale.js";
import { headOf, layerName } from "./scene.js";
import { coarsestScale, tilesIn } from "./pyramid.js";
import { fewest, labelOf, spanName } from "./tokens.js";

const MAX_ROWS_OF_TABLE = 512; // a longer text gives the pinned row alone
const MAX_MARKS = 48; // labels along an axis of a figure
const DOTS_PER_MM = 600 / 25.4;

export class ShareMenu {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    const act = (/** @type {string} */ label, /** @type {() => Promise<void>} */ action) => button(label, async () => {
      this.el.open = false;
      app.busy();
      try {
        await action();
      } catch (error) {
        app.fail(error);
      } finally {
        app.done();
      }
    });
    this.command = act("Copy as command", () => this.#copy("The command", asCommand(app.view, app.meta.commands.command)));
    this.python = act("Copy as Python", () => this.#copy("The Python", asPython(this.#filled(), app.meta.commands.python)));
    this.width = h("select", { "aria-label": "Width of the figure" }, ...FIGURE_WIDTHS.map((mm) => h("option", { value: String(mm), text: `${mm} mm` })));
    this.items = h("div", { class: "items" }, this.command, this.python,
      act("Copy the view", () => this.#copy("The view", `#${formatView(app.view)}`)),
      act("Copy a description", async () => this.#copy("The description", await this.describe())),
      h("label", { class: "choice" }, "Figure, width", this.width),
      act("Save as SVG", () => this.#saveSvg()), act("Save as PNG, 600 dpi", () => this.#savePng()),
      act("Save the numbers (CSV)", () => this.#saveNumbers()));
    this.el = h("details", { class: "menu share" }, h("summary", { text: "Share" }), this.items);
  }

  update() {
    this.command.hidden = !this.app.meta.commands?.command;
    this.python.hidden = !this.app.meta.commands?.python;
  }

  #filled() {
    const { scene, view } = this.app;
    return view.page === "heads" ? { ...view, layer: null } : { ...view, layer: scene.layer.index, head: scene.head, query: scene.query };
  }

  async #copy(/** @type {string} */ what, /** @type {string} */ text) {
    try {
      await navigator.clipboard.writeText(text);
      this.app.tell(`${what} is in the clipboard: ${text}`);
    } catch {
      this.app.tell(`${what}, to copy by hand: ${text}`);
    }
  }

  /** The view in a sentence: the alternative text of the figure. */
  async describe() {
    const { scene, view } = this.app;
    const row = floatsOf(await this.app.ask("row", { ...headOf(scene), query: scene.query }));
    const { links } = fewest(/** @type {Float32Array} */ (row), view.cover, 5);
    const word = spanName(scene.queries, scene.query + scene.first, scene.query + scene.first);
    const said = links.map(({ key, weight }) => `${percent(weight)} to ${spanName(scene.keys, key, key)}`).join(", ");
    return `Attention map of ${layerName(scene.layer).toLowerCase()}, head ${scene.head}, ${scene.nQueries} queries by ${scene.nKeys} keys. From ${word}: ${said}.`;
  }

  /** The whole map as bytes, at the finest scale at which it is small enough for a picture. */
  async #bytes() {
    const { scene, view } = this.app;
    const coarsest = coarsestScale(scene.nQueries, scene.nKeys);
    const scale = Math.max(0, coarsest - 1);
    const block = 2 ** scale;
    const [rows, cols] = [Math.ceil(scene.nQueries / block), Math.ceil(scene.nKeys / block)];
    const bytes = new Uint8Array(rows * cols);
    const whole = { left: 0, top: 0, right: scene.nKeys, bottom: scene.nQueries };
    for (const tile of tilesIn(whole, scale, scene.nQueries, scene.nKeys)) {
      const answer = await this.app.ask("tile", { ...headOf(scene), mode: view.mode, s: tile.scale, ty: tile.row, tx: tile.col });
      const part = new Uint8Array(/** @type {ArrayBuffer} */ (answer.bytes));
      for (let row = 0; row < answer.meta.rows; row++) {
        bytes.set(part.subarray(row * answer.meta.cols, (row + 1) * answer.meta.cols), (tile.row * 256 + row) * cols + tile.col * 256);
      }
    }
    return { bytes, rows, cols, block };
  }

  /** The figure as SVG; always in the light theme, for paper. */
  async svg() {
    const { scene, view, meta } = this.app;
    const { bytes, rows, cols, block } = await this.#bytes();
    const floor = view.floor ?? usualFloor(scene.nKeys);
    const canvas = enlarged(bytes, rows, cols, tileTable("light", floor));
    const marks = (/** @type {import("./tokens.js").Axis} */ axis, /** @type {number} */ first, /** @type {number} */ n) => {
      const step = Math.ceil(n / MAX_MARKS);
      return Array.from({ length: Math.ceil(n / step) }, (_, i) => ({ at: (i * step + 0.5) / n, text: block === 1 && step === 1 ? labelOf(axis, i + first) : String(i * step * block + first) }));
    };
    return mapFigure({
      title: `${layerName(scene.layer)}, head ${scene.head}${meta.model ? ` of ${meta.model}` : ""}`,
      summary: await this.describe(), command: asCommand(view, meta.commands?.command ?? ""),
      image: canvas.toDataURL("image/png"), rows, cols,
      rowMarks: marks(scene.queries, scene.first, rows), colMarks: marks(scene.keys, 0, cols),
      legend: {
        colors: Array.from({ length: 17 }, (_, i) => colorAt("light", i / 16)),
        marks: legendTicks(floor).map((tick) => ({ at: positionOf(tick, floor), text: tick < 1e-3 ? figures(tick) : String(tick) })),
        masked: bytes.includes(HIDDEN_BYTE),
      },
      width: Number(this.width.value), ink: "#16181b", page: PAGE.light,
    });
  }

  #name(/** @type {string} */ ending) {
    const { scene } = this.app;
    return `clearhead-layer${scene.layer.index}-head${scene.head}.${ending}`;
  }

  async #saveSvg() {
    save(new Blob([await this.svg()], { type: "image/svg+xml" }), this.#name("svg"));
  }

  async #savePng() {
    const svg = await this.svg();
    const address = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
    try {
      const image = new Image();
      image.src = address;
      await image.decode();
      const canvas = document.createElement("canvas");
      canvas.width = Math.round(Number(this.width.value) * DOTS_PER_MM);
      canvas.height = Math.round((canvas.width * image.naturalHeight) / image.naturalWidth);
      /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).drawImage(image, 0, 0, canvas.width, canvas.height);
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
      save(/** @type {Blob} */ (blob), this.#name("png"));
    } finally {
      URL.revokeObjectURL(address);
    }
  }

  async #saveNumbers() {
    const { scene } = this.app;
    const queries = scene.nQueries <= MAX_ROWS_OF_TABLE ? Array.from({ length: scene.nQueries }, (_, i) => i) : [scene.query];
    const keys = Array.from({ length: scene.nKeys }, (_, key) => labelOf(scene.keys, key));
    const rows = [];
    for (const query of queries) {
      const row = floatsOf(await this.app.ask("row", { ...headOf(scene), query }));
      rows.push([query + scene.first, labelOf(scene.queries, query + scene.first), .../** @type {Float32Array} */ (row)]);
    }
    save(new Blob([toCsv(["query", "token", ...keys], rows)], { type: "text/csv" }), this.#name("csv"));
    if (queries.length < scene.nQueries) this.app.tell(`A table of ${scene.nQueries} rows is too long for this page: the file holds the pinned row, ${scene.query}.`);
  }
}

/** A matrix as a canvas with a whole number of pixels a cell. */
function enlarged(/** @type {Uint8Array} */ bytes, /** @type {number} */ rows, /** @type {number} */ cols, /** @type {Uint32Array} */ table) {
  const small = document.createElement("canvas");
  Object.assign(small, { width: cols, height: rows });
  const pen = /** @type {CanvasRenderingContext2D} */ (small.getContext("2d"));
  const image = pen.createImageData(cols, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < bytes.length; i++) pixels[i] = table[bytes[i]];
  pen.putImageData(image, 0, 0);
  const factor = enlargement(rows, cols);
  const large = document.createElement("canvas");
  Object.assign(large, { width: cols * factor, height: rows * factor });
  const context = /** @type {CanvasRenderingContext2D} */ (large.getContext("2d"));
  context.fillStyle = PAGE.light;
  context.fillRect(0, 0, large.width, large.height);
  context.fillStyle = hatchingOf(context, "#5f6267");
  context.fillRect(0, 0, large.width, large.height);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, large.width, large.height);
  return large;
}

function save(/** @type {Blob} */ blob, /** @type {string} */ name) {
  const address = URL.createObjectURL(blob);
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
