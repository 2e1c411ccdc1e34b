// The status page. One stream brings an overview a second; what it says has changed is asked for.
import { bar, depth, ladder, sparkline, strip } from "./charts.js";
import * as w from "./words.js";

const HISTORY = 120; // seconds of rates in a sparkline
const BOOK_EVERY_MS = 2000;
const HOST_EVERY_MS = 30000;
const LOST_AFTER_MS = 5000;

const $ = (id) => document.getElementById(id);
const state = { overview: null, heardAt: 0, rates: { read: [], merged: [] }, day: null, seen: {}, asked: {}, wished: {}, cell: null, market: null, shown: null };

function el(name, props = {}, ...children) {
  const made = Object.assign(document.createElement(name), props);
  made.append(...children);
  return made;
}
function put(node, text) { if (node.textContent !== text) node.textContent = text; }

async function ask(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" } });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error || answer.statusText);
  return body;
}

// Ask, and show what came or why it did not; never two at once for one place. What is wanted while
// another answer is on its way is asked for after it: the last wish counts.
async function fill(name, path, show, known) {
  if (state.asked[name]) { state.wished[name] = () => fill(name, path, show, known); return; }
  state.asked[name] = true;
  try {
    const body = await ask(path);
    show(body);
    if (known) {
      const trouble = body.known && body.known.trouble;
      known.classList.toggle("trouble", Boolean(trouble));
      put(known, trouble ? `Production does not answer (${trouble}). Shown: what was known ${w.lasted(body.known.age_ms)} ago.` : known.dataset.said || "");
    }
  } catch (error) {
    if (known) { known.classList.add("trouble"); put(known, String(error.message || error)); }
  }
  state.asked[name] = false;
  const next = state.wished[name];
  delete state.wished[name];
  if (next) await next();
}

// --- verdict, figures, fleet

function showVerdict(verdict) {
  $("verdict").className = `verdict ${verdict.word}`;
  put($("sign"), w.SIGNS[verdict.word]);
  put($("word-text"), w.WORDS[verdict.word]);
  put($("sentence"), verdict.sentence);
  document.title = `${w.SIGNS[verdict.word]} ${w.WORDS[verdict.word]} - Kalshi Tape`;
  const print = JSON.stringify(verdict.lines);
  if (state.seen.lines === print) return;
  state.seen.lines = print;
  const lines = verdict.lines.map((line) => {
    const where = line.series
      ? el("button", { type: "button", className: "name", textContent: line.where, onclick: () => openCell(line.series, line.hour_us) })
      : el("span", { textContent: line.where });
    return el("li", {}, el("span", { className: `weight ${line.weight === "degraded" ? "warn" : "bad"}`, textContent: line.weight }), where, el("span", { textContent: w.reason(line.why) }));
  });
  if (verdict.lines_left_out) lines.push(el("li", { textContent: `and ${verdict.lines_left_out} more` }));
  $("lines").replaceChildren(...lines);
}

// [name, value, small text, bad?, series of values]
function showFigures(node, rows) {
  for (const [n, [name, value, small, bad, drawn]] of rows.entries()) {
    let group = node.children[n];
    if (!group) {
      group = el("div", {}, el("dt"), el("dd", {}, el("span"), el("small")));
      node.append(group);
    }
    const [dt, dd] = group.children;
    put(dt, name);
    dd.className = `${bad ? "bad" : ""} ${value.length > 16 ? "long" : ""}`;
    dd.dataset.name = name;
    put(dd.children[0], value);
    put(dd.children[1], small ? ` ${small}` : "");
    if (drawn) {
      const made = sparkline(drawn);
      if (dd.children[2]) dd.children[2].replaceWith(made); else dd.append(made);
    }
  }
  while (node.children.length > rows.length) node.lastChild.remove();
}

