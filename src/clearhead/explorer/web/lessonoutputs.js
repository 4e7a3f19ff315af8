// The screens of the lesson about what comes out: one head, many heads, dropout, the projection; and what is special
// about a decoder (the mask), a picture (patches) and a translation (the source).

import { floatsOf } from "./app.js";
import { button, h, segments } from "./dom.js";
import { BarRows, moreThan, Pinner, rowsAround, rowsOf, Strip } from "./lessonparts.js";
import { PictureView } from "./patches.js";
import { figures, percent, usualFloor } from "./scale.js";
import { headOf } from "./scene.js";
import { nameOf } from "./tokens.js";

/** @typedef {import("./lessonscreens.js").LessonScreen} LessonScreen */

const degrees = (/** @type {number} */ angle) => `${angle.toFixed(angle < 9.95 ? 1 : 0)}°`;

/** @type {LessonScreen} */
const headScreen = {
  id: "head", title: "One head: the mean, but with shares", needs: "values",
  about: "Now the first try again, with one change: each value counts as much as its share says. That is all that one head of attention does. The share depends on who asks and on who answers, so the result is each word’s own.",
  task: "Switch between equal shares and the head’s own, and pin another word.",
  make: ({ app, redraw }) => {
    let own = true;
    const control = segments("Shares", [["equal", "equal shares"], ["own", "the head’s shares"]], (value) => {
      own = value === "own";
      redraw();
    });
    const pinner = new Pinner(app);
    const rows = new BarRows("Share of every word");
    const strip = new Strip("What the head gives, and behind it the mean of all values");
    return {
      nodes: [pinner.el, h("div", { class: "tools" }, control.el), rows.el, strip.el],
      update: ({ scene, data, name, asker }) => {
        control.set(own ? "own" : "equal");
        pinner.set(scene);
        const shown = rowsOf(data);
        rows.set(shown.map((i) => ({ label: name(data.keys[i]).text, value: own ? data.weights[i] : 1 / data.n_allowed, key: data.keys[i] })), 1);
        strip.set(own ? data.mix.vector : data.naive.vector, data.naive.vector);
        if (!own) return [`With equal shares ${asker} gets the mean of all values, of length ${figures(data.naive.length)}, whoever it is.`];
        const most = data.weights.indexOf(Math.max(...data.weights));
        return [`By its own shares head ${scene.head} gives ${asker} a vector of length ${figures(data.mix.length)}, ${degrees(data.mix.angle)} away from the mean. ${percent(data.weights[most])} of it is the value of `, name(data.keys[most]), "."];
      },
    };
  },
};

/** @type {LessonScreen} */
const headsScreen = {
  id: "heads", title: "Many heads ask many questions",
  about: "One head asks one question. A layer has several, each with its own W_Q, W_K and W_V, and adds up what they find. A bar shows the length of what a head adds to the word, after the projection of the last step.",
  task: "Switch heads off in the sum, and see how far it turns.",
  make: ({ redraw }) => {
    /** @type {Set<number>} */
    const off = new Set();
    let place = "";
    /** @type {any[]} */
    let heads = [];
    const rows = new BarRows("Length of what every head adds", (i) => {
      const { head } = heads[i];
      if (!off.delete(head)) off.add(head);
      redraw();
    });
    return {
      nodes: [rows.el],
      update: ({ scene, data, name, asker }) => {
        const now = `${scene.meta.id} ${scene.layer.index}`;
        if (now !== place) off.clear();
        place = now;
        heads = data.heads;
        const added = data.projection?.added;
        const lengths = heads.map((one, i) => added?.[i] ?? one.length ?? one.weight);
        rows.set(heads.map((one, i) => ({ label: `head ${one.head}: ${name(one.key).text}`, value: lengths[i], pressed: !off.has(one.head), struck: off.has(one.head) })));
        if (!added) return [`Beside each head is the word that it makes ${asker} look at most. ${data.missing.projection} So the sum cannot be shown.`];
        const on = heads.map((one) => (off.has(one.head) ? 0 : 1));
        const products = data.projection.products;
        const dot = (/** @type {number[]} */ a, /** @type {number[]} */ b) => a.reduce((sum, x, i) => sum + x * b.reduce((/** @type {number} */ s, y, j) => s + y * products[i][j], 0), 0);
        const all = heads.map(() => 1);
        const [part, whole] = [Math.sqrt(Math.max(0, dot(on, on))), Math.sqrt(Math.max(0, dot(all, all)))];
        if (off.size === 0) return [`Beside each head is the word that it makes ${asker} look at most. Together the ${heads.length} heads add a vector of length ${figures(whole)}.`];
        if (off.size === heads.length) return ["With every head off, the layer adds nothing."];
        const turned = (Math.acos(Math.min(1, Math.max(-1, dot(on, all) / (part * whole)))) * 180) / Math.PI;
        return [`Without ${off.size === 1 ? "head" : "heads"} ${[...off].sort((a, b) => a - b).join(", ")} the sum has length ${figures(part)} in place of ${figures(whole)}, and points ${degrees(turned)} away from where it did.`];
      },
    };
  },
};

