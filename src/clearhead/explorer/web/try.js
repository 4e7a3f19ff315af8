// Try it: a text or a picture of one's own, read by a model on this machine; leaving or stopping cancels.

import { START } from "./address.js";
import { button, choice, fill, h } from "./dom.js";

const MAX_TEXT_LENGTH = 200_000;
const MAX_NEW_TOKENS = 40;

export class TryIt {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.toggle = button("Try your own", () => this.show(this.el.hidden), { "aria-expanded": "false" });
    this.text = h("textarea", { rows: "3", maxlength: String(MAX_TEXT_LENGTH), "aria-label": "Your text", placeholder: "Write a sentence, paste a text, or drop a picture here." });
    this.model = choice("Model", (model) => { this.chosen = model; });
    this.generate = h("input", { type: "checkbox" });
    this.generateLabel = h("label", { class: "check" }, this.generate, "and go on writing");
    this.go = button("Read it", () => this.run(), { class: "primary" });
    this.stop = button("Stop", () => this.running?.abort(), { hidden: true });
    this.progress = h("progress", { max: "1", hidden: true });
    this.stage = h("span", { class: "note", role: "status" });
    this.written = h("p", { class: "written", "aria-live": "off" });
    this.file = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", "aria-label": "A picture", on: { change: () => this.#take(this.file.files) } });
    this.el = h("section", { class: "try", "aria-label": "Try your own", hidden: true }, this.text,
      h("div", { class: "tools" }, this.model.el, this.generateLabel, this.file, this.go, this.stop, this.progress, this.stage), this.written);
    /** @type {AbortController | null} */
    this.running = null;
    this.text.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.run();
    });
    const { signal } = app.closing;
    app.root.addEventListener("dragover", (event) => {
      if (!app.meta?.can.image) return;
      event.preventDefault();
      app.root.classList.add("dropping");
    }, { signal });
    app.root.addEventListener("dragleave", () => app.root.classList.remove("dropping"), { signal });
    app.root.addEventListener("drop", (event) => {
      app.root.classList.remove("dropping");
      if (!app.meta?.can.image) return;
      event.preventDefault();
      this.#take(event.dataTransfer?.files);
    }, { signal });
    signal.addEventListener("abort", () => this.running?.abort());
  }

  /** @param {boolean} open */
  show(open) {
    this.el.hidden = !open;
    this.toggle.setAttribute("aria-expanded", String(open));
    if (open) this.text.focus();
  }

  update() {
    const { meta } = this.app;
    this.toggle.hidden = !meta.can.run;
    this.generateLabel.hidden = !meta.can.generate;
    this.file.hidden = !meta.can.image || !this.app.source.upload;
    this.model.el.hidden = (meta.models?.length ?? 0) < 2;
    this.model.set((meta.models ?? []).map((/** @type {string} */ name) => /** @type {[string, string]} */ ([name, name])), this.chosen ?? meta.model);
  }

  async #take(/** @type {FileList | null | undefined} */ files) {
    const file = files?.[0];
    if (!file || !this.app.source.upload) return;
    this.show(true);
    try {
      const { image } = await this.app.source.upload(file);
      await this.run({ image });
    } catch (error) {
      this.app.fail(error);
    }
  }

  /**
   * Read the text in the box, or what is given.
   * @param {any} [input]
   */
  async run(input) {
    const { app } = this;
    const text = this.text.value.trim();
    if (!input && !text) return app.tell("Write a text first.");
    this.running?.abort();
    const running = new AbortController();
    this.running = running;
    this.#show(true);
    app.busy();
    try {
      const body = {
        model: this.chosen ?? app.meta.model, ...(input ?? { text }), edits: [],
        generate: this.generate.checked && app.meta.can.generate ? { max_new_tokens: MAX_NEW_TOKENS } : null,
      };
      await app.source.stream("run", body, (event) => this.#hear(event), running.signal);
    } catch (error) {
      app.fail(error);
    } finally {
      if (this.running === running) {
        this.running = null;
        this.#show(false);
      }
      app.done();
    }
  }

  #show(/** @type {boolean} */ running) {
    this.go.hidden = running;
    this.stop.hidden = !running;
    this.progress.hidden = !running;
    this.progress.removeAttribute("value");
    this.stage.textContent = "";
    fill(this.written, []);
  }

  #hear(/** @type {any} */ event) {
    const { app } = this;
    if (event.event === "progress") {
      if (event.of) this.progress.value = event.done / event.of;
      this.stage.textContent = event.what ?? "";
    } else if (event.event === "token") {
      this.written.append(event.text);
    } else if (event.event === "error") {
      app.tell(event.message);
    } else if (event.event === "done") {
      app.metas.set(event.scene, event.meta);
      app.store.set({ ...START, page: app.view.page === "lesson" ? "lesson" : START.page, step: app.view.step, scene: event.scene }, { undo: true });
      this.show(false);
    }
  }
}
