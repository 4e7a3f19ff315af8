// The view as a string.
import assert from "node:assert/strict";
import test from "node:test";

import { asCommand, asPython, formatView, parseView, START } from "../../src/clearhead/explorer/web/address.js";

const view = {
  ...START, page: "head", scene: "s3", layer: 2, head: 0, query: 6, key: 3, zoom: 2.5, x: 10.25, y: 0.5, look: "to", mode: "max", words: false,
  edits: [{ off: { layer: 2, head: 0 } }, { cut: { layer: null, head: null, query: 6, key: 3 } }, { hide: { token: 4 } }, { temperature: { layer: 1, head: null, factor: 1.5 } }],
};

test("what is written is read back", () => {
  assert.deepEqual(parseView(formatView(view)), view);
  assert.deepEqual(parseView(`#${formatView(START)}`), { ...START });
});

test("a fresh view is the version alone", () => {
  assert.equal(formatView(START), "v=1");
});

test("unknown keys and values of the wrong kind are left out", () => {
  assert.deepEqual(parseView("v=1&new=1&l=two&h=0&q=-&mode=mean&off=x&cut=1.2&scene=<b>&z=%zz"), { ...START, head: 0 });
});

test("an unknown version is refused with a sentence", () => {
  assert.throws(() => parseView("v=2&l=0"), /version 2.*version 1/);
});

test("any text is read without an error", () => {
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  for (let i = 0; i < 2000; i++) {
    const text = Array.from({ length: 20 }, () => "&=%.*-0123456789abclhqkxyzvoffcuttemp"[Math.floor(37 * random())]).join("");
    try {
      formatView(parseView(text));
    } catch (error) {
      assert.ok(error instanceof RangeError);
    }
  }
});

test("the command and the Python carry the view and no token", () => {
  assert.equal(asCommand(START, "clearhead explore x"), "clearhead explore x");
  assert.match(asCommand(view, "clearhead explore x"), /^clearhead explore x --view 'v=1&page=head&.*off=2\.0&cut=\*\.\*\.6\.3/);
  assert.doesNotMatch(asCommand(view, ""), /scene=/);
  assert.match(asPython(view, "seen"), /seen\.map\(2, 0\)\nlinks = seen\.links\(2, 0, 6, coverage=0\.7\)/);
});
