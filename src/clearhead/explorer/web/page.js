// The page's beginning: take the token out of the address, get the style sheet, show the explorer.

import { httpSource } from "./source.js";
import { mount } from "./view.js";

const TOKEN_KEY = "clearhead-token";

/** The token from the address, kept for this tab only, so that a reload still has it and the address no longer does. */
function takeToken() {
  const parts = location.hash.slice(1).split("&");
  const given = parts.find((part) => part.startsWith("token="))?.slice("token=".length);
  if (given) {
    sessionStorage.setItem(TOKEN_KEY, given);
    const rest = parts.filter((part) => !part.startsWith("token=")).join("&");
    history.replaceState(null, "", rest ? `#${rest}` : location.pathname);
  }
  return given ?? sessionStorage.getItem(TOKEN_KEY) ?? "";
}

const source = httpSource(takeToken());
const style = await (await fetch("style.css", { credentials: "omit" })).text();
mount(source, /** @type {HTMLElement} */ (document.getElementById("explorer")), { style, hash: true });
