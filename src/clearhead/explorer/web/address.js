// One view as a short string: what stands after # in the page's address and in an exported file's.
//
// Unknown keys are ignored, so that an older page opens a newer view as far as it can. An unknown version is refused.

export const ADDRESS_VERSION = 1;

/**
 * @typedef {{off: {layer: number, head: number | null}} | {cut: {layer: number | null, head: number | null, query: number, key: number}}
 *   | {hide: {token: number}} | {temperature: {layer: number, head: number | null, factor: number}}} Edit
 *
 * @typedef {object} View
 * @property {string} page heads, head, compare, lesson or profile.
 * @property {string} scene Which recording; "" for the first.
 * @property {string} before The recording that the present one is compared with; "" for none.
 * @property {number} call Which forward of the model.
 * @property {number} batch Which text of a batch.
 * @property {number | null} layer
 * @property {number | null} head
 * @property {number | null} query The pinned position, or the first of a pinned span.
 * @property {number | null} to The last position of a pinned span.
 * @property {number | null} key The key under the cross-hair.
 * @property {"from" | "to"} look What the pinned token looks at, or what looks at it.
 * @property {"sum" | "max"} mode
 * @property {number | null} zoom Logarithm to base 2 of the pixels that one position takes; null: all in view.
 * @property {number} x Key in the middle of the map.
 * @property {number} y Query in the middle of the map.
 * @property {number | null} floor The share from which a color differs from the page's; null: chosen by length.
 * @property {number} cover The share of the weight that drawn links carry.
 * @property {boolean} words Pieces of a word are taken together.
 * @property {string} sort
 * @property {string} kind Only heads of this kind; "" for all.
 * @property {string} step The step of the lesson.
 * @property {Edit[]} edits
 */

/** @type {View} */
export const START = Object.freeze({
  page: "heads", scene: "", before: "", call: -1, batch: 0, layer: null, head: null, query: null, to: null, key: null,
  look: "from", mode: "sum", zoom: null, x: 0, y: 0, floor: null, cover: 0.7, words: true, sort: "model", kind: "",
  step: "", edits: [],
});

const text = { write: String, read: (/** @type {string} */ s) => (/^[\w-]{1,64}$/.test(s) ? s : undefined) };
const count = { write: String, read: (/** @type {string} */ s) => (/^-?\d{1,9}$/.test(s) ? Number(s) : undefined) };
const real = {
  write: (/** @type {number} */ x) => String(Number(x.toPrecision(7))),
  read: (/** @type {string} */ s) => (/^-?\d{1,9}(\.\d{1,9})?(e-?\d{1,2})?$/.test(s) ? Number(s) : undefined),
};
const flag = { write: (/** @type {boolean} */ x) => (x ? "1" : "0"), read: (/** @type {string} */ s) => s === "1" };
const oneOf = (/** @type {string[]} */ ...names) => ({
  write: String, read: (/** @type {string} */ s) => (names.includes(s) ? s : undefined),
});

/** @type {[string, keyof View, {write: (x: any) => string, read: (s: string) => any}][]} */
const FIELDS = [
  ["page", "page", text], ["scene", "scene", text], ["before", "before", text], ["call", "call", count],
  ["b", "batch", count], ["l", "layer", count], ["h", "head", count], ["q", "query", count], ["to", "to", count],
  ["k", "key", count], ["look", "look", oneOf("from", "to")], ["mode", "mode", oneOf("sum", "max")],
  ["z", "zoom", real], ["x", "x", real], ["y", "y", real], ["floor", "floor", real], ["cover", "cover", real],
  ["words", "words", flag], ["sort", "sort", text], ["kind", "kind", text], ["step", "step", text],
];

/**
 * Write what differs from a fresh page, as `v=1&l=2&h=0&q=6`.
 * @param {View} view
 */
export function formatView(view) {
  const parts = [`v=${ADDRESS_VERSION}`];
  for (const [short, name, kind] of FIELDS) {
    const value = view[name];
    if (value !== null && value !== START[name]) parts.push(`${short}=${encodeURIComponent(kind.write(value))}`);
  }
  for (const edit of view.edits) parts.push(formatEdit(edit));
  return parts.join("&");
}

