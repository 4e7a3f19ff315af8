// What a map says in words: the cell under the cross-hair, a block of many, what one pixel is.

import { figures, grouped } from "./scale.js";
import { nameOf } from "./tokens.js";

/** @typedef {import("./scene.js").Scene} Scene */

/**
 * One weight in words, with its rank in its row.
 * @param {Scene} scene
 * @param {number} query
 * @param {number} key
 * @param {Float32Array} row
 */
export function cellText(scene, query, key, row) {
  const weight = row[key];
  let rank = 1;
  for (const value of row) if (value > weight) rank += 1;
  return `${nameOf(scene.queries, query + scene.first)} (query ${grouped(query)}) looks at ${nameOf(scene.keys, key)} (key ${grouped(key)}): ${figures(weight)}, ${ordinal(rank)} of its row`;
}

/**
 * The mass of a block: the share of its queries' attention that goes to its keys.
 * @param {Scene} scene
 * @param {{query: number, key: number}} at
 * @param {Float32Array} row The mean of the rows of the block's queries.
 * @param {number} block Positions on a side.
 */
export function blockText(scene, at, row, block) {
  const [query, key] = [at.query - (at.query % block), at.key - (at.key % block)];
  const [lastQuery, lastKey] = [Math.min(scene.nQueries, query + block) - 1, Math.min(scene.nKeys, key + block) - 1];
  let mass = 0;
  for (let k = key; k <= lastKey; k++) mass += row[k];
  return `Queries ${grouped(query)} to ${grouped(lastQuery)}, keys ${grouped(key)} to ${grouped(lastKey)}: mass ${figures(mass)}`;
}

/**
 * What one pixel or cell of the map stands for.
 * @param {number} block
 * @param {boolean} large Whether a weight takes more than a pixel.
 * @param {"sum" | "max"} mode
 */
export function pixelText(block, large, mode) {
  if (block === 1) return large ? "One cell is one weight" : "One pixel is one weight";
  const size = `${grouped(block)} × ${grouped(block)} tokens`;
  return mode === "sum" ? `One pixel is ${size}: summed over keys, averaged over queries` : `One pixel is the largest weight of ${size}`;
}

/** @param {number} n */
export function ordinal(n) {
  const ending = n % 100 > 10 && n % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][n % 10] ?? "th";
  return `${grouped(n)}${ending}`;
}
