// From a sample to exact numbers: a long map is first drawn from some of its rows, said to be so, and then completed.

/** @typedef {import("./scene.js").Scene} Scene */

import { h } from "./dom.js";
import { figures, percent } from "./scale.js";
import { placeOf } from "./scene.js";

export class Exactness {
  /**
   * @param {import("./app.js").App} app
   * @param {(event: any) => void} heard Told of every block that became exact.
   */
  constructor(app, heard) {
    this.app = app;
    this.heard = heard;
    this.el = h("p", { class: "sampled", role: "note", hidden: true });
    this.key = "";
    /** @type {AbortController | null} */
    this.running = null;
    app.closing.signal.addEventListener("abort", () => this.running?.abort());
  }

  /**
   * Say how exact what is shown is; where it is from a sample, have the rest computed.
   * @param {Scene} scene
   * @param {{layer: number, head: number | null, mode: string, error: number | null} | null} sampled What is not exact.
   */
  update(scene, sampled) {
    const key = sampled ? JSON.stringify([placeOf(scene), sampled.layer, sampled.head, sampled.mode]) : "";
    if (key === this.key) return;
    this.key = key;
    this.running?.abort();
    this.running = null;
    this.el.hidden = !sampled;
    this.app.host.toggleAttribute("data-sampled", Boolean(sampled));
    if (!sampled) return;
    this.#say(sampled.error, 0);
    this.#run(scene, sampled, key);
  }

  #say(/** @type {number | null} */ error, /** @type {number} */ done) {
    const size = error === null || error === undefined ? "" : `, standard error at most ${figures(error)}`;
    this.el.textContent = `Drawn from a sample of the rows${size}. ${done > 0 ? `Exact so far: ${percent(done)}.` : "The exact map is being computed."}`;
  }

  async #run(/** @type {Scene} */ scene, /** @type {any} */ sampled, /** @type {string} */ key) {
    const running = new AbortController();
    this.running = running;
    try {
      await this.app.source.stream("exact", { ...placeOf(scene), layer: sampled.layer, head: sampled.head, mode: sampled.mode }, (event) => {
        if (this.key !== key) return;
        if (event.event === "error") this.app.tell(event.message);
        if (event.event === "block") this.#say(sampled.error, event.done / Math.max(1, event.of));
        this.heard(event);
      }, running.signal);
    } catch (error) {
      if (!running.signal.aborted) this.app.fail(error);
    }
  }
}
