"use strict";
// Line charts on two logarithmic axes, as plain SVG.

const FORMAT = {
  count(value) {
    for (const [unit, size] of [["M", 1048576], ["k", 1024]]) {
      if (value >= size) return `${Number((value / size).toPrecision(value / size >= 1000 ? 4 : 3))}${unit}`;
    }
    return String(Math.round(value));
  },
  digits(value) {
    return value >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(3)));
  },
  seconds(value) {
    if (value === 0) return "0 s";
    for (const [unit, size, most] of [["ns", 1e-9, 1e-6], ["µs", 1e-6, 1e-3], ["ms", 1e-3, 1], ["s", 1, 120],
      ["min", 60, 7200], ["h", 3600, 172800], ["days", 86400, Infinity]]) {
      if (value < most) return `${FORMAT.digits(value / size)} ${unit}`;
    }
    return "";
  },
  bytes(value) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    const place = value < 1 ? 0 : Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
    return `${FORMAT.digits(value / 1024 ** place)} ${units[place]}`;
  },
  flops(value) {
    const units = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
    const place = value < 1 ? 0 : Math.min(Math.floor(Math.log10(value) / 3), units.length - 1);
    return `${FORMAT.digits(value / 1000 ** place)} ${units[place]}FLOP`;
  },
  dollars(value) {
    return value === 0 ? "$0" : value < 0.01 ? `$${value.toPrecision(2)}` : value >= 1e6 ? `$${FORMAT.digits(value / 1e6)}M`
      : `$${value >= 100 ? Math.round(value).toLocaleString("en-US") : value.toFixed(2)}`;
  },
};

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Powers of ten, with what lies between them where these are few; of seconds above ten what clocks show. */
function decimalTicks(low, high, most, clock) {
  const decades = Math.log10(high / low);
  const step = Math.max(1, Math.ceil(decades / most));
  const mantissas = decades <= 1.2 ? [1, 2, 5] : decades <= 2.4 ? [1, 3] : [1];
  const ticks = clock ? [60, 600, 3600, 36000, 86400, 864000, 8640000, 86400000, 864000000] : [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    if (power % step) continue;
    for (const mantissa of mantissas) if (!clock || mantissa * 10 ** power <= 10) ticks.push(mantissa * 10 ** power);
  }
  return ticks.filter((value) => low <= value && value <= high).sort((a, b) => a - b);
}

function binaryTicks(low, high, most, base = 2) {
  const powers = Math.log2(high / low);
  const step = [1, 2, 3, 4, 5, 10, 20].find((each) => powers / each <= most) || 20;
  const ticks = [];
  for (let power = Math.ceil(Math.log2(low) - 1e-9); power <= Math.log2(high) + 1e-9; power++) {
    if (power % step === 0) ticks.push(base ** power);
  }
  return ticks;
}

/** Labels apart from each other: places from top to bottom with at least `gap` between them, inside [top, bottom]. */
function apart(places, gap, top, bottom) {
  const order = places.map((y, index) => ({ y, index })).sort((a, b) => a.y - b.y);
  order.forEach((each, n) => { each.y = Math.max(each.y, n ? order[n - 1].y + gap : top); });
  for (let n = order.length - 1; n >= 0; n--) {
    order[n].y = Math.min(order[n].y, n === order.length - 1 ? bottom : order[n + 1].y - gap);
  }
  const found = [];
  for (const each of order) found[each.index] = each.y;
  return found;
}

/**
 * Draw into a host element. chart: {title, description, format, binary, domain: [low, high], cursor, level: {value, text},
 * crossings: [{x, y, text}], series: [{name, colour, dash, points: [{x, y, low, high, least, most, fits}], label}]}.
 */
