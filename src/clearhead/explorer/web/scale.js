// Colors of weights: bytes of tiles to shares, shares to positions on a scale, positions to colors.
//
// One sequential map, after cividis (Nuñez, Anderton & Renslow 2018): lightness changes evenly, blue against yellow, so
// that it reads nearly alike with and without red-green vision. It begins at the page's own color: white to dark in
// the light theme, dark to light in the dark one. A second, diverging map is for differences.

export const TILE_FLOOR = 1e-6;
export const HIDDEN_BYTE = 0;
const LOWEST_BYTE = 2;
const DIFFERENCE_FLOOR = 1e-4;

export const PAGE = { light: "#ffffff", dark: "#121417" };

/** Colors at equal distances along a map; between them it is straight in OKLab (Ottosson 2020). */
export const STOPS = {
  light: ["#ffffff", "#f2ecd9", "#d9d0ae", "#b3ae98", "#868a8e", "#566683", "#294674", "#00224e"],
  dark: ["#121417", "#142744", "#2b4066", "#505c76", "#7c7d7b", "#aa9f73", "#d9c35b", "#ffe945"],
};
/** From less to more, through the page's color. */
export const DIFFERENCE_STOPS = {
  light: ["#7a2d00", "#c7622a", "#efb892", "#ffffff", "#a9c4e4", "#3f78b5", "#0d3b73"],
  dark: ["#ffb487", "#d0703a", "#6f3a1e", "#121417", "#213f63", "#4583c4", "#a8d1ff"],
};

/** @typedef {"light" | "dark"} Theme */

/**
 * The share that a byte of a tile stands for: the middle of its step on the logarithmic scale.
 * @param {number} byte
 */
export function shareOf(byte) {
  return byte < LOWEST_BYTE ? 0 : TILE_FLOOR ** (1 - (byte - LOWEST_BYTE) / 253);
}

/**
 * The byte of a share, as the tiles of the server have it.
 * @param {number} share
 */
export function byteOf(share) {
  if (share < TILE_FLOOR) return 1;
  return Math.min(255, Math.max(LOWEST_BYTE, Math.round(LOWEST_BYTE + 253 * (1 - Math.log(share) / Math.log(TILE_FLOOR)))));
}

/**
 * Where a share stands on the scale from `floor` to 1, in [0, 1].
 * @param {number} share
 * @param {number} floor
 */
export function positionOf(share, floor) {
  if (!(share > 0)) return 0;
  return Math.min(1, Math.max(0, 1 - Math.log(share) / Math.log(floor)));
}

/**
 * The floor for a map with so many keys: a power of ten near a tenth of what looking everywhere alike gives to each.
 * @param {number} nKeys
 */
export function usualFloor(nKeys) {
  return 10 ** Math.min(-2, Math.max(-6, -Math.round(Math.log10(10 * Math.max(1, nKeys)))));
}

/** Values to write beside a legend that begins at `floor`: every power of ten up to 1.
 * @param {number} floor
 */
export function legendTicks(floor) {
  const n = Math.round(-Math.log10(floor));
  return Array.from({ length: n + 1 }, (_, i) => 10 ** (i - n));
}

/**
 * A weight, a mass, a share in figures: three significant ones, never in a form that hides that it is small.
 * @param {number} value
 */
export function figures(value) {
  if (value === 0) return "0";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "";
  if (size < 1e-4) {
    const power = Math.floor(Math.log10(size));
    return `${sign}${(size / 10 ** power).toFixed(1)}e−${-power}`;
  }
  if (size < 1 && size >= 0.995) return sign + (size >= 0.9995 ? size.toFixed(5).replace(/0+$/, "") : size.toFixed(3)).replace(/^1\.?$/, "1.00");
  if (size >= 1000) return sign + grouped(Math.round(size));
  return sign + (size >= 100 ? size.toFixed(0) : size >= 10 ? size.toFixed(1) : size >= 0.0995 ? size.toFixed(2) : size.toPrecision(2));
}

/** A share in percent, with one more digit where it is nearly everything or nearly nothing.
 * @param {number} share
 */
