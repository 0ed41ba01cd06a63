"use strict";
// What the page says beside the curves: tables, crossovers, verdicts, kernels with their formulas.

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function table(host, headings, lines, wrapped = []) {
  const cell = (tag) => (text, index) => html(tag, { class: wrapped.includes(index) ? "wrap" : null, scope: tag === "th" ? "col" : null }, text);
  host.replaceChildren(html("thead", {}, html("tr", {}, ...headings.map(cell("th")))),
    html("tbody", {}, ...lines.map((line) => html("tr", {}, ...line.map(cell("td"))))));
}

/** The sample of a line beside its name: colour and dashes. */
function key(colour, dash) {
  return svg("svg", { class: "key", viewBox: "0 0 30 12", "aria-hidden": "true" },
    svg("line", { x1: 1, x2: 29, y1: 6, y2: 6, stroke: colour, "stroke-width": 3, "stroke-dasharray": dash, "stroke-linecap": "round" }));
}

const BASES = {
  fitted: "fitted to measurements on this device",
  extrapolated: "fitted on this device, beyond the measured sizes",
  transferred: "parameters of a relative",
  prior: "no measurement: general priors",
};

/** The rows at the cursor. answers: [{architecture, colour, dash, B, result}], price in US$ per hour or null. */
function summary(host, answers, price) {
  const first = answers[0];
  const lines = answers.map(({ architecture, colour, dash, B, result }, index) => [
    html("span", {}, key(colour, dash), " ", architecture.name),
    html("b", {}, FORMAT.seconds(result.time)),
    `${FORMAT.seconds(result.low)} – ${FORMAT.seconds(result.high)}`,
    index === 0 ? "1" : FORMAT.digits(result.time / result.tokens / (first.result.time / first.result.tokens)),
    `${FORMAT.digits(result.tokensPerSecond)}`,
    price === null ? "–" : FORMAT.dollars(cost(result, price)),
    String(B),
    FORMAT.bytes(result.cache / B),
    html("span", { class: result.fits ? null : "over" }, FORMAT.bytes(result.memory), result.fits ? "" : html("br"), result.fits ? "" : "does not fit"),
    result.bound,
    html("span", { title: BASES[result.basis] }, result.basis),
  ]);
  table(host, ["", "time of a step", "80 % interval", html("span", { title: "time per token over that of the first" }, "vs first"), "tokens/s",
    "$ per 1M tokens", "batch", "cache, each", "memory", "bound by", "rests on"], lines);
}

/** US$ per million tokens, from the price of a device-hour. */
function cost(result, price) {
  return result.time * price / 3600 / result.tokens * 1e6;
}

function crossovers(host, found, contexts, phase, chosen) {
  const items = found.map(({ first, second, context, always }) => html("li", {},
    html("b", {}, first.name), " takes less time per token than ", html("b", {}, second.name),
    always ? " at every context shown." : ` from ${FORMAT.count(context)} on (${context.toLocaleString("en-US")} tokens).`));
  for (const architecture of chosen) {
    const context = (architecture.quadratic || {})[phase];
    if (context === undefined) continue;
    const part = phase === "decode" && !architecture.bidirectional ? "part that grows with the context" : "quadratic part";
    items.push(html("li", {}, html("b", {}, architecture.name), context === null ? `: its FLOPs have no ${part}.`
      : `: from ${FORMAT.count(context)} on, the ${part} is most of its FLOPs.`));
  }
  host.replaceChildren(...items);
}

