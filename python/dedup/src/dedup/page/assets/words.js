// Numbers and reasons in words. Sizes arrive as 1/100 contract, prices as micro-dollars, times as
// microseconds (us) of exchange time or milliseconds (ms) of the wall clock.
export const STATUSES = ["complete", "gap", "dark", "ambiguous", "disputed", "unproven"];
export const SIGNS = { complete: "✓", incomplete: "✗", late: "◷", unknown: "?" };
export const WORDS = { complete: "complete", incomplete: "not complete", late: "late", unknown: "not known" };
export const LETTERS = { gap: "G", ambiguous: "A", disputed: "D", unproven: "U" };

const REASONS = {
  gap: "messages were lost",
  book_equal: "a hole in every recording; the book was the same before and after it",
  close: "the connection was closed",
  closed_by_peer: "the exchange closed the connection",
  closed_by_us: "we closed the connection",
  reset: "the connection was reset",
  stall: "the connection went silent",
  died: "the process died",
  error: "the exchange ended the subscription with an error",
  unsubscribed: "unsubscribed",
};

export const reason = (code) => (code in REASONS ? `${REASONS[code]} (${code})` : code);
export const count = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en-US"));

export function duration(us) {
  if (us === null || us === undefined) return "–";
  const s = us / 1e6;
  if (s < 0.001) return `${us} µs`;
  if (s < 1) return `${(s * 1000).toFixed(0)} ms`;
  if (s < 60) return `${s.toFixed(1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d`;
}
export const lasted = (ms) => (ms === null || ms === undefined ? "–" : duration(ms * 1000));

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let k = 0;
  while (n >= 1024 && k < units.length - 1) { n /= 1024; k += 1; }
  return `${k ? n.toFixed(1) : n} ${units[k]}`;
}

const iso = (us) => new Date(us / 1000).toISOString();
export const day = (us) => iso(us).slice(0, 10);
export const hour = (us) => iso(us).slice(0, 13);
export const clock = (us) => iso(us).slice(11, 23);
export const moment = (us) => (us ? iso(us).slice(0, 19).replace("T", " ") : "–");

// A share in per cent, rounded down: a gap must not vanish.
export function percent(part, whole) {
  if (!whole) return "–";
  return `${(Math.floor((part / whole) * 10000) / 100).toFixed(2)} %`;
}
export function dollars(micro) {
  const text = (micro / 1e6).toFixed(6).replace(/0{1,4}$/, "");
  return `$${text}`;
}
export const contracts = (hundredths) => (hundredths / 100).toLocaleString("en-US", { maximumFractionDigits: 2 });
export const witnesses = (bits) => {
  const found = [];
  for (let g = 0; g < 14; g += 1) if (bits & (1 << g)) found.push(g + 1);
  return found.length ? found.join(" ") : "nobody";
};

// One cell of the calendar: its class, its letter and what it says aloud.
export function cellOf(cell, where) {
  if (!cell) return { kind: "", letter: "", said: `${where}: no hour of the tape` };
  if (cell.summed === false) return { kind: "c-wait", letter: "…", said: `${where}: not looked at yet` };
  const [complete, , dark] = cell.us;
  const whole = cell.us.reduce((a, b) => a + b, 0) - dark;
  if (!whole) return { kind: "c-dark", letter: "–", said: `${where}: nothing recorded` };
  const lack = whole - complete;
  if (!lack) return { kind: "c-complete", letter: "✓", said: `${where}: complete, ${count(cell.markets)} markets` };
  const share = lack / whole;
  const level = share < 0.001 ? 1 : share < 0.01 ? 2 : share < 0.1 ? 3 : 4;
  let worst = "gap";
  for (const [n, name] of STATUSES.entries()) {
    if (LETTERS[name] && cell.us[n] > cell.us[STATUSES.indexOf(worst)]) worst = name;
  }
  const said = `${where}: ${percent(complete, whole)} complete; ${count(cell.lacking)} of ${count(cell.markets)} markets lack ${duration(lack)} in all, most of it ${worst}`;
  return { kind: `c-lack${level}`, letter: LETTERS[worst], said };
}
