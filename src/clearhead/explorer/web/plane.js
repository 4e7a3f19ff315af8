// Where a position of the map lies on the screen: a pair of affine functions, and how zooming and panning change them.

const LARGEST_CELL = 96; // pixels
const LEAST_ROW = 12; // pixels of a row where a map has only a few

/**
 * @typedef {object} Plane
 * @property {number} nQueries
 * @property {number} nKeys
 * @property {number} width Pixels of the map's window.
 * @property {number} height
 * @property {number} across Pixels that a key takes.
 * @property {number} down Pixels that a query takes.
 * @property {number} left Pixel at which key 0 begins.
 * @property {number} top Pixel at which query 0 begins.
 */

/**
 * Lay a map out in a window.
 * @param {{nQueries: number, nKeys: number}} size
 * @param {{width: number, height: number}} room
 * @param {{zoom: number | null, x: number, y: number}} view
 * @returns {Plane}
 */
export function layPlane(size, room, view) {
  const { nQueries, nKeys } = size;
  const { width, height } = room;
  const smallest = fitZoom(size, room);
  const zoom = view.zoom === null ? smallest : Math.min(largestZoom(size, room), Math.max(smallest, view.zoom));
  const across = 2 ** zoom;
  const down = across * stretchOf(size, room);
  const place = (/** @type {number} */ middle, /** @type {number} */ n, /** @type {number} */ cell, /** @type {number} */ space) => {
    if (n * cell <= space) return 0;
    return Math.min(0, Math.max(space - n * cell, space / 2 - (middle + 0.5) * cell));
  };
  const whole = view.zoom === null || zoom === smallest;
  return {
    nQueries, nKeys, width, height, across, down,
    left: place(whole ? nKeys / 2 : view.x, nKeys, across, width),
    top: place(whole ? nQueries / 2 : view.y, nQueries, down, height),
  };
}

/**
 * How much taller than wide a cell is: 1, but for a map of few rows and many keys, whose rows would be too thin.
 * @param {{nQueries: number, nKeys: number}} size
 * @param {{width: number, height: number}} room
 */
export function stretchOf({ nQueries, nKeys }, { width, height }) {
  const across = Math.min(LARGEST_CELL, width / nKeys);
  if (nQueries * LEAST_ROW > height || across >= LEAST_ROW) return 1;
  return nQueries * 8 <= nKeys ? LEAST_ROW / across : 1;
}

/**
 * The logarithm to base 2 of a key's pixels at which all of the map is in view.
 * @param {{nQueries: number, nKeys: number}} size
 * @param {{width: number, height: number}} room
 */
export function fitZoom(size, room) {
  const stretch = stretchOf(size, room);
  return Math.log2(Math.min(LARGEST_CELL, room.width / size.nKeys, room.height / (size.nQueries * stretch)));
}

/**
 * @param {{nQueries: number, nKeys: number}} size
 * @param {{width: number, height: number}} room
 */
export function largestZoom(size, room) {
  return Math.max(fitZoom(size, room), Math.log2(LARGEST_CELL));
}

/**
 * The position under a pixel: query and key, or null outside of the map.
 * @param {Plane} plane
 * @param {number} x
 * @param {number} y
 */
export function positionAt(plane, x, y) {
  const key = Math.floor((x - plane.left) / plane.across);
  const query = Math.floor((y - plane.top) / plane.down);
  return key >= 0 && query >= 0 && key < plane.nKeys && query < plane.nQueries ? { query, key } : null;
}

/**
 * The part of the map that is in view, in positions.
 * @param {Plane} plane
 */
export function partInView(plane) {
  const clamp = (/** @type {number} */ value, /** @type {number} */ n) => Math.min(n, Math.max(0, value));
  return {
    left: clamp(-plane.left / plane.across, plane.nKeys),
    right: clamp((plane.width - plane.left) / plane.across, plane.nKeys),
    top: clamp(-plane.top / plane.down, plane.nQueries),
    bottom: clamp((plane.height - plane.top) / plane.down, plane.nQueries),
  };
}

/**
 * The view after zooming by 2^steps, with the position under a pixel kept there.
 * @param {Plane} plane
 * @param {number} steps
 * @param {number} x
 * @param {number} y
 */
export function zoomedAt(plane, steps, x, y) {
  const smallest = fitZoom(plane, plane);
  const zoom = Math.min(largestZoom(plane, plane), Math.max(smallest, Math.log2(plane.across) + steps));
  if (zoom <= smallest + 1e-6) return { zoom: null, x: 0, y: 0 };
  const factor = 2 ** zoom / plane.across;
  const key = (x - plane.left) / plane.across;
  const query = (y - plane.top) / plane.down;
  return {
    zoom,
    x: key + (plane.width / 2 - x) / (plane.across * factor) - 0.5,
    y: query + (plane.height / 2 - y) / (plane.down * factor) - 0.5,
  };
}

/**
 * The view after moving by so many pixels.
 * @param {Plane} plane
 * @param {number} dx
 * @param {number} dy
 */
export function pannedBy(plane, dx, dy) {
  const middle = (/** @type {number} */ start, /** @type {number} */ d, /** @type {number} */ cell, /** @type {number} */ space) => (space / 2 - start - d) / cell - 0.5;
  return {
    zoom: Math.log2(plane.across),
    x: middle(plane.left, dx, plane.across, plane.width),
    y: middle(plane.top, dy, plane.down, plane.height),
  };
}

/**
 * The view in which a position is in sight, moved no more than needed; null where it is already.
 * @param {Plane} plane
 * @param {number} query
 * @param {number} key
 */
export function viewWith(plane, query, key) {
  const shift = (/** @type {number} */ start, /** @type {number} */ size, /** @type {number} */ space) => {
    const margin = Math.min(space / 4, 2 * size);
    if (start < margin) return margin - start;
    return start + size > space - margin ? space - margin - start - size : 0;
  };
  const wide = plane.nKeys * plane.across > plane.width;
  const high = plane.nQueries * plane.down > plane.height;
  const dx = wide ? shift(plane.left + key * plane.across, plane.across, plane.width) : 0;
  const dy = high ? shift(plane.top + query * plane.down, plane.down, plane.height) : 0;
  if (!dx && !dy) return null;
  const moved = pannedBy(plane, dx, dy);
  const next = layPlane(plane, plane, moved);
  return next.left === plane.left && next.top === plane.top ? null : moved;
}