/** @type {LessonScreen} */
const dropoutScreen = {
  id: "dropout", title: "Dropout: do not rely on one word",
  about: "While a model is trained, each share is struck out with a small probability p, and the others are divided by 1 − p to make up for it. So no head can rely on a single word. When the model is used, nothing is struck.",
  task: "Strike again: every draw is another.",
  make: (place) => {
    const again = button("Strike again", () => {
      place.seed += 1;
      place.redraw();
    }, { class: "primary" });
    const rows = new BarRows("Share of every word after dropout");
    const more = h("p", { class: "note" });
    return {
      nodes: [h("div", { class: "tools" }, again), rows.el, more],
      update: ({ data, name }) => {
        const { dropout } = data;
        const shown = rowsOf(data);
        rows.set(shown.map((i) => ({ label: name(data.keys[i]).text, value: dropout.weights[i], key: data.keys[i], struck: dropout.struck[i] })), 1 / (1 - dropout.p));
        more.textContent = moreThan(data, shown);
        const struck = shown.filter((i) => dropout.struck[i]).map((i) => name(data.keys[i]));
        const turned = dropout.angle === null ? "." : `, and what the head gives turns by ${degrees(dropout.angle)}.`;
        const others = dropout.n_struck - struck.length;
        const listed = struck.flatMap((one, i) => [i ? ", " : "", one]);
        const who = struck.length ? [...listed, others ? ` and ${others} more` : "", dropout.n_struck === 1 ? " is struck" : " are struck"] : [dropout.n_struck ? `${dropout.n_struck} tokens without a row are struck` : "nothing is struck"];
        return [`With p = ${dropout.p}, this time `, ...who, `. The shares now sum to ${figures(dropout.sum)}${turned}`];
      },
    };
  },
};

/** @type {LessonScreen} */
const projectionScreen = {
  id: "projection", title: "Back to the model: the projection", needs: "projection",
  about: "The heads’ results, side by side, are multiplied by one more matrix, W_O. The product is added to the vector of the word that asked, and the next layer goes on from there. A large share of a short value moves little, so a share alone does not tell how much a word did.",
  task: "Switch from shares to what they move.",
  make: ({ redraw }) => {
    let by = "weight";
    const control = segments("What a bar is", [["weight", "share w"], ["moved", "w · |v|"], ["projected", "w · |W_O v|"]], (value) => {
      by = value;
      redraw();
    });
    const rows = new BarRows("Share of every word, or what it moves");
    const more = h("p", { class: "note" });
    return {
      nodes: [h("div", { class: "tools" }, control.el), rows.el, more],
      update: ({ scene, data, name }) => {
        control.set(by);
        const values = { weight: data.weights, moved: data.values.moved, projected: data.projection.moved }[by];
        const shown = rowsOf(data);
        rows.set(shown.map((i) => ({ label: name(data.keys[i]).text, value: values[i], key: data.keys[i] })));
        more.textContent = moreThan(data, shown);
        const { projection } = data;
        const first = (/** @type {number[]} */ of) => name(data.keys[of.indexOf(Math.max(...of))]);
        const whole = projection.output === null ? "" : ` The layer’s output for it has length ${figures(projection.output)}.`;
        return [`${projection.d_in} numbers of all heads become ${projection.d_out}.${whole} In head ${scene.head}, by share `, first(data.weights), " comes first; by what it moves after the projection, ", first(projection.moved), "."];
      },
    };
  },
};