/**
 * Read what `formatView` wrote. Values that cannot be read are left at their start; an unknown version is an error.
 * @param {string} hash With or without its #.
 * @returns {View}
 */
export function parseView(hash) {
  /** @type {any} */
  const view = { ...START, edits: [] };
  const pairs = hash.replace(/^#/, "").split("&").filter(Boolean).map((part) => {
    const at = part.indexOf("=");
    return at < 0 ? [part, ""] : [part.slice(0, at), decode(part.slice(at + 1))];
  });
  const version = pairs.find(([key]) => key === "v")?.[1] ?? String(ADDRESS_VERSION);
  if (version !== String(ADDRESS_VERSION)) {
    throw new RangeError(`This address is of version ${version}; this page reads version ${ADDRESS_VERSION}. Open it with a newer clearhead.`);
  }
  for (const [key, value] of pairs) {
    const field = FIELDS.find(([short]) => short === key);
    if (field) {
      const read = field[2].read(value);
      if (read !== undefined) view[field[1]] = read;
    } else {
      const edit = parseEdit(key, value);
      if (edit) view.edits.push(edit);
    }
  }
  return view;
}

/**
 * Write one change of the model: `off=2.0`, `cut=2.0.6.3`, `gone=4`, `temp=2.0.1500` (thousandths); * is every one.
 * @param {any} edit
 */
export function formatEdit(edit) {
  const all = (/** @type {number | null} */ n) => (n === null || n === undefined ? "*" : String(n));
  if (edit.off) return `off=${edit.off.layer}.${all(edit.off.head)}`;
  if (edit.cut) return `cut=${all(edit.cut.layer)}.${all(edit.cut.head)}.${edit.cut.query}.${edit.cut.key}`;
  if (edit.hide) return `gone=${edit.hide.token}`;
  const { layer, head, factor } = edit.temperature;
  return `temp=${layer}.${all(head)}.${Math.round(factor * 1000)}`;
}

/**
 * @param {string} key
 * @param {string} value
 * @returns {Edit | null}
 */
export function parseEdit(key, value) {
  if (!/^(\d{1,9}|\*)(\.(\d{1,9}|\*))*$/.test(value)) return null;
  const [a, b, c, d] = value.split(".").map((part) => (part === "*" ? null : Number(part)));
  const n = value.split(".").length;
  if (key === "off" && n === 2 && a !== null) return { off: { layer: a, head: b } };
  if (key === "cut" && n === 4 && c !== null && d !== null) return { cut: { layer: a, head: b, query: c, key: d } };
  if (key === "gone" && n === 1 && a !== null) return { hide: { token: a } };
  if (key === "temp" && n === 3 && a !== null && c) return { temperature: { layer: a, head: b, factor: c / 1000 } };
  return null;
}

/**
 * The edits as options of `clearhead explore`, to be put behind the command that made the scene.
 * @param {View} view
 * @param {string} command
 */
export function asCommand(view, command) {
  const hash = formatView({ ...view, scene: "", before: "" });
  return hash === `v=${ADDRESS_VERSION}` ? command : `${command} --view '${hash}'`;
}

/**
 * The scene's Python followed by the lines that give the numbers on the screen.
 * @param {View} view
 * @param {string} python
 */
export function asPython(view, python) {
  const lines = [python];
  const at = [view.batch > 0 ? `batch=${view.batch}` : "", view.call >= 0 ? `call=${view.call}` : ""].filter(Boolean);
  if (view.layer !== null && view.head !== null) {
    const head = `${view.layer}, ${view.head}`;
    const args = (/** @type {(string | number)[]} */ ...more) => [head, ...more, ...at].join(", ");
    lines.push(`weights = seen.map(${args()})`);
    if (view.query !== null) lines.push(`links = seen.links(${args(view.query, `coverage=${view.cover}`)})`);
  } else {
    lines.push("heads = seen.heads()");
  }
  return lines.join("\n");
}

function decode(/** @type {string} */ s) {
  try {
    return decodeURIComponent(s);
  } catch {
    return "";
  }
}
