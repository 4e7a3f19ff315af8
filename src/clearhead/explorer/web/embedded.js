// The host of an exported file: answers that were computed when the file was written, and exact maps of heads, from
// which rows and columns are taken.

import { SourceError, questionKey } from "./source.js";

/**
 * @typedef {{rows: number, cols: number, bytes: string}} PackedMap Weights as float32, row after row, deflated, base64.
 */

/**
 * The answers that an exported file carries; what it does not carry it says it does not.
 * @param {Record<string, {meta: any, bytes?: string}>} answers By question; bytes are deflated and in base64.
 * @param {Record<string, PackedMap>} maps By head: "scene/call/batch/layer/head".
 * @returns {import("./source.js").Source}
 */
export function embeddedSource(answers, maps = {}) {
  /** @type {Map<string, Promise<Float32Array>>} */
  const open = new Map();

  async function lineOf(/** @type {string} */ name, /** @type {any} */ asked) {
    const place = [asked.scene, asked.call, asked.batch, asked.layer, asked.head].join("/");
    const packed = maps[place];
    if (!packed) return null;
    if (!open.has(place)) open.set(place, inflated(packed.bytes).then((bytes) => new Float32Array(bytes)));
    const weights = await /** @type {Promise<Float32Array>} */ (open.get(place));
    const { rows, cols } = packed;
    const values = name === "row"
      ? meanOfRows(weights, cols, asked.query, asked.to ?? asked.query)
      : sumOfColumns(weights, rows, cols, asked.key, asked.to ?? asked.key);
    return { meta: name === "row" ? { n_keys: cols } : { n_queries: rows }, bytes: /** @type {ArrayBuffer} */ (values.buffer) };
  }

  return {
    async ask(name, parameters) {
      const found = answers[questionKey(name, parameters)];
      if (found) return { meta: found.meta, bytes: found.bytes === undefined ? null : await inflated(found.bytes) };
      const line = name === "row" || name === "column" ? await lineOf(name, parameters) : null;
      if (line) return line;
      if (name === "why") return { meta: null, bytes: null };
      throw new SourceError("This file does not hold that part. Open the recording with clearhead explore to see all of it.");
    },
    async stream() {
      throw new SourceError("A file cannot run the model. Open it with clearhead explore to change something.");
    },
  };
}

/**
 * What queries first to last give to each key, on average.
 * @param {Float32Array} weights
 * @param {number} cols
 * @param {number} first
 * @param {number} last
 */
export function meanOfRows(weights, cols, first, last) {
  const found = new Float32Array(cols);
  for (let col = 0; col < cols; col++) {
    let sum = 0;
    for (let row = first; row <= last; row++) sum += weights[row * cols + col];
    found[col] = sum / (last - first + 1);
  }
  return found;
}

/**
 * What each query gives to keys first to last together.
 * @param {Float32Array} weights
 * @param {number} rows
 * @param {number} cols
 * @param {number} first
 * @param {number} last
 */
export function sumOfColumns(weights, rows, cols, first, last) {
  const found = new Float32Array(rows);
  for (let row = 0; row < rows; row++) {
    let sum = 0;
    for (let col = first; col <= last; col++) sum += weights[row * cols + col];
    found[row] = sum;
  }
  return found;
}

async function inflated(/** @type {string} */ base64) {
  const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}
