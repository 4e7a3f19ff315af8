// Elements by hand. Text only ever enters as text, never as markup.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "path", "rect", "circle", "line", "polyline", "text", "title", "desc", "defs", "pattern"]);

/**
 * Make an element. `text` is its text, `style` an object of CSS properties, `on` an object of listeners; everything
 * else is an attribute: true for one without a value, false and null for none.
 * @param {string} tag
 * @param {Record<string, any> | null} [properties]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function h(tag, properties, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG_NAMESPACE, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) setProperty(/** @type {HTMLElement} */ (element), name, value);
  for (const child of children) if (child !== null && child !== undefined && child !== false) element.append(child);
  return element;
}

/**
 * Set one property as `h` does.
 * @param {Element} element
 * @param {string} name
 * @param {any} value
 */
export function setProperty(element, name, value) {
  if (name === "text") {
    if (element.textContent !== value) element.textContent = value;
  } else if (name === "style") {
    for (const [key, one] of Object.entries(value)) /** @type {HTMLElement} */ (element).style.setProperty(key, String(one));
  } else if (name === "on") {
    for (const [type, listener] of Object.entries(value)) element.addEventListener(type, /** @type {any} */ (listener));
  } else if (name === "value" || name === "checked" || name === "disabled" || name === "hidden") {
    if (/** @type {any} */ (element)[name] !== value) /** @type {any} */ (element)[name] = value;
  } else if (value === false || value === null || value === undefined) {
    element.removeAttribute(name);
  } else {
    element.setAttribute(name, value === true ? "" : String(value));
  }
}

/**
 * Put other children in the place of an element's own.
 * @param {Element} element
 * @param {(Node | string | null | undefined | false)[]} children
 */
export function fill(element, children) {
  element.replaceChildren(.../** @type {(Node | string)[]} */ (children.filter((child) => child !== null && child !== undefined && child !== false)));
}

/**
 * A button. `pressed` makes it one that stays down.
 * @param {string} label
 * @param {() => void} action
 * @param {Record<string, any>} [properties]
 * @returns {HTMLButtonElement}
 */
export function button(label, action, properties = {}) {
  return h("button", { type: "button", text: label, ...properties, on: { click: action } });
}

/**
 * A choice of several, with its label in front.
 * @param {string} label
 * @param {(value: string) => void} choose
 * @returns {{el: HTMLElement, set: (options: [string, string][], value: string) => void}}
 */
export function choice(label, choose) {
  const select = h("select", { on: { change: () => choose(select.value) } });
  const el = h("label", { class: "choice" }, h("span", { text: label }), select);
  let known = "";
  return {
    el,
    set(options, value) {
      const names = JSON.stringify(options);
      if (names !== known) {
        known = names;
        fill(select, options.map(([key, text]) => h("option", { value: key, text })));
      }
      if (select.value !== value) select.value = value;
    },
  };
}

/**
 * A row of buttons of which one is down.
 * @param {string} label Said by screen readers.
 * @param {[string, string][]} options
 * @param {(value: string) => void} choose
 * @returns {{el: HTMLElement, set: (value: string) => void}}
 */
export function segments(label, options, choose) {
  const buttons = options.map(([key, text]) => button(text, () => choose(key), { "aria-pressed": "false", "data-key": key, "data-label": text }));
  return {
    el: h("div", { class: "segments", role: "group", "aria-label": label }, ...buttons),
    set(value) {
      for (const one of buttons) one.setAttribute("aria-pressed", String(one.dataset.key === value));
    },
  };
}

/**
 * A 2D context of a canvas, resized to so many CSS pixels at a density. Returns true in `fresh` where it was cleared.
 * @param {HTMLCanvasElement} canvas
 * @param {number} width
 * @param {number} height
 * @param {number} density
 */
export function contextOf(canvas, width, height, density) {
  const [w, tall] = [Math.max(1, Math.round(width * density)), Math.max(1, Math.round(height * density))];
  if (canvas.width !== w || canvas.height !== tall) {
    canvas.width = w;
    canvas.height = tall;
  }
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  context.setTransform(density, 0, 0, density, 0, 0);
  context.imageSmoothingEnabled = false;
  return context;
}

/** Pixels of the screen for one of CSS, at most 2. */
export function densityOf() {
  return Math.min(2, Math.max(1, globalThis.devicePixelRatio || 1));
}

/**
 * Thin lines at 45 degrees: where nothing may be looked at.
 * @param {CanvasRenderingContext2D} context
 * @param {string} color
 */
export function hatchingOf(context, color) {
  const canvas = new OffscreenCanvas(6, 6);
  const pen = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.strokeStyle = color;
  pen.globalAlpha = 0.28;
  pen.lineWidth = 1;
  pen.beginPath();
  for (const at of [-3, 3, 9]) {
    pen.moveTo(at - 3, 9);
    pen.lineTo(at + 9, -3);
  }
  pen.stroke();
  return /** @type {CanvasPattern} */ (context.createPattern(/** @type {any} */ (canvas), "repeat"));
}
