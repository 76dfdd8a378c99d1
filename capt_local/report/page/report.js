"use strict";
(() => {
  const strip = document.getElementById("strip");
  if (!strip) return;
  const { pieces, steps } = JSON.parse(document.getElementById("data").textContent);
  const panel = document.getElementById("detail");
  const here = document.getElementById("here");
  const chart = document.getElementById("chart");
  const cells = [...strip.querySelectorAll(".t")];
  const stepsOf = cells.map(() => []);
  steps.forEach((step, index) => stepsOf[step[0]].push(index));
  const END = "end of the answer";
  const LIMIT = 4;
  let current = 0; // the cell that has the place in the tab order
  let shown = -1;
  let pinned = -1;

  // Text only ever becomes a text node.
  function make(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children);
    return node;
  }
  function piece(index) {
    const text = pieces[index] || END;
    const spaced = text.startsWith(" ");
    const node = make("bdi", spaced ? "piece sp" : "piece", spaced ? text.slice(1) : text);
    node.lang = "";
    return node;
  }
  // As `chance` in html.py.
  function chance(logp) {
    if (logp === null) return "?";
    const percent = 100 * Math.exp(Math.min(logp, 0));
    if (percent >= 10) return percent.toFixed(0) + " %";
    if (percent >= 0.01) return percent.toFixed(percent >= 1 ? 1 : 2) + " %";
    return "< 0.01 %";
  }
  function nats(value) {
    if (value === null) return "not run";
    return (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2) + " nats";
  }
  function bar(logp) {
    const fill = make("i");
    fill.style.width = logp === null ? "0" : 100 * Math.exp(Math.min(logp, 0)) + "%";
    return make("div", "bar", fill);
  }
  function meter(contrast) {
    const fill = make("i", contrast < 0 ? "down" : "up");
    fill.style.width = 100 * Math.min(Math.abs(contrast), LIMIT) / LIMIT + "%";
    const box = make("div", "meter", fill);
    box.setAttribute("aria-hidden", "true");
    return box;
  }
  function list(title, flat) {
    const items = make("ol");
    for (let i = 0; i < flat.length; i += 2) {
      items.append(make("li", "", piece(flat[i]), make("span", "r", chance(flat[i + 1]))));
    }
    return make("div", "", make("h3", "", title), items);
  }

  function about(index) {
    const [, said, logp, target, rank, own, ownLogp, contrast, expert, base, changed, drawn, ...tops] = steps[index];
    const box = make("div");
    const title = make("p", "said", piece(said));
    if (changed) title.append(make("span", "chip", "changed"));
    box.append(title);
    const instead = make("p", "instead");
    if (said === own) instead.append("The target alone would have written the same, with " + chance(ownLogp) + ".");
    else instead.append("After the same text, the target alone would have written ", piece(own), " (" + chance(ownLogp) + "). There, what was written has rank " + (rank + 1) + ".");
    if (drawn) instead.append(" Drawn at random: all together find another token likeliest.");
    box.append(instead);
    box.append(make("div", "pair", make("span", "", "Contrast, expert against base"), make("b", "", nats(contrast))));
    box.append(meter(contrast || 0));
    const rows = make("div", "rows");
    for (const [name, value] of [["target", target], ["expert", expert], ["base", base], ["together", logp]]) {
      if (value === null && (name === "expert" || name === "base")) continue;
      rows.append(make("span", "", name), bar(value), make("span", "r", chance(value)));
    }
    box.append(make("h3", "", "Probability of what was written"), rows);
    const lists = ["Target", "Expert", "Base", "Together"].map((name, i) => tops[i].length ? list(name, tops[i]) : "").filter(Boolean);
    if (lists.length) box.append(make("h3", "", "Likeliest after the same text"), make("div", "tops", ...lists));
    return box;
  }

  function show(number) {
    if (number === shown) return;
    if (shown >= 0) cells[shown].classList.remove("on");
    shown = number;
    panel.replaceChildren();
    panel.hidden = number < 0;
    if (number < 0) { here.setAttribute("visibility", "hidden"); return; }
    cells[number].classList.add("on");
    const own = stepsOf[number];
    const where = make("div", "where", make("span", "", place(own)));
    panel.append(where);
    if (number === pinned) where.append(letGo());
    own.forEach((index, i) => { if (i) panel.append(make("hr")); panel.append(about(index)); });
    if (!own.length) panel.append(make("p", "", "Held back when the answer was interrupted; no token is known."));
    panel.scrollTop = 0;
    here.setAttribute("x", own.length ? own[0] : 0);
    here.setAttribute("width", Math.max(own.length, steps.length / 300));
    here.setAttribute("visibility", own.length ? "visible" : "hidden");
  }
  function place(own) {
    if (!own.length) return "";
    if (own.length === 1) return "Token " + (own[0] + 1) + " of " + steps.length;
    return "Tokens " + (own[0] + 1) + " to " + (own[own.length - 1] + 1) + " of " + steps.length + ": parts of one sign";
  }
  function letGo() {
    const button = make("button", "let", "Let go");
    button.type = "button";
    button.addEventListener("click", () => { const at = pinned; pin(-1); move(at); });
    return button;
  }
  function pin(number) {
    if (pinned >= 0) { cells[pinned].classList.remove("pin"); cells[pinned].removeAttribute("aria-selected"); }
    pinned = number;
    if (number >= 0) { cells[number].classList.add("pin"); cells[number].setAttribute("aria-selected", "true"); }
    const again = number >= 0 ? number : shown;
    shown = shown >= 0 ? (cells[shown].classList.remove("on"), -1) : -1;
    show(again);
  }
  function take(number) {
    cells[current].tabIndex = -1;
    current = number;
    cells[number].tabIndex = 0;
  }
  function move(number) {
    const next = Math.max(0, Math.min(cells.length - 1, number));
    take(next);
    cells[next].focus();
  }
  function tell(number) {
    const own = stepsOf[number];
    document.getElementById("status").textContent = own.map((index) => {
      const step = steps[index];
      const text = (pieces[step[1]] || END) + ", contrast " + nats(step[7]);
      return step[10] ? text + ", changed; the target alone would have written " + (pieces[step[5]] || END) : text;
    }).join("; ");
  }
  // The nearest token of the line above or below.
  function beside(from, way) {
    const box = cells[from].getClientRects()[0] || cells[from].getBoundingClientRect();
    const middle = box.left + box.width / 2;
    let best = from, distance = Infinity, line = null;
    for (let i = from + way; i >= 0 && i < cells.length; i += way) {
      const other = cells[i].getClientRects()[0] || cells[i].getBoundingClientRect();
      if (line === null) { if (Math.abs(other.top - box.top) < box.height / 2) continue; line = other.top; }
      if (Math.abs(other.top - line) > box.height / 2) break;
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
  const numberOf = (target) => target instanceof Element && target.closest(".t") ? Number(target.closest(".t").id.slice(1)) : -1;

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
      Enter: () => pin(pinned === at ? -1 : at), " ": () => pin(pinned === at ? -1 : at),
    };
    if (!Object.hasOwn(moves, event.key)) return;
    event.preventDefault();
    moves[event.key]();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (pinned >= 0) pin(-1);
    else show(-1);
  });
  strip.addEventListener("focusin", (event) => {
    const at = numberOf(event.target);
    if (at < 0) return;
    take(at);
    tell(at);
    if (pinned < 0) show(at);
  });
  strip.addEventListener("mouseover", (event) => {
    const at = numberOf(event.target);
    if (at >= 0 && pinned < 0) show(at);
  });
  strip.addEventListener("click", (event) => {
    const at = numberOf(event.target);
    if (at < 0 || !getSelection().isCollapsed) return;
    take(at);
    pin(pinned === at ? -1 : at);
  });

  // The chart is a way into the text as well.
  function cellAt(event) {
    const box = chart.getBoundingClientRect();
    const index = Math.floor((event.clientX - box.left) / box.width * chart.viewBox.baseVal.width);
    return index >= 0 && index < steps.length ? steps[index][0] : -1;
  }
  chart.addEventListener("mousemove", (event) => {
    const at = cellAt(event);
    if (at >= 0 && pinned < 0) show(at);
  });
  chart.addEventListener("click", (event) => {
    const at = cellAt(event);
    if (at < 0) return;
    pin(at);
    move(at);
  });

  // Links of the table lead to the token, and pin it.
  function follow() {
    const at = /^#t\d+$/.test(location.hash) ? Number(location.hash.slice(2)) : -1;
    if (at < 0 || at >= cells.length) return false;
    pin(at);
    move(at);
    return true;
  }
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element && event.target.closest('a[href^="#t"]');
    if (link && link.hash === location.hash) follow(); // the second time nothing changes
  });
  addEventListener("hashchange", follow);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));

  // In a narrow window the panel would cover the text before anyone asked for it.
  if (!follow() && matchMedia("(min-width: 60.01rem)").matches) {
    const first = document.querySelector('.shifts a[href^="#t"]');
    show(first ? Number(first.hash.slice(2)) : 0);
  }
})();
