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
  transferred: "parameters of a relative device, or of a kernel like this one",
  prior: "no measurement: general priors",
};

/** The rows at the cursor. answers: [{architecture, colour, dash, B, result}], price in US$ per hour. */
function summary(host, answers, price) {
  const first = answers[0];
  const lines = answers.map(({ architecture, colour, dash, B, result }, index) => [
    html("span", {}, key(colour, dash), " ", architecture.name),
    html("b", {}, FORMAT.seconds(result.time)),
    `${FORMAT.seconds(result.low)} – ${FORMAT.seconds(result.high)}`,
    index === 0 ? "1" : FORMAT.digits(result.time / result.tokens / (first.result.time / first.result.tokens)),
    `${FORMAT.digits(result.tokensPerSecond)}`,
    price === 0 ? "–" : FORMAT.dollars(cost(result, price)),
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

/** Name and value, one below the other, side by side as far as there is room. */
function facts(pairs) {
  return html("dl", { class: "facts" }, ...pairs.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))));
}

/** The lines of a kernel's formulas: [kernel, quantity, formula, parts, power, log power]. */
function formulaLines(architecture, formulas, phase, group, name) {
  const block = architecture.blocks.find((each) => each.name === group);
  const lines = block ? formulas[block.formulas].phases[phase === "train" ? "prefill" : phase] || [] : [];
  return lines.filter((line) => line[0] === name);
}

function formulaText([, quantity, formula, parts]) {
  return html("span", { class: "formula" }, html("b", {}, quantity), " = ", formula, ...Object.entries(parts).map(([part, text]) => html("i", {}, `, ${part} = ${text}`)));
}

/** Beside the curves: what takes most of the time at the cursor, and its formula. */
function beside(host, answers, formulas, phase) {
  host.replaceChildren(...answers.map(({ architecture, colour, dash, result }) => {
    const most = result.kernels.reduce((one, other) => other.time > one.time ? other : one);
    const lines = formulaLines(architecture, formulas, phase, most.group, most.name);
    return html("li", {}, key(colour, dash), " ", html("b", {}, architecture.name), `: ${(100 * most.time / result.time).toFixed(0)} % of the time is ${most.name}${most.group ? ` (${most.group})` : ""}, bound by ${most.bound}. `,
      ...lines.flatMap((line) => [formulaText(line), " "]), lines.length ? html("span", { class: "remark" }, "one layer") : "");
  }));
}

function verdicts(host, chosen, phase, formulas) {
  const parts = chosen.map((architecture) => {
    const row = (architecture.reality || {})[phase === "train" ? "prefill" : phase];
    if (!row) return html("div", {}, html("h3", {}, architecture.name), "No verdict: the device of the check has no engine for its number formats.");
    const many = (value) => value === null ? "–" : `${FORMAT.digits(value)}×`;
    const [group, name] = row.carrier.includes(": ") ? row.carrier.split(": ") : ["", row.carrier];
    const lines = formulaLines(architecture, formulas, phase, group, name);
    return html("div", {}, html("h3", {}, architecture.name, ": ", row.verdict),
      facts([["claimed", row.claimed], ["FLOPs", row.order_flops], ["HBM bytes", row.order_bytes], ["cache", row.order_cache], ["time", row.order_time],
        ["carried by", row.carrier], ["constant over full attention", row.coefficient_vs_full === null ? "–" : FORMAT.digits(row.coefficient_vs_full)],
        ["gain in time", many(row.speedup)], ["gain with memory full", many(row.capacity_speedup)], ["gain at most", many(row.limit)]]),
      ...lines.map((line) => html("p", { class: "formulas" }, formulaText(line))),
      html("p", { class: "remark" }, `${row.phase} on ${row.hw} at ${FORMAT.count(row.context)}, batch ${row.batch}; against ${row.full_attention}. Claim: ${row.claim_source}.`));
  });
  host.replaceChildren(...parts);
}

const JUDGED = { reproduced: "✓", "reproduced-if": "≈", contradicted: "✗", "setup-unstated": "?" };

/** Numbers of a claim, or intervals where there are other ends; the unit once. */
function numbers(values, unit, ends = null) {
  const list = [values].flat(), others = [ends].flat();
  const texts = list.map((value, index) => value === null ? "–" : FORMAT.digits(value) + (ends === null ? "" : ` … ${FORMAT.digits(others[index])}`));
  const shown = texts.length > 6 ? [...texts.slice(0, 3), "…", texts.at(-1)] : texts;
  return `${shown.join(", ")}${unit === "x" ? "×" : unit ? ` ${unit}` : ""}`;
}