function showPath(o) {
  const m = o.merge;
  for (const [name, value] of [["read", m.rows_read_per_s], ["merged", m.rows_merged_per_s]]) {
    state.rates[name].push(value || 0);
    if (state.rates[name].length > HISTORY) state.rates[name].shift();
  }
  showFigures($("figures"), [
    ["read, rows/s", w.count(m.rows_read_per_s), "", false, state.rates.read],
    ["merged, events/s", w.count(m.rows_merged_per_s), "", false, state.rates.merged],
    ["behind receipt", w.lasted(o.tape_lag_ms), m.finished ? "finished" : "", !m.finished && o.tape_lag_ms > 60000],
    ["closed to", m.closed_to_us ? w.clock(m.closed_to_us).slice(0, 8) : "–", m.closed_to_us ? w.day(m.closed_to_us) : ""],
    ["events on the tape", w.count(m.rows_merged), `of ${w.count(m.rows_in)} rows`],
    ["markets", w.count(m.markets)],
    ["gaps", w.count(m.gaps), "since the tape began", false],
    ["kept aside", w.count(m.quarantined), "rows", m.quarantined > 0],
    ["audits", w.count(m.audits), `failed ${w.count(m.audits_failed)}`, m.audits_failed > 0],
    ["ambiguous", w.count(m.ambiguous), `disputed ${w.count(m.disputed)}`, m.disputed > 0],
    ["lake version", w.count(o.lake.version), o.lake.hours_waiting ? `${o.lake.hours_waiting} h waiting` : ""],
    ["waiting for", m.waiting_for || "nothing", m.mergers ? `${m.mergers.length} mergers` : ""],
  ]);
}

const STATE_KIND = { reading: "ok", idle: "ok", ended: "ok", starting: "warn", down: "bad", refused: "bad" };
function showFleet(o) {
  const rows = o.gatherers.map((g) => {
    const cells = [[String(g.gatherer + 1), ""], [g.state + (g.reason ? `: ${g.reason}` : ""), `state ${STATE_KIND[g.state]}`], [w.count(g.connections), "n"], [w.count(g.batches_behind), "n"]];
    for (const name of ["orderbook", "trade", "ticker"]) {
      const c = g.channels[name] || {};
      const short = c.in_sequence < c.in_sequence_of_late;
      if (name !== "ticker") cells.push([`${short ? "! " : ""}${w.count(c.in_sequence)}/${w.count(c.in_sequence_of_late)}`, `n first ${short ? "bad" : ""}`]);
      cells.push([w.lasted(c.late_ms), `n ${name === "ticker" ? "first" : ""}`], [w.count(c.rows_per_s), "n"]);
    }
    return el("tr", {}, ...cells.map(([text, kind], n) => el(n ? "td" : "th", { textContent: text, className: kind, ...(n ? {} : { scope: "row" }) })));
  });
  $("fleet").replaceChildren(...rows);
  const told = Object.entries(o.witnesses).map(([n, seen]) => [Number(n), seen]).sort((a, b) => b[0] - a[0]);
  const total = told.reduce((sum, [, seen]) => sum + seen, 0);
  $("witnesses").replaceChildren(...told.map(([n, seen]) => el("div", { className: "witness" }, el("span", { textContent: `${n} gatherer${n > 1 ? "s" : ""}` }), bar(total ? seen / total : 0), el("span", { className: "count n", textContent: `${w.count(seen)} (${w.percent(seen, total)})` }))));
}

// --- tables

function table(node, heads, rows, empty) {
  const print = JSON.stringify(rows.map((row) => row.map((c) => (c instanceof Node ? c.textContent : c))));
  if (state.seen[node.id] === print) return;
  state.seen[node.id] = print;
  if (!rows.length) { node.replaceChildren(el("caption", { textContent: empty })); return; }
  const head = el("tr", {}, ...heads.map(([text, kind]) => el("th", { scope: "col", textContent: text, className: kind || "" })));
  const body = rows.map((row) => el("tr", {}, ...row.map((cell, n) => el("td", { className: heads[n][1] || "" }, cell))));
  node.replaceChildren(el("thead", {}, head), el("tbody", {}, ...body));
}

