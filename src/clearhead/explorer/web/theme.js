// Light or dark, as the page or the notebook around us has it, and the colors that canvases draw with.

/** @typedef {import("./scale.js").Theme} Theme */
/** @typedef {{ink: string, muted: string, line: string, page: string, accent: string}} Palette */

/**
 * The theme of the host: what JupyterLab, VS Code, marimo and Colab say of themselves, else what the system prefers.
 * @returns {Theme}
 */
export function hostTheme() {
  const { body, documentElement: html } = document;
  if (matchMedia("(forced-colors: active)").matches) return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const jupyter = body?.getAttribute("data-jp-theme-light");
  if (jupyter) return jupyter === "false" ? "dark" : "light";
  const code = body?.getAttribute("data-vscode-theme-kind");
  if (code) return /dark|high-contrast$/.test(code) ? "dark" : "light";
  if (body?.matches(".vscode-dark, .dark, .dark-theme") || html.matches(".dark, [theme=dark]")) return "dark";
  const scheme = body ? getComputedStyle(body).colorScheme : "";
  if (scheme === "dark" || scheme === "light") return scheme;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/**
 * Call when the host's theme may have changed; returns how to stop.
 * @param {() => void} changed
 */
export function watchTheme(changed) {
  const queries = ["(prefers-color-scheme: dark)", "(forced-colors: active)"].map((query) => matchMedia(query));
  for (const query of queries) query.addEventListener("change", changed);
  const observer = new MutationObserver(changed);
  const attributes = { attributeFilter: ["class", "theme", "data-jp-theme-light", "data-vscode-theme-kind", "style"] };
  if (document.body) observer.observe(document.body, attributes);
  observer.observe(document.documentElement, attributes);
  return () => {
    observer.disconnect();
    for (const query of queries) query.removeEventListener("change", changed);
  };
}

/**
 * The colors of the style sheet as a canvas needs them, forced ones included.
 * @param {HTMLElement} probe An element that nobody sees.
 * @returns {Palette}
 */
export function readPalette(probe) {
  const read = (/** @type {string} */ name) => {
    probe.style.setProperty("color", `var(--${name})`);
    return getComputedStyle(probe).color;
  };
  const page = () => {
    probe.style.setProperty("background-color", "var(--page)");
    return getComputedStyle(probe).backgroundColor;
  };
  return { ink: read("ink"), muted: read("muted"), line: read("line"), page: page(), accent: read("accent") };
}
