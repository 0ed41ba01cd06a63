"use strict";
// From programs and data to predictions. TEMPLATES and FORMS are written by the Python package from its formulas; what
// follows only adds up what they compute, as costmodel/timing.py and costmodel/memory.py do.

/** Everything that answers questions about DATA's architectures on its devices. */
function makeModel(DATA, TEMPLATES, FORMS) {
  const rows = DATA.rows.map(([template, key, ...numbers]) => ({ template, key, numbers }));
  const known = new Map();
  const out = new Float64Array(DATA.outputs.length);
  const k = new Float64Array(256);
  const RANGED = [1, 2, 4];  // where in k FLOPs, bytes and length stand
  const FIRST_BOUND = DATA.outputs.length - DATA.bounds.length;

  /** The parameters of a kernel key on a device: those of its calibration, in this device's clock, of others, or the
      priors. */
  function fitOf(device, key) {
    const name = `${device.name}/${key}`;
    if (known.has(name)) return known.get(name);
    const family = DATA.families[DATA.keys[key][0]];
    const calibration = device.calibration === null ? null : DATA.calibrations[device.calibration];
    const place = calibration === null ? -1 : calibration.byKey[key];
    const beyond = device.beyondByKey[key];
    if (place < 0 && beyond !== undefined) {
      const fit = device.beyond[beyond];
      known.set(name, { ...fit, family: DATA.families[fit.family], columns: DATA.columns[fit.columns] });
      return known.get(name);
    }
    const shared = place < 0 ? `${device.name}/prior/${DATA.keys[key][0]}` : `${device.name}/fit/${place}`;
    if (!known.has(shared)) known.set(shared, place < 0 ? prior(family) : fitted(calibration.fits[place], place, device));
    known.set(name, known.get(shared));
    return known.get(shared);
  }

  function prior(family) {
    return { ...family.prior, family, basis: "prior" };
  }

  function fitted(fit, place, device) {
    const family = DATA.families[fit.family];
    const borrowed = fit.borrowed ? DATA.transferSpread : 1;
    const own = DATA.columns[fit.columns];
    if (device.stretched === null) {
      const basis = fit.borrowed ? "transferred" : "fitted";
      return { ...fit, family, columns: own, spread: fit.spread * borrowed, basis };
    }
    const values = fit.values.slice();
    let next = 0;
    family.seconds.forEach((isSeconds, index) => { if (isSeconds) values[index] = device.stretched[place][next++]; });
    const missed = device.missed[fit.missedAs] ?? device.missed[""];
    const widen = missed === undefined ? DATA.transferSpread : 1;
    const columns = own.map((column) => column.map((change) => change * widen));
    const spread = fit.spread * widen * borrowed;
    return { ...fit, family, values, columns, spread, missed: (missed || 0) * borrowed, basis: "transferred" };
  }

  /** Fill k for a row; its form, or -1. */
  function count(row, B, L) {
    TEMPLATES[row.template](row.numbers, B, L, k);
    return DATA.formOf[row.template];
  }

  function secondsOf(form, device, values) {
    FORMS[device.variants[form]](k, device.numbers, values, out);
    return out[0];
  }

  /** The place of the number formats that a choice means on a device, null where it has no engine for them. */
  function precisionOf(architecture, device, phase, weights, kv) {
    const choice = DATA.weights.indexOf(weights) * DATA.kv.length + DATA.kv.indexOf(kv);
    const place = architecture.choices[DATA.devices.indexOf(device)][choice];
    const needed = place === null ? null : architecture.phases[phase].engines[place];
    return needed && needed.every((engine) => device.engines.includes(engine)) ? place : null;
  }

  /** Bytes of a step: weights, cache of all sequences, activations. */
  function memory(architecture, device, question) {
    const phase = architecture.phases[question.phase];
    const { B, L, precision } = question;
    const training = question.phase === "train";
    const first = phase.rows[precision].length - phase.gradients;
    let working = 0, before = 0, kept = 0;
    phase.rows[precision].forEach((place, index) => {
      count(rows[place], B, L);
      if (index < first) kept += k[0] * k[3];
      if (k[0]) { working = Math.max(working, before + k[3]); before = k[3]; }
    });
    if (training) return { weights: architecture.parameters * DATA.trainingBytes, cache: 0, activations: kept };
    count(rows[phase.cache[precision]], B, L);
    return { weights: architecture.weights[precision], cache: B * k[0], activations: working };
  }

  /** What `costmodel predict` says of a step; with wantKernels also every kernel, with wantSpread the 80 % interval. */
  function predict(architecture, device, question, { wantKernels = false, wantSpread = false } = {}) {
    const phase = architecture.phases[question.phase];
    const { B, L, precision } = question;
    const [names, groups] = phase.named[precision] || [phase.names, phase.groups];
    const kernels = [], byBound = {}, byBasis = {};
    let time = 0, serial = 0, lower = 0, flops = 0, bytes = 0;
    phase.rows[precision].forEach((place, index) => {
      const row = rows[place];
      const form = count(row, B, L);
      const fit = fitOf(device, row.key);
      secondsOf(form, device, fit.values);
      const launches = k[0], own = out[0] * launches;
      time += own;
      serial += out[1] * launches;
      lower += out[2] * launches;
      flops += k[1] * launches;
      bytes += k[2] * launches;
      let bound = 0;
      for (let each = 1; each < DATA.bounds.length; each++) {
        if (out[FIRST_BOUND + each] > out[FIRST_BOUND + bound]) bound = each;
      }
      const basis = basisOf(fit);
      byBound[DATA.bounds[bound]] = (byBound[DATA.bounds[bound]] || 0) + own;
      byBasis[basis] = (byBasis[basis] || 0) + own;
      if (wantKernels || wantSpread) {
        kernels.push({
          name: names[index], group: groups[index], family: fit.family.name, launches, time: own,
          bound: DATA.bounds[bound], basis, flops: k[1] * launches, bytes: k[2] * launches, row, form, fit,
          octaves: fit.basis === "prior" ? 0 : octavesOutside(fit),
        });
      }
    });
    const held = memory(architecture, device, question);
    const total = held.weights + held.cache + held.activations;
    const S = question.phase === "decode" && !architecture.bidirectional ? 1 : L;
    const sigma = wantSpread ? spread(kernels, device, question, time) : null;
    const busy = device.tdp === null ? null : device.idle + (device.tdp - device.idle) * Math.min(lower / time, 1);
    return {
      time, serial, roofline: lower, flops, bytes, ...held, memory: total, fits: total <= device.capacity,
      tokensPerSecond: B * S / time, tokens: B * S, energy: busy === null ? null : busy * time,
      low: sigma === null ? null : Math.max(time * Math.exp(-DATA.z80 * sigma), lower),
      high: sigma === null ? null : time * Math.exp(DATA.z80 * sigma),
      bound: largest(byBound, DATA.bounds), basis: weakest(byBasis, time), kernels,
    };
  }

  /** How many powers of two the kernel that k describes lies outside the measured ones. */
  function octavesOutside(fit) {
    let far = 0;
    fit.range.forEach(([least, most], index) => {
      const value = Math.max(k[RANGED[index]], 1);
      far = Math.max(far, Math.log2(value / Math.max(most, 1)), Math.log2(Math.max(least, 1) / value));
    });
    return far;
  }

  function basisOf(fit) {
    return fit.basis === "fitted" && octavesOutside(fit) > DATA.rounded ? "extrapolated" : fit.basis;
  }

  /** The standard deviation of ln(time): the parameters' errors, shared within a fit, and those of the forms. */
  function spread(kernels, device, { B, L }, time) {
    const errors = {}, groups = new Map();
    for (const kernel of kernels) {
      const { fit } = kernel;
      const growth = DATA.extrapolationSpreads[fit.errors] ?? DATA.extrapolationSpreads[""];
      const wider = 1 + growth * kernel.octaves;
      errors[fit.errors] = (errors[fit.errors] || 0) + kernel.time * Math.hypot(fit.spread * wider, fit.missed || 0);
      if (!groups.has(fit.group)) groups.set(fit.group, []);
      groups.get(fit.group).push(kernel);
    }
    let variance = 0;
    for (const error of Object.values(errors)) variance += (error / time) ** 2;
    for (const members of groups.values()) {
      const { fit } = members[0];
      const middle = members.reduce((sum, kernel) => sum + kernel.time, 0);
      if (middle / time < 1e-3) continue;
      const moved = (column, sign) => {
        const values = fit.values.map((value, index) => column[index] === 0 ? value : Math.min(
          Math.max(value * Math.exp(sign * column[index]), fit.family.low[index]), fit.family.high[index]));
        return members.reduce((sum, kernel) => {
          const form = count(kernel.row, B, L);
          return sum + secondsOf(form, device, values) * k[0];
        }, 0);
      };
      for (const column of fit.columns) {
        const side = straightSide(fit, column);
        const change = side ? side * (moved(column, side) - middle) : 0.5 * (moved(column, 1) - moved(column, -1));
        variance += (change / time) ** 2;
      }
    }
    return Math.sqrt(variance);
  }

  /** The side of a short direction, 1 or -1, on which no parameter passes its bounds; 0 where both must be asked. */
  function straightSide(fit, column) {
    if (column.some((change) => Math.abs(change) > DATA.shortStep)) return 0;
    return [1, -1].find((side) => column.every((change, index) => {
      const value = fit.values[index] * Math.exp(side * change);
      return change === 0 || (fit.family.low[index] <= value && value <= fit.family.high[index]);
    })) || 0;
  }

  function largest(parts, order) {
    return order.reduce((best, name) => (parts[name] || 0) > (parts[best] || 0) ? name : best, order[0]);
  }

  function weakest(parts, time) {
    return DATA.bases.filter((name) => (parts[name] || 0) >= 0.1 * time).at(-1);
  }

  /** The largest batch with which a step fits the device; 0 when not even one sequence does. */
  function largestBatch(architecture, device, question) {
    const fits = (B) => {
      const held = memory(architecture, device, { ...question, B });
      return held.weights + held.cache + held.activations <= device.capacity;
    };
    if (!fits(1)) return 0;
    let low = 1, high = 2;
    while (high <= 2 ** 20 && fits(high)) { low = high; high *= 2; }
    while (high - low > 1) {
      const middle = Math.floor((low + high) / 2);
      if (fits(middle)) low = middle; else high = middle;
    }
    return low;
  }

  return { predict, memory, precisionOf, largestBatch };
}