const pick = (market) => el("button", { type: "button", className: "name", textContent: market, onclick: () => showBookOf(market) });

function showGaps(told) {
  $("gaps-known").dataset.said = `${told.gaps.length} newest stretches that are not complete; windows that closed without everybody: ${told.unwaited.length}.`;
  table($("gaps"), [["from (exchange time)"], ["length", "n"], ["market"], ["kind"], ["reason", "wide"]],
    told.gaps.map((g) => [w.moment(g.from_us).slice(5), w.duration(g.to_us - g.from_us), pick(g.market), g.kind, w.reason(g.reason)]), "No gap is known.");
}
function showInterruptions(told) {
  put($("interruptions-known"), `${w.count(told.interrupted)} since this process began. Whether the tape lacks anything there, the merge decides.`);
  const KINDS = { run_end: "sequence ended", conn_close: "connection ended", problem: "frame not understood" };
  table($("interruptions"), [["received"], ["gatherer", "n"], ["channel"], ["what"], ["reason", "wide"]],
    told.interruptions.map((i) => [w.moment(i.received_ms * 1000).slice(11), String(i.gatherer + 1), i.channel || "–", KINDS[i.kind], w.reason(i.reason)]), "None since this process began.");
}
function showQuarantine(told) {
  table($("quarantine"), [["from (exchange time)"], ["market"], ["gatherer", "n"], ["rows", "n"], ["reason", "wide"]],
    told.quarantine.map((q) => [w.moment(q.from_us).slice(5), q.market ? pick(q.market) : "–", String(q.gatherer + 1), w.count(q.rows), q.reason]), "Nothing was kept aside.");
}
function showAudits(told) {
  $("audits-known").dataset.said = `${told.audits.filter((a) => !a.agrees).length} of the last ${told.audits.length} differ.`;
  table($("audits"), [["exchange time"], ["market"], ["gatherer", "n"], ["book"]],
    told.audits.map((a) => [w.moment(a.exchange_us).slice(5), pick(a.market), String(a.gatherer + 1), el("span", { className: a.agrees ? "ok" : "bad", textContent: a.agrees ? "agrees" : "DIFFERS" })]), "No snapshot was held against the book yet.");
}
function showHost(told) {
  showFigures($("host-figures"), [
    ["revision", told.revision],
    ["disk free", w.bytes(told.disk_free_bytes), `of ${w.bytes(told.disk_bytes)}`, told.disk_free_bytes < told.disk_bytes / 10],
    ["lake", w.bytes(told.lake_bytes), told.lake_objects === undefined ? "" : `${w.count(told.lake_objects)} objects, ${told.lake}`],
    ["production", w.bytes(told.production_bytes)],
    ["exported to", told.exported_hour_us ? `${w.hour(told.exported_hour_us).slice(11)}h` : "–", told.exported_hour_us ? w.day(told.exported_hour_us) : ""],
    ["memory of this process", w.bytes(told.memory_bytes)],
    ["page readers", w.count(state.overview ? state.overview.streams : null), "of 20"],
    ["cost", "bytes only", "a bill: make cost"],
  ]);
}

// --- coverage

