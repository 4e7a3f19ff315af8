// The screens of the lesson about scores and shares: values, naive sum, queries and keys, scale, softmax.
//
// A screen is a function that makes its elements once and returns them with `update`, which is called for every new
// answer and touch and returns the sentence that says what is seen.

import { button, fill, h, segments } from "./dom.js";
import { BarRows, moreThan, Pinner, rowsOf, Strip } from "./lessonparts.js";
import { figures, percent } from "./scale.js";
import { headOf, neighbour } from "./scene.js";
import { nameOf } from "./tokens.js";

const N_CHANNELS = 6;

/**
 * @typedef {{scene: import("./scene.js").Scene, data: any, name: (key: number) => {key: number, text: string}, asker: string}} LessonView
 * @typedef {(string | {key: number, text: string})[]} LessonSentence A key lights up its row.
 * @typedef {{nodes: Node[], update: (view: LessonView) => LessonSentence}} LessonParts
 * @typedef {object} LessonPlace What a screen may ask of the page.
 * @property {import("./app.js").App} app
 * @property {() => void} redraw
 * @property {number} seed From which dropout draws.
 *
 * @typedef {object} LessonScreen
 * @property {string} id
 * @property {string} title
 * @property {string} about What the step is, for who has never heard of it.
 * @property {string} task The one thing to do.
 * @property {string} [needs] What of the answer may be missing.
 * @property {(meta: any) => boolean} [fits] Whether a recording has this step.
 * @property {(place: LessonPlace) => LessonParts} make
 */

/** @type {LessonScreen} */
const valuesScreen = {
  id: "values", title: "Every word has something to give", needs: "values",
  about: "A word, or a piece of one, is a token, and inside the model a token is a vector: a list of numbers. A head multiplies that vector by a matrix of its own, W_V. The result is the token’s value, what it has to give to others. A bar shows how long that vector is.",
  task: "Take another head: the same words have other things to give. To see your own sentence, press “Try your own” above.",
  make: ({ app }) => {
    const go = (/** @type {number} */ step) => {
      const next = neighbour(app.scene, step, false);
      if (next) app.store.set(next, { undo: true });
    };
    const rows = new BarRows("Length of every value");
    const more = h("p", { class: "note" });
    return {
      nodes: [h("div", { class: "tools" }, button("‹ Head before", () => go(-1)), button("Next head ›", () => go(1))), rows.el, more],
      update: ({ scene, data, name }) => {
        const lengths = data.values.lengths;
        const shown = rowsOf(data);
        rows.set(shown.map((i) => ({ label: name(data.keys[i]).text, value: lengths[i], key: data.keys[i] })));
        more.textContent = moreThan(data, shown);
        const order = [...shown].sort((a, b) => lengths[b] - lengths[a]);
        const [most, least] = [order[0], order[order.length - 1]];
        return [`Head ${scene.head} makes ${data.mix.vector.length} numbers of each token. The longest value is that of `, name(data.keys[most]), ` (${figures(lengths[most])}), the shortest that of `, name(data.keys[least]), ` (${figures(lengths[least])}).`];
      },
    };
  },
};

/** @type {LessonScreen} */
const naiveScreen = {
  id: "naive", title: "First try: take from all alike", needs: "values",
  about: "What a word means depends on the words around it, so it should take from them. The simplest way is the mean of all values: each of the T tokens counts 1/T. The strip is that mean, one bar for each of its numbers.",
  task: "Pin another word and watch the strip.",
  make: ({ app }) => {
    const pinner = new Pinner(app);
    const strip = new Strip("The mean of the values");
    /** @type {{asker: string, vector: string} | null} */
    let now = null;
    let before = now;
    return {
      nodes: [pinner.el, strip.el],
      update: ({ scene, data, asker }) => {
        pinner.set(scene);
        strip.set(data.naive.vector);
        const vector = JSON.stringify(data.naive.vector);
        if (now && now.asker !== asker) before = now;
        now = { asker, vector };
        const said = `${asker} may look at ${data.n_allowed} ${data.n_allowed === 1 ? "token, which counts 1" : `tokens, and each counts 1/${data.n_allowed} = ${figures(1 / data.n_allowed)}`}: a vector of length ${figures(data.naive.length)}. `;
        if (!before) return [`${said}Nothing here depends on who asks.`];
        if (before.vector === vector) return [`${said}That is exactly what ${before.asker} got: whoever asks receives the same.`];
        return [`${said}It differs from what ${before.asker} got only because they may look at different tokens.`];
      },
    };
  },
};