/** Published claims with what is predicted under their own set-up; ask(question) shows the step behind one. */
function claims(host, found, chosen, ask) {
  const open = new Set([...host.querySelectorAll("details[open]")].map((each) => each.dataset.id));
  const names = chosen.map((each) => each.name);
  const entry = (row) => {
    const body = [facts([["claimed", numbers(row.claimed, row.unit)],
      ["predicted", row.predicted === null ? "–" : numbers(row.predicted, row.unit)],
      ["80 % interval", row.low === null ? "–" : numbers(row.low, row.unit, row.high)],
      ["predicted over claimed", row.ratio === null ? "–" : numbers(row.ratio, "")], ["rests on", row.basis || "–"]]),
    html("p", {}, html("b", {}, "Set-up: "), row.setup, row.at ? `; at ${row.at.join(", ")}` : ""), html("p", {}, html("b", {}, "Why: "), row.reason)];
    if (row.fair) body.push(html("p", {}, html("b", {}, "Fair set-up: "), `${row.fair}: ${numbers(row.fair_predicted, row.unit)}`));
    if (row.asks) {
      const button = html("button", { type: "button" }, "Its kernels, formulas and measured errors");
      button.onclick = () => ask(row.asks);
      body.push(button);
    }
    body.push(html("p", { class: "remark" }, `${row.source}${row.kind === "figure" ? ", read off a figure" : ""}. `, html("code", {}, row.command || `python cli.py claims ${row.id}`)));
    return html("details", { "data-id": row.id, open: open.has(row.id) ? "" : null },
      html("summary", {}, html("span", { class: "mark", "aria-hidden": "true" }, JUDGED[row.verdict]), html("b", {}, `${row.mechanism}: ${row.what}`), ` — claimed ${numbers(row.claimed, row.unit)}${row.predicted === null ? "" : `, predicted ${numbers(row.predicted, row.unit)}`}: ${row.verdict}`), ...body);
  };
  // What is said of a whole model before what is said of one of its kernels, in the order of the architectures.
  const place = (row) => names.findIndex((name) => row.about.includes(name)) + (row.asks ? 0 : names.length);
  const own = found.filter((row) => names.some((name) => row.about.includes(name))).sort((one, other) => place(one) - place(other));
  const rest = found.filter((row) => !own.includes(row));
  const fold = html("details", { "data-id": "others", open: open.has("others") ? "" : null }, html("summary", {}, `${rest.length} about others`), ...rest.map(entry));
  host.replaceChildren(...(own.length ? own.map(entry) : [html("p", { class: "remark" }, "None is recorded about the architectures shown.")]), rest.length ? fold : "");
}

/** Every kernel of a step with its share, what it rests on, and its formulas; a click on a kernel opens its formula. */
function kernels(host, architecture, result, formulas, phase) {
  const open = new Set([...host.querySelectorAll("details[open]")].map((each) => each.dataset.block));
  const total = result.time;
  const shown = result.kernels.filter((kernel) => kernel.launches).sort((a, b) => b.time - a.time);
  const named = (kernel) => {
    if (!formulaLines(architecture, formulas, phase, kernel.group, kernel.name).length) return kernel.name;
    const button = html("button", { type: "button", class: "plain", title: "its formula" }, kernel.name);
    button.onclick = () => reveal(host, kernel);
    return button;
  };
  const grid = html("table");
  table(grid, ["kernel", "block", "share of time", "time", "bound by", "FLOPs", "HBM bytes", "rests on", "measured error"],
    shown.slice(0, 24).map((kernel) => [named(kernel), kernel.group,
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
    [...grown.tBodies[0].rows].forEach((row, index) => { row.dataset.kernel = lines[index][0]; });
    return html("details", { "data-block": block.name, open: open.has(block.name) ? "" : null },
      html("summary", {}, html("b", {}, block.name), ` — ${block.title}, ${block.layers} layers: ${sizes}`),
      html("div", { class: "scroll" }, grown), html("p", { class: "remark" }, `Sources: ${entry.sources.join("; ")}.`, entry.unverified.length ? ` Unverified: ${entry.unverified.join("; ")}.` : ""));
  });
  const errors = html("p", { class: "remark" }, "Measured error: the median over points that no fit saw, as the calibration states it. A kernel's name opens its formula.");
  host.replaceChildren(html("div", { class: "scroll" }, grid), errors, rest ? html("p", { class: "remark" }, `${shown.length - 24} smaller kernels: ${FORMAT.seconds(rest)}.`) : "",
    html("h3", {}, "Formulas"), html("p", { class: "remark" }, "B batch, L context, S new tokens, P cached tokens, D model width; bytes for 16-bit formats; training takes those of prefill and adds the backward kernels. The prediction itself uses the chosen formats."), ...blocks);
  mark(host);
}

/** Mark the lines of the kernel that was asked for, also after they were written anew. */
function mark(host) {
  for (const row of host.querySelectorAll("tr[data-kernel]")) {
    row.classList.toggle("found", `${row.closest("details").dataset.block}: ${row.dataset.kernel}` === host.dataset.found);
  }
}

/** Open the formulas of a kernel's block and mark its lines. */
function reveal(host, kernel) {
  const block = [...host.querySelectorAll("details")].find((each) => each.dataset.block === kernel.group);
  block.open = true;
  host.dataset.found = `${kernel.group}: ${kernel.name}`;
  mark(host);
  host.querySelector("tr.found").scrollIntoView({ block: "center" });
  block.querySelector("summary").focus({ preventScroll: true });
}

function growth(power, log) {
  const whole = power === "0" ? "" : power === "1" ? "L" : power === "2" ? "L²" : `L^${power}`;
  return `${whole}${log === "0" ? "" : `${whole ? " " : ""}log L`}` || "1";
}

function measured(fit) {
  if (!fit.heldOut) return fit.basis === "prior" ? "not measured" : "–";
  const where = fit.basis === "transferred" ? ", where it was measured" : "";
  return `${FORMAT.digits(fit.heldOut.median_ape)} % (${fit.heldOut.n} points${where})`;
}
