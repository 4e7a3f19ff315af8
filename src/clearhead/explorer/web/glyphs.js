// A small drawing for each kind of head: where in its map the weight lies. And bars for numbers and answers.

import { fill, h } from "./dom.js";
import { figures } from "./scale.js";

// On a square of 14: diagonals, columns and dots, as a map of that kind looks.
const LINES = {
  sink: "M3 1.5V12.5",
  separator: "M10.5 1.5V12.5M6 1.5V12.5",
  previous: "M1.5 4.5L9.5 12.5",
  self: "M1.5 1.5L12.5 12.5",
  next: "M4.5 1.5L12.5 9.5",
  duplicate: "M1.5 8.5L5.5 12.5M5.5 4.5L9.5 8.5",
  induction: "M1.5 6.5L7.5 12.5M8.5 1.5V12.5",
  local: "M1.5 4L10 12.5M1.5 1.5L12.5 12.5M4 1.5L12.5 10",
  diffuse: "M2 2.5H12M2 5.5H12M2 8.5H12M2 11.5H12",
  mixed: "M3 3H4.5M8 2.5H9.5M5.5 6H7M10.5 7.5H12M2.5 9H4M7.5 11H9",
};

/**
 * @param {string} kind
 * @returns {SVGElement}
 */
export function glyph(kind) {
  const path = LINES[/** @type {keyof typeof LINES} */ (kind)] ?? LINES.mixed;
  return h("svg", { class: "glyph", viewBox: "0 0 14 14", width: "14", height: "14", "aria-hidden": "true" },
    h("rect", { class: "frame", x: ".5", y: ".5", width: "13", height: "13", rx: "2.5" }), h("path", { d: path }));
}

/**
 * A labelled bar: a share of 1, and the share before a change where there was one.
 * @param {string} label
 * @param {number} value
 * @param {number | null} before
 */
export function bar(label, value, before = null) {
  return h("div", { class: "bar-row" },
    h("span", { class: "bar-label", text: label }),
    h("span", { class: "bar-track", "aria-hidden": "true" },
      before === null ? null : h("span", { class: "bar-before", style: { width: `${100 * Math.min(1, before)}%` } }),
      h("span", { class: "bar-fill", style: { width: `${100 * Math.min(1, value)}%` } })),
    h("span", { class: "bar-value" }, before === null ? null : h("span", { class: "was", text: `${figures(before)} → ` }), figures(value)));
}

/**
 * The answer of the model as bars or as text, beside the one before a change.
 * @param {HTMLElement} el
 * @param {any} answer
 * @param {any} before
 */
export function showAnswer(el, answer, before = null) {
  el.hidden = !answer;
  if (!answer) return;
  const same = before && before.kind === answer.kind ? before : null;
  const rows = [h("h2", { text: answer.kind === "next" ? "The model’s next token" : "The model’s answer" })];
  if (answer.kind === "labels") {
    const order = answer.labels.map((/** @type {string} */ _, /** @type {number} */ i) => i);
    order.sort((/** @type {number} */ a, /** @type {number} */ b) => answer.probabilities[b] - answer.probabilities[a]);
    const shown = order.length > 4 ? order.slice(0, 4) : order.sort((/** @type {number} */ a, /** @type {number} */ b) => a - b);
    for (const i of shown) rows.push(bar(answer.labels[i], answer.probabilities[i], same ? same.probabilities[i] : null));
  } else if (answer.kind === "next") {
    for (const { token, probability } of answer.tokens.slice(0, 4)) {
      const was = same?.tokens.find((/** @type {any} */ one) => one.token === token)?.probability ?? null;
      rows.push(bar(`“${token.replaceAll("\n", "⏎").trim() || "␣"}”`, probability, was));
    }
  } else {
    if (same && same.text !== answer.text) rows.push(h("p", { class: "answer was", text: same.text }));
    rows.push(h("p", { class: "answer", text: answer.text }));
  }
  fill(el, rows);
}
