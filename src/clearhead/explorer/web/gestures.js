// Keys, wheel and pointer on a map: they change the view, and the map draws what the view says.

import { actionOf } from "./keys.js";
import { largestZoom, pannedBy, positionAt, viewWith, zoomedAt } from "./plane.js";

const CLICK_RADIUS = 4; // pixels that a pointer may move and still click

/**
 * Listen to a map's window.
 * @param {import("./map.js").MapView} map
 */
export function listen(map) {
  const { window: el, app } = map;
  /** @type {Map<number, {x: number, y: number}>} */
  const pointers = new Map();
  /** @type {{x: number, y: number, plane: import("./plane.js").Plane, moved: boolean, apart: number} | null} */
  let drag = null;

  /** @returns {[number, number]} */
  function local(/** @type {{clientX: number, clientY: number}} */ event) {
    const room = el.getBoundingClientRect();
    return [event.clientX - room.left, event.clientY - room.top];
  }

  function middle() {
    const all = [...pointers.values()];
    const x = all.reduce((sum, one) => sum + one.x, 0) / all.length;
    const y = all.reduce((sum, one) => sum + one.y, 0) / all.length;
    return { x, y, apart: all.length > 1 ? Math.hypot(all[0].x - all[1].x, all[0].y - all[1].y) : 0 };
  }

  function begin() {
    drag = pointers.size ? { ...middle(), plane: map.nextPlane, moved: drag?.moved ?? false } : null;
  }

  function dragTo() {
    if (!drag) return;
    const now = middle();
    const [dx, dy] = [now.x - drag.x, now.y - drag.y];
    if (!drag.moved && Math.hypot(dx, dy) < CLICK_RADIUS && Math.abs(now.apart - drag.apart) < CLICK_RADIUS) return;
    drag.moved = true;
    if (drag.apart > 0 && now.apart > 0) {
      app.store.set(zoomedAt(drag.plane, Math.log2(now.apart / drag.apart), ...local({ clientX: drag.x, clientY: drag.y })));
    } else if (app.view.zoom !== null) {
      app.store.set(pannedBy(drag.plane, dx, dy));
    }
  }

  function end(/** @type {PointerEvent} */ event) {
    const clicked = drag && !drag.moved && event.type === "pointerup" && pointers.size === 1;
    pointers.delete(event.pointerId);
    begin();
    if (!clicked) return;
    const at = positionAt(map.plane, ...local(event));
    if (at) app.store.set({ ...at, to: null }, { undo: true });
  }

  const handlers = {
    keydown: (/** @type {KeyboardEvent} */ event) => pressOn(map, event),
    wheel: (/** @type {WheelEvent} */ event) => {
      if (!event.ctrlKey && app.shadow.activeElement !== el) return;
      event.preventDefault();
      app.store.set(zoomedAt(map.nextPlane, -event.deltaY / (event.ctrlKey ? 60 : 200), ...local(event)));
    },
    pointerdown: (/** @type {PointerEvent} */ event) => {
      if (event.button) return;
      el.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      begin();
    },
    pointermove: (/** @type {PointerEvent} */ event) => {
      if (!pointers.has(event.pointerId)) return map.hover(positionAt(map.plane, ...local(event)));
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      dragTo();
    },
    pointerup: end,
    pointercancel: end,
    pointerleave: () => map.hover(null),
    dblclick: (/** @type {MouseEvent} */ event) => app.store.set(zoomedAt(map.nextPlane, 1, ...local(event))),
  };
  for (const [type, handler] of Object.entries(handlers)) {
    el.addEventListener(type, /** @type {any} */ (handler), { signal: app.closing.signal, passive: false });
  }
}

/**
 * Zoom around the chosen cell, or around the middle where that is out of view.
 * @param {import("./map.js").MapView} map
 * @param {number} steps
 */
export function zoomBy(map, steps) {
  const { app, nextPlane: plane } = map;
  const { scene } = app;
  const x = plane.left + (scene.key + 0.5) * plane.across;
  const y = plane.top + (scene.query + 0.5) * plane.down;
  const inside = x >= 0 && y >= 0 && x <= plane.width && y <= plane.height;
  app.store.set(zoomedAt(plane, steps, inside ? x : plane.width / 2, inside ? y : plane.height / 2));
}

function pressOn(/** @type {import("./map.js").MapView} */ map, /** @type {KeyboardEvent} */ event) {
  const { app, nextPlane: plane } = map;
  const { scene } = app;
  const action = actionOf(event);
  const step = event.shiftKey ? 10 : 1;
  const page = Math.max(1, Math.floor(plane.height / plane.down) - 1);
  const moves = /** @type {Record<string, [number, number]>} */ ({
    left: [0, -step], right: [0, step], up: [-step, 0], down: [step, 0], pageUp: [-page, 0], pageDown: [page, 0],
    home: [0, -scene.nKeys], end: [0, scene.nKeys],
  });
  const clamp = (/** @type {number} */ at, /** @type {number} */ n) => Math.min(n - 1, Math.max(0, at));
  if (action && action in moves) {
    const [dq, dk] = moves[action];
    const [query, key] = [clamp(scene.query + dq, scene.nQueries), clamp(scene.key + dk, scene.nKeys)];
    app.store.set({ query, key, to: null, ...viewWith(plane, query, key) });
  } else if (action === "zoomIn" || action === "zoomOut") {
    zoomBy(map, action === "zoomIn" ? 1 : -1);
  } else if (action === "fit") {
    app.store.set({ zoom: null });
  } else if (action === "pin") {
    app.store.set({ zoom: largestZoom(plane, plane), x: scene.key, y: scene.query });
  } else return;
  event.preventDefault();
  event.stopPropagation();
}
