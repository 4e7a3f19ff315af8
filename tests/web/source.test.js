// Where answers come from.
import assert from "node:assert/strict";
import test from "node:test";

import { embeddedSource, meanOfRows, sumOfColumns } from "../../src/clearhead/explorer/web/embedded.js";
import { commSource, questionKey, readLines } from "../../src/clearhead/explorer/web/source.js";

test("lines of a stream are read however they are cut", async () => {
  const bytes = new TextEncoder().encode('{"a":"é"}\n\n{"b":2}\n{"c":3}');
  const events = [];
  await readLines(new ReadableStream({
    start(controller) {
      for (const byte of bytes) controller.enqueue(Uint8Array.of(byte));
      controller.close();
    },
  }), (event) => events.push(event));
  assert.deepEqual(events, [{ a: "é" }, { b: 2 }, { c: 3 }]);
});

test("a question has one name, whatever the order of its parameters", () => {
  assert.equal(questionKey("tile", { row: 1, col: 0, other: null }), questionKey("tile", { col: 0, row: 1 }));
  assert.equal(questionKey("meta", {}), "meta?");
});

function kernel() {
  const sent = [];
  let listener;
  return {
    sent, send: (message) => sent.push(message), on: (_, heard) => { listener = heard; }, off: () => { listener = null; },
    answer: (message, buffers = []) => listener(message, buffers),
  };
}

test("questions of one moment go in messages of at most sixteen, and errors are told apart", async () => {
  const model = kernel();
  const source = commSource(model);
  const answers = Array.from({ length: 20 }, (_, i) => source.ask("row", { query: i }));
  await new Promise((resolve) => setTimeout(resolve, 1));
  assert.deepEqual(model.sent.map((message) => message.asks.length), [16, 4]);
  const all = model.sent.flatMap((message) => message.asks);
  const bytes = Uint8Array.of(9, 1, 2, 9);
  model.answer({ answers: [{ id: all[0].id, meta: { n: 2 }, buffer: 0 }, { id: all[1].id, error: "No such row." }] }, [new DataView(bytes.buffer, 1, 2)]);
  assert.deepEqual(new Uint8Array((await answers[0]).bytes), Uint8Array.of(1, 2));
  await assert.rejects(answers[1], /No such row/);
  answers.slice(2).forEach((answer) => answer.catch(() => {}));
});

test("a stream hears its events until the last, and leaving tells the kernel", async () => {
  const model = kernel();
  const source = commSource(model);
  const events = [];
  const run = source.stream("run", { text: "x" }, (event) => events.push(event.event));
  await new Promise((resolve) => setTimeout(resolve, 1));
  const [{ id }] = model.sent[0].asks;
  model.answer({ answers: [{ id, event: { event: "progress" } }] });
  model.answer({ answers: [{ id, event: { event: "done" }, last: true }] });
  await run;
  assert.deepEqual(events, ["progress", "done"]);
  const controller = new AbortController();
  const left = source.ask("row", {}, controller.signal);
  await new Promise((resolve) => setTimeout(resolve, 1));
  controller.abort();
  await assert.rejects(left, { name: "AbortError" });
  assert.equal(model.sent.at(-1).kind, "cancel");
});

test("a file answers with what it holds, inflated, and says what it does not hold", async () => {
  const packed = await new Response(new Blob([Uint8Array.of(1, 2, 3)]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer();
  const source = embeddedSource({ "tile?col=0&row=0": { meta: { rows: 1 }, bytes: Buffer.from(packed).toString("base64") } });
  const { meta, bytes } = await source.ask("tile", { row: 0, col: 0 });
  assert.deepEqual([meta.rows, ...new Uint8Array(bytes)], [1, 1, 2, 3]);
  await assert.rejects(source.ask("tile", { row: 1, col: 0 }), /does not hold/);
});
