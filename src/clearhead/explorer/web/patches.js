// A picture whose patches are tokens: veiled where no weight lies, clear where much does, the pinned patch outlined.

import { contextOf, densityOf, h } from "./dom.js";
import { positionOf } from "./scale.js";

const LARGEST_PICTURE = 420; // pixels on a side
const VEIL = 0.86; // opacity over a patch without weight

export class PictureView {
  /**
   * @param {import("./app.js").App} app
   * @param {string} label
   * @param {(token: number, extend: boolean) => void} pick
   * @param {(token: number | null) => void} hover
   */
  constructor(app, label, pick, hover) {
    this.app = app;
    this.img = h("img", { alt: label });
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.pick = pick;
    this.pinned = 0;
    this.el = h("div", {
      class: "picture", role: "application", tabindex: "0", "aria-label": `${label}: arrows move from patch to patch`,
      on: {
        click: (/** @type {MouseEvent} */ event) => this.#at(event, (token) => token !== null && pick(token, event.shiftKey)),
        mousemove: (/** @type {MouseEvent} */ event) => this.#at(event, hover),
        mouseleave: () => hover(null),
        keydown: (/** @type {KeyboardEvent} */ event) => this.#move(event),
      },
    }, this.img, this.canvas);
    this.loaded = "";
    app.closing.signal.addEventListener("abort", () => URL.revokeObjectURL(this.img.src));
  }

  /** @param {import("./tokens.js").Axis} axis */
  setAxis(axis) {
    const image = /** @type {NonNullable<typeof axis.image>} */ (axis.image);
    this.image = image;
    const name = `${this.app.meta.id} ${image.id}`;
    if (this.loaded === name) return;
    this.loaded = name;
    this.scale = LARGEST_PICTURE / Math.max(image.width, image.height);
    this.el.style.setProperty("aspect-ratio", `${image.width} / ${image.height}`);
    this.el.classList.toggle("coarse", this.scale > 2);
    this.app.ask("image", { scene: this.app.meta.id, id: image.id }).then((answer) => {
      URL.revokeObjectURL(this.img.src);
      if (answer.bytes) this.img.src = URL.createObjectURL(new Blob([answer.bytes]));
    }, (error) => this.app.fail(error));
  }

  /**
   * @param {Float32Array | null} values
   * @param {number} offset The token that values[0] is of.
   * @param {number} floor
   * @param {[number, number] | null} pinned
   */
  shade(values, offset, floor, pinned) {
    const image = this.image;
    if (!image) return;
    const width = this.el.clientWidth;
    const height = this.el.clientHeight;
    const context = contextOf(this.canvas, width, height, densityOf());
    context.clearRect(0, 0, width, height);
    const cell = { w: (image.w / image.width) * (width / image.cols), h: (image.h / image.height) * (height / image.rows) };
    const start = { x: (image.x / image.width) * width, y: (image.y / image.height) * height };
    const place = (/** @type {number} */ patch) => /** @type {[number, number, number, number]} */ ([
      start.x + (patch % image.cols) * cell.w, start.y + Math.floor(patch / image.cols) * cell.h, cell.w, cell.h]);
    context.fillStyle = this.app.palette.page;
    if (values) {
      for (let patch = 0; patch < image.rows * image.cols; patch++) {
        context.globalAlpha = VEIL * (1 - positionOf(values[image.first + patch - offset], floor));
        context.fillRect(...place(patch));
      }
    }
    context.globalAlpha = 1;
    context.lineWidth = 2.5;
    context.strokeStyle = this.app.palette.accent;
    if (pinned) {
      for (let token = pinned[0]; token <= pinned[1]; token++) {
        const patch = token - image.first;
        if (patch < 0 || patch >= image.rows * image.cols) continue;
        const [x, y, w, tall] = place(patch);
        context.strokeRect(x + 1.25, y + 1.25, w - 2.5, tall - 2.5);
        this.pinned = token;
      }
    }
  }

  #at(/** @type {MouseEvent} */ event, /** @type {(token: number | null) => void} */ act) {
    const image = this.image;
    if (!image) return;
    const room = this.el.getBoundingClientRect();
    const x = ((event.clientX - room.left) / room.width) * image.width - image.x;
    const y = ((event.clientY - room.top) / room.height) * image.height - image.y;
    const col = Math.floor((x / image.w) * image.cols);
    const row = Math.floor((y / image.h) * image.rows);
    const inside = col >= 0 && row >= 0 && col < image.cols && row < image.rows;
    act(inside ? image.first + row * image.cols + col : null);
  }

  #move(/** @type {KeyboardEvent} */ event) {
    const image = this.image;
    if (!image || event.ctrlKey || event.metaKey || event.altKey) return;
    const [dx, dy] = /** @type {Record<string, number[]>} */ ({ ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] })[event.key] ?? [0, 0];
    if (!dx && !dy) return;
    event.preventDefault();
    event.stopPropagation();
    const patch = Math.max(0, this.pinned - image.first);
    const clamp = (/** @type {number} */ at, /** @type {number} */ n) => Math.min(n - 1, Math.max(0, at));
    const col = clamp((patch % image.cols) + dx, image.cols);
    const row = clamp(Math.floor(patch / image.cols) + dy, image.rows);
    this.pinned = image.first + row * image.cols + col;
    this.pick(this.pinned, false);
  }

  /**
   * @param {number} first
   * @param {number} last
   * @returns {DOMRect | null}
   */
  rectOf(first, last = first) {
    const image = this.image;
    if (!image || first < image.first || first >= image.first + image.rows * image.cols || last < first) return null;
    const room = this.el.getBoundingClientRect();
    const patch = first - image.first;
    const w = ((image.w / image.width) * room.width) / image.cols;
    const tall = ((image.h / image.height) * room.height) / image.rows;
    return new DOMRect(room.left + (image.x / image.width) * room.width + (patch % image.cols) * w,
      room.top + (image.y / image.height) * room.height + Math.floor(patch / image.cols) * tall, w, tall);
  }
}