function draw(host, chart) {
  const width = Math.max(host.clientWidth, 260);
  const wide = width >= 540;
  const height = Math.round(Math.min(Math.max(width * 0.5, 250), 430));
  const margin = { left: 64, right: wide ? 158 : 14, top: 12, bottom: 40 };
  const values = chart.series.flatMap((line) => line.points.flatMap((point) => [point.y, point.low, point.high]))
    .filter((value) => value > 0 && Number.isFinite(value));
  if (!values.length) { host.replaceChildren(); return; }
  let low = Math.min(...values), high = Math.max(...values);
  if (chart.level && chart.level.value > low / 4 && chart.level.value < high * 4) {
    low = Math.min(low, chart.level.value); high = Math.max(high, chart.level.value);
  }
  if (high / low < 4) { low /= 2; high *= 2; }
  low /= 1.25; high *= 1.25;
  const [left, right] = [margin.left, width - margin.right];
  const [top, bottom] = [margin.top, height - margin.bottom];
  const x = (value) => left + (right - left) * Math.log(value / chart.domain[0]) / Math.log(chart.domain[1] / chart.domain[0]);
  const y = (value) => bottom - (bottom - top) * Math.log(value / low) / Math.log(high / low);
  const within = (value) => Math.min(Math.max(y(value), top), bottom);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": chart.description });
  const clip = `clip-${host.id}`;
  root.append(svg("clipPath", { id: clip }, svg("rect", { x: left, y: top - 4, width: right - left, height: bottom - top + 8 })));
  const ticks = chart.binary ? binaryTicks(low, high, 6) : decimalTicks(low, high, 6, chart.format === FORMAT.seconds);
  let lowest = Infinity;
  for (const value of ticks) {
    if (lowest - y(value) < 22) continue;
    lowest = y(value);
    root.append(svg("line", { x1: left, x2: right, y1: y(value), y2: y(value), class: "grid" }),
      svg("text", { x: left - 8, y: y(value) + 4, class: "tick", "text-anchor": "end" }, chart.format(value)));
  }
  for (const value of binaryTicks(...chart.domain, Math.max(3, Math.floor((right - left) / 62)))) {
    root.append(svg("line", { x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4, class: "axis" }),
      svg("text", { x: x(value), y: bottom + 17, class: "tick", "text-anchor": "middle" }, FORMAT.count(value)));
  }
  root.append(svg("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }),
    svg("text", { x: right, y: bottom + 34, class: "tick", "text-anchor": "end" }, "context (tokens)"));
  const plot = svg("g", { "clip-path": `url(#${clip})` });
  root.append(plot);
  if (chart.level && chart.level.value >= low && chart.level.value <= high) {
    plot.append(svg("line", { x1: left, x2: right, y1: y(chart.level.value), y2: y(chart.level.value), class: "level" }));
    plot.append(svg("text", { x: left + 6, y: y(chart.level.value) - 5, class: "tick halo" }, chart.level.text));
  }
  const path = (points, value) => points.map((point, index) => `${index ? "L" : "M"}${x(point.x).toFixed(1)} ${within(value(point)).toFixed(1)}`).join("");
  for (const line of chart.series) {
    const drawn = line.points.filter((point) => point.y > 0);
    for (const [from, to, opacity] of [["least", "most", 0.07], ["low", "high", 0.2]]) {
      const banded = drawn.filter((point) => point[from] > 0 && point[to] > 0);
      if (banded.length < 2) continue;
      const back = path(banded.slice().reverse(), (point) => point[from]).replace("M", "L");
      plot.append(svg("path", { d: `${path(banded, (point) => point[to])}${back}Z`, fill: line.colour, opacity }));
    }
    // What one device cannot hold is drawn with dots.
    const firstTooLarge = drawn.findIndex((point) => point.fits === false);
    const held = firstTooLarge < 0 ? drawn : drawn.slice(0, firstTooLarge + 1);
    const beyond = firstTooLarge < 0 ? [] : drawn.slice(firstTooLarge);
    plot.append(svg("path", { d: path(held, (point) => point.y), class: "line", stroke: line.colour, "stroke-dasharray": line.dash }));
    if (beyond.length > 1) plot.append(svg("path", { d: path(beyond, (point) => point.y), class: "line", stroke: line.colour, "stroke-dasharray": "0.1 5" }));
  }
  for (const crossing of chart.crossings || []) {
    plot.append(svg("circle", { cx: x(crossing.x), cy: within(crossing.y), r: 5.5, class: "crossing" }),
      svg("text", { x: x(crossing.x), y: within(crossing.y) - 10, class: "tick halo", "text-anchor": "middle" }, crossing.text));
  }
  if (chart.cursor) {
    plot.append(svg("line", { x1: x(chart.cursor), x2: x(chart.cursor), y1: top, y2: bottom, class: "cursor" }));
    for (const line of chart.series) {
      if (line.at > 0) plot.append(svg("circle", { cx: x(chart.cursor), cy: within(line.at), r: 4, fill: line.colour, class: "dot" }));
    }
  }
  label(root, chart.series.filter((line) => line.points.some((point) => point.y > 0)), { within, x, left, right, top, bottom, wide });
  host.replaceChildren(root);
  root.addEventListener("pointerdown", (event) => follow(event, root, left, right, chart));
}

/** The name and the value of each line beside its end; on narrow screens above the line. */
function label(root, series, { within, left, right, top, bottom, wide }) {
  const last = (line) => within(line.points.filter((point) => point.y > 0).at(-1).y);
  const places = apart(series.map(last), wide ? 28 : 15, top + (wide ? 6 : 14), bottom - (wide ? 16 : 4));
  series.forEach((line, index) => {
    const y = places[index];
    if (!wide) {
      root.append(svg("text", { x: right - 2, y: y - 5, class: "label halo", fill: line.colour, "text-anchor": "end" }, line.name));
      return;
    }
    root.append(svg("line", { x1: right, x2: right + 9, y1: last(line), y2: y, stroke: line.colour, class: "leader" }),
      svg("text", { x: right + 12, y: y + 4, class: "label", fill: line.colour }, shortened(line.name, 20)),
      svg("text", { x: right + 12, y: y + 17, class: "tick" }, line.label || ""));
  });
}

function shortened(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** Dragging over a chart moves the context. */
function follow(event, root, left, right, chart) {
  const move = (moved) => {
    const box = root.getBoundingClientRect();
    const part = ((moved.clientX - box.left) * root.viewBox.baseVal.width / box.width - left) / (right - left);
    const inside = Math.min(Math.max(part, 0), 1);
    chart.onContext(chart.domain[0] * (chart.domain[1] / chart.domain[0]) ** inside);
  };
  const stop = () => { window.removeEventListener("pointermove", move); window.removeEventListener("pointerup", stop); window.removeEventListener("pointercancel", stop); };
  window.addEventListener("pointermove", move);
  window.addEventListener("pointerup", stop);
  window.addEventListener("pointercancel", stop);
  move(event);
}
