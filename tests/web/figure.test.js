// Figures and tables that leave the page.
import assert from "node:assert/strict";
import test from "node:test";

import { movedBy } from "../../src/clearhead/explorer/web/changes.js";
import { enlargement, escaped, mapFigure, toCsv } from "../../src/clearhead/explorer/web/figure.js";
import { byteOf } from "../../src/clearhead/explorer/web/scale.js";

const what = {
  title: "Layer 2 <of> \"a & b\"", summary: "from “x” & y", command: "clearhead explore '<b>'", image: "data:image/png;base64,AA==", rows: 4, cols: 8,
  rowMarks: [{ at: 0.125, text: "<script>" }, { at: 0.9, text: "a very long token indeed" }], colMarks: [{ at: 0.5, text: "\u0000&" }],
  legend: { colors: ["#fff", "#000"], marks: [{ at: 0, text: "0.01" }, { at: 1, text: "1" }], masked: true }, width: 89, ink: "#000", page: "#fff",
};

test("a figure has its size in millimeters, and its words are words", () => {
  const svg = mapFigure(what);
  assert.match(svg, /^<svg [^>]*width="89mm" height="[\d.]+mm"/);
  assert.match(svg, />&lt;script&gt;<\/text>/);
  assert.match(svg, />a very long t…<\/text>/);
  assert.match(svg, /<desc>from “x” &amp; y<\/desc><metadata>clearhead explore &#39;&lt;b&gt;&#39;<\/metadata>/);
  assert.doesNotMatch(svg, /<script|\u0000|NaN|undefined/);
});

test("a wide matrix is drawn wide", () => {
  const [, width, height] = mapFigure(what).match(/<image [^>]*width="([\d.]+)" height="([\d.]+)"/).map(Number);
  assert.ok(Math.abs(width / height - 2) < 0.01);
});

test("a cell of a figure has eight pixels or more, as long as the picture is of a sane size", () => {
  assert.ok(enlargement(8, 8) >= 8);
  assert.equal(enlargement(512, 512), 8);
  assert.equal(enlargement(2048, 10), 2);
  assert.equal(enlargement(9999, 1), 1);
});

test("tables are quoted, keep nine digits, and hold no formula", () => {
  assert.equal(toCsv(["a,b", "=1+1"], [["say \"no\"", 0.123456789012]]), '"a,b",\'=1+1\r\n"say ""no""",0.123456789\r\n');
});

test("what is not allowed in XML is replaced", () => {
  assert.equal(escaped("a\u0001<b>'\uffff"), "a\ufffd&lt;b&gt;&#39;\ufffd");
});

test("heads that did not move moved nothing, and one that moved everything moved one", () => {
  const overview = (...bytes) => ({ meta: { rows: 1, cols: 2, heads: [0, 1] }, bytes: Uint8Array.from(bytes).buffer });
  const before = overview(byteOf(1), 1, byteOf(0.5), byteOf(0.5));
  assert.deepEqual(movedBy(before, overview(1, byteOf(1), byteOf(0.5), byteOf(0.5))), [1, 0]);
  assert.deepEqual(movedBy(before, { meta: { rows: 2, cols: 2, heads: [0] }, bytes: new ArrayBuffer(4) }), []);
});
