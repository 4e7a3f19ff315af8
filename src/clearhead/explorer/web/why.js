// Why this number: one weight taken apart, from the products of single channels to what it moved.

import { fill, h } from "./dom.js";
import { figures } from "./scale.js";
import { headOf } from "./scene.js";
import { nameOf, spanName } from "./tokens.js";

export class Why {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.body = h("div", { class: "whybody" });
    this.el = h("section", { class: "why", "aria-label": "Why this number" }, h("h2", { text: "Why this number" }), this.body);
    this.slot = app.slot((answer) => {
      this.answer = answer?.meta ?? null;
      this.el.hidden = answer !== null && !answer.meta; // a file that does not hold it
      this.#draw();
    });
  }

  /** @param {import("./scene.js").Scene} scene */
  update(scene) {
    this.scene = scene;
    this.slot("why", { ...headOf(scene), query: scene.query, key: scene.key });
  }

  #draw() {
    const { answer, scene } = this;
    if (!answer || !scene) return;
    const [query, key] = [nameOf(scene.queries, scene.query + scene.first), nameOf(scene.keys, scene.key)];
    const heading = h("p", { class: "weight" }, h("b", { text: figures(answer.weight) }), ` of what ${query} gives goes to ${key}`,
      answer.rank ? h("span", { class: "note", text: `, number ${answer.rank} of its row` }) : null);
    if (answer.hidden) {
      fill(this.body, [heading, h("p", { text: `The mask does not let ${query} look at ${key}, so the weight is exactly 0.` })]);
      return;
    }
    fill(this.body, [heading, this.#channels(answer), this.#score(answer), this.#softmax(answer, scene), this.#moved(answer, key), this.#steps(answer)]);
  }

  /** q_c k_c, the largest first, left of zero where it lowers the score. */
  #channels(/** @type {any} */ answer) {
    const most = Math.max(...answer.channels.map((/** @type {any} */ one) => Math.abs(one.product)), Math.abs(answer.rest), 1e-9);
    const row = (/** @type {string} */ label, /** @type {number} */ product, /** @type {string} */ title) => {
      const width = (50 * Math.abs(product)) / most;
      return h("div", { class: "channel", title },
        h("span", { class: "bar-label", text: label }),
        h("span", { class: "split", "aria-hidden": "true" }, h("span", { class: product < 0 ? "minus" : "plus", style: { width: `${width}%`, left: `${product < 0 ? 50 - width : 50}%` } })),
        h("span", { class: "bar-value", text: figures(product) }));
    };
    return step("Query and key agree", "q · k, summed over channels", `The products of ${answer.channels.length} channels, the largest first, and of all others together.`,
      h("div", { class: "channels" },
        ...answer.channels.map((/** @type {any} */ one) => row(`channel ${one.channel}`, one.product, `q ${figures(one.q)} × k ${figures(one.k)}`)),
        row("all others", answer.rest, "the sum of the channels that are not shown")),
      h("p", { class: "sum" }, "q · k = ", h("b", { text: figures(answer.score) })));
  }

  #score(/** @type {any} */ answer) {
    const terms = [`${figures(answer.score)} × ${figures(answer.scale)}`];
    let score = answer.score * answer.scale;
    if (answer.softcap) {
      score = answer.softcap * Math.tanh(score / answer.softcap);
      terms.push(`, capped at ${figures(answer.softcap)}`);
    }
    if (answer.bias) {
      score += answer.bias;
      terms.push(` ${answer.bias < 0 ? "−" : "+"} ${figures(Math.abs(answer.bias))} of bias`);
    }
    return step("The score is scaled", answer.bias ? "s = scale · q·k + b" : "s = scale · q·k", "", h("p", { class: "sum" }, `${terms.join("")} = `, h("b", { text: figures(score) })));
  }

  #softmax(/** @type {any} */ answer, /** @type {import("./scene.js").Scene} */ scene) {
    const rows = answer.softmax.top.map((/** @type {any} */ one) => h("div", { class: `bar-row${one.key === scene.key ? " chosen" : ""}` },
      h("span", { class: "bar-label", text: spanName(scene.keys, one.key, one.key) }),
      h("span", { class: "bar-track", "aria-hidden": "true" }, h("span", { class: "bar-fill", style: { width: `${100 * one.weight}%` } })),
      h("span", { class: "bar-value", text: `${figures(one.weight)}` })));
    return step("The softmax compares it with the other keys", "w = exp(s − lse)", `Scores become shares of 1: each is divided by the sum over all keys, whose logarithm is ${figures(answer.lse)}.`, h("div", { class: "bars" }, ...rows));
  }

  #moved(/** @type {any} */ answer, /** @type {string} */ key) {
    if (answer.value_norm === null || answer.value_norm === undefined) {
      return step("What it moved", "w · |v|", "The values were not recorded, so how much of the output this weight moved is not known.");
    }
    const parts = [`The value of ${key} has length ${figures(answer.value_norm)}; times the weight, ${figures(answer.moved)}.`];
    if (answer.projected_norm !== null && answer.projected_norm !== undefined) {
      parts.push(` After the output projection ${figures(answer.projected_norm)}; times the weight, ${figures(answer.moved_projected)}.`);
    }
    return step("What it moved", "w · |v|", parts.join(""));
  }

  #steps(/** @type {any} */ answer) {
    if (!answer.steps?.length) return null;
    return h("details", { class: "source" }, h("summary", { text: "The lines of source that do it" }),
      ...answer.steps.map((/** @type {any} */ one) => h("div", { class: "sourcestep" },
        h("p", null, h("b", { text: one.name }), " ", one.equation ? h("span", { class: "equation", text: one.equation }) : null),
        one.sentence ? h("p", { class: "note", text: one.sentence }) : null,
        one.code ? h("pre", { tabindex: "0" }, h("code", { text: one.code })) : null,
        one.file ? h("p", { class: "note", text: one.line ? `${one.file}:${one.line}` : one.file }) : null)));
  }
}

function step(/** @type {string} */ title, /** @type {string} */ equation, /** @type {string} */ sentence, /** @type {any[]} */ ...rest) {
  return h("section", { class: "whystep" }, h("h3", null, title, h("span", { class: "equation", text: equation })), sentence ? h("p", { class: "note", text: sentence }) : null, ...rest);
}
