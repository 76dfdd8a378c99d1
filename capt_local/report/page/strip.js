"use strict";
// The tokens of an answer, on the page of `serve` and in a report: how one of them is described,
// and how keys and pointer walk along them.
const LIMIT = 4; // where the scale of the contrast ends on both sides, in nats
const END = "end of the answer";

// Text only ever becomes a text node.
function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}
// A space in front is a part of a token, so it is shown.
function piece(text) {
  const spaced = text.startsWith(" ");
  const node = make("bdi", spaced ? "piece sp" : "piece", spaced ? text.slice(1) : text || END);
  node.lang = "";
  return node;
}
// As `chance` in html.py.
function chance(logp) {
  if (logp === null || logp === undefined) return "?";
  const percent = 100 * Math.exp(Math.min(logp, 0));
  if (percent >= 10) return percent.toFixed(0) + " %";
  if (percent >= 0.01) return percent.toFixed(percent >= 1 ? 1 : 2) + " %";
  return "< 0.01 %";
}
function nats(value) {
  if (value === null) return "not run";
  return (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2) + " nats";
}
function meter(contrast) {
  const fill = make("i", contrast < 0 ? "down" : "up");
  fill.style.width = 100 * Math.min(Math.abs(contrast), LIMIT) / LIMIT + "%";
  const box = make("div", "meter", fill);
  box.setAttribute("aria-hidden", "true");
  return box;
}

// Lets keys and pointer walk along the `.t` in `strip`, whose ids are t0, t1, ...
// `describe(number)` gives the nodes of the panel (of -1: none is shown now), the first of which
// gets the button that closes it; `tell(number)` is what a screen reader says.
function walk(strip, panel, status, describe, tell, { hover = false } = {}) {
  const cells = strip.getElementsByClassName("t");
  let current = 0; // the cell that has the place in the tab order
  let shown = -1, pinned = -1;

  function show(number) {
    if (number === shown) return;
    if (cells[shown]) cells[shown].classList.remove("on");
    shown = number;
    const nodes = describe(number);
    panel.hidden = number < 0;
    panel.replaceChildren(...nodes);
    if (number < 0) return;
    cells[number].classList.add("on");
    const close = make("button", "quiet", "Close");
    close.type = "button";
    close.addEventListener("click", () => { move(shown); pin(-1); show(-1); });
    nodes[0].append(close);
    panel.scrollTop = 0;
  }
  function peek(number) {
    if (number >= 0 && pinned < 0) show(number);
  }
  function pin(number) {
    if (cells[pinned]) {
      cells[pinned].classList.remove("pin");
      cells[pinned].removeAttribute("aria-selected");
    }
    pinned = number;
    if (number < 0) return;
    take(number);
    cells[number].classList.add("pin");
    cells[number].setAttribute("aria-selected", "true");
    show(number);
  }
  const toggle = (number) => pin(pinned === number ? -1 : number);
  function take(number) {
    if (cells[current]) cells[current].tabIndex = -1;
    current = number;
    cells[number].tabIndex = 0;
  }
  function move(number) {
    if (cells.length) cells[Math.max(0, Math.min(cells.length - 1, number))].focus();
  }
  // The nearest token of the line above or below.
  function beside(from, way) {
    const boxOf = (i) => cells[i].getClientRects()[0] || cells[i].getBoundingClientRect();
    const box = boxOf(from), middle = box.left + box.width / 2;
    let best = from, distance = Infinity, top = null;
    for (let i = from + way; i >= 0 && i < cells.length; i += way) {
      const other = boxOf(i);
      if (top === null) {
        if (Math.abs(other.top - box.top) < box.height / 2) continue;
        top = other.top;
      }
      if (Math.abs(other.top - top) > box.height / 2) break;
      const off = Math.abs(other.left + other.width / 2 - middle);
      if (off < distance) { distance = off; best = i; }
    }
    return best;
  }
  function change(from, way) {
    for (let i = from + way; i >= 0 && i < cells.length; i += way) {
      if (cells[i].classList.contains("c")) return i;
    }
    return from;
  }
  function numberOf(target) {
    const cell = target instanceof Element && target.closest(".t");
    return cell ? Number(cell.id.slice(1)) : -1;
  }

  strip.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const at = numberOf(event.target);
    if (at < 0) return;
    const forward = getComputedStyle(strip).direction === "rtl" ? -1 : 1;
    const moves = {
      ArrowRight: () => move(at + forward), ArrowLeft: () => move(at - forward),
      ArrowDown: () => move(beside(at, 1)), ArrowUp: () => move(beside(at, -1)),
      Home: () => move(0), End: () => move(cells.length - 1),
      n: () => move(change(at, 1)), p: () => move(change(at, -1)),
      Enter: () => toggle(at), " ": () => toggle(at),
    };
    if (!Object.hasOwn(moves, event.key)) return;
    event.preventDefault();
    moves[event.key]();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { pin(-1); show(-1); }
  });
  strip.addEventListener("focusin", (event) => {
    const at = numberOf(event.target);
    if (at < 0) return;
    take(at);
    status.textContent = tell(at);
    peek(at);
  });
  if (hover) strip.addEventListener("mouseover", (event) => peek(numberOf(event.target)));
  strip.addEventListener("click", (event) => {
    const at = numberOf(event.target);
    if (at < 0 || !getSelection().isCollapsed) return;
    toggle(at);
    if (pinned < 0 && !hover) show(-1);
  });
  function clear() {
    show(-1);
    current = 0;
    pinned = -1;
    strip.replaceChildren();
  }
  return { cells, clear, move, peek, pin };
}
