// What a view of a recording is of: the layer, the head, the axes and the word, with what was left open filled in.

/**
 * @typedef {import("./tokens.js").Axis} Axis
 * @typedef {import("./address.js").View} View
 * @typedef {object} Layer
 * @property {number} index
 * @property {string} name
 * @property {string} title
 * @property {string} part
 * @property {number} query_axis
 * @property {number} key_axis
 * @property {number[]} heads
 * @property {number} first_query Position on the query axis of the call's first query.
 * @property {number} n_queries
 * @property {number} n_keys
 * @property {number} calls
 * @property {number} batch
 * @property {string | null} empty
 * @typedef {any} Meta
 *
 * @typedef {object} Scene
 * @property {Meta} meta
 * @property {Layer} layer
 * @property {number} head
 * @property {Axis} queries
 * @property {Axis} keys
 * @property {number} first The same, of this scene's layer.
 * @property {number} nQueries
 * @property {number} nKeys
 * @property {number} query Row of the call.
 * @property {number} to
 * @property {number} key
 * @property {number} call
 * @property {number} batch
 */

/**
 * Fill in a view. What it names and the recording does not have gives way to what there is.
 * @param {Meta} meta That of the call and the text of the batch which the view names.
 * @param {View} view
 * @returns {Scene}
 */
export function sceneOf(meta, view) {
  const strongest = meta.strongest;
  const full = meta.layers.filter((/** @type {Layer} */ one) => !one.empty);
  const wanted = view.layer ?? strongest?.layer;
  const layer = full.find((/** @type {Layer} */ one) => one.index === wanted) ?? full[0];
  const head = pick(layer.heads, view.head, layer.index === strongest?.layer ? strongest.head : undefined);
  const { n_queries: nQueries, n_keys: nKeys } = layer;
  const queries = meta.axes[layer.query_axis];
  const keys = meta.axes[layer.key_axis];
  const first = layer.first_query ?? 0;
  const inside = (/** @type {number | null | undefined} */ at, /** @type {number} */ n) => at !== null && at !== undefined && at >= 0 && at < n;
  const usual = inside(strongest?.query, nQueries) ? strongest.query : nQueries - 1;
  const query = inside(view.query, nQueries) ? /** @type {number} */ (view.query) : usual;
  const to = view.to !== null && inside(view.to, nQueries) && view.to > query ? view.to : query;
  const usualKey = inside(strongest?.key, nKeys) ? strongest.key : 0;
  const key = inside(view.key, nKeys) ? /** @type {number} */ (view.key) : usualKey;
  return { meta, layer, head, queries, keys, first, nQueries, nKeys, query, to, key, call: meta.call ?? -1, batch: meta.batch_index ?? 0 };
}

function pick(/** @type {number[]} */ heads, /** @type {(number | null | undefined)[]} */ ...wanted) {
  return /** @type {number} */ (wanted.find((head) => head !== null && head !== undefined && heads.includes(head)) ?? heads[0]);
}

/**
 * The parameters that every question about a scene has.
 * @param {Scene} scene
 */
export function placeOf(scene) {
  return { scene: scene.meta.id, call: scene.call, batch: scene.batch };
}

/**
 * Those of a question about one head.
 * @param {Scene} scene
 */
export function headOf(scene) {
  return { ...placeOf(scene), layer: scene.layer.index, head: scene.head };
}

/**
 * The head before or after, over the borders of layers; itself at the end.
 * @param {Scene} scene
 * @param {number} step 1 or -1
 * @param {boolean} byLayer
 */
export function neighbour(scene, step, byLayer) {
  /** @type {Layer[]} */
  const layers = scene.meta.layers.filter((/** @type {Layer} */ one) => !one.empty);
  const at = layers.indexOf(scene.layer);
  const next = layers[at + step];
  if (byLayer) {
    if (!next) return null;
    return { layer: next.index, head: next.heads.includes(scene.head) ? scene.head : next.heads[0] };
  }
  const heads = scene.layer.heads;
  const head = heads[heads.indexOf(scene.head) + step];
  if (head !== undefined) return { layer: scene.layer.index, head };
  return next ? { layer: next.index, head: step > 0 ? next.heads[0] : /** @type {number} */ (next.heads.at(-1)) } : null;
}

/**
 * What tells the parts of a model apart, in words.
 * @param {Layer} layer
 */
export function layerName(layer) {
  return /^\d/.test(layer.title) ? `Layer ${layer.title}` : layer.title[0].toUpperCase() + layer.title.slice(1);
}

/** What a kind of head does, in a phrase; kinds are those of `Recording.heads`. */
export const KINDS = {
  sink: "looks at one place that takes attention nobody needs",
  separator: "looks at separators",
  previous: "looks at the token before",
  self: "looks at its own token",
  next: "looks at the token after",
  duplicate: "looks at earlier occurrences of the same token",
  induction: "looks at what came after the same token before",
  local: "looks at its neighbors",
  diffuse: "looks everywhere alike",
  mixed: "looks at different things",
};