const channel = () => $("channel").value;
function heatRow(head, cells, press, chosen) {
  const row = el("tr", {}, el("th", { scope: "row", textContent: head }));
  cells.forEach((told, n) => {
    const made = told.kind
      ? el("button", { type: "button", className: `cell ${told.kind}`, textContent: told.letter, title: told.said, tabIndex: -1, onclick: () => press(n) })
      : el("span", { className: "cell" });
    if (told.kind) made.setAttribute("aria-label", told.said);
    if (chosen === n) { made.classList.add("chosen"); made.setAttribute("aria-pressed", "true"); }
    row.append(el("td", {}, made));
  });
  return row;
}
function heat(node, name, rows) {
  const focused = node.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label").split(":")[0] : null;
  const heads = el("tr", {}, el("th", { scope: "col", textContent: name }), ...Array.from({ length: 24 }, (_, n) => el("th", { scope: "col", textContent: String(n).padStart(2, "0") })));
  node.replaceChildren(el("thead", {}, heads), el("tbody", {}, ...rows));
  const buttons = [...node.querySelectorAll("button")];
  if (buttons.length) (node.querySelector(".chosen") || buttons[0]).tabIndex = 0;
  const again = focused && buttons.find((b) => b.getAttribute("aria-label").startsWith(`${focused}:`));
  if (again) { again.tabIndex = 0; again.focus({ preventScroll: true }); }
}
// Arrow keys walk over the cells of a heat map; Tab leaves it.
function walk(event) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const step = steps[event.key];
  if (!step || event.target.tagName !== "BUTTON") return;
  event.preventDefault();
  const lines = [...event.currentTarget.tBodies[0].rows];
  let [y, x] = [lines.indexOf(event.target.closest("tr")), event.target.closest("td").cellIndex];
  for (;;) {
    y += step[0]; x += step[1];
    const cell = lines[y] && lines[y].cells[x];
    if (!cell || x < 1) return;
    const next = cell.querySelector("button");
    if (next) { event.target.tabIndex = -1; next.tabIndex = 0; next.focus(); return; }
  }
}

function showDays(told) {
  if (state.day === null && told.days.length) {
    const lacking = told.days.find((d) => d.hours.some((h) => h && h.lacking));
    state.day = (lacking || told.days[0]).day_us;
  }
  const rows = told.days.map((d) => heatRow(w.day(d.day_us), d.hours.map((h, n) => w.cellOf(h, `${w.day(d.day_us)} ${String(n).padStart(2, "0")}h`)), () => { state.day = d.day_us; coverage(true); }));
  told.days.forEach((d, n) => { if (d.day_us === state.day) rows[n].firstChild.append(" ◂"); });
  heat($("days"), "day", rows);
}
function showHours(told) {
  put($("hours-h"), `Series by hour, ${w.day(told.day_us)} UTC`);
  const rows = told.series.map((s) => heatRow(s.name, s.hours.map((h, n) => w.cellOf(h, `${s.name} ${String(n).padStart(2, "0")}h`)), (n) => openCell(s.name, told.day_us + n * 3600e6),
    state.cell && state.cell.series === s.name && state.cell.hour >= told.day_us ? (state.cell.hour - told.day_us) / 3600e6 : -1));
  heat($("hours"), "series", rows);
  const parts = [];
  if (!told.series.length) parts.push("No series on this day.");
  if (told.left_out) parts.push(`and ${w.count(told.left_out)} more series: narrow them by a part of their name`);
  if (told.not_summed.length) parts.push(`${told.not_summed.length} hours are not looked at yet`);
  put($("hours-more"), parts.join("; "));
}
async function coverage(force) {
  const known = $("coverage-known");
  const made = state.overview && state.overview.coverage_known;
  known.dataset.said = made ? `As of ${w.moment(made.at_ms * 1000).slice(11)} UTC. The running hour counts as far as it is closed.` : "";
  if (force) state.seen.coverage = null;
  await fill("days", `/api/coverage/days?channel=${channel()}`, showDays, known);
  if (state.day === null) return;
  const part = encodeURIComponent($("part").value.trim().toUpperCase());
  await fill("hours", `/api/coverage/hours?day=${w.day(state.day)}&channel=${channel()}&part=${part}`, showHours, known);
}

