// Pictures made here: sparklines, bars, the strip of one market's hour, the depth of its book.
import { clock, contracts, dollars, duration } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
export function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function sparkline(values) {
  const top = Math.max(1, ...values);
  const points = values.map((v, n) => `${n ? "L" : "M"}${((n / Math.max(1, values.length - 1)) * 100).toFixed(1)} ${(20 - (v / top) * 18).toFixed(1)}`);
  return svg("svg", { class: "spark", viewBox: "0 0 100 22", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { d: points.join("") || "M0 20" }));
}

export function bar(share) {
  return svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { x: 0, y: 0, width: Math.max(share > 0 ? 0.5 : 0, share * 100).toFixed(2), height: 10 }));
}

export function strip(intervals, from, to) {
  const whole = Math.max(1, to - from);
  const parts = intervals.map((i) => {
    const width = Math.max(0.15, ((i.to_us - i.from_us) / whole) * 100);
    const lacking = i.status !== "complete" && i.status !== "dark";
    const part = svg("rect", { class: `s-${i.status}`, x: (((i.from_us - from) / whole) * 100).toFixed(3), y: lacking ? 0 : 8, width: width.toFixed(3), height: lacking ? 34 : 18 });
    part.append(svg("title", {}, `${clock(i.from_us)} to ${clock(i.to_us)}: ${i.status}`));
    return part;
  });
  return svg("svg", { class: "strip", viewBox: "0 0 100 34", preserveAspectRatio: "none", role: "img", "aria-label": "the hour from left to right; what is not complete stands taller" }, ...parts);
}

const styled = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Bids and offers over time: a row a cent, a column a stretch; the darker, the more stands there.
export function depth(canvas, told) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const left = 56, bottom = 26;
  context.clearRect(0, 0, width, height);
  context.font = "20px system-ui, sans-serif";
  const cents = [];
  let most = 1;
  for (const column of told.columns) {
    if (!column) continue;
    const bid = column.bids.at(-1), offer = column.offers[0];
    for (const best of [bid, offer]) if (best) cents.push(best[0]);
    for (const side of [column.bids, column.offers]) for (const [, size] of side) most = Math.max(most, size);
  }
  if (!cents.length) {
    context.fillStyle = styled("--soft");
    context.fillText("no book is known in this time", left, height / 2);
    return "No book is known in this time.";
  }
  const low = Math.max(0, Math.min(...cents) - 12), high = Math.min(100, Math.max(...cents) + 12);
  const rows = high - low + 1;
  const dx = (width - left) / told.columns.length, dy = (height - bottom) / rows;
  const y = (cent) => (high - cent) * dy;
  const draw = (levels, n, colour) => {
    for (const [cent, size] of levels) {
      if (cent < low || cent > high) continue;
      context.globalAlpha = 0.12 + 0.88 * (Math.log1p(size) / Math.log1p(most));
      context.fillStyle = colour;
      context.fillRect(left + n * dx, y(cent), Math.ceil(dx), Math.max(1, dy - (dy > 4 ? 1 : 0)));
    }
  };
  let unknown = 0;
  told.columns.forEach((column, n) => {
    if (!column) {
      unknown += 1;
      context.globalAlpha = 1;
      context.fillStyle = styled("--dark-bg");
      context.fillRect(left + n * dx, 0, Math.ceil(dx), height - bottom);
      return;
    }
    draw(column.bids, n, styled("--good"));
    draw(column.offers, n, styled("--lack4"));
  });
  context.globalAlpha = 1;
  context.fillStyle = context.strokeStyle = styled("--ink");
  for (const trade of told.trades) {
    const x = left + ((trade.us - told.from_us) / (told.to_us - told.from_us)) * (width - left);
    context.beginPath();
    context.arc(x, y(trade.yes_price / 10000) + dy / 2, 4, 0, 7);
    context.stroke();
  }
  const step = rows > 60 ? 20 : rows > 30 ? 10 : 5;
  for (let cent = Math.ceil(low / step) * step; cent <= high; cent += step) context.fillText(`${cent}¢`, 4, y(cent) + dy / 2 + 7);
  context.fillText(clock(told.from_us).slice(0, 8), left, height - 5);
  const last = clock(told.to_us).slice(0, 8);
  context.fillText(last, width - context.measureText(last).width - 4, height - 5);
  const parts = [`${duration(told.to_us - told.from_us)} up to ${clock(told.to_us)} UTC; bids green below, offers red above, trades as circles (${told.trades.length})`];
  if (unknown) parts.push(`grey: no book is known (${unknown} of ${told.columns.length} columns)`);
  if (told.shortened) parts.push("more changes than are read: begins later");
  return `${parts.join("; ")}.`;
}

export function ladder(told) {
  const offers = told.no.slice(0, 10).map(([price, size]) => ["offer", 1e6 - price, size]).reverse();
  const bids = told.yes.slice(0, 10).map(([price, size]) => ["bid", price, size]);
  const most = Math.max(1, ...[...offers, ...bids].map((level) => level[2]));
  const row = ([side, price, size]) => {
    const line = document.createElement("tr");
    line.className = side;
    for (const [text, kind] of [[side, ""], [dollars(price), "n"], [contracts(size), "n"]]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      cell.className = kind;
      line.append(cell);
    }
    const drawn = document.createElement("td");
    drawn.className = "size";
    drawn.append(bar(size / most));
    line.append(drawn);
    return line;
  };
  const spread = document.createElement("tr");
  spread.className = "spread";
  const cell = document.createElement("td");
  cell.colSpan = 4;
  const [bid, offer] = [bids[0], offers.at(-1)];
  cell.textContent = bid && offer ? `spread ${dollars(offer[1] - bid[1])}` : "one side is empty";
  spread.append(cell);
  return [...offers.map(row), spread, ...bids.map(row)];
}
