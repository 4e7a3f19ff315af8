// The numbers of a head: what each is called, how it is read, and the scatter of all heads over any two of them.

import { choice, fill, h } from "./dom.js";
import { glyph } from "./glyphs.js";
import { colorAt, figures, grouped } from "./scale.js";

/** @type {Record<string, {label: string, share?: boolean}>} */
export const METRICS = {
  entropy: { label: "entropy" },
  spread: { label: "spread", share: true },
  distance: { label: "distance" },
  sink: { label: "to the first token", share: true },
  heaviest_share: { label: "to the heaviest key", share: true },
  previous: { label: "to the token before", share: true },
  itself: { label: "to itself", share: true },
  next: { label: "to the token after", share: true },
  near: { label: "to near tokens", share: true },
  separator: { label: "to separators", share: true },
  duplicate: { label: "to the same token", share: true },
  induction: { label: "induction", share: true },
  effect: { label: "effect on the answer" },
  layer: { label: "layer" },
};

/**
 * @param {any} row One of `heads`.
 * @param {string} name
 * @returns {number | null}
 */
export function metricValue(row, name) {
  const value = row?.[name];
  if (typeof value !== "number" || !Number.isFinite(value)) return null;
  return name === "effect" ? Math.abs(value) : value;
}

/**
 * What a cell says to who cannot see it.
 * @param {number} layer
 * @param {number} head
 * @param {any} row
 * @param {string} sort
 */
export function headTitle(layer, head, row, sort) {
  const parts = [`Head ${layer}.${head}`];
  if (row) {
    parts.push(row.kind);
    const value = sort && sort !== "kind" ? metricValue(row, sort) : null;
    parts.push(value === null ? `entropy ${figures(row.entropy)}` : `${METRICS[sort].label} ${figures(value)}`);
  }
  return parts.join(", ");
}

const SIDE = 320;
const PAD = { left: 44, right: 12, top: 10, bottom: 34 };