/** @type {LessonScreen} */
const maskScreen = {
  id: "mask", title: "A GPT: nobody looks ahead", needs: "scores",
  fits: (meta) => meta.layers.some((/** @type {any} */ one) => !one.empty && looksBack(one)),
  about: "A GPT learns to guess the next token. If a token could look at those that come after it, the guess would be no guess. So a mask hides them: their scores become −∞, and their shares are exactly 0.",
  task: "Lift the mask, or pin an earlier word.",
  make: ({ app, redraw }) => {
    let masked = true;
    const control = segments("Mask", [["on", "mask on"], ["off", "mask off"]], (value) => {
      masked = value === "on";
      redraw();
    });
    const pinner = new Pinner(app);
    const rows = new BarRows("Share of every word");
    return {
      nodes: [pinner.el, h("div", { class: "tools" }, control.el), rows.el, h("p", { class: "note", text: "The tokens around the pinned one." })],
      update: ({ scene, data, name, asker }) => {
        control.set(masked ? "on" : "off");
        pinner.set(scene);
        const free = data.unmasked ?? data.weights;
        const shown = rowsAround(data, scene.query + scene.first);
        const values = masked ? data.weights : free;
        rows.set(shown.map((i) => ({ label: name(data.keys[i]).text, value: values[i], key: data.keys[i], struck: masked && !data.allowed[i] })), 1);
        if (data.n_allowed === data.n_keys) return [`${asker} may look at all ${data.n_keys} tokens: none comes after it.`];
        const said = `${asker} may look at ${data.n_allowed} of ${data.n_keys} tokens.`;
        if (data.unmasked === null) return [`${said} A bias is added to the scores of this layer, so what a hidden word would get is not known.`];
        return [`${said} Without the mask ${percent(data.to_hidden)} of its attention would go to the others, which this model has never been allowed.`];
      },
    };
  },
};

function looksBack(/** @type {any} */ layer) {
  return (layer.hidden?.last_offset ?? null) !== null;
}

/** @type {LessonScreen} */
const patchesScreen = {
  id: "patches", title: "A picture: patches are words",
  fits: (meta) => meta.axes.some((/** @type {any} */ axis) => axis.image),
  about: "Nothing in all this asks for words. A vision transformer cuts a picture into squares and makes a vector of each. From there on they are tokens like any other. The brighter a patch, the more the outlined one looks at it.",
  task: "Click another patch, or move with the arrows.",
  make: ({ app }) => {
    /** @type {any} */
    let scene = null;
    const picture = new PictureView(app, "The picture and what the pinned patch looks at", (token) => app.store.set({ query: token - scene.first, to: null }, { undo: true }), () => {});
    const row = app.slot((answer) => {
      const weights = floatsOf(answer);
      const token = scene.query + scene.first;
      if (weights) picture.shade(weights, 0, usualFloor(scene.nKeys), [token, token]);
    });
    return {
      nodes: [picture.el],
      update: ({ scene: now, data, name, asker }) => {
        scene = now;
        picture.setAxis(now.keys);
        requestAnimationFrame(() => row("row", { ...headOf(now), query: now.query }));
        const { rows, cols } = /** @type {any} */ (now.keys.image);
        const most = data.weights.indexOf(Math.max(...data.weights));
        return [`The picture is ${rows} × ${cols} patches. ${asker} looks hardest at `, name(data.keys[most]), `, with ${percent(data.weights[most])}.`];
      },
    };
  },
};

/** @type {LessonScreen} */
const sourceScreen = {
  id: "source", title: "A translation: who asks is elsewhere",
  fits: (meta) => meta.layers.some((/** @type {any} */ one) => !one.empty && one.part === "cross"),
  about: "In the cross-attention of an encoder-decoder, queries come from the text that is being written, keys and values from the source. All else stays as it was: this is how translation began with attention.",
  task: "Pin another token of what was written, and see where in the source it looks.",
  make: ({ app }) => {
    const pinner = new Pinner(app);
    const rows = new BarRows("Share of every token of the source");
    const more = h("p", { class: "note" });
    return {
      nodes: [pinner.el, rows.el, more],
      update: ({ scene, data, name, asker }) => {
        pinner.set(scene);
        const shown = rowsOf(data);
        rows.set(shown.map((i) => ({ label: name(data.keys[i]).text, value: data.weights[i], key: data.keys[i] })), 1);
        more.textContent = moreThan(data, shown);
        const most = data.weights.indexOf(Math.max(...data.weights));
        const next = scene.queries.tokens[scene.query + scene.first + 1];
        const writes = next === undefined ? "" : `, and ${nameOf(scene.queries, scene.query + scene.first + 1)} is written next`;
        return [`In ${scene.layer.title}, ${asker} of what was written looks hardest at `, name(data.keys[most]), ` of the source, with ${percent(data.weights[most])}${writes}.`];
      },
    };
  },
};

export const OUTPUT_SCREENS = [headScreen, headsScreen, dropoutScreen, projectionScreen, maskScreen, patchesScreen, sourceScreen];