async function openCell(series, hour) {
  state.cell = { series, hour };
  state.day = hour - (hour % 86400e6);
  $("markets").hidden = false;
  put($("markets-h"), `${series}, ${w.hour(hour)}h: markets`);
  coverage(true);
  await showCell();
  $("markets-h").focus({ preventScroll: true });
  $("markets").scrollIntoView({ block: "nearest" });
}
const showCell = () => fill("cell", `/api/coverage/markets?series=${encodeURIComponent(state.cell.series)}&hour=${w.hour(state.cell.hour)}&channel=${channel()}`, (told) => {
  const lacking = told.markets.filter((m) => m.lack_us).length;
  put($("markets-h"), `${told.series}, ${w.hour(told.from_us)}h: ${lacking} of ${told.markets.length}${told.left_out ? ` listed (and ${told.left_out} more)` : ""} markets lack something`);
  table($("markets-t"), [["market"], ["complete", "n"], ["lacks", "n"], ["why", "wide"]],
    told.markets.map((m) => {
      const whole = m.us.reduce((a, b) => a + b, 0) - m.us[2];
      return [el("button", { type: "button", textContent: m.name, onclick: () => openMarket(m.name, told.from_us) }), w.percent(m.us[0], whole), m.lack_us ? w.duration(m.lack_us) : "nothing", m.reasons.map((r) => `${r.status} ${w.duration(r.us)}: ${w.reason(r.reason)}`).join("; ") || (whole ? "complete" : "not recorded")];
    }), "No market of this series in this hour.");
});

async function openMarket(market, hour) {
  state.market = { market, hour };
  $("intervals").hidden = false;
  put($("intervals-h"), `${market}, ${w.hour(hour)}h`);
  await showIntervals();
  $("intervals-h").focus({ preventScroll: true });
  $("intervals").scrollIntoView({ block: "nearest" });
}
const showIntervals = () => fill("intervals", `/api/coverage/intervals?market=${encodeURIComponent(state.market.market)}&hour=${w.hour(state.market.hour)}`, (told) => {
  const here = told.intervals.filter((i) => i.channel === channel());
  const kept = here.filter((i) => i.status !== "dark");
  const [from, to] = kept.length ? [kept[0].from_us, kept.at(-1).to_us] : [told.from_us, told.to_us];
  put($("intervals-h"), `${told.market}: ${channel()}, ${w.clock(from).slice(0, 8)} to ${w.clock(to).slice(0, 8)} of ${w.hour(told.from_us)}h`);
  $("strip").replaceChildren(strip(kept, from, to));
  table($("intervals-t"), [["from"], ["to"], ["length", "n"], ["status"], ["reason", "wide"], ["proven by"], ["audits", "n"], ["epoch", "n"]],
    here.map((i) => [w.clock(i.from_us), w.clock(i.to_us), w.duration(i.to_us - i.from_us), el("span", { className: i.status === "complete" ? "ok" : i.status === "dark" ? "" : "bad", textContent: i.status }), w.reason(i.reason) || "–", w.witnesses(i.sources), String(i.audits), String(i.epoch)]), "Nothing is known of this hour yet.");
});

// --- book

function showBookOf(market) {
  $("market").value = market;
  state.shown = market;
  bookNow();
  $("book").scrollIntoView({ block: "start" });
}
async function bookNow() {
  if (!state.shown) return;
  const name = encodeURIComponent(state.shown), known = $("book-known");
  await fill("book", `/api/book?market=${name}`, (told) => {
    known.dataset.said = `${told.market}: ${told.proven ? "proven by its hash" : `not proven: ${told.why}`}, event ${told.market_seq} of epoch ${told.epoch}, ${w.moment(told.exchange_us)} UTC${told.live ? ", ahead of its window" : ""}.`;
    const head = el("thead", {}, el("tr", {}, ...["side", "price of YES", "contracts", "size"].map((t, n) => el("th", { scope: "col", className: n && n < 3 ? "n" : "", textContent: t }))));
    $("ladder").replaceChildren(el("table", {}, head, el("tbody", {}, ...ladder(told))));
  }, known);
  await fill("depth", `/api/depth?market=${name}&minutes=${$("minutes").value}`, (told) => {
    $("depth").hidden = false;
    const said = depth($("canvas"), told);
    $("canvas").setAttribute("aria-label", `depth of ${told.market}: ${said}`);
    put($("depth-text"), said);
  }, known);
}
let typing = 0;
function search() {
  clearTimeout(typing);
  typing = setTimeout(() => fill("search", `/api/markets?part=${encodeURIComponent($("market").value.trim().toUpperCase())}`, (told) => {
    $("found").replaceChildren(...told.markets.map((name) => el("option", { value: name })));
  }), 200);
}