export class Scatter {
  /**
   * @param {import("./app.js").App} app
   * @param {(layer: number, head: number) => void} open
   * @param {(place: {layer: number, head: number} | null) => void} hover
   */
  constructor(app, open, hover) {
    this.app = app;
    this.open = open;
    this.hover = hover;
    this.axes = { x: "distance", y: "entropy", color: "sink" };
    const pick = (/** @type {"x" | "y" | "color"} */ which, /** @type {string} */ label) => choice(label, (value) => {
      this.axes[which] = value;
      app.changed();
    });
    this.choices = { x: pick("x", "Across"), y: pick("y", "Up"), color: pick("color", "Color") };
    this.svg = h("svg", { class: "scatter", viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img" });
    this.el = h("section", { class: "scatterbox", "aria-label": "Scatter of heads" },
      h("h2", { text: "Heads by what they do" }), this.svg,
      h("div", { class: "tools" }, this.choices.x.el, this.choices.y.el, this.choices.color.el));
    this.drawn = "";
  }

  /**
   * @param {any[]} rows
   * @param {string} chosen
   * @param {string} kind
   */
  update(rows, chosen, kind) {
    const names = Object.keys(METRICS).filter((name) => rows.some((row) => metricValue(row, name) !== null));
    const options = names.map((name) => /** @type {[string, string]} */ ([name, METRICS[name].label]));
    for (const which of /** @type {("x" | "y" | "color")[]} */ (["x", "y", "color"])) {
      if (names.length && which !== "color" && !names.includes(this.axes[which])) this.axes[which] = names[0];
      this.choices[which].set(which === "color" ? [["kind", "kind"], ...options] : options, this.axes[which]);
    }
    const key = JSON.stringify([this.axes, chosen, kind, rows, this.app.theme]);
    if (key === this.drawn) return;
    this.drawn = key;
    this.#draw(rows, chosen, kind);
  }

  #draw(/** @type {any[]} */ rows, /** @type {string} */ chosen, /** @type {string} */ kind) {
    const { x, y, color } = this.axes;
    const across = scaleOf(rows, x, PAD.left, SIDE - PAD.right);
    const up = scaleOf(rows, y, SIDE - PAD.bottom, PAD.top);
    const shade = color === "kind" ? null : scaleOf(rows, color, 0, 1);
    const bottom = SIDE - PAD.bottom;
    const marks = rows.filter((row) => metricValue(row, x) !== null && metricValue(row, y) !== null).map((row) => {
      const name = `${row.layer}.${row.head}`;
      const at = { x: across.at(metricValue(row, x) ?? 0), y: up.at(metricValue(row, y) ?? 0) };
      const value = shade && metricValue(row, color);
      let mark;
      if (!shade) {
        mark = glyph(row.kind);
        for (const [key, place] of Object.entries({ x: at.x - 7, y: at.y - 7 })) mark.setAttribute(key, String(place));
      } else {
        mark = h("circle", { cx: at.x, cy: at.y, r: 5, style: { fill: value === null ? "none" : colorAt(this.app.theme, 0.1 + 0.9 * shade.at(/** @type {number} */ (value))) } });
      }
      const g = h("g", {
        class: `mark${name === chosen ? " chosen" : ""}${kind && row.kind !== kind ? " dim" : ""}`,
        on: { click: () => this.open(row.layer, row.head), mouseenter: () => this.hover({ layer: row.layer, head: row.head }), mouseleave: () => this.hover(null) },
      }, h("title", { text: `Head ${name}, ${row.kind}: ${METRICS[x].label} ${figures(metricValue(row, x) ?? 0)}, ${METRICS[y].label} ${figures(metricValue(row, y) ?? 0)}` }), mark);
      if (name === chosen) g.append(h("circle", { class: "ring", cx: at.x, cy: at.y, r: 9 }));
      return g;
    });
    this.svg.setAttribute("aria-label", `Heads by ${METRICS[x].label} and ${METRICS[y].label}; the grid beside it lists them.`);
    fill(this.svg, [
      ...across.ticks.map((tick) => h("g", { class: "tick" }, h("line", { x1: across.at(tick), x2: across.at(tick), y1: PAD.top, y2: bottom }),
        h("text", { x: across.at(tick), y: bottom + 14, "text-anchor": "middle", text: tickText(tick) }))),
      ...up.ticks.map((tick) => h("g", { class: "tick" }, h("line", { x1: PAD.left, x2: SIDE - PAD.right, y1: up.at(tick), y2: up.at(tick) }),
        h("text", { x: PAD.left - 6, y: up.at(tick) + 4, "text-anchor": "end", text: tickText(tick) }))),
      h("text", { class: "axis", x: (PAD.left + SIDE - PAD.right) / 2, y: SIDE - 4, "text-anchor": "middle", text: METRICS[x].label }),
      h("text", { class: "axis", x: 10, y: (PAD.top + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${(PAD.top + bottom) / 2})`, text: METRICS[y].label }),
      ...marks,
    ]);
  }
}

/**
 * A scale over the values of one number, with round ticks.
 * @param {any[]} rows
 * @param {string} name
 * @param {number} from
 * @param {number} to
 */
function scaleOf(rows, name, from, to) {
  const values = rows.map((row) => metricValue(row, name)).filter((value) => value !== null);
  const most = Math.max(...values, 0);
  const { top, step } = niceTop(METRICS[name]?.share ? Math.min(1, most) : most);
  const ticks = [];
  for (let tick = 0; tick <= top + step / 2; tick += step) ticks.push(Number(tick.toPrecision(6)));
  return { at: (/** @type {number} */ value) => from + ((to - from) * value) / top, ticks };
}

/**
 * A round number at or above a value, and a round step to it.
 * @param {number} most
 */
export function niceTop(most) {
  if (!(most > 0)) return { top: 1, step: 0.5 };
  const rough = most / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = (/** @type {number} */ ([1, 2, 2.5, 5, 10].find((s) => s * power >= rough - 1e-12))) * power;
  return { top: step * Math.ceil(most / step - 1e-9), step };
}

function tickText(/** @type {number} */ tick) {
  return tick >= 1000 ? grouped(tick) : String(tick);
}
