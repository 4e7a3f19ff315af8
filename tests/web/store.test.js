// The state and its undoing; keys.
import assert from "node:assert/strict";
import test from "node:test";

import { actionOf, keyHelp } from "../../src/clearhead/explorer/web/keys.js";
import { makeStore } from "../../src/clearhead/explorer/web/store.js";

test("listeners hear of changes and of nothing else", () => {
  const store = makeStore({ a: 1, list: [1] });
  const heard = [];
  const stop = store.subscribe((now, before) => heard.push([before.a, now.a]));
  store.set({ a: 1, list: [1] });
  store.set({ a: 2 });
  stop();
  store.set({ a: 3 });
  assert.deepEqual(heard, [[1, 2]]);
});

test("undo returns to what was before, redo goes forward, a new change ends the redo", () => {
  const store = makeStore({ a: 1 });
  store.set({ a: 2 }, { undo: true });
  store.set({ a: 3 });
  store.set({ a: 4 }, { undo: true });
  assert.ok(store.undo());
  assert.equal(store.get().a, 3);
  assert.ok(store.redo());
  assert.equal(store.get().a, 4);
  store.undo();
  store.set({ a: 9 }, { undo: true });
  assert.ok(!store.canRedo());
  store.undo();
  store.undo();
  assert.ok(!store.undo());
  assert.equal(store.get().a, 1);
});

test("at most a hundred steps are kept", () => {
  const store = makeStore({ a: 0 });
  for (let i = 1; i <= 150; i++) store.set({ a: i }, { undo: true });
  let steps = 0;
  while (store.undo()) steps += 1;
  assert.equal(steps, 100);
});

test("keys with control belong to the browser, letters in fields to the field", () => {
  assert.equal(actionOf({ key: "]" }), "nextHead");
  assert.equal(actionOf({ key: "]", ctrlKey: true }), null);
  assert.equal(actionOf({ key: "/" }, "TEXTAREA"), null);
  assert.equal(actionOf({ key: "z", ctrlKey: true }), "undo");
  assert.equal(actionOf({ key: "Z", metaKey: true, shiftKey: true }), "redo");
  assert.equal(actionOf({ key: "Enter" }, "BUTTON"), null);
  assert.ok(keyHelp().length >= 8);
});