/** @type {LessonScreen} */
const queriesScreen = {
  id: "queries", title: "One word asks, the others answer", needs: "scores",
  about: "Two more matrices tell whom to listen to. W_Q makes a query of the token that asks: what it looks for. W_K makes a key of every token: what it offers. Their inner product, q · k, is the score. It is large where the two match.",
  task: "Press a word to see where its score comes from: the products of single channels.",
  make: ({ app, redraw }) => {
    let chosen = -1;
    /** @type {number[]} */
    let shown = [];
    /** @type {any} */
    let why = null;
    const rows = new BarRows("Score of every word", (i) => {
      chosen = keys[shown[i]];
      redraw();
    });
    /** @type {number[]} */
    let keys = [];
    const channels = new BarRows("Products of channels");
    const heading = h("h2");
    const ask = app.slot((answer) => {
      why = answer?.meta ?? null;
      redraw();
    });
    return {
      nodes: [rows.el, heading, channels.el],
      update: ({ scene, data, name, asker }) => {
        shown = rowsOf(data);
        keys = data.keys;
        const order = [...shown].sort((a, b) => data.scores[b] - data.scores[a]);
        const [most, least] = [order[0], order[order.length - 1]];
        if (!shown.some((i) => keys[i] === chosen)) chosen = keys[most];
        rows.set(shown.map((i) => ({ label: name(keys[i]).text, value: data.scores[i], key: keys[i], pressed: keys[i] === chosen })));
        ask("why", { ...headOf(scene), query: scene.query, key: chosen });
        heading.textContent = `The score of ${name(chosen).text}, by channel`;
        const split = why?.channels.slice(0, N_CHANNELS) ?? [];
        const rest = (why?.score ?? 0) - split.reduce((/** @type {number} */ sum, /** @type {any} */ one) => sum + one.product, 0);
        channels.set([...split.map((/** @type {any} */ one) => ({ label: `channel ${one.channel}`, value: one.product })), ...(split.length ? [{ label: "all others", value: rest }] : [])]);
        return [`What ${asker} looks for is best matched by `, name(keys[most]), ` (q · k = ${figures(data.scores[most])})`, ...(most === least ? [] : [" and least by ", name(keys[least]), ` (${figures(data.scores[least])})`]), `. A score adds up the products of ${data.d_head} channels.`];
      },
    };
  },
};

const SCALE_NAMES = { none: "no scale", root: "1/√D", D: "1/D", own: "this layer’s" };

