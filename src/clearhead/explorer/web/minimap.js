// The whole map in a corner while it is zoomed in, with a frame around what is in view.

import { contextOf, densityOf, h } from "./dom.js";
import { paintBytes } from "./heads.js";
import { partInView } from "./plane.js";
import { tileTable, usualFloor } from "./scale.js";
import { placeOf } from "./scene.js";

const SIDE_OF_MINIMAP = 72;

export class MiniMap {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.el = h("canvas", { class: "minimap", "aria-hidden": "true", hidden: true, on: { click: (/** @type {MouseEvent} */ event) => this.#jump(event) } });
    this.slot = app.slot((answer) => {
      this.answer = answer;
      app.changed();
    });
  }

  /**
   * @param {import("./scene.js").Scene} scene
   * @param {import("./plane.js").Plane} plane
   */
  update(scene, plane) {
    this.scene = scene;
    this.el.hidden = this.app.view.zoom === null;
    if (this.el.hidden) return;
    this.slot("overview", { ...placeOf(scene), layer: scene.layer.index, mode: "sum" });
    if (!this.answer?.bytes) return;
    const { meta, bytes } = this.answer;
    const size = meta.rows * meta.cols;
    const at = meta.heads.indexOf(scene.head);
    if (at < 0) return;
    const small = /** @type {any} */ (new OffscreenCanvas(1, 1));
    paintBytes(small, new Uint8Array(bytes, at * size, size), meta.rows, meta.cols, tileTable(this.app.theme, usualFloor(meta.cols)));
    const context = contextOf(this.el, SIDE_OF_MINIMAP, SIDE_OF_MINIMAP, densityOf());
    context.fillStyle = this.app.palette.page;
    context.fillRect(0, 0, SIDE_OF_MINIMAP, SIDE_OF_MINIMAP);
    context.drawImage(small, 0, 0, SIDE_OF_MINIMAP, SIDE_OF_MINIMAP);
    const part = partInView(plane);
    const across = (/** @type {number} */ x) => (x / scene.nKeys) * SIDE_OF_MINIMAP;
    const down = (/** @type {number} */ y) => (y / scene.nQueries) * SIDE_OF_MINIMAP;
    context.strokeStyle = this.app.palette.accent;
    context.lineWidth = 2;
    context.strokeRect(across(part.left), down(part.top), Math.max(3, across(part.right - part.left)), Math.max(3, down(part.bottom - part.top)));
  }

  #jump(/** @type {MouseEvent} */ event) {
    const scene = /** @type {import("./scene.js").Scene} */ (this.scene);
    const room = this.el.getBoundingClientRect();
    this.app.store.set({ x: ((event.clientX - room.left) / room.width) * scene.nKeys, y: ((event.clientY - room.top) / room.height) * scene.nQueries });
  }
}
