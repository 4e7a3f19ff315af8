// The state of the view in one place: read it, change it, be told of changes, undo.

const MAX_UNDO_STEPS = 100;

/**
 * @template {object} T
 * @typedef {object} Store
 * @property {() => T} get The present state; never change it in place.
 * @property {(patch: Partial<T>, options?: {undo?: boolean}) => void} set Merge a change. With `undo` the state before
 *   it can be returned to.
 * @property {(listener: (now: T, before: T) => void) => () => void} subscribe Call on every change; returns the end.
 * @property {() => boolean} undo Return to the state before the last change made with `undo`; false if there is none.
 * @property {() => boolean} redo
 * @property {() => boolean} canUndo
 * @property {() => boolean} canRedo
 */

/**
 * Make a store. Changes that leave every value as it was tell nobody.
 * @template {object} T
 * @param {T} initial
 * @returns {Store<T>}
 */
export function makeStore(initial) {
  let state = { ...initial };
  /** @type {Set<(now: T, before: T) => void>} */
  const listeners = new Set();
  /** @type {T[]} */
  const past = [];
  /** @type {T[]} */
  const future = [];

  function replace(/** @type {T} */ next) {
    const before = state;
    state = next;
    for (const listener of listeners) listener(state, before);
  }

  function travel(/** @type {T[]} */ from, /** @type {T[]} */ to) {
    const next = from.pop();
    if (next === undefined) return false;
    to.push(state);
    replace(next);
    return true;
  }

  return {
    get: () => state,
    set(patch, options = {}) {
      const changed = Object.entries(patch).some(([key, value]) => !sameValue(state[/** @type {keyof T} */ (key)], value));
      if (!changed) return;
      if (options.undo) {
        past.push(state);
        if (past.length > MAX_UNDO_STEPS) past.shift();
        future.length = 0;
      }
      replace({ ...state, ...patch });
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    undo: () => travel(past, future),
    redo: () => travel(future, past),
    canUndo: () => past.length > 0,
    canRedo: () => future.length > 0,
  };
}

/**
 * Whether two values of a state say the same; lists and objects are compared by what they hold.
 * @param {unknown} a
 * @param {unknown} b
 */
export function sameValue(a, b) {
  return Object.is(a, b) || (typeof a === "object" && typeof b === "object" && JSON.stringify(a) === JSON.stringify(b));
}
