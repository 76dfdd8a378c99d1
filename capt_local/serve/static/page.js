(() => {
  const at = (id) => document.getElementById(id);
  const LEVELS = 8;
  const ROLES = { target: "General model", expert: "Clinical expert", base: "Expert's base" };
  // The key stands behind the # alone, which no browser sends; nothing is stored.
  let key = new URLSearchParams(location.hash.slice(1)).get("key") || "";
  let about = null;
  let run = null; // what is being written: its controller, and how many streams are open
  let last = null; // the answer that is shown, and what was asked
  let counting = 0;

  // As `visible` of the reports: what would reorder or hide text is spelled out.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}\p{Cs}]/gu;
  const visible = (text) => text.replace(HIDDEN, (c) => "\\u" + c.codePointAt(0).toString(16).padStart(4, "0"));
  const line = (text) => visible(text).replaceAll("\n", "\\n").replaceAll("\t", "\\t");
  const level = (value) => Math.round(Math.min(Math.max((value || 0) / LIMIT, -1), 1) * LEVELS) || 0;
  const many = (count, name) => count.toLocaleString("en") + " " + name + (count === 1 ? "" : "s");

  function toast(text) {
    at("toast").textContent = text;
    at("toast").classList.add("shown");
    clearTimeout(toast.timer);
    toast.timer = setTimeout(() => at("toast").classList.remove("shown"), 3500);
  }
  function state(kind, text) {
    at("state").className = "state " + kind;
    at("state-text").textContent = text;
  }
  function problem(text) {
    at("problem").hidden = !text;
    at("problem").textContent = text || "";
  }

  class Refused extends Error {
    constructor(error) { super(error.message); this.error = error; }
  }
  // Who listens here now must know the key before it gets a note: the server may have ended, and
  // another account have taken its port. (Where a page has no such functions, TLS says who it is.)
  async function prove(signal) {
    if (!key || !crypto.subtle) return;
    const bytes = (text) => new TextEncoder().encode(text), nonce = crypto.randomUUID();
    const { proofs } = await (await fetch("/proof?" + nonce, { cache: "no-store", credentials: "omit", signal })).json();
    const own = await crypto.subtle.importKey("raw", bytes(key), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    const wanted = new Uint8Array(await crypto.subtle.sign("HMAC", own, bytes("proof " + nonce)));
    if (proofs.includes([...wanted].map((each) => each.toString(16).padStart(2, "0")).join(""))) return;
    if (!at("gate").open) at("gate").showModal();
    throw new Refused({ message: "The server does not know this key, so nothing was sent to it." });
  }
  async function ask(path, body, signal) {
    await prove(signal);
    const options = { headers: { authorization: "Bearer " + key }, cache: "no-store", credentials: "omit", signal };
    if (body !== undefined) {
      options.method = "POST";
      options.body = body instanceof Blob ? body : JSON.stringify(body);
    }
    const response = await fetch(path, options);
    if (response.ok) return response;
    let error = { message: "The server answered with " + response.status + "." };
    try { error = (await response.json()).error; } catch { /* not ours */ }
    if (response.status === 401 && !at("gate").open) at("gate").showModal();
    throw new Refused(error);
  }
  function explain(error) {
    if (!(error instanceof Refused)) return "The server cannot be reached. Is capt-local still running? Your note is still here.";
    const { code, prompt_tokens_by_model: counts, context_limit: limit } = error.error;
    if (code !== "context_length_exceeded" || !counts) return error.message;
    const each = Object.entries(counts).map(([role, count]) => name(role).toLowerCase() + " " + count.toLocaleString("en"));
    return "The note is too long: " + each.join(", ") + " tokens, and " + limit.toLocaleString("en") + " fit. Shorten it; nothing was cut and nothing was computed.";
  }
  const name = (role) => ROLES[role] || role.replace("-", " ");

  // What is asked.
  const chosen = () => about && about.tasks.find((task) => task.name === (document.querySelector("#library :checked") || {}).value);
  function prompt() {
    const task = chosen();
    const own = !task || !task.prompt;
    const words = own ? at("question").value.trim() : task.prompt;
    const note = at("note").value.trim();
    return { note, words, task, text: note && words ? note + "\n\n" + words : note || words };
  }
  const messages = (text) => [{ role: "user", content: text }];

  function meters(found) {
    at("counts").replaceChildren(...Object.entries(found).map(([role, { tokens, limit }]) => {
      const fill = make("i");
      fill.style.width = Math.min(100, 100 * tokens / limit) + "%";
      const count = tokens.toLocaleString("en") + " of " + limit.toLocaleString("en") + " tokens";
      return make("div", tokens >= limit ? "over" : "", make("dt", "", name(role)), make("dd", "gauge", fill), make("dd", "", count));
    }));
  }
  function count() {
    clearTimeout(count.timer);
    count.timer = setTimeout(async () => {
      if (!about) return;
      const { text } = prompt(), number = ++counting;
      const none = Object.fromEntries(Object.entries(about.contexts).map(([role, limit]) => [role, { tokens: 0, limit }]));
      if (!text) return meters(none);
      try {
        const found = await (await ask("/count", { messages: messages(text) })).json();
        if (number === counting) meters(found);
      } catch { /* the answer will say it */ }
    }, 350);
  }

  // An answer that grows: cells of text, each with its tokens.
  const strip = at("strip");
  const walker = walk(strip, at("detail"), at("told"), describe, tell);
  let cells = [], entries = [], waiting = [], size = 0, statements = [];

  function clear() {
    cells = []; entries = []; waiting = []; size = 0; statements = [];
    walker.clear();
    at("plain").textContent = "";
    for (const id of ["figures", "plain-figures"]) at(id).textContent = "";
    for (const id of ["warnings", "table"]) { at(id).hidden = true; at(id).replaceChildren(); }
    at("traced").hidden = true;
    at("result").classList.remove("asdata");
    problem("");
  }
  const WORD = /[\p{L}\p{N}\p{M}_'\u2019-]/u;
  function add(text, entry) {
    if (entry) { entries.push(entry); waiting.push(entries.length - 1); }
    if (!text) return;
    const begin = size; // in characters, as the server counts
    size += [...text].length;
    text = visible(text);
    const before = cells[cells.length - 1];
    if (before && /^[\p{M}\u200d\u{1f3fb}-\u{1f3ff}]/u.test(text)) {
      before.node.append(text);
      before.text += text;
      before.own.push(...waiting);
      before.end = size;
    } else {
      const core = text.trim();
      const start = core ? text.indexOf(core) : 0;
      const node = make("span", "t", core || text);
      const goes = before && !before.ends && !start && core && WORD.test(before.text.slice(-1)) && WORD.test(core[0]);
      if (start) strip.append(text.slice(0, start));
      place(node, core ? "" : text.includes("\n") ? "line break" : "white space", goes ? before.word : null);
      const rest = core ? text.slice(start + core.length) : "";
      if (rest) strip.append(rest);
      if (!core && text.includes("\n")) node.classList.add("n");
      cells.push({ node, text: core || text, own: [...waiting], ends: Boolean(rest) || !core, word: node.parentNode, begin, end: size });
    }
    waiting = [];
    mark(cells[cells.length - 1]);
  }
  // A word is outlined as a whole, so its tokens stand in one element.
  function place(node, label, word) {
    node.setAttribute("role", "option");
    node.id = "t" + cells.length;
    node.tabIndex = cells.length ? -1 : 0;
    if (label) node.setAttribute("aria-label", label);
    if (!word) {
      word = make("span", "w");
      word.setAttribute("role", "presentation");
      strip.append(word);
    }
    word.append(node);
  }
  function mark(cell) {
    const own = cell.own.map((index) => entries[index].capt);
    const contrast = own.map((one) => one.delta).filter((delta) => delta !== null).sort((a, b) => Math.abs(b) - Math.abs(a))[0];
    const strength = level(contrast);
    cell.node.classList.add("s" + strength);
    if (!own.some((one) => one.changed)) return;
    cell.node.classList.add("c");
    cell.word.classList.add("c");
  }
  function finishStrip(finish) {
    if (waiting.length && finish === "stop") {
      const node = make("span", "t e");
      place(node, END);
      cells.push({ node, text: "", own: [...waiting], ends: true, word: node.parentNode });
      waiting = [];
      mark(cells[cells.length - 1]);
    }
  }
  function words() {
    const all = [...strip.querySelectorAll(".w")].filter((word) => WORD.test(word.textContent));
    return [all.filter((word) => word.classList.contains("c")).length, all.length];
  }

  // What the note has of the answer.
  const covers = (one, cell) => cell.begin < one.end && cell.end > one.start;
  function trace(found, note) {
    if (!found || found.of !== "document") return;
    const points = [...note];
    const jump = ([start, end]) => {
      const field = at("note"), from = field.value.indexOf(note);
      if (from < 0) return toast("The note has changed since.");
      const place = (point) => from + points.slice(0, point).join("").length;
      field.setSelectionRange(place(start), place(end));
      field.blur(); // a browser scrolls to what is selected when the field gets the focus
      field.focus();
    };
    for (const fact of found.facts) {
      if (fact.match === "unsupported") cells.filter((cell) => covers(fact, cell)).forEach((cell) => cell.node.classList.add("u"));
    }
    statements = found.statements;
    statements.forEach((one, index) => {
      const end = cells.findLast((cell) => covers(one, cell));
      if (end) end.node.dataset.s = index + 1 + (one.supported ? "" : "?");
    });
    const rows = statements.length ? statements : found.facts;
    at("sources").replaceChildren(...rows.map((one) => {
      const words = (one.path ? one.path + ": " : "") + visible(one.text.trim()), button = make("button", "", words);
      button.type = "button";
      button.addEventListener("click", () => jump(one.source));
      const lacks = one.supported === false || one.match === "unsupported";
      return make("li", "", one.source ? button : words, lacks ? make("strong", "lacks", " not found") : "");
    }));
    at("traced").hidden = !rows.length;
  }

  // One token: what each model would have written.
  function list(title, choices, said, logp) {
    const items = make("ol");
    for (const choice of choices) {
      const item = make("li", choice.token === said ? "said-here" : "", piece(line(choice.token)), make("span", "r", chance(choice.logprob)));
      item.style.setProperty("--share", 100 * Math.exp(Math.min(choice.logprob, 0)) + "%");
      items.append(item);
    }
    return make("div", "", make("h3", "", make("span", "", title), make("span", "r", chance(logp))), items);
  }
  function detail(index) {
    const entry = entries[index], { capt } = entry;
    const title = make("p", "said", piece(line(entry.token)));
    if (capt.changed) title.append(make("span", "chip", "changed by the expert"));
    const instead = make("p", "instead");
    const own = capt.target_choice;
    if (own.id === entry.id) instead.append("The general model alone would have written the same.");
    else instead.append("After the same text, the general model alone would have written ", piece(line(own.token)), " (" + chance(own.logprob) + ").");
    if (capt.likeliest_id !== null) instead.append(" This token was drawn at random.");
    const pair = make("p", "pair", make("span", "", "Expert against its base"), make("b", "", nats(capt.delta)));
    const lists = make("div", "lists");
    const all = [["target", capt.target_top, capt.target_logprob], ["expert", capt.expert_top, capt.expert_logprob], ["base", capt.base_top, capt.base_logprob]];
    for (const [role, choices, logp] of all) if (choices.length) lists.append(list(name(role), choices, entry.token, logp));
    lists.append(list("Together", entry.top_logprobs, entry.token, entry.logprob));
    return [make("div", "", title, instead, pair, meter(capt.delta || 0)), lists];
  }
  function describe(number) {
    if (number < 0) return [];
    const { own } = cells[number];
    const where = own.length ? "Token " + (own[0] + 1) + " of " + entries.length + ". Beside each name: the probability of what was written; below: the likeliest." : "Held back; no token is known.";
    return [make("div", "where", make("span", "", where)), ...own.flatMap(detail)];
  }
  function tell(number) {
    return cells[number].own.map((index) => {
      const { token, capt } = entries[index];
      return (line(token) || END) + (capt.changed ? ", changed; the general model alone would have written " + (line(capt.target_choice.token) || END) : "");
    }).join("; ");
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !run) at("form").requestSubmit();
  });

  // A stream of the server: calls `each` with its chunks; returns the object of the whole answer.
  async function stream(body, signal, each) {
    const response = await ask("/v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const whole = { choices: [{ index: 0, message: { role: "assistant", content: "" }, finish_reason: null, logprobs: { content: [] } }] };
    const [choice] = whole.choices;
    for (let rest = "", ended = false; !ended;) {
      const { value, done } = await reader.read();
      if (done) throw new TypeError("cut off");
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue;
        if (event === "data: [DONE]") { ended = true; continue; }
        const chunk = JSON.parse(event.slice(6));
        if (chunk.error) throw new Refused(chunk.error);
        const part = chunk.choices[0];
        if (!part) { Object.assign(whole, chunk, { choices: whole.choices, object: "chat.completion" }); continue; }
        const text = part.delta.content || "", [entry] = part.logprobs ? part.logprobs.content : [];
        choice.message.content += text;
        if (part.delta.reasoning_content) choice.message.reasoning_content = (choice.message.reasoning_content || "") + part.delta.reasoning_content;
        if (entry) choice.logprobs.content.push(entry);
        choice.finish_reason = part.finish_reason || choice.finish_reason;
        each(text, entry, part);
      }
    }
    choice.finish_reason = whole.capt.finish;
    return whole;
  }
  function figures(whole) {
    const { usage, timings } = whole;
    const speed = usage.completion_tokens / Math.max(timings.generate_seconds, 1e-3);
    const read = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens;
    return many(usage.completion_tokens, "token") + ", " + speed.toFixed(1) + " a second. The prompt has " + many(usage.prompt_tokens, "token") + (read < usage.prompt_tokens ? ", " + read.toLocaleString("en") + " of them read anew." : ".");
  }
  function caution(whole) {
    const { finish } = whole.capt, notes = [...(whole.warnings || [])];
    const own = { length: "The answer reached its largest length and may be incomplete; \u201cLongest answer\u201d in the settings allows more.", repetition: "The answer repeated itself and was ended." };
    const shownNotes = notes.filter((note) => !about.notices.includes(note) && !/^the answer (was ended after|repeated itself)/.test(note));
    if (own[finish]) shownNotes.unshift(own[finish]);
    at("warnings").replaceChildren(...shownNotes.map((note) => make("li", "", visible(note))));
    at("warnings").hidden = !shownNotes.length;
  }

  async function write({ fresh = false } = {}) {
    if (run || !about) return;
    const { note, text, task } = prompt();
    if (!text) { toast("Paste a note, or ask a question."); return at(note ? "question" : "note").focus(); }
    if (task && !task.prompt && !at("question").value.trim()) { toast("Type your question first."); return at("question").focus(); }
    const body = { model: about.bundle, messages: messages(text), capt: { top: 3 } };
    if (note && note.length <= 1 << 18) body.capt.document = note;
    if (at("length").value) body.max_tokens = Number(at("length").value);
    else if (task && task.max_tokens) body.max_tokens = task.max_tokens;
    if (at("alpha").value) body.capt.alpha = Number(at("alpha").value);
    for (const input of document.querySelectorAll("#adapters input")) {
      if (!input.reportValidity()) return;
      body.capt.adapter_scales ||= {};
      (body.capt.adapter_scales[input.dataset.role] ||= []).push(Number(input.value || input.defaultValue));
    }
    if (task && task.json_schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(task.json_schema) } };
    if (at("candidates").value > 1) Object.assign(body, { best_of: Number(at("candidates").value), temperature: 1 });
    if (fresh) Object.assign(body, { temperature: 0.7, top_p: 0.95, seed: crypto.getRandomValues(new Uint32Array(1))[0] });
    clear();
    last = { body, note, task, answer: null, alone: null };
    at("welcome").hidden = true;
    at("result").hidden = false;
    at("tools").hidden = false;
    at("told").textContent = "The note is being read.";
    at("printed").textContent = (task ? task.title : "") + ", " + new Date().toLocaleString() + ", " + about.bundle + ", capt-local " + about.version;
    if (matchMedia("(max-width: 62rem)").matches) at("answer").scrollIntoView();
    const started = begin("Reading");
    strip.classList.add("caret");
    const jobs = [together(started)];
    if (at("beside").checked) jobs.push(without(started));
    await Promise.all(jobs);
    end(started);
  }
  async function together(started) {
    const { body, task } = last;
    const asked = last;
    try {
      const whole = await stream(body, started.signal, (text, entry) => {
        if (!entries.length && run) state("busy", "Writing");
        add(text, entry);
      });
      finishStrip(whole.capt.finish);
      if (asked === last) last.answer = whole;
      const [changed, of] = words();
      const share = Object.keys(whole.usage.prompt_tokens_by_model).length > 1 ? "The expert changed " + changed + " of " + many(of, "word") + ". " : "";
      at("figures").textContent = share + figures(whole);
      at("told").textContent = "The answer is finished. " + share;
      caution(whole);
      trace(whole.capt.sources, asked.note);
      if (whole.usage.context_by_model) meters(whole.usage.context_by_model);
      if (task && task.json_schema) tabulate(whole.choices[0].message.content);
    } catch (error) {
      failed(error, "figures");
    } finally {
      strip.classList.remove("caret");
    }
  }
  async function without(started) {
    const asked = last;
    at("alone").hidden = false;
    at("both").classList.add("compared");
    const plain = at("plain");
    plain.textContent = "";
    plain.classList.add("caret");
    try {
      const scales = asked.body.capt.adapter_scales, own = scales && scales.target ? { adapter_scales: { target: scales.target } } : {};
      const body = { ...asked.body, model: about.bundle + ":target", capt: { top: 0, ...own } };
      const whole = await stream(body, started.signal, (text) => plain.append(visible(text)));
      if (asked === last) last.alone = whole;
      at("plain-figures").textContent = figures(whole);
    } catch (error) {
      failed(error, "plain-figures");
    } finally {
      plain.classList.remove("caret");
    }
  }
  function failed(error, where) {
    if (error.name === "AbortError") { at(where).textContent = "Stopped; the answer is incomplete."; at("told").textContent = "Stopped."; return; }
    if (entries.length) at(where).textContent = "The answer is incomplete.";
    problem(explain(error));
  }
  function begin(text) {
    run = new AbortController();
    state("busy", text);
    at("write").hidden = true;
    at("stop").hidden = false;
    for (const id of ["again", "save"]) at(id).disabled = true;
    if (document.activeElement === at("write") || document.activeElement === document.body) at("stop").focus();
    return run;
  }
  function end() {
    run = null;
    state("ready", "Ready");
    at("write").hidden = false;
    if (document.activeElement === at("stop") || document.activeElement === document.body) at("write").focus();
    at("stop").hidden = true;
    at("again").disabled = false;
    at("save").disabled = !(last && last.answer);
  }

  // A structured answer as a table; cells with a changed token lead to it.
  function tabulate(content) {
    let value;
    // Of an answer that broke off, the rows that are whole.
    for (const text of [content, content.slice(0, content.lastIndexOf("}") + 1) + "]}"]) {
      try { value = JSON.parse(text); break; } catch { /* the next one */ }
    }
    if (!value) return;
    const rows = Array.isArray(value) ? value : Object.values(value).find(Array.isArray);
    if (!rows || !rows.every((row) => row && typeof row === "object")) return;
    at("result").classList.add("asdata");
    at("table").hidden = false;
    if (!rows.length) return at("table").replaceChildren(make("p", "", "The answer lists nothing. That does not say that the note holds nothing."));
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    const starts = [];
    let size = 0, from = 0;
    const flat = entries.map((entry) => entry.token).join("");
    entries.forEach((entry) => { starts.push(size); size += entry.token.length; });
    const head = make("tr", "", ...names.map((each) => { const cell = make("th", "", visible(each)); cell.scope = "col"; return cell; }));
    const body = rows.map((row) => make("tr", "", ...names.map((each) => {
      const text = row[each] === undefined || row[each] === null ? "" : typeof row[each] === "object" ? JSON.stringify(row[each]) : String(row[each]);
      const spelled = typeof row[each] === "string" ? JSON.stringify(text) : text;
      const found = spelled ? flat.indexOf(spelled, from) : -1;
      if (found < 0) return make("td", "", visible(text));
      from = found + spelled.length;
      const hit = entries.findIndex((entry, i) => entry.capt.changed && starts[i] < from && starts[i] + entry.token.length > found);
      if (hit < 0 || !text) return make("td", "", visible(text));
      const button = make("button", "cell c", visible(text));
      button.type = "button";
      button.title = "Changed by the expert";
      button.addEventListener("click", () => walker.pin(cells.findIndex((cell) => cell.own.includes(hit))));
      return make("td", "", button);
    })));
    at("table").replaceChildren(make("table", "", make("thead", "", head), make("tbody", "", ...body)));
  }

  // Files.
  async function read(files) {
    for (const file of files) {
      const kind = file.name.includes(".") ? file.name.split(".").pop().toLowerCase() : "";
      try {
        let text, notes = [];
        if (about && about.documents.includes(kind)) {
          state("busy", "Reading the file");
          ({ text, notices: notes } = await (await ask("/documents?kind=" + encodeURIComponent(kind), file)).json());
        } else {
          text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
          if (text.includes("\0")) throw new TypeError("binary");
        }
        const before = at("note").value.trim();
        at("note").value = before ? before + "\n\n" + text : text;
        toast("Read " + many(text.length, "character") + (notes.length ? "; " + notes.join("; ") : "") + ". Check that nothing is missing.");
      } catch (error) {
        toast(error instanceof Refused ? error.message : "This file is not read. These are: text (UTF-8), " + about.documents.join(", ") + ".");
      }
    }
    if (!run) state("ready", "Ready");
    changed();
  }
  function changed() {
    at("clear").hidden = !at("note").value;
    at("example").hidden = !about || !about.example || Boolean(at("note").value);
    count();
  }
  let depth = 0;
  const holds = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  addEventListener("dragenter", (event) => { if (holds(event)) { depth++; at("drop").hidden = false; } });
  addEventListener("dragleave", (event) => { if (holds(event) && --depth <= 0) { depth = 0; at("drop").hidden = true; } });
  addEventListener("dragover", (event) => { if (holds(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    depth = 0;
    at("drop").hidden = true;
    read(event.dataTransfer.files);
  });

  // Buttons.
  at("form").addEventListener("submit", (event) => { event.preventDefault(); write(); });
  at("stop").addEventListener("click", () => run && run.abort());
  at("again").addEventListener("click", () => write({ fresh: true }));
  at("copy").addEventListener("click", async () => {
    const text = last && last.answer ? last.answer.choices[0].message.content : entries.map((entry) => entry.token).join("");
    await navigator.clipboard.writeText(text);
    toast("Copied. A draft: check it against the note.");
  });
  at("print").addEventListener("click", () => print());
  at("save").addEventListener("click", async () => {
    try {
      const { answer, alone, note } = last;
      const blob = await (await ask("/report", { answer, alone, note })).blob();
      const link = make("a");
      link.href = URL.createObjectURL(blob);
      link.download = "capt-report.html";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      toast("Saved. The file holds patient data.");
    } catch (error) { problem(explain(error)); }
  });
  at("open").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => { read(at("file").files); at("file").value = ""; });
  at("clear").addEventListener("click", () => { at("note").value = ""; changed(); at("note").focus(); });
  at("example").addEventListener("click", () => { at("note").value = about.example; changed(); });
  for (const id of ["note", "question"]) at(id).addEventListener("input", changed);
  at("beside").addEventListener("change", async () => {
    const on = at("beside").checked;
    if (!on && !run) { at("alone").hidden = true; at("both").classList.remove("compared"); }
    if (on && last && last.answer && !last.alone && !run) { const started = begin("Writing"); await without(started); end(); }
    else if (on && last && last.alone) { at("alone").hidden = false; at("both").classList.add("compared"); }
  });
  at("heat").addEventListener("change", () => strip.classList.toggle("heat", at("heat").checked));
  at("gate-form").addEventListener("submit", () => { key = at("key").value.trim(); at("key").value = ""; connect(); });

  function choose() {
    const task = chosen();
    at("hint").textContent = task ? task.hint || "" : "";
    at("own").hidden = Boolean(task && task.prompt);
    count();
  }
  async function connect() {
    try {
      about = await (await ask("/about")).json();
    } catch (error) {
      if (!at("gate").open) { state("bad", "Not connected"); problem(explain(error)); }
      else state("bad", "Locked");
      return;
    }
    at("bundle").textContent = about.bundle + (about.title ? ": " + about.title : "");
    at("version").textContent = "capt-local " + about.version;
    at("save").hidden = !about.reports;
    at("library").replaceChildren(...about.tasks.map((task, number) => {
      const input = make("input");
      Object.assign(input, { type: "radio", name: "task", value: task.name, checked: number === 0 });
      input.addEventListener("change", choose);
      return make("label", "", input, make("span", "", task.title));
    }));
    at("length").placeholder = about.max_tokens;
    at("adapters").replaceChildren(...Object.entries(about.adapters).flatMap(([role, all]) => all.map((one) => {
      const input = make("input");
      Object.assign(input, { type: "number", min: -8, max: 8, step: 0.05, defaultValue: one.scale });
      input.dataset.role = role;
      return make("label", "", "Scale of " + one.name + " on the " + name(role).toLowerCase(), input);
    })));
    state("ready", "Ready");
    choose();
    changed();
  }
  for (let n = -LEVELS; n <= LEVELS; n++) at("scale").append(make("i", "s" + n));
  connect();
})();