/** @type {LessonScreen} */
const scaleScreen = {
  id: "scale", title: "Divide by √D", needs: "scores",
  about: "A score adds up D products, so scores spread more the larger D is. If they spread too far, the softmax gives nearly everything to one word and its gradient vanishes: nothing is learned. Divided by D, they hardly differ, and all words get the same again. Queries and keys that start out with a standard deviation of 1 have scores with one of √D, so 1/√D brings them back to 1.",
  task: "Flip the switch and watch the shares, how spread out they are, and the gradient.",
  make: ({ redraw }) => {
    let chosen = "";
    const tabs = h("div");
    const rows = new BarRows("Share of every word");
    const gauges = new BarRows("Spread and gradient");
    let known = "";
    /** @type {any} */
    let control = null;
    return {
      nodes: [tabs, rows.el, h("h2", { text: "What the softmax is like" }), gauges.el],
      update: ({ data, name }) => {
        const names = data.scales.map((/** @type {any} */ one) => one.name);
        if (known !== names.join()) {
          known = names.join();
          control = segments("Scale", names.map((/** @type {keyof typeof SCALE_NAMES} */ one) => [one, SCALE_NAMES[one]]), (one) => {
            chosen = one;
            redraw();
          });
          fill(tabs, [control.el]);
        }
        if (!names.includes(chosen)) chosen = data.own;
        control.set(chosen);
        const scale = data.scales.find((/** @type {any} */ one) => one.name === chosen);
        const shown = rowsOf(data);
        rows.set(shown.map((i) => ({ label: name(data.keys[i]).text, value: scale.weights[i], key: data.keys[i] })), 1);
        const alike = Math.exp(scale.entropy);
        gauges.set([
          { label: "as spread out as", value: alike / data.n_allowed, text: `${figures(alike)} of ${data.n_allowed} tokens` },
          { label: "gradient, Σ w (1 − w)", value: scale.gradient },
        ], 1);
        const here = chosen === data.own ? "This is the scale that the layer has." : `The layer itself has ${SCALE_NAMES[/** @type {keyof typeof SCALE_NAMES} */ (data.own)]}.`;
        return [`Times ${figures(scale.factor)} (D = ${data.d_head}), the scores have a standard deviation of ${figures(scale.std)}. The largest share is ${figures(scale.peak)}, and the gradient ${figures(scale.gradient)}. ${here}`];
      },
    };
  },
};

/** @type {LessonScreen} */
const softmaxScreen = {
  id: "softmax", title: "Scores become shares", needs: "scores",
  about: "The softmax raises e to each scaled score and divides by the sum. All shares are positive, and together they are 1. So words compete: what one gains, the others lose.",
  task: "Press a word to raise its score by 1, as often as you like.",
  make: ({ redraw }) => {
    /** @type {Map<number, number>} */
    const raised = new Map();
    /** @type {number[]} */
    let shown = [];
    /** @type {number[]} */
    let keys = [];
    let place = "";
    const rows = new BarRows("Share of every word", (i) => {
      const key = keys[shown[i]];
      raised.set(key, (raised.get(key) ?? 0) + 1);
      redraw();
    });
    const reset = button("As it was", () => {
      raised.clear();
      redraw();
    });
    const more = h("p", { class: "note" });
    return {
      nodes: [rows.el, more, h("div", { class: "tools" }, reset)],
      update: ({ scene, data, name, asker }) => {
        const now = `${scene.layer.index} ${scene.head} ${scene.query}`;
        if (now !== place) raised.clear();
        place = now;
        shown = rowsOf(data);
        keys = data.keys;
        const added = [...raised].map(([key, by]) => data.weights[keys.indexOf(key)] * Math.expm1(by));
        const sum = 1 + added.reduce((a, b) => a + b, 0);
        const shares = data.weights.map((/** @type {number} */ w, /** @type {number} */ i) => (w * Math.exp(raised.get(keys[i]) ?? 0)) / sum);
        const score = (/** @type {number} */ i) => (raised.has(keys[i]) ? ` +${raised.get(keys[i])}` : "");
        rows.set(shown.map((i) => ({ label: name(keys[i]).text + score(i), value: shares[i], key: keys[i] })), 1);
        more.textContent = moreThan(data, shown);
        reset.disabled = raised.size === 0;
        const last = [...raised.keys()].at(-1);
        if (last === undefined) {
          const order = [...shown].sort((a, b) => shares[b] - shares[a]).slice(0, 2);
          return [`${asker} takes ${percent(shares[order[0]])} from `, name(keys[order[0]]), ...(order.length > 1 ? [` and ${percent(shares[order[1]])} from `, name(keys[order[1]])] : []), "."];
        }
        const at = keys.indexOf(last);
        return ["With its score raised, ", name(last), ` gets ${figures(shares[at])} in place of ${figures(data.weights[at])}. Every word that you left alone has ${figures(1 / sum)} times what it had: the sum stays the same.`];
      },
    };
  },
};

export const SCORE_SCREENS = [valuesScreen, naiveScreen, queriesScreen, scaleScreen, softmaxScreen];
