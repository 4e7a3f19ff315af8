// A map as a figure for a paper: words, axes and legend as vectors, the matrix as one picture in whole pixels.
//
// The matrix is no heap of small rectangles (they leave white seams) and no small picture (viewers smooth it): it is a
// PNG enlarged by a whole number. Sizes are in millimeters; the smallest letters have 7 points.

const LETTER = 2.47; // 7 points
const LINE = 3.2;
const GAP = 1.4;
const LARGEST_IMAGE = 4096; // pixels on a side
const SMALLEST_CELL = 8; // pixels
const MAX_LABEL_LETTERS = 14;

/** Widths of a figure, in millimeters: one column of a journal, one and a half, two. */
export const FIGURE_WIDTHS = [89, 120, 183];

/** @typedef {{at: number, text: string}} Mark A label at the middle of a place along an axis, in [0, 1]. */

/**
 * By how much to enlarge a matrix, in whole pixels a cell.
 * @param {number} rows
 * @param {number} cols
 */
export function enlargement(rows, cols) {
  const most = Math.max(1, Math.floor(LARGEST_IMAGE / Math.max(rows, cols)));
  return Math.min(most, Math.max(SMALLEST_CELL, Math.ceil(600 / Math.max(rows, cols))));
}

/**
 * The figure of a map.
 * @param {{title: string, summary: string, command: string, image: string, rows: number, cols: number,
 *   rowMarks: Mark[], colMarks: Mark[], legend: {colors: string[], marks: Mark[], masked: boolean}, width: number,
 *   ink: string, page: string}} what
 * @returns {string} SVG
 */
export function mapFigure(what) {
  const { rows, cols, width, rowMarks, colMarks, legend } = what;
  const longest = (/** @type {Mark[]} */ marks) => Math.max(0, ...marks.map((mark) => shortened(mark.text).length)) * LETTER * 0.56;
  const left = longest(rowMarks) + 2 * GAP;
  const top = LINE + 2 * GAP + longest(colMarks);
  const plane = Math.min(width - left - GAP, ((width - left - GAP) * cols) / Math.max(cols, rows));
  const tall = Math.min((plane * rows) / cols, 2 * plane);
  const bottom = top + tall + GAP;
  const height = bottom + 2 * LINE + 3 * GAP;
  const label = (/** @type {number} */ x, /** @type {number} */ y, /** @type {string} */ text, more = "") => `<text x="${round(x)}" y="${round(y)}"${more}>${escaped(shortened(text))}</text>`;
  const strip = { x: left, y: bottom + GAP, width: Math.min(36, plane * 0.6), height: 2 };
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${round(width)}mm" height="${round(height)}mm" viewBox="0 0 ${round(width)} ${round(height)}" role="img" font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" font-size="${LETTER}" fill="${what.ink}">`,
    `<title>${escaped(what.title)}</title><desc>${escaped(what.summary)}</desc><metadata>${escaped(what.command)}</metadata>`,
    `<rect width="100%" height="100%" fill="${what.page}"/>`,
    label(left, LINE, what.title, ' font-weight="bold"').replace(escaped(shortened(what.title)), escaped(what.title)),
    `<image x="${round(left)}" y="${round(top)}" width="${round(plane)}" height="${round(tall)}" preserveAspectRatio="none" href="${what.image}"/>`,
    `<rect x="${round(left)}" y="${round(top)}" width="${round(plane)}" height="${round(tall)}" fill="none" stroke="${what.ink}" stroke-width="0.15"/>`,
    ...rowMarks.map((mark) => label(left - GAP, top + mark.at * tall + LETTER * 0.35, mark.text, ' text-anchor="end"')),
    ...colMarks.map((mark) => {
      const [x, y] = [left + mark.at * plane + LETTER * 0.35, top - GAP];
      return label(x, y, mark.text, ` transform="rotate(-90 ${round(x)} ${round(y)})"`);
    }),
    `<defs><linearGradient id="scale">${legend.colors.map((color, i) => `<stop offset="${round(i / (legend.colors.length - 1))}" stop-color="${color}"/>`).join("")}</linearGradient></defs>`,
    `<rect x="${round(strip.x)}" y="${round(strip.y)}" width="${round(strip.width)}" height="${strip.height}" fill="url(#scale)" stroke="${what.ink}" stroke-width="0.1"/>`,
    ...legend.marks.map((mark) => label(strip.x + mark.at * strip.width, strip.y + strip.height + LETTER + 0.4, mark.text, ` text-anchor="${mark.at < 0.1 ? "start" : mark.at > 0.9 ? "end" : "middle"}"`)),
    label(strip.x + strip.width + GAP * 2, strip.y + strip.height, "share of attention"),
    legend.masked ? label(strip.x + strip.width + GAP * 2, strip.y + strip.height + LETTER + 0.4, "hatched: masked") : "",
    "</svg>",
  ];
  return parts.filter(Boolean).join("\n");
}

/**
 * Numbers as a table that every program reads: a line of names, then a line a row.
 * @param {string[]} columns
 * @param {(string | number)[][]} rows
 */
export function toCsv(columns, rows) {
  const cell = (/** @type {string | number} */ value) => {
    if (typeof value === "number") return String(Number(value.toPrecision(9)));
    // A leading sign would be read as a formula by a spreadsheet.
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

/** @param {string} text */
export function escaped(text) {
  const names = /** @type {Record<string, string>} */ ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" });
  // Control characters are not allowed in XML in any form.
  return text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd").replace(/[&<>"']/g, (letter) => names[letter]);
}

function shortened(/** @type {string} */ text) {
  return text.length > MAX_LABEL_LETTERS ? `${text.slice(0, MAX_LABEL_LETTERS - 1)}…` : text;
}

function round(/** @type {number} */ x) {
  return String(Number(x.toFixed(3)));
}
