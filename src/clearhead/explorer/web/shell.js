// The frame around the pages: what is shown, the way from page to page, undo, help, and what went wrong.

import { button, fill, h } from "./dom.js";
import { keyHelp } from "./keys.js";
import { TryIt } from "./try.js";
import { ShareMenu } from "./share.js";

const PAGE_NAMES = { heads: "All heads", head: "One head", compare: "Compare", lesson: "Lesson", profile: "Profile" };
const CAVEAT = "Attention shows where a head looks, not why the model decides. Switch a head off to test what it does.";

export class Shell {
  /**
   * @param {import("./app.js").App} app
   * @param {Record<string, any>} kinds The classes of the pages.
   */
  constructor(app, kinds) {
    this.app = app;
    this.kinds = kinds;
    /** @type {Map<string, any>} */
    this.pages = new Map();
    this.title = h("p", { class: "title" });
    this.links = Object.keys(kinds).map((name) =>
      button(PAGE_NAMES[/** @type {keyof typeof PAGE_NAMES} */ (name)] ?? name, () => app.store.set({ page: name }, { undo: true }), { class: "tab", "data-page": name, "data-label": PAGE_NAMES[/** @type {keyof typeof PAGE_NAMES} */ (name)] }));
    this.undo = button("Undo", () => app.store.undo(), { class: "quiet", "aria-keyshortcuts": "Control+Z" });
    this.try = new TryIt(app);
    this.share = new ShareMenu(app);
    const help = h("details", { class: "menu help" }, h("summary", { text: "Keys" }), h("ul", null, ...keyHelp().map((line) => h("li", { text: line }))));
    this.notes = h("ul", { class: "notes" });
    this.main = h("main", null, h("p", { class: "loading", text: "Opening the recording…" }));
    this.el = h("div", { class: "shell" },
      h("header", { class: "top" },
        h("p", { class: "brand", text: "clearhead" }), this.title,
        h("nav", { "aria-label": "Pages" }, ...this.links),
        h("div", { class: "actions" }, this.undo, this.try.toggle, this.share.el, help)),
      this.try.el, this.main, this.notes, h("footer", { text: CAVEAT }));
    app.root.addEventListener("click", (event) => {
      for (const menu of this.el.querySelectorAll("details.menu[open]")) if (!event.composedPath().includes(menu)) menu.open = false;
    });
  }

  update() {
    const { app } = this;
    const { meta, view } = app;
    const name = view.page in this.kinds ? view.page : "heads";
    if (!this.pages.has(name)) this.pages.set(name, new this.kinds[name](app));
    const page = this.pages.get(name);
    if (this.main.firstChild !== page.el) {
      fill(this.main, [page.el]);
      globalThis.scrollTo?.(0, 0);
    }
    page.update(app.scene);
    for (const link of this.links) {
      if (link.dataset.page === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.undo.disabled = !app.store.canUndo();
    fill(this.title, [h("span", { class: "scene", text: meta.title }), meta.model ? h("span", { class: "model", text: meta.model }) : null]);
    const notes = [...(meta.notes ?? []), ...(meta.unseen ?? []).map((/** @type {any} */ one) => `Not seen: ${one.name || "elsewhere"}${one.kind ? ` (${one.kind})` : ""}, ${one.reason}`)];
    const said = notes.join("\n");
    if (said !== this.said) {
      this.said = said;
      fill(this.notes, notes.map((note) => h("li", { text: note })));
    }
    this.try.update();
    this.share.update();
  }

  /** Say why nothing can be shown.
   * @param {unknown} error
   */
  refuse(error) {
    fill(this.main, [h("p", { class: "refusal", role: "alert", text: error instanceof Error ? error.message : String(error) })]);
  }
}
