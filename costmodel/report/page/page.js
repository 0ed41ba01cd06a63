"use strict";
// The question that the controls ask, its answers, and the link that asks it again.

// Okabe and Ito's colours, which colour-blind readers tell apart; the second of a pair is for a dark background.
const COLOURS = [["#0072b2", "#56b4e9"], ["#c24d00", "#ff9d5c"], ["#00795a", "#3ddbb0"], ["#a8467e", "#e79bc6"], ["#8a6d00", "#f0d442"], ["#444b54", "#c9d1da"]];
const DASHES = [null, "10 5", "14 5 4 5", "6 4", "20 6", "10 4 4 4 4 4"];
const DOMAIN = [256, 104857600];
const POINTS = 73, BANDED = 3;
const DEFAULTS = { a: [], hw: "", p: "decode", c: 131072, b: 1, w: "", kv: "", fill: false, usd: null, t: "" };
const byId = (id) => document.getElementById(id);

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function start(DATA) {
  const model = makeModel(DATA, TEMPLATES, FORMS);
  const names = DATA.architectures.map((each) => each.name);
  let state = read(location.hash);
  let pending = null, drawing = false;

  function read(hash) {
    const given = new URLSearchParams(hash.replace(/^#/, ""));
    const known = (given.get("a") || "").split(",").filter((name) => names.includes(name)).slice(0, COLOURS.length);
    const number = (name, low, high) => {
      const value = Number(given.get(name));
      return given.has(name) && value >= low && value <= high ? value : DEFAULTS[name];
    };
    const among = (name, allowed) => allowed.includes(given.get(name)) ? given.get(name) : null;
    return {
      a: known.length ? known : DATA.start.filter((name) => names.includes(name)).slice(0, COLOURS.length),
      hw: among("hw", DATA.devices.map((each) => each.name)) || DATA.devices[0].name,
      p: among("p", DATA.phases) || DEFAULTS.p,
      c: Math.round(number("c", ...DOMAIN)), b: Math.round(number("b", 1, 2 ** 20)),
      w: among("w", DATA.weights.filter(Boolean)) || "", kv: among("kv", DATA.kv.filter(Boolean)) || "",
      fill: given.get("fill") === "1", usd: given.has("usd") ? number("usd", 0, 1e6) : null,
      t: among("t", ["dark", "light"]) || "", s: among("s", names) || "",
    };
  }

  function link() {
    const parts = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) {
      if (Array.isArray(value) ? value.length : value !== DEFAULTS[name] && value !== "" && value !== null) parts.set(name, value === true ? "1" : value);
    }
    return `#${parts.toString().replaceAll("%2C", ",")}`;
  }

  const dark = () => state.t ? state.t === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const colour = (index) => COLOURS[index % COLOURS.length][dark() ? 1 : 0];
  const device = () => DATA.devices.find((each) => each.name === state.hw);
  const chosen = () => state.a.map((name) => DATA.architectures.find((each) => each.name === name));
  // What a device costs is not known here: until someone says it, a round number shows how the cost moves.
  const price = () => state.usd === null ? DATA.examplePrice : state.usd;

  function option(value, text) { return html("option", { value }, text); }

  function prepare() {
    byId("hw").replaceChildren(...DATA.devices.map((each) => option(each.name, `${each.name}${each.calibration === null ? " (not measured)" : ""}`)));
    byId("weights").replaceChildren(...DATA.weights.map((each) => option(each || "", each || "the model's own")));
    byId("kv").replaceChildren(...DATA.kv.map((each) => option(each || "", each || "the model's own")));
    byId("architectures").replaceChildren(...DATA.architectures.map((each) => option(each.name, each.title)));
    byId("price").placeholder = `e.g. ${DATA.examplePrice}`;
    byId("more").open = !matchMedia("(max-width: 900px)").matches;
    const set = (name, value) => { state[name] = value; update(); };
    byId("hw").onchange = (event) => set("hw", event.target.value);
    byId("phase").onchange = (event) => set("p", event.target.value);
    byId("weights").onchange = (event) => set("w", event.target.value);
    byId("kv").onchange = (event) => set("kv", event.target.value);
    byId("fill").onchange = (event) => set("fill", event.target.checked);
    byId("context").oninput = (event) => moveTo(2 ** event.target.value);
    byId("batch").oninput = (event) => { if (event.target.value >= 1) set("b", Math.min(Math.round(event.target.value), 2 ** 20)); };
    byId("batch-slider").oninput = (event) => set("b", Math.round(2 ** event.target.value));
    byId("price").oninput = (event) => set("usd", event.target.value === "" ? null : Math.max(0, Number(event.target.value)));
    byId("shown").onchange = (event) => set("s", event.target.value);
    byId("add").onchange = (event) => add(event.target.value.trim());
    byId("theme").onclick = () => set("t", dark() ? "light" : "dark");
    byId("share").onclick = share;
    byId("controls").onsubmit = (event) => event.preventDefault();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
    addEventListener("hashchange", () => { state = read(location.hash); update(); });
    let wide = 0;
    new ResizeObserver(([entry]) => {
      if (entry.contentRect.width === wide) return;
      wide = entry.contentRect.width;
      update();
    }).observe(byId("results"));
  }

  function add(text) {
    const found = names.includes(text) ? [text] : names.filter((name) => name.startsWith(text));
    if (text && found.length === 1 && !state.a.includes(found[0]) && state.a.length < COLOURS.length) {
      state.a = [...state.a, found[0]];
      byId("add").value = "";
      update();
    } else if (text) {
      problem(state.a.includes(found[0]) && found.length === 1 ? `${found[0]} is already shown.` : found.length ? `${text}: which of ${found.slice(0, 8).join(", ")}?`
        : state.a.length >= COLOURS.length ? `At most ${COLOURS.length} architectures at once.` : `No architecture is called ${text}.`);
    }
  }

  async function share() {
    history.replaceState(null, "", link());
    try { await navigator.clipboard.writeText(location.href); byId("share").textContent = "Copied"; } catch { byId("share").textContent = "It is in the address bar"; }
    setTimeout(() => { byId("share").textContent = "Copy link"; }, 2500);
  }

  /** Show the step that a claim is about, and go to its kernels. */
  function ask({ arch, hw, phase, context, batch, fill, weights, kv }) {
    state = { ...state, a: [arch, ...state.a.filter((name) => name !== arch)].slice(0, COLOURS.length), s: arch, hw, p: phase, c: context, b: batch, fill: Boolean(fill), w: weights || "", kv: kv || "" };
    kept.key = "";
    update();
    byId("h-why").scrollIntoView();
    byId("shown").focus({ preventScroll: true });
  }

  function moveTo(context) { state.c = Math.round(Math.min(Math.max(context, DOMAIN[0]), DOMAIN[1])); update(true); }

  function problem(text) { byId("problem").hidden = !text; byId("problem").textContent = text; }

  function controls() {
    document.documentElement.dataset.theme = dark() ? "dark" : "light";
    byId("theme").textContent = dark() ? "Light" : "Dark";
    byId("theme").setAttribute("aria-pressed", String(dark()));
    for (const [id, value] of [["hw", state.hw], ["phase", state.p], ["weights", state.w], ["kv", state.kv]]) byId(id).value = value;
    if (document.activeElement !== byId("context")) byId("context").value = Math.log2(state.c);
    byId("context").setAttribute("aria-valuetext", `${FORMAT.count(state.c)} tokens`);
    byId("context-text").value = `${FORMAT.count(state.c)} tokens`;
    if (document.activeElement !== byId("batch")) byId("batch").value = state.b;
    if (document.activeElement !== byId("batch-slider")) byId("batch-slider").value = Math.log2(state.b);
    byId("fill").checked = state.fill;
    for (const id of ["batch", "batch-slider"]) byId(id).disabled = state.fill;
    for (const id of ["weights", "kv"]) byId(id).disabled = state.p === "train";
    if (document.activeElement !== byId("price")) byId("price").value = state.usd ?? "";
    byId("chosen").replaceChildren(...state.a.map((name, index) => {
      const remove = html("button", { type: "button", "aria-label": `Remove ${name}` }, "×");
      remove.onclick = () => { state.a = state.a.filter((each) => each !== name); update(); };
      return html("li", {}, key(colour(index), DASHES[index]), html("span", {}, name), state.a.length > 1 ? remove : null);
    }));
    const own = DATA.calibrations[device().calibration];
    byId("calibration").textContent = !own ? "No measurements on this device or a relative: times rest on general priors."
      : device().stretched === null ? `Calibrated with ${own.id}.` : `Parameters of a relative, ${own.id}, in this device's clock.`;
  }

  function questionOf(architecture, L, precision) {
    const question = { phase: state.p, B: state.b, L, precision };
    return state.fill ? { ...question, B: Math.max(1, model.largestBatch(architecture, device(), question)) } : question;
  }

  /** The curves, which depend on everything but the cursor. */
  let kept = { key: "", lines: [] };
  function curves() {
    const key = JSON.stringify({ ...state, c: 0, t: 0, s: 0, usd: 0 });
    if (kept.key !== key) {
      const refused = [];
      const lines = [];
      chosen().forEach((architecture, index) => {
        const [weights, kv] = state.p === "train" ? [null, null] : [state.w || null, state.kv || null];
        const precision = model.precisionOf(architecture, device(), state.p, weights, kv);
        if (precision === null) { refused.push(architecture.name); return; }
        const points = [];
        for (let n = 0; n < POINTS; n++) {
          const L = Math.round(DOMAIN[0] * (DOMAIN[1] / DOMAIN[0]) ** (n / (POINTS - 1)));
          const question = questionOf(architecture, L, precision);
          points.push({ L, question, result: model.predict(architecture, device(), question) });
        }
        lines.push({ architecture, index, precision, points });
      });
      kept = { key, lines, refused, banded: false };
    }
    return kept;
  }

  function bands() {
    if (kept.banded) return;
    for (const { architecture, points } of kept.lines) {
      points.forEach((point, n) => {
        if (n % BANDED && n !== POINTS - 1) return;
        point.result = model.predict(architecture, device(), point.question, { wantSpread: true });
      });
      // Between computed points, the interval is that share of the expected time which lies on the straight line.
      points.forEach((point, n) => {
        if (point.result.low !== null) return;
        const before = points[n - n % BANDED].result, after = points[Math.min(n - n % BANDED + BANDED, POINTS - 1)].result;
        const part = (n % BANDED) / BANDED;
        for (const end of ["low", "high"]) point.result[end] = point.result.time * (before[end] / before.time) ** (1 - part) * (after[end] / after.time) ** part;
      });
    }
    kept.banded = true;
    drawCharts(current);
  }

  let current = [];
  function answersAt(L) {
    return kept.lines.map(({ architecture, index, precision }) => {
      const question = questionOf(architecture, L, precision);
      const result = model.predict(architecture, device(), question, { wantSpread: true });
      return { architecture, index, colour: colour(index), dash: DASHES[index], B: question.B, result };
    });
  }

  function drawCharts(answers) {
    const usd = price();
    const here = (text) => `${text} at ${FORMAT.count(state.c)}`;
    const perToken = state.fill || state.p === "train";
    const make = (value, extra) => kept.lines.map((line, place) => {
      const scaled = (result, key) => result[key] === null ? null : value(result, key);
      return {
        name: line.architecture.name, colour: colour(line.index), dash: DASHES[line.index],
        at: answers[place] ? value(answers[place].result, "time") : null, label: answers[place] ? here(extra(value(answers[place].result, "time"))) : "",
        points: line.points.map(({ L, result }) => ({ x: L, y: value(result, "time"), low: scaled(result, "low"), high: scaled(result, "high"),
          least: scaled(result, "roofline"), most: scaled(result, "serial"), fits: result.fits })),
      };
    });
    const plain = (series) => series.map((line) => ({ ...line, points: line.points.map(({ x, y, fits }) => ({ x, y, fits })) }));
    const common = { domain: DOMAIN, cursor: state.c, onContext: moveTo };
    const batch = state.fill ? "as many sequences as fit" : `batch ${state.b}`;
    const tell = (what, series) => `${what} over context on ${state.hw}: ${series.map((line) => `${line.name} ${line.label}`).join(", ")}.`;
    const show = (id, title, series, more) => {
      byId(`t-${id === "batches" ? "batch" : id}`).textContent = title;
      draw(byId(id), { ...common, title, series, description: tell(title, series), ...more });
    };
    const what = state.p === "decode" ? "one decode step" : state.p === "train" ? "one training step" : "prefill";
    const times = make((result, key) => perToken ? result[key] / result.tokens : result[key], FORMAT.seconds);
    const marks = crossings().filter((each) => !each.always).map(({ context, time, tokens }) => ({ x: context, y: perToken ? time / tokens : time, text: FORMAT.count(context) }));
    show("time", perToken ? `Time per token of ${what}, ${batch}` : `Time of ${what}, ${batch}`, times, { format: FORMAT.seconds, crossings: marks });
    const kind = state.p === "decode" || state.p === "prefill" ? "cache" : "activations";
    const held = plain(kept.lines.map((line, place) => {
      const bytes = ({ result, question }) => result[kind] / question.B;
      const at = answers[place] ? answers[place].result[kind] / answers[place].B : null;
      return { name: line.architecture.name, colour: colour(line.index), dash: DASHES[line.index], at, label: at === null ? "" : here(FORMAT.bytes(at)), points: line.points.map((point) => ({ x: point.L, y: bytes(point) })) };
    }));
    show("cache", kind === "cache" ? "Cache of one sequence" : "Activations of one sequence", held,
      { format: FORMAT.bytes, binary: true, level: { value: device().capacity, text: `memory of one ${state.hw}` } });
    byId("f-money").hidden = usd === 0;
    if (!byId("f-money").hidden) show("money", `US$ per million ${state.p === "decode" ? "generated" : "processed"} tokens at $${usd} per hour${state.usd === null ? " (an example: say yours)" : ""}, ${batch}`, make((result, key) => cost({ ...result, time: result[key] }, usd), FORMAT.dollars), { format: FORMAT.dollars });
    byId("f-batch").hidden = !state.fill;
    if (state.fill) show("batches", "Sequences that fit one device", plain(kept.lines.map((line, place) => ({
      name: line.architecture.name, colour: colour(line.index), dash: DASHES[line.index], at: answers[place] ? answers[place].B : null, label: answers[place] ? here(String(answers[place].B)) : "",
      points: line.points.map(({ L, question, result }) => ({ x: L, y: question.B, fits: result.fits })) }))), { format: FORMAT.digits });
  }

  /** For each pair, the context from which on one takes less time per token than the other, up to 100M. */
  function crossings() {
    const found = [];
    kept.lines.forEach((one, i) => kept.lines.slice(i + 1).forEach((other) => {
      const at = (line, L) => {
        const result = model.predict(line.architecture, device(), questionOf(line.architecture, L, line.precision));
        return { ...result, each: result.time / result.tokens };
      };
      const gap = (n) => one.points[n].result.time / one.points[n].result.tokens - other.points[n].result.time / other.points[n].result.tokens;
      const sign = Math.sign(gap(POINTS - 1));
      if (!sign) return;
      const [first, second] = sign < 0 ? [one, other] : [other, one];
      let last = POINTS - 1;
      while (last >= 0 && Math.sign(gap(last)) === sign) last--;
      if (last < 0) { found.push({ first: first.architecture, second: second.architecture, always: true }); return; }
      let [low, high] = [one.points[last].L, one.points[last + 1].L];
      while (high - low > 1) {
        const middle = Math.floor((low + high) / 2);
        if (at(first, middle).each < at(second, middle).each) high = middle; else low = middle;
      }
      const { time, tokens } = at(first, high);
      found.push({ first: first.architecture, second: second.architecture, context: high, time, tokens });
    }));
    return found;
  }

  function tables(answers) {
    byId("now").textContent = `${FORMAT.count(state.c)} tokens of context`;
    summary(byId("summary"), answers, price());
    beside(byId("beside"), answers, DATA.formulas, state.p);
    const spoken = answers.map(({ architecture, result }) => `${architecture.name} ${FORMAT.seconds(result.time)}`).join(", ");
    byId("spoken").textContent = `At ${FORMAT.count(state.c)} tokens: ${spoken}`;
    const shown = answers.find(({ architecture }) => architecture.name === state.s) || answers[0];
    byId("shown").replaceChildren(...answers.map(({ architecture }) => option(architecture.name, architecture.name)));
    if (shown) {
      byId("shown").value = shown.architecture.name;
      kernels(byId("kernels"), shown.architecture, shown.result, DATA.formulas, state.p);
    }
    how(byId("how"));
  }

  function slow() {
    crossovers(byId("crossovers"), crossings(), DOMAIN, state.p, chosen());
    verdicts(byId("verdicts"), chosen(), state.p, DATA.formulas);
    byId("s-claims").hidden = !DATA.claims.length;
    claims(byId("claims"), DATA.claims, chosen(), ask);
    table(byId("points"), ["context", ...kept.lines.flatMap(({ architecture }) => [`${architecture.name}: time`, "low", "high", "cache"])],
      kept.lines.length ? kept.lines[0].points.filter((_, n) => n % 4 === 0).map(({ L }, n) => [FORMAT.count(L), ...kept.lines.flatMap(({ points }) => {
        const { result, question } = points[n * 4];
        return [FORMAT.seconds(result.time), FORMAT.seconds(result.low ?? result.time), FORMAT.seconds(result.high ?? result.time), FORMAT.bytes(result.cache / question.B)];
      })]) : []);
    history.replaceState(null, "", link());
  }

  function how(host) {
    const formats = [state.w && ` --weights ${state.w}`, state.kv && ` --kv ${state.kv}`].filter(Boolean).join("");
    const command = `python cli.py predict --arch ${state.a.join(",")} --hw ${state.hw} --context ${state.c} --phase ${state.p} --batch ${state.b}${state.p === "train" ? "" : formats} --breakdown`;
    host.replaceChildren(
      html("p", {}, "The same in a terminal", state.fill ? " (with the batch of the table above)" : "", ": ", html("code", {}, command)),
      html("p", {}, "An architecture and a step become a list of kernels; a device and its calibration turn each kernel into seconds. The programs in this page are written from the same formulas as the package's predictions and agree with them to a billionth. Intervals use parameters' deviations of four digits and are computed at every third point of a curve, exactly at the cursor."),
      html("p", {}, DATA.pricesNote),
      html("p", { class: "remark" }, `costmodel ${DATA.version}, ${DATA.architectures.length} architectures, ${DATA.devices.length} devices.`));
  }

  function update(cursorOnly = false) {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      controls();
      const { refused } = curves();
      problem(refused.length ? `${state.hw} has no engine for the number formats of ${refused.join(", ")}; choose other formats.` : "");
      current = answersAt(state.c);
      drawCharts(current);
      tables(current);
      clearTimeout(pending);
      pending = setTimeout(() => { bands(); slow(); document.documentElement.dataset.ready = "1"; }, cursorOnly ? 60 : 120);
    });
  }

  prepare();
  update();
  window.costmodel = { DATA, model, state: () => state };
}

const packed = byId("data").textContent;
if (typeof DecompressionStream === "undefined") {
  byId("problem").hidden = false;
  byId("problem").textContent = "This browser cannot unpack the data of the page; any from 2023 on can.";
} else {
  unpacked(packed).then(start);
}