export function percent(share) {
  const value = 100 * share;
  const digits = value >= 99.95 && value < 99.995 ? 2 : (value > 99 && value < 99.95) || (value < 1 && value > 0) ? 1 : 0;
  return `${value.toFixed(digits)}\u00a0%`;
}

/** A whole number with thin groups of thousands.
 * @param {number} n
 */
export function grouped(n) {
  return String(n).replace(/\B(?=(\d{3})+$)/g, ",");
}

/**
 * A map's colors at so many even steps, as [r, g, b] each.
 * @param {string[]} stops
 * @param {number} size
 * @returns {[number, number, number][]}
 */
export function ramp(stops, size) {
  const points = stops.map(toLab);
  return Array.from({ length: size }, (_, i) => {
    const at = (i / (size - 1)) * (points.length - 1);
    const first = Math.min(points.length - 2, Math.floor(at));
    const t = at - first;
    return fromLab(points[first].map((value, c) => value * (1 - t) + points[first + 1][c] * t));
  });
}

/**
 * The color of every byte of a tile, as 32-bit pixels in memory order; byte 0, where nothing may be looked at, is
 * transparent, so that the hatching below it shows.
 * @param {Theme} theme
 * @param {number} floor
 */
export function tileTable(theme, floor) {
  const colors = ramp(STOPS[theme], 256);
  return pixels((byte) => (byte === HIDDEN_BYTE ? null : colors[Math.round(255 * positionOf(shareOf(byte), floor))]));
}

/** The color of every byte of a difference; 128 is none, and the page's color.
 * @param {Theme} theme
 */
export function differenceTable(theme) {
  const colors = ramp(DIFFERENCE_STOPS[theme], 255);
  return pixels((byte) => colors[Math.max(0, byte - 1)]);
}

/**
 * A color for a position in [0, 1], as CSS.
 * @param {Theme} theme
 * @param {number} position
 */
export function colorAt(theme, position) {
  const [r, g, b] = ramps[theme][Math.round(255 * Math.min(1, Math.max(0, position)))];
  return `rgb(${r}, ${g}, ${b})`;
}

/** The color of a difference of shares, as CSS, on the scale of the tiles' bytes.
 * @param {Theme} theme
 * @param {number} value
 */
export function colorOfDifference(theme, value) {
  const size = Math.log1p(Math.abs(value) / DIFFERENCE_FLOOR) / Math.log1p(1 / DIFFERENCE_FLOOR);
  const [r, g, b] = ramp(DIFFERENCE_STOPS[theme], 255)[127 + Math.sign(value) * Math.round(127 * size)];
  return `rgb(${r}, ${g}, ${b})`;
}

/** Black or white, whichever is read better on the color at a position.
 * @param {Theme} theme
 * @param {number} position
 */
export function inkOn(theme, position) {
  return luminance(ramps[theme][Math.round(255 * Math.min(1, Math.max(0, position)))]) > 0.179 ? "#000000" : "#ffffff";
}

/** Relative luminance of a color (WCAG 2.2).
 * @param {number[]} rgb
 */
export function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => toLinear(value / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

const ramps = { light: ramp(STOPS.light, 256), dark: ramp(STOPS.dark, 256) };

function pixels(/** @type {(byte: number) => number[] | null} */ color) {
  const bytes = new Uint8ClampedArray(4 * 256);
  for (let byte = 0; byte < 256; byte++) {
    const rgb = color(byte);
    if (rgb) bytes.set([...rgb, 255], 4 * byte);
  }
  return new Uint32Array(bytes.buffer);
}

function toLinear(/** @type {number} */ x) {
  return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
}

function toGamma(/** @type {number} */ x) {
  return x <= 0.0031308 ? 12.92 * x : 1.055 * Math.max(0, x) ** (1 / 2.4) - 0.055;
}

function toLab(/** @type {string} */ hex) {
  const [r, g, b] = [1, 3, 5].map((at) => toLinear(parseInt(hex.slice(at, at + 2), 16) / 255));
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

/** @returns {[number, number, number]} */
function fromLab(/** @type {number[]} */ [L, a, b]) {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return /** @type {[number, number, number]} */ (linear.map((x) => Math.min(255, Math.max(0, Math.round(255 * toGamma(x))))));
}
