// Where a change shows: every head's map before and after, and how far apart the two are.

import { fill, h } from "./dom.js";
import { colorAt, figures, positionOf, shareOf } from "./scale.js";
import { layerName, placeOf } from "./scene.js";

const LEAST_CHANGE = 1e-3; // where the scale begins

/** How much of their weight the queries of each head moved: half the sum of absolute differences, on average. */
export class Changes {
  /**
   * @param {import("./app.js").App} app
   * @param {(layer: number, head: number) => void} open
   */
  constructor(app, open) {
    this.app = app;
    this.open = open;
    this.grid = h("div", { class: "changes" });
    this.el = h("section", { "aria-label": "Where it shows" }, h("h2", { text: "Where it shows" }),
      h("p", { class: "note", text: "How much of its weight each head moved to other blocks of tokens, on average over the queries." }), this.grid);
    this.key = "";
  }

  /**
   * @param {import("./scene.js").Scene} was
   * @param {import("./scene.js").Scene} scene
   */
  update(was, scene) {
    const key = JSON.stringify([placeOf(was), placeOf(scene), this.app.theme]);
    if (key !== this.key) {
      this.key = key;
      this.#measure(was, scene, key);
    }
    for (const one of this.grid.querySelectorAll("button")) {
      one.setAttribute("aria-pressed", String(one.dataset.head === `${scene.layer.index}.${scene.head}`));
    }
  }

  async #measure(/** @type {import("./scene.js").Scene} */ was, /** @type {import("./scene.js").Scene} */ scene, /** @type {string} */ key) {
    const { app } = this;
    try {
      const lines = await Promise.all(scene.meta.layers.filter((/** @type {any} */ layer) => !layer.empty).map(async (/** @type {any} */ layer) => {
        const ask = (/** @type {import("./scene.js").Scene} */ one) => app.ask("overview", { ...placeOf(one), layer: layer.index, mode: "sum" });
        const [before, now] = await Promise.all([ask(was), ask(scene)]);
        return { layer, moved: movedBy(before, now) };
      }));
      if (key !== this.key) return;
      fill(this.grid, lines.filter(({ moved }) => moved.length).map(({ layer, moved }) => h("div", { class: "changeline" },
        h("span", { class: "layer", text: layerName(layer) }),
        ...layer.heads.map((/** @type {number} */ head, /** @type {number} */ i) => h("button", {
          type: "button", class: "change", "data-head": `${layer.index}.${head}`, title: `Head ${layer.index}.${head}: ${figures(moved[i])}`,
          "aria-label": `Head ${layer.index}.${head} moved ${figures(moved[i])}`,
          style: { background: colorAt(app.theme, positionOf(moved[i], LEAST_CHANGE)) },
          on: { click: () => this.open(layer.index, head) },
        })))));
      app.changed();
    } catch (error) {
      app.fail(error);
    }
  }
}

/**
 * Half the mean over rows of the absolute differences of shares, for every head of two overviews; none where their
 * sizes differ.
 * @param {{meta: any, bytes: ArrayBuffer | null}} before
 * @param {{meta: any, bytes: ArrayBuffer | null}} now
 */
export function movedBy(before, now) {
  const { rows, cols, heads } = now.meta;
  if (!before.bytes || !now.bytes || before.meta.rows !== rows || before.meta.cols !== cols || before.meta.heads.length !== heads.length) return [];
  const [a, b] = [new Uint8Array(before.bytes), new Uint8Array(now.bytes)];
  return heads.map((/** @type {number} */ _, /** @type {number} */ head) => {
    let sum = 0;
    for (let i = head * rows * cols; i < (head + 1) * rows * cols; i++) if (a[i] !== b[i]) sum += Math.abs(shareOf(a[i]) - shareOf(b[i]));
    return sum / 2 / rows;
  });
}
