(() => {
  const strip = document.getElementById("strip");
  if (!strip) return;
  const { pieces, steps } = JSON.parse(document.getElementById("data").textContent);
  const panel = document.getElementById("detail");
  const here = document.getElementById("here");
  const chart = document.getElementById("chart");
  const text = (index) => pieces[index] || END;
  const stepsOf = Array.from(strip.getElementsByClassName("t"), () => []);
  steps.forEach((step, index) => stepsOf[step[0]].push(index));

  function bar(logp) {
    const fill = make("i");
    fill.style.width = logp === null ? "0" : 100 * Math.exp(Math.min(logp, 0)) + "%";
    return make("div", "bar", fill);
  }
  function list(title, flat) {
    const items = make("ol");
    for (let i = 0; i < flat.length; i += 2) {
      items.append(make("li", "", piece(pieces[flat[i]]), make("span", "r", chance(flat[i + 1]))));
    }
    return make("div", "", make("h3", "", title), items);
  }

  function about(index) {
    const [, said, logp, target, rank, own, ownLogp, contrast, expert, base, changed, drawn, ...tops] = steps[index];
    const box = make("div");
    const title = make("p", "said", piece(pieces[said]));
    if (changed) title.append(make("span", "chip", "changed"));
    box.append(title);
    const instead = make("p", "instead");
    if (said === own) instead.append("The target alone would have written the same, with " + chance(ownLogp) + ".");
    else instead.append("After the same text, the target alone would have written ", piece(pieces[own]), " (" + chance(ownLogp) + "). There, what was written has rank " + (rank + 1) + ".");
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

  function place(own) {
    if (!own.length) return "Held back when the answer was interrupted; no token is known.";
    if (own.length === 1) return "Token " + (own[0] + 1) + " of " + steps.length;
    return "Tokens " + (own[0] + 1) + " to " + (own[own.length - 1] + 1) + " of " + steps.length + ": parts of one sign";
  }
  function describe(number) {
    const own = number < 0 ? [] : stepsOf[number];
    here.setAttribute("x", own.length ? own[0] : 0);
    here.setAttribute("width", Math.max(own.length, steps.length / 300));
    here.setAttribute("visibility", own.length ? "visible" : "hidden");
    if (number < 0) return [];
    const where = make("div", "where", make("span", "", place(own)));
    return [where, ...own.flatMap((index, i) => i ? [make("hr"), about(index)] : [about(index)])];
  }
  function tell(number) {
    return stepsOf[number].map((index) => {
      const [, said, , , , own, , contrast, , , changed] = steps[index];
      const line = text(said) + ", contrast " + nats(contrast);
      return changed ? line + ", changed; the target alone would have written " + text(own) : line;
    }).join("; ");
  }
  const { cells, move, peek, pin } = walk(strip, document.getElementById("detail"), document.getElementById("status"), describe, tell, { hover: true });

  // The chart is a way into the text as well.
  function cellAt(event) {
    const box = chart.getBoundingClientRect();
    const index = Math.floor((event.clientX - box.left) / box.width * chart.viewBox.baseVal.width);
    return index >= 0 && index < steps.length ? steps[index][0] : -1;
  }
  chart.addEventListener("mousemove", (event) => peek(cellAt(event)));
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
    peek(first ? Number(first.hash.slice(2)) : 0);
  }
})();
