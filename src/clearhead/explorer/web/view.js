// The explorer, put into a page, an exported file or a notebook: `mount` for the first two, the default export for
// anywidget. Its own shadow root keeps the host's styles out, and keys that it uses are kept from the host.

import { formatView, parseView } from "./address.js";
import { App } from "./app.js";
import { ComparePage } from "./compare.js";
import { runEdits } from "./edits.js";
import { FrontPage } from "./frontpage.js";
import { HeadPage } from "./headpage.js";
import { actionOf } from "./keys.js";
import { LessonPage } from "./lesson.js";
import { neighbour } from "./scene.js";
import { Shell } from "./shell.js";
import { commSource } from "./source.js";

const ADDRESS_DELAY_MS = 300;

/** Pages by name. Each is made once, from the app, and has `el` and `update(scene)`. */
const PAGES = { heads: FrontPage, head: HeadPage, lesson: LessonPage, compare: ComparePage };

/**
 * Show the explorer inside an element.
 * @param {import("./source.js").Source} source
 * @param {HTMLElement} root
 * @param {{style: string, hash?: boolean, view?: string, changed?: (view: string) => void}} options `hash`: the view
 *   is kept in the address of the page. `view`: where to begin, `changed`: told of every view, where it is not.
 * @returns {() => void} Takes it away again.
 */
export function mount(source, root, options) {
  root.setAttribute("data-lm-suppress-shortcuts", "true");
  const shadow = root.shadowRoot ?? root.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(options.style);
  shadow.adoptedStyleSheets = [sheet];
  const app = new App(source, root, shadow);
  const shell = new Shell(app, PAGES);
  app.root.prepend(shell.el);
  app.root.addEventListener("keydown", (event) => press(app, shell, event));
  start(app, options).then(() => app.draws(() => shell.update()), (error) => shell.refuse(error));
  return () => {
    app.close();
    shadow.replaceChildren();
  };
}

async function start(/** @type {App} */ app, /** @type {any} */ { hash, view, changed }) {
  app.busy();
  try {
    const wanted = parseView(hash ? location.hash : view ?? "");
    const { meta } = await app.ask("meta", { scene: wanted.scene || null }).catch(() => app.ask("meta", {}));
    app.firstScene = meta.id;
    app.metas.set(meta.id, meta);
    const { edits } = wanted;
    app.store.set({ ...wanted, scene: meta.id === wanted.scene ? wanted.scene : "", before: "", edits: [] });
    if (edits.length && meta.can.edit && !meta.edits?.length) await runEdits(app, edits, app.closing.signal, () => {});
    if (hash) keepInAddress(app);
    if (changed) app.store.subscribe((now) => changed(formatView(now)));
  } finally {
    app.done();
  }
}

function keepInAddress(/** @type {App} */ app) {
  let timer = 0;
  app.store.subscribe((now) => {
    clearTimeout(timer);
    timer = window.setTimeout(() => history.replaceState(null, "", `#${formatView(now)}`), ADDRESS_DELAY_MS);
  });
  window.addEventListener("hashchange", () => {
    try {
      const wanted = parseView(location.hash);
      app.store.set({ ...wanted, scene: app.metas.has(wanted.scene) ? wanted.scene : app.view.scene }, { undo: true });
    } catch (error) {
      app.fail(error);
    }
  }, { signal: app.closing.signal });
}

/** Keys that work wherever the focus is inside the explorer. */
function press(/** @type {App} */ app, /** @type {Shell} */ shell, /** @type {KeyboardEvent} */ event) {
  event.stopPropagation();
  const target = /** @type {HTMLElement} */ (event.composedPath()[0]);
  const action = actionOf(event, target.tagName);
  if (!action || event.defaultPrevented || !app.meta) return;
  const steps = /** @type {Record<string, [number, boolean]>} */ ({ nextHead: [1, false], previousHead: [-1, false], nextLayer: [1, true], previousLayer: [-1, true] });
  if (action in steps) {
    const next = neighbour(app.scene, ...steps[action]);
    if (next) app.store.set(next, { undo: true });
  } else if (action === "undo") app.store.undo();
  else if (action === "redo") app.store.redo();
  else if (action === "find") /** @type {HTMLElement | null} */ (shell.el.querySelector("main input[type=search]"))?.focus();
  else if (action === "escape") app.store.set({ page: "heads" }, { undo: true });
  else return;
  event.preventDefault();
}

/**
 * What anywidget calls. The model carries `style`, the style sheet, and `view`, the address of what is shown.
 * @param {{model: any, el: HTMLElement}} host
 */
function render({ model, el }) {
  const place = document.createElement("div");
  el.append(place);
  const source = commSource(model);
  const close = mount(source, place, {
    style: model.get("style"),
    view: model.get("view"),
    changed: (view) => {
      model.set("view", view);
      model.save_changes();
    },
  });
  return () => {
    close();
    source.close();
  };
}

export default { render };
