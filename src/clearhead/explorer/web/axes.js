// What stands around and over the tiles: names of tokens, margins with sums, the cross-hair, numbers in large cells.

import { figures, grouped, inkOn, positionOf } from "./scale.js";
import { labelOf } from "./tokens.js";
import { partInView } from "./plane.js";
import { niceTop } from "./metrics.js";

const NAMES_FROM = 10; // pixels of a row
const FONT = "12px system-ui, 'DejaVu Sans', sans-serif";

/**
 * Pixels to leave free around the map.
 * @param {import("./scene.js").Scene} scene
 * @param {number} width
 */
export function gutters(scene, width) {
  const narrow = width < 480;
  return narrow ? { left: 60, top: 60, right: 36, bottom: 36 } : { left: 92, top: 84, right: 48, bottom: 48 };
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {{app: import("./app.js").App, scene: import("./scene.js").Scene, plane: import("./plane.js").Plane, gutter: any,
 *   floor: number, hovered: {query: number, key: number} | null, margins: Float32Array | null,
 *   numbers: Map<number, Float32Array> | null, scale: number}} what
 */
export function drawAxes(context, what) {
  const { app, scene, plane, gutter, hovered } = what;
  const { palette } = app;
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  context.font = FONT;
  const part = partInView(plane);
  const x0 = gutter.left;
  const y0 = gutter.top;
  const right = x0 + Math.min(plane.width, plane.left + plane.nKeys * plane.across);
  const bottom = y0 + Math.min(plane.height, plane.top + plane.nQueries * plane.down);
  const at = { x: (/** @type {number} */ key) => x0 + plane.left + key * plane.across, y: (/** @type {number} */ query) => y0 + plane.top + query * plane.down };
  context.strokeStyle = palette.line;
  context.lineWidth = 1;
  context.strokeRect(x0 - 0.5 + Math.max(0, plane.left), y0 - 0.5 + Math.max(0, plane.top), right - x0 - Math.max(0, plane.left) + 1, bottom - y0 - Math.max(0, plane.top) + 1);
  const place = { part, at, x0, y0, right, bottom };
  const chosen = hovered ?? { query: scene.query, key: scene.key };
  nameRows(context, what, place, chosen.query);
  nameColumns(context, what, place, chosen.key);
  if (what.margins) drawMargins(context, what, place);
  context.save();
  context.beginPath();
  context.rect(x0, y0, plane.width, plane.height);
  context.clip();
  if (what.numbers) writeNumbers(context, what, place);
  if (hovered) crossHair(context, what, place, hovered);
  frame(context, palette.accent, at.x(scene.key), at.y(scene.query), plane);
  context.restore();
}

function frame(/** @type {CanvasRenderingContext2D} */ context, /** @type {string} */ color, /** @type {number} */ x, /** @type {number} */ y, /** @type {import("./plane.js").Plane} */ plane) {
  const w = Math.max(6, plane.across);
  const tall = Math.max(6, plane.down);
  context.strokeStyle = color;
  context.lineWidth = 2;
  context.strokeRect(x + (plane.across - w) / 2 + 1, y + (plane.down - tall) / 2 + 1, w - 2, tall - 2);
}

function nameRows(/** @type {CanvasRenderingContext2D} */ context, /** @type {any} */ what, /** @type {any} */ { part, at }, /** @type {number} */ chosen) {
  const { app, scene, plane, gutter } = what;
  context.textAlign = "right";
  context.textBaseline = "middle";
  const named = plane.down >= NAMES_FROM;
  const rows = named ? range(part.top, part.bottom) : ticks(part.top, part.bottom, plane.down, 48);
  for (const query of rows) {
    context.fillStyle = named && query === chosen ? app.palette.accent : app.palette.muted;
    const text = named ? labelOf(scene.queries, query + scene.first) : grouped(query + scene.first);
    write(context, text, gutter.left - 8, at.y(query) + (named ? plane.down / 2 : 0), gutter.left - 12, named && query === chosen, named ? plane.down : 14);
  }
}

function nameColumns(/** @type {CanvasRenderingContext2D} */ context, /** @type {any} */ what, /** @type {any} */ { part, at }, /** @type {number} */ chosen) {
  const { app, scene, plane, gutter } = what;
  const named = plane.across >= NAMES_FROM;
  const keys = named ? range(part.left, part.right) : ticks(part.left, part.right, plane.across, 64);
  const names = keys.map((key) => (named ? labelOf(scene.keys, key) : grouped(key)));
  const flat = !named || names.every((name) => context.measureText(name).width < plane.across - 6);
  keys.forEach((key, i) => {
    context.fillStyle = named && key === chosen ? app.palette.accent : app.palette.muted;
    const x = at.x(key) + (named ? plane.across / 2 : 0);
    if (flat) {
      context.textAlign = named ? "center" : "left";
      context.textBaseline = "alphabetic";
      write(context, names[i], x, gutter.top - 9, 200, named && key === chosen, named ? 20 : 14);
      return;
    }
    context.save();
    context.translate(x, gutter.top - 8);
    context.rotate(-Math.PI / (plane.across >= 18 ? 4 : 2));
    context.textAlign = "left";
    context.textBaseline = "middle";
    write(context, names[i], 0, 0, plane.across >= 18 ? (gutter.top - 12) * 1.35 : gutter.top - 12, key === chosen, plane.across);
    context.restore();
  });
}

function write(/** @type {CanvasRenderingContext2D} */ context, /** @type {string} */ text, /** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ room, /** @type {boolean} */ strong, /** @type {number} */ height) {
  const size = Math.min(13, Math.max(9, Math.round(height * 0.8)));
  context.font = `${strong ? "600 " : ""}${FONT.replace("12px", `${size}px`)}`;
  let shown = text;
  while (shown.length > 1 && context.measureText(shown).width > room) shown = `${shown.slice(0, -2)}…`;
  context.fillText(shown, x, y);
}

/** Bars: right of every row its entropy, below every column what it receives. Where several share a pixel, the largest. */
function drawMargins(/** @type {CanvasRenderingContext2D} */ context, /** @type {any} */ what, /** @type {any} */ { part, at, right, bottom }) {
  const { app, scene, plane, gutter, margins } = what;
  const received = margins.subarray(0, scene.nKeys);
  const entropy = margins.subarray(scene.nKeys);
  context.fillStyle = app.palette.muted;
  context.globalAlpha = 0.55;
  const bars = (/** @type {Float32Array} */ values, /** @type {number} */ from, /** @type {number} */ to, /** @type {number} */ cell, /** @type {number} */ room, /** @type {(i: number, size: number, thick: number) => void} */ draw) => {
    let most = 1e-9;
    for (let i = Math.floor(from); i < Math.ceil(to); i++) most = Math.max(most, values[i] || 0);
    const step = Math.max(1, Math.floor(1 / cell));
    for (let i = Math.floor(from); i < Math.ceil(to); i += step) {
      let largest = 0;
      for (let j = i; j < Math.min(values.length, i + step); j++) largest = Math.max(largest, values[j] || 0);
      draw(i, (room * largest) / most, Math.max(1, cell * step - (cell > 4 ? 2 : 0)));
    }
    return most;
  };
  const most = {
    received: bars(received, part.left, part.right, plane.across, gutter.bottom - 20, (i, size, thick) => context.fillRect(at.x(i) + (plane.across > 4 ? 1 : 0), bottom + 5, thick, size)),
    entropy: bars(entropy, part.top, part.bottom, plane.down, gutter.right - 22, (i, size, thick) => context.fillRect(right + 5, at.y(i) + (plane.down > 4 ? 1 : 0), size, thick)),
  };
  context.globalAlpha = 1;
  context.font = FONT.replace("12px", "10px");
  context.fillStyle = app.palette.muted;
  context.textAlign = "right";
  context.textBaseline = "alphabetic";
  context.fillText(`received, to ${figures(most.received)}`, right, bottom + gutter.bottom - 3);
  context.save();
  context.translate(right + gutter.right - 1, bottom);
  context.rotate(-Math.PI / 2);
  context.textAlign = "left";
  context.fillText(`entropy, to ${figures(most.entropy)}`, 0, -2);
  context.restore();
}

function writeNumbers(/** @type {CanvasRenderingContext2D} */ context, /** @type {any} */ what, /** @type {any} */ { part, at }) {
  const { app, plane, floor, numbers } = what;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = FONT.replace("12px", `${Math.min(14, Math.round(plane.across / 3.4))}px`);
  for (const query of range(part.top, part.bottom)) {
    const row = numbers.get(query);
    if (!row?.length) continue;
    for (const key of range(part.left, part.right)) {
      if (row[key] < 0.005) continue;
      context.fillStyle = inkOn(app.theme, positionOf(row[key], floor));
      context.fillText(row[key] >= 0.995 ? "1.0" : row[key].toFixed(2).slice(1), at.x(key) + plane.across / 2, at.y(query) + plane.down / 2 + 0.5);
    }
  }
}

function crossHair(/** @type {CanvasRenderingContext2D} */ context, /** @type {any} */ what, /** @type {any} */ { at, x0, y0, right, bottom }, /** @type {{query: number, key: number}} */ hovered) {
  const { app, plane, scale } = what;
  const block = 2 ** scale;
  const [q, k] = [hovered.query - (hovered.query % block), hovered.key - (hovered.key % block)];
  context.fillStyle = app.palette.accent;
  context.globalAlpha = 0.7;
  const [x, y] = [at.x(k), at.y(q)];
  const [w, tall] = [Math.max(1, plane.across * block), Math.max(1, plane.down * block)];
  context.fillRect(x0, y, x - x0, 1);
  context.fillRect(x + w, y, right - x - w, 1);
  context.fillRect(x, y0, 1, y - y0);
  context.fillRect(x, y + tall, 1, bottom - y - tall);
  if (w > 3) {
    context.fillRect(x0, y + tall - 1, x - x0, 1);
    context.fillRect(x + w, y + tall - 1, right - x - w, 1);
    context.fillRect(x + w - 1, y0, 1, y - y0);
    context.fillRect(x + w - 1, y + tall, 1, bottom - y - tall);
  }
  context.globalAlpha = 1;
  context.strokeStyle = app.palette.accent;
  context.lineWidth = 1;
  context.strokeRect(x + 0.5, y + 0.5, w - 1, tall - 1);
}

/** @returns {number[]} */
function range(/** @type {number} */ from, /** @type {number} */ to) {
  const first = Math.floor(from);
  return Array.from({ length: Math.max(0, Math.ceil(to) - first) }, (_, i) => first + i);
}

/** Round positions at least `apart` pixels from each other. */
function ticks(/** @type {number} */ from, /** @type {number} */ to, /** @type {number} */ cell, /** @type {number} */ apart) {
  const { step } = niceTop(Math.max(1, (4 * apart) / cell));
  const whole = Math.max(1, Math.round(step));
  const found = [];
  for (let at = Math.ceil(from / whole) * whole; at < to; at += whole) found.push(at);
  return found;
}
