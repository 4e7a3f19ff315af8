// Colors and figures.
import assert from "node:assert/strict";
import test from "node:test";

import { byteOf, DIFFERENCE_STOPS, differenceTable, figures, inkOn, legendTicks, luminance, PAGE, percent, positionOf, ramp, shareOf, STOPS, tileTable, usualFloor } from "../../src/clearhead/explorer/web/scale.js";

const THEMES = ["light", "dark"];
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const channels = (pixel) => [pixel & 255, (pixel >> 8) & 255, (pixel >> 16) & 255, pixel >>> 24];

test("lightness changes in one direction only, from the page's own color", () => {
  for (const theme of THEMES) {
    const colors = ramp(STOPS[theme], 256);
    assert.deepEqual(colors[0], rgb(PAGE[theme]));
    const steps = colors.slice(1).map((color, i) => luminance(color) - luminance(colors[i]));
    assert.ok(steps.every((step) => (theme === "light" ? step <= 1e-6 : step >= -1e-6)), theme);
    assert.ok(Math.abs(luminance(colors[0]) - luminance(colors[255])) > 0.5);
  }
});

test("a byte and its share are each other's inverse", () => {
  for (let byte = 2; byte < 256; byte++) assert.equal(byteOf(shareOf(byte)), byte);
  assert.equal(shareOf(0), 0);
  assert.equal(shareOf(1), 0);
  assert.equal(byteOf(1), 255);
  assert.equal(byteOf(9e-7), 1);
});

test("what may not be looked at is transparent, what is under the floor is the page", () => {
  for (const theme of THEMES) {
    const table = tileTable(theme, 1e-3);
    assert.equal(channels(table[0])[3], 0);
    assert.deepEqual(channels(table[1]), [...rgb(PAGE[theme]), 255]);
    assert.deepEqual(channels(table[byteOf(1e-3) - 1]), [...rgb(PAGE[theme]), 255]);
    assert.deepEqual(channels(table[255]).slice(0, 3), rgb(STOPS[theme].at(-1)));
  }
});

test("no difference is the page's color, and both ends of a difference are far from it", () => {
  for (const theme of THEMES) {
    const table = differenceTable(theme);
    assert.deepEqual(channels(table[128]), [...rgb(PAGE[theme]), 255]);
    assert.deepEqual(channels(table[1]).slice(0, 3), rgb(DIFFERENCE_STOPS[theme][0]));
    assert.deepEqual(channels(table[255]).slice(0, 3), rgb(DIFFERENCE_STOPS[theme].at(-1)));
  }
});

test("a scale runs from its floor to one", () => {
  assert.equal(positionOf(1, 1e-4), 1);
  assert.equal(positionOf(1e-4, 1e-4), 0);
  assert.equal(positionOf(0, 1e-4), 0);
  assert.ok(Math.abs(positionOf(1e-2, 1e-4) - 0.5) < 1e-9);
  assert.deepEqual(legendTicks(1e-2).map((tick) => Number(tick.toPrecision(3))), [0.01, 0.1, 1]);
});

test("longer texts get a lower floor, within six decades", () => {
  assert.equal(usualFloor(8), 1e-2);
  assert.equal(usualFloor(131072), 1e-6);
  assert.equal(usualFloor(1), 1e-2);
});

test("numbers on dark colors are white and on light ones dark, with a contrast of 4.5 or more", () => {
  for (const theme of THEMES) {
    const colors = ramp(STOPS[theme], 256);
    colors.forEach((color, i) => {
      const ink = luminance(rgb(inkOn(theme, i / 255)));
      const [high, low] = [luminance(color), ink].sort((a, b) => b - a);
      assert.ok((high + 0.05) / (low + 0.05) >= 4.5, `${theme} ${i}`);
    });
  }
});

test("figures keep their significant digits and do not round small numbers to nothing", () => {
  const said = [0, 1, 0.98, 0.0955, 0.0123, 0.00012, 3e-7, 12.34, 431.2, 16190.4, -0.5, Infinity].map(figures);
  assert.deepEqual(said, ["0", "1.00", "0.98", "0.096", "0.012", "0.00012", "3.0e−7", "12.3", "431", "16,190", "−0.50", "∞"]);
});

test("a share that is not all is not said to be all", () => {
  const said = [1, 0.99982, 0.9931, 0.9, 0.42, 0.002, 0].map((share) => percent(share).replace("\u00a0", " "));
  assert.deepEqual(said, ["100 %", "99.98 %", "99.3 %", "90 %", "42 %", "0.2 %", "0 %"]);
});