function verdicts(host, chosen, phase) {
  const parts = chosen.map((architecture) => {
    const row = (architecture.reality || {})[phase === "train" ? "prefill" : phase];
    if (!row) return html("div", {}, html("h3", {}, architecture.name), "No verdict: the device of the check has no engine for its number formats.");
    const many = (value) => value === null ? "–" : `${FORMAT.digits(value)}×`;
    const grid = html("table");
    table(grid, ["claimed", "FLOPs", "HBM bytes", "cache", "time", "carried by", "constant over full attention", "gain in time", "gain with memory full", "gain without end"],
      [[row.claimed, row.order_flops, row.order_bytes, row.order_cache, row.order_time, row.carrier,
        row.coefficient_vs_full === null ? "–" : FORMAT.digits(row.coefficient_vs_full), many(row.speedup), many(row.capacity_speedup), many(row.limit)]]);
    return html("div", {}, html("h3", {}, architecture.name, ": ", row.verdict),
      html("div", { class: "scroll" }, grid),
      html("p", { class: "remark" }, `${row.phase} on ${row.hw} at ${FORMAT.count(row.context)}, batch ${row.batch}; against ${row.full_attention}. Claim: ${row.claim_source}.`));
  });
  host.replaceChildren(...parts);
}

/** Every kernel of a step with its share, what it rests on, and its formulas. */
function kernels(host, architecture, result, formulas, phase) {
  const total = result.time;
  const shown = result.kernels.filter((kernel) => kernel.launches).sort((a, b) => b.time - a.time);
  const grid = html("table");
  table(grid, ["kernel", "block", "share of time", "time", "bound by", "FLOPs", "HBM bytes", "rests on", "measured error (median, on points never fitted)"],
    shown.slice(0, 24).map((kernel) => [kernel.name, kernel.group,
      html("span", {}, html("span", { class: "bar", style: `width:${Math.max(1, 60 * kernel.time / total)}px` }), ` ${(100 * kernel.time / total).toFixed(1)} %`),
      FORMAT.seconds(kernel.time), kernel.bound, FORMAT.flops(kernel.flops), FORMAT.bytes(kernel.bytes),
      html("span", { title: BASES[kernel.basis] }, kernel.basis), measured(kernel.fit)]));
  const rest = shown.slice(24).reduce((sum, kernel) => sum + kernel.time, 0);
  const blocks = architecture.blocks.map((block) => {
    const entry = formulas[block.formulas];
    const lines = entry.phases[phase === "train" ? "prefill" : phase] || [];
    const sizes = Object.entries(block.sizes).map(([name, value]) => `${name} = ${value}`).join(", ");
    const grown = html("table");
    table(grown, ["kernel", "", "formula, one layer", "grows as"], lines.map(([name, quantity, formula, parts, power, log]) => [
      name, quantity, html("span", { class: "formula" }, formula, ...Object.entries(parts).map(([part, text]) => html("i", {}, `, ${part} = ${text}`))),
      growth(power, log)]), [2]);
    return html("details", {}, html("summary", {}, html("b", {}, block.name), ` — ${block.title}, ${block.layers} layers: ${sizes}`),
      html("div", { class: "scroll" }, grown), html("p", { class: "remark" }, `Sources: ${entry.sources.join("; ")}.`, entry.unverified.length ? ` Unverified: ${entry.unverified.join("; ")}.` : ""));
  });
  host.replaceChildren(html("div", { class: "scroll" }, grid), rest ? html("p", { class: "remark" }, `${shown.length - 24} smaller kernels: ${FORMAT.seconds(rest)}.`) : "",
    html("h3", {}, "Formulas"), html("p", { class: "remark" }, "B batch, L context, S new tokens, P cached tokens, D model width; bytes for 16-bit formats; training takes those of prefill and adds the backward kernels. The prediction itself uses the chosen formats."), ...blocks);
}

function growth(power, log) {
  const whole = power === "0" ? "" : power === "1" ? "L" : power === "2" ? "L²" : `L^${power}`;
  return `${whole}${log === "0" ? "" : `${whole ? " " : ""}log L`}` || "1";
}

function measured(fit) {
  if (!fit.heldOut) return fit.basis === "prior" ? "not measured" : "–";
  const where = fit.basis === "transferred" ? ", on the relative" : "";
  return `${FORMAT.digits(fit.heldOut.median_ape)} % (${fit.heldOut.n} points${where})`;
}
