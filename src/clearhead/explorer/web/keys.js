// What every key does, in one table: the pages act on it, and the help lists it.

/** @type {{key: string, action: string, help: string}[]} */
export const KEYS = [
  { key: "ArrowLeft", action: "left", help: "" },
  { key: "ArrowRight", action: "right", help: "" },
  { key: "ArrowUp", action: "up", help: "" },
  { key: "ArrowDown", action: "down", help: "arrows: move by one, with shift by ten" },
  { key: "PageUp", action: "pageUp", help: "" },
  { key: "PageDown", action: "pageDown", help: "page up, page down: move by what is in view" },
  { key: "Home", action: "home", help: "" },
  { key: "End", action: "end", help: "home, end: first and last key of the row" },
  { key: "Enter", action: "pin", help: "" },
  { key: " ", action: "pin", help: "enter: pin the word, or open the head" },
  { key: "+", action: "zoomIn", help: "" },
  { key: "=", action: "zoomIn", help: "" },
  { key: "-", action: "zoomOut", help: "+ and −: zoom" },
  { key: "0", action: "fit", help: "0: everything in view" },
  { key: "[", action: "previousHead", help: "" },
  { key: "]", action: "nextHead", help: "[ and ]: head before, head after" },
  { key: "{", action: "previousLayer", help: "" },
  { key: "}", action: "nextLayer", help: "{ and }: layer before, layer after" },
  { key: "/", action: "find", help: "/: find a word" },
  { key: "Escape", action: "escape", help: "escape: back to all heads" },
];

/**
 * What a key press asks for, or null: a press with ctrl, alt or meta belongs to the browser, and so does a letter
 * typed into a field.
 * @param {{key: string, ctrlKey?: boolean, altKey?: boolean, metaKey?: boolean, shiftKey?: boolean}} event
 * @param {string} [tag] The element that has the focus.
 */
export function actionOf(event, tag = "") {
  const control = event.ctrlKey || event.metaKey;
  if (control && !event.altKey && event.key.toLowerCase() === "z") return event.shiftKey ? "redo" : "undo";
  if (control || event.altKey) return null;
  if (/^(input|textarea|select)$/i.test(tag)) return null;
  const found = KEYS.find((entry) => entry.key === event.key)?.action ?? null;
  if (/^(button|summary|a)$/i.test(tag) && (found === "pin" || event.key.startsWith("Arrow"))) return null;
  return found;
}

/** The keys in words, one line each. */
export function keyHelp() {
  return KEYS.map((entry) => entry.help).filter(Boolean);
}
