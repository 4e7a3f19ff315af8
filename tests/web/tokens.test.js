// Tokens as text.
import assert from "node:assert/strict";
import test from "node:test";

import { fewest, findToken, labelOf, nameOf, paragraphsOf, spanName, summedOverWords, wordAt } from "../../src/clearhead/explorer/web/tokens.js";

const axis = {
  name: "text", text: true, tokens: ["[CLS]", "not", "too", "sha", "bby", ".", "[SEP]"], special: [1, 0, 0, 0, 0, 0, 1],
  spaces: [1, 1, 1, 1, 0, 0, 1], words: [[0, 1], [1, 2], [2, 3], [3, 5], [5, 6], [6, 7]],
};

test("tokens join to running text, and every token knows its place", () => {
  const [{ text, starts, ends }] = paragraphsOf(axis);
  assert.equal(text, "[CLS] not too shabby. [SEP]");
  assert.deepEqual(axis.tokens.map((_, i) => text.slice(starts[i], ends[i])), axis.tokens);
});

test("long texts are cut where a sentence ends, and nothing is lost", () => {
  const tokens = Array.from({ length: 5000 }, (_, i) => (i % 13 === 12 ? "end." : `w${i}`));
  const paragraphs = paragraphsOf({ name: "text", text: true, tokens });
  assert.ok(paragraphs.length > 5);
  assert.equal(paragraphs.reduce((sum, one) => sum + one.starts.length, 0), 5000);
  for (const one of paragraphs.slice(0, -1)) assert.ok(one.text.endsWith("end."));
  assert.deepEqual(paragraphs.map((one) => one.first), paragraphs.map((one, i) => paragraphs.slice(0, i).reduce((sum, before) => sum + before.starts.length, 0)));
});

test("tokens that cannot be seen get something to see", () => {
  const odd = { ...axis, tokens: ["\n", " ", "", "a\u202eb", "\t"] };
  assert.deepEqual([0, 1, 2, 3, 4].map((i) => labelOf(odd, i)), ["⏎", "␣", "∅", "a�b", "⇥"]);
});

test("words are found by any of their pieces, and named whole", () => {
  assert.deepEqual(wordAt(axis, 4), [3, 4]);
  assert.deepEqual(wordAt(axis, 1), [1, 1]);
  assert.equal(spanName(axis, 3, 4), "“shabby”");
  assert.equal(spanName(axis, 1, 2), "“not” to “too”");
});

test("patches are named by row and column", () => {
  const patches = { name: "patches", text: false, tokens: ["class", "0,0", "0,1", "1,0", "1,1"], image: { first: 1, rows: 2, cols: 2 } };
  assert.equal(nameOf(patches, 3), "patch 1,0");
  assert.equal(nameOf(patches, 0), "“class”");
});

test("pieces of a word are summed, others stay", () => {
  const sums = summedOverWords(Float32Array.from([0, 1, 2, 3, 4, 5, 6]), axis);
  assert.deepEqual([...sums], [0, 1, 2, 7, 7, 5, 6]);
});

test("a word is searched from here on and around the end", () => {
  assert.equal(findToken(axis, "shab", 0), 3);
  assert.equal(findToken(axis, "NOT", 3), 1);
  assert.equal(findToken(axis, "t", 0, -1), 2);
  assert.equal(findToken(axis, "absent", 0), -1);
  assert.equal(findToken(axis, " ", 0), -1);
});

test("the fewest links that carry a share, heaviest first", () => {
  const { links, carried } = fewest(Float32Array.from([0.125, 0.5, 0.25, 0.125]), 0.7);
  assert.deepEqual(links, [{ key: 1, weight: 0.5 }, { key: 2, weight: 0.25 }]);
  assert.equal(carried, 0.75);
  assert.deepEqual(fewest(new Float32Array(4), 0.7), { links: [], carried: 0 });
});
