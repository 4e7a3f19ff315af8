// Tiles and the plane they lie on.
import assert from "node:assert/strict";
import test from "node:test";

import { layPlane, pannedBy, partInView, positionAt, viewWith, zoomedAt } from "../../src/clearhead/explorer/web/plane.js";
import { ancestorOf, coarsestScale, Recent, scaleFor, TileQueue, tilesIn } from "../../src/clearhead/explorer/web/pyramid.js";

const whole = { zoom: null, x: 0, y: 0 };
const room = { width: 600, height: 400 };

test("at the coarsest scale one tile holds the whole map", () => {
  for (const n of [1, 256, 257, 1024, 131072]) {
    const scale = coarsestScale(n, 3);
    assert.ok(n <= 256 * 2 ** scale && (scale === 0 || n > 128 * 2 ** scale), String(n));
  }
});

test("a tile's pixel takes at least one pixel of the screen and less than two", () => {
  for (const pixels of [8, 1, 0.6, 0.5, 0.26, 0.01]) {
    const scale = scaleFor(pixels, 20);
    const taken = pixels * 2 ** scale;
    assert.ok(taken >= 1 - 1e-9 && (scale === 0 || taken < 2), String(pixels));
  }
});

test("tiles in view come middle first, and none lies outside of the map", () => {
  const tiles = tilesIn({ left: -5, top: 0, right: 1000, bottom: 700 }, 0, 600, 900);
  assert.equal(tiles.length, 3 * 4);
  assert.deepEqual(tiles[0], { scale: 0, row: 1, col: 1 });
});

test("an ancestor holds its descendant's square", () => {
  assert.deepEqual(ancestorOf({ scale: 1, row: 5, col: 2 }, 2), { tile: { scale: 3, row: 1, col: 0 }, x: 128, y: 64, size: 64 });
});

test("the cache forgets what was not used for the longest time", () => {
  const recent = new Recent(2);
  recent.set("a", 1);
  recent.set("b", 2);
  recent.get("a");
  recent.set("c", 3);
  assert.deepEqual([recent.has("a"), recent.has("b"), recent.has("c")], [true, false, true]);
});

test("at most four requests are out, the first wanted first, and stale answers are dropped", async () => {
  const asked = new Map();
  const arrived = [];
  const queue = new TileQueue((key, signal) => new Promise((resolve) => asked.set(key, { resolve, signal })), (key) => arrived.push(key), () => {});
  queue.want(["a", "b", "c", "d", "e", "f"]);
  assert.deepEqual([...asked.keys()], ["a", "b", "c", "d"]);
  queue.want(["f", "a"]);
  assert.ok(asked.get("b").signal.aborted && !asked.get("a").signal.aborted);
  assert.ok(asked.has("f"));
  asked.get("b").resolve("late");
  asked.get("a").resolve("here");
  await new Promise(setImmediate);
  assert.deepEqual(arrived, ["a"]);
  assert.equal(queue.get("a"), "here");
  assert.equal(queue.get("b"), undefined);
  queue.want(["a"]);
  assert.equal(queue.waiting, 0);
});

test("a tile that is refused is said once and not asked for again", async () => {
  let asked = 0;
  const failures = [];
  const queue = new TileQueue(async () => {
    asked += 1;
    throw new Error("no");
  }, () => {}, (error) => failures.push(error));
  for (let i = 0; i < 3; i++) {
    queue.want(["a"]);
    await new Promise(setImmediate);
  }
  assert.deepEqual([asked, failures.length], [1, 1]);
});

test("everything is in view to begin with, and square", () => {
  const plane = layPlane({ nQueries: 1000, nKeys: 1000 }, room, whole);
  assert.equal(plane.across, 0.4);
  assert.equal(plane.down, 0.4);
  assert.deepEqual(partInView(plane), { left: 0, right: 1000, top: 0, bottom: 1000 });
});

test("a map of few rows and many keys is drawn with rows that can be seen", () => {
  const plane = layPlane({ nQueries: 1, nKeys: 5000 }, room, whole);
  assert.ok(plane.down > 11.99 && plane.across < 1);
});

test("zooming keeps the position under the pointer, panning moves by pixels", () => {
  const size = { nQueries: 4000, nKeys: 4000 };
  const before = layPlane(size, room, { zoom: 0, x: 2000, y: 1000 });
  const at = positionAt(before, 123.5, 77.5);
  const zoomed = layPlane(size, room, zoomedAt(before, 2, 123.5, 77.5));
  assert.deepEqual(positionAt(zoomed, 123.5, 77.5), at);
  const panned = layPlane(size, room, pannedBy(before, 40, -30));
  assert.ok(Math.abs(panned.left - before.left - 40) < 1e-6 && Math.abs(panned.top - before.top + 30) < 1e-6);
});

test("a position out of view is brought in, one in view moves nothing", () => {
  const size = { nQueries: 4000, nKeys: 4000 };
  const plane = layPlane(size, room, { zoom: 3, x: 2000, y: 2000 });
  assert.equal(viewWith(plane, 2000, 2000), null);
  const moved = layPlane(size, room, viewWith(plane, 10, 3990));
  const part = partInView(moved);
  assert.ok(part.left <= 3990 && part.right >= 3991 && part.top <= 10 && part.bottom >= 11);
});

test("an answer that is asked for anew stays until the next comes", async () => {
  let n = 0;
  const queue = new TileQueue(async () => ++n, () => {}, () => {});
  queue.want(["a"]);
  await new Promise(setImmediate);
  queue.refresh((answer) => answer === 1);
  assert.equal(queue.get("a"), 1);
  queue.want(["a"]);
  assert.equal(queue.get("a"), 1);
  await new Promise(setImmediate);
  queue.want(["a"]);
  await new Promise(setImmediate);
  assert.deepEqual([queue.get("a"), n], [2, 2]);
});

test("an answer that was under way when others became stale is judged, too", async () => {
  const resolves = [];
  const queue = new TileQueue(() => new Promise((resolve) => resolves.push(resolve)), () => {}, () => {});
  queue.want(["a"]);
  queue.refresh((answer) => answer === "rough");
  resolves[0]("rough");
  await new Promise(setImmediate);
  assert.equal(queue.get("a"), "rough");
  queue.want(["a"]);
  resolves[1]("exact");
  await new Promise(setImmediate);
  queue.want(["a"]);
  assert.deepEqual([queue.get("a"), resolves.length], ["exact", 2]);
});