// --- the stream

const changed = (name, value) => { const before = state.seen[name]; state.seen[name] = value; return before !== value; };
function heard(o) {
  state.overview = o;
  state.heardAt = Date.now();
  showVerdict(o.verdict);
  showPath(o);
  showFleet(o);
  if (document.hidden) return;
  const made = o.coverage_known && o.coverage_known.at_ms;
  if (changed("coverage", `${made} ${o.coverage_known && o.coverage_known.trouble}`)) {
    coverage(false);
    if (state.cell) showCell();
    if (state.market) showIntervals();
  }
  if (changed("interrupted", o.interrupted)) fill("interruptions", "/api/interruptions", showInterruptions, null);
  const p = o.production;
  if (changed("gaps", p && `${p.closed_us} ${p.known.trouble}`)) fill("gaps", "/api/gaps", showGaps, $("gaps-known"));
  if (changed("quarantine", o.merge.quarantined)) fill("quarantine", "/api/quarantine", showQuarantine, $("quarantine-known"));
  if (changed("audits", o.merge.audits)) fill("audits", "/api/audits", showAudits, $("audits-known"));
}
function listen() {
  const source = new EventSource("/api/events");
  source.addEventListener("overview", (event) => heard(JSON.parse(event.data)));
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
    setTimeout(listen, 2000);
  };
}
function tick() {
  const late = Date.now() - state.heardAt;
  const lost = state.heardAt > 0 && late > LOST_AFTER_MS;
  $("link").classList.toggle("lost", lost);
  document.body.classList.toggle("stale", lost);
  if (state.heardAt) put($("link"), lost ? `no word from the service for ${w.lasted(late)}; shown is what it said then` : `live, ${new Date(state.overview.at_ms).toISOString().slice(11, 19)} UTC`);
}

function legend() {
  const rows = [["c-complete", "✓", "complete: proven"], ["c-lack1", "G", "under 0.1 % lacks"], ["c-lack2", "G", "under 1 %"], ["c-lack3", "G", "under 10 %"], ["c-lack4", "G", "more"], ["c-dark", "–", "not recorded"], ["c-wait", "…", "not looked at yet"]];
  $("legend").replaceChildren(...rows.map(([kind, letter, text]) => el("span", {}, el("span", { className: `key ${kind}`, textContent: letter }), text)), el("span", { textContent: "letters: G gap, A ambiguous, D disputed, U unproven (most of the lack)" }));
}

legend();
for (const id of ["days", "hours"]) $(id).addEventListener("keydown", walk);
$("choose").addEventListener("submit", (event) => event.preventDefault());
$("channel").addEventListener("change", () => { coverage(true); if (state.cell) showCell(); if (state.market) showIntervals(); });
$("part").addEventListener("input", () => { if ($("part").checkValidity()) coverage(true); });
$("market").addEventListener("input", search);
$("pick").addEventListener("submit", (event) => { event.preventDefault(); const name = $("market").value.trim(); if (name) { state.shown = name; bookNow(); } });
$("minutes").addEventListener("change", bookNow);
setInterval(tick, 1000);
setInterval(() => { if (!document.hidden) bookNow(); }, BOOK_EVERY_MS);
const host = () => { if (!document.hidden) fill("host", "/api/host", showHost, null); };
setInterval(host, HOST_EVERY_MS);
host();
search();
listen();
