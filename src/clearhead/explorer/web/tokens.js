// Tokens as text: how they join, what each is called, which belong to one word, where a word is.

/**
 * @typedef {object} Axis
 * @property {string} name
 * @property {string[]} tokens
 * @property {number[]} [special]
 * @property {[number, number][]} [words]
 * @property {boolean} text
 * @property {number[] | null} [spaces]
 * @property {{id: string, width: number, height: number, rows: number, cols: number, first: number,
 *   x: number, y: number, w: number, h: number} | null} [image]
 * @property {number | null} [prompt]
 */

const TOKENS_PER_PARAGRAPH = 400;
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/**
 * A token for a label: always something to see, and on one line.
 * @param {Axis} axis
 * @param {number} i
 */
export function labelOf(axis, i) {
  const token = axis.tokens[i];
  if (token === undefined) return String(i);
  const shown = token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(INVISIBLE, "�");
  return shown.trim() || (shown ? "␣" : "∅");
}

/**
 * A token in a sentence: in quotation marks where it is a word, "patch 3,4" in a picture, "position 17" elsewhere.
 * @param {Axis} axis
 * @param {number} i
 */
export function nameOf(axis, i) {
  if (axis.image && i >= axis.image.first) {
    const patch = i - axis.image.first;
    return `patch ${Math.floor(patch / axis.image.cols)},${patch % axis.image.cols}`;
  }
  return axis.text || axis.image ? `“${labelOf(axis, i)}”` : `position ${i}`;
}

/**
 * @typedef {object} Paragraph
 * @property {string} text
 * @property {number} first Its first token.
 * @property {Uint32Array} starts Where in `text` each of its tokens begins.
 * @property {Uint32Array} ends
 */

/**
 * An axis, or a part of it, as paragraphs of running text, with the place of every token.
 * @param {Axis} axis
 * @param {number} from
 * @param {number} to
 * @returns {Paragraph[]}
 */
export function paragraphsOf(axis, from = 0, to = axis.tokens.length) {
  const paragraphs = [];
  for (let first = from; first < to; ) {
    let last = Math.min(to, first + TOKENS_PER_PARAGRAPH);
    while (last < to && last < first + 2 * TOKENS_PER_PARAGRAPH && !/[.!?\n]["”’]?$/.test(axis.tokens[last - 1])) last++;
    paragraphs.push(paragraph(axis, first, last));
    first = last;
  }
  return paragraphs;
}

/** @returns {Paragraph} */
function paragraph(/** @type {Axis} */ axis, /** @type {number} */ first, /** @type {number} */ last) {
  const starts = new Uint32Array(last - first);
  const ends = new Uint32Array(last - first);
  const parts = [];
  let length = 0;
  for (let i = first; i < last; i++) {
    const space = i > first && (axis.spaces ? axis.spaces[i] : 1);
    const special = i > first && !space && axis.special && (axis.special[i] || axis.special[i - 1]);
    if (space || special) {
      parts.push(" ");
      length += 1;
    }
    const shown = axis.tokens[i].replace(INVISIBLE, "�") || "∅";
    starts[i - first] = length;
    length += shown.length;
    ends[i - first] = length;
    parts.push(shown);
  }
  return { text: parts.join(""), first, starts, ends };
}

/**
 * The last index of an ascending list whose value is at most `value`; -1 if all are above.
 * @param {ArrayLike<number>} values
 * @param {number} value
 */
export function lastAtMost(values, value) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/**
 * The pieces of the word that token i belongs to: first and last.
 * @param {Axis} axis
 * @param {number} i
 * @returns {[number, number]}
 */
export function wordAt(axis, i) {
  const words = axis.words;
  if (!words) return [i, i];
  let low = 0;
  let high = words.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (i < words[middle][0]) high = middle - 1;
    else if (i >= words[middle][1]) low = middle + 1;
    else return [words[middle][0], words[middle][1] - 1];
  }
  return [i, i];
}

/**
 * A word, whatever its pieces.
 * @param {Axis} axis
 * @param {number} first
 * @param {number} last
 */
export function spanName(axis, first, last) {
  if (first === last) return nameOf(axis, first);
  const [start, end] = wordAt(axis, first);
  if (start === first && end === last && axis.text) return `“${axis.tokens.slice(first, last + 1).join("")}”`;
  return `${nameOf(axis, first)} to ${nameOf(axis, last)}`;
}

/**
 * Add the values of a word's pieces up, and give each piece the sum: pieces shown as one.
 * @param {Float32Array} values
 * @param {Axis} axis
 */
export function summedOverWords(values, axis) {
  if (!axis.words) return values;
  const sums = Float32Array.from(values);
  for (const [first, end] of axis.words) {
    if (end - first < 2) continue;
    let sum = 0;
    for (let i = first; i < end; i++) sum += values[i];
    sums.fill(sum, first, end);
  }
  return sums;
}

/**
 * The next token, from `from` on and around the end, whose word contains what is searched for; -1 if none does.
 * @param {Axis} axis
 * @param {string} needle
 * @param {number} from
 * @param {number} direction 1 or -1
 */
export function findToken(axis, needle, from, direction = 1) {
  const n = axis.tokens.length;
  const wanted = needle.trim().toLocaleLowerCase();
  if (!wanted) return -1;
  if (/^\d+$/.test(wanted) && !axis.text && Number(wanted) < n) return Number(wanted);
  for (let step = 0; step < n; step++) {
    const i = (((from + direction * step) % n) + n) % n;
    const [first, last] = wordAt(axis, i);
    if (i !== first) continue;
    const word = first === last ? axis.tokens[i] : axis.tokens.slice(first, last + 1).join("");
    if (word.toLocaleLowerCase().includes(wanted)) return i;
  }
  return -1;
}

/**
 * The fewest keys that together carry a share of a row's weight, heaviest first, but no more than `most`.
 * @param {Float32Array} row
 * @param {number} share
 * @param {number} most
 */
export function fewest(row, share, most = 64) {
  let total = 0;
  for (const value of row) total += value;
  const order = Array.from(row.keys()).filter((i) => row[i] > 0).sort((a, b) => row[b] - row[a]);
  const links = [];
  let carried = 0;
  for (const key of order) {
    if (links.length >= most || carried >= share * total - 1e-7) break;
    links.push({ key, weight: row[key] });
    carried += row[key];
  }
  return { links, carried: total ? carried / total : 0 };
}
