// Tiles of a map at any zoom: which are needed, in which order they are asked for, which are kept.
//
// At scale s one pixel of a tile is a block of 2^s x 2^s positions, and a tile has 256 x 256 pixels. Tiles that are
// wanted are named anew every frame; answers that nobody wants any more are dropped.

export const TILE_SIZE = 256;
const MAX_REQUESTS = 4;
const MAX_TILES = 512; // 64 KiB each

/**
 * The coarsest scale of a map: there one tile holds all of it.
 * @param {number} nQueries
 * @param {number} nKeys
 */
export function coarsestScale(nQueries, nKeys) {
  return Math.max(0, Math.ceil(Math.log2(Math.ceil(Math.max(nQueries, nKeys) / TILE_SIZE))));
}

/**
 * The scale at which one pixel of a tile takes at least one pixel of the screen and less than two.
 * @param {number} pixelsPerKey Pixels of the screen that one position takes, the narrower side.
 * @param {number} coarsest
 */
export function scaleFor(pixelsPerKey, coarsest) {
  return Math.min(coarsest, Math.max(0, Math.ceil(-Math.log2(pixelsPerKey) - 1e-9)));
}

/**
 * @typedef {{scale: number, row: number, col: number}} Tile
 * @typedef {{left: number, top: number, right: number, bottom: number}} Part In positions: keys across, queries down.
 */

/**
 * The tiles of one scale that lie in a part of the map, those nearest its middle first.
 * @param {Part} part
 * @param {number} scale
 * @param {number} nQueries
 * @param {number} nKeys
 * @returns {Tile[]}
 */
export function tilesIn(part, scale, nQueries, nKeys) {
  const side = TILE_SIZE * 2 ** scale;
  const range = (/** @type {number} */ from, /** @type {number} */ to, /** @type {number} */ n) => [
    Math.max(0, Math.floor(from / side)), Math.min(Math.ceil(n / side), Math.ceil(to / side)),
  ];
  const [left, right] = range(part.left, part.right, nKeys);
  const [top, bottom] = range(part.top, part.bottom, nQueries);
  const tiles = [];
  for (let row = top; row < bottom; row++) for (let col = left; col < right; col++) tiles.push({ scale, row, col });
  const x = (part.left + part.right) / 2 / side - 0.5;
  const y = (part.top + part.bottom) / 2 / side - 0.5;
  const far = (/** @type {Tile} */ tile) => (tile.col - x) ** 2 + (tile.row - y) ** 2;
  return tiles.sort((a, b) => far(a) - far(b));
}

/**
 * Where a tile is found inside an ancestor `up` levels above: the ancestor, and a square of it in its pixels.
 * @param {Tile} tile
 * @param {number} up
 */
export function ancestorOf(tile, up) {
  const part = 2 ** up;
  return {
    tile: { scale: tile.scale + up, row: Math.floor(tile.row / part), col: Math.floor(tile.col / part) },
    x: ((tile.col % part) * TILE_SIZE) / part,
    y: ((tile.row % part) * TILE_SIZE) / part,
    size: TILE_SIZE / part,
  };
}

/** @param {Tile} tile */
export function tileName(tile) {
  return `${tile.scale}/${tile.row}/${tile.col}`;
}

/**
 * A map that forgets what was not used for the longest time.
 * @template V
 */
export class Recent {
  /** @param {number} limit */
  constructor(limit) {
    this.limit = limit;
    /** @type {Map<string, V>} */
    this.entries = new Map();
  }

  /** @param {string} key */
  get(key) {
    const value = this.entries.get(key);
    if (value !== undefined) {
      this.entries.delete(key);
      this.entries.set(key, value);
    }
    return value;
  }

  /** @param {string} key */
  has(key) {
    return this.entries.has(key);
  }

  /**
   * @param {string} key
   * @param {V} value
   */
  set(key, value) {
    this.entries.delete(key);
    this.entries.set(key, value);
    if (this.entries.size > this.limit) this.entries.delete(/** @type {string} */ (this.entries.keys().next().value));
  }
}

/**
 * Asks for tiles, at most four at once, the first wanted first, and keeps the answers.
 * @template A
 */
export class TileQueue {
  /**
   * @param {(key: string, signal: AbortSignal) => Promise<A>} fetchTile
   * @param {(key: string, answer: A) => void} arrived
   * @param {(error: unknown) => void} failed
   */
  constructor(fetchTile, arrived, failed) {
    this.fetchTile = fetchTile;
    this.arrived = arrived;
    this.failed = failed;
    /** @type {Recent<A>} */
    this.kept = new Recent(MAX_TILES);
    /** @type {Map<string, AbortController>} */
    this.out = new Map();
    /** @type {string[]} */
    this.wanted = [];
    /** @type {Set<string>} */
    this.refused = new Set();
    /** @type {Set<string>} */
    this.stale = new Set();
    /** What to think of answers that were under way when others were to be asked for anew. @type {Map<string, (answer: A) => boolean>} */
    this.doubted = new Map();
  }

  /** How many requests are out. */
  get waiting() {
    return this.out.size;
  }

  /** @param {string} key */
  get(key) {
    return this.kept.get(key);
  }

  /**
   * Say which tiles are wanted now, the most urgent first. Requests for others are given up.
   * @param {string[]} keys
   */
  want(keys) {
    this.wanted = keys.filter((key) => this.#lacks(key));
    const now = new Set(this.wanted);
    for (const [key, controller] of this.out) {
      if (now.has(key)) continue;
      this.out.delete(key);
      controller.abort();
    }
    this.#next();
  }

  /** Ask for some answers anew when they are wanted next; until then they stay as they are.
   * @param {(answer: A) => boolean} isStale
   */
  refresh(isStale) {
    for (const [key, answer] of this.kept.entries) if (isStale(answer)) this.stale.add(key);
    for (const key of this.out.keys()) this.doubted.set(key, isStale);
  }

  /** @param {string} key */
  #lacks(key) {
    return (!this.kept.has(key) || this.stale.has(key)) && !this.refused.has(key);
  }

  #next() {
    for (const key of this.wanted) {
      if (this.out.size >= MAX_REQUESTS) return;
      if (!this.out.has(key) && this.#lacks(key)) this.#ask(key);
    }
  }

  /** @param {string} key */
  async #ask(key) {
    const controller = new AbortController();
    this.out.set(key, controller);
    try {
      const answer = await this.fetchTile(key, controller.signal);
      if (this.out.get(key) !== controller) return;
      this.out.delete(key);
      if (this.doubted.get(key)?.(answer)) this.stale.add(key);
      else this.stale.delete(key);
      this.doubted.delete(key);
      this.kept.set(key, answer);
      this.arrived(key, answer);
    } catch (error) {
      if (this.out.get(key) !== controller) return;
      this.out.delete(key);
      this.refused.add(key);
      this.failed(error);
    }
    this.#next();
  }
}
