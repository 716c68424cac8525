// Learning curves, and accuracy by a hyperparameter, of one optimizer before all others, as SVG.

const WIDTH = 420, HEIGHT = 226;
const PLOT = { left: 44, right: 410, top: 10, bottom: 186 };

// Makes an element of an SVG.
function shape(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Returns a function from values to pixels.
function makeScale(low, high, from, to, logarithmic) {
  const map = logarithmic ? Math.log : (value) => value;
  const span = map(high) - map(low) || 1;
  return (value) => from + (to - from) * (map(value) - map(low)) / span;
}

// Returns ticks between two values: 1, 2 and 5 times powers of ten, or few of these, or even steps.
function ticks(low, high, logarithmic) {
  const found = [];
  if (logarithmic) {
    const decades = Math.log10(high / low);
    const factors = decades < 1.5 ? [1, 1.5, 2, 3, 5, 7] : decades < 3 ? [1, 3] : [1];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const factor of factors) found.push(factor * 10 ** power);
    }
  } else {
    const raw = (high - low) / 4 || 1, unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= raw * 0.99);
    for (let n = Math.ceil(low / step); n * step <= high * 1.0001; n++) found.push(n * step);
  }
  return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

function format(value) {
  const plain = Number(value.toPrecision(3));
  return plain && Math.abs(plain) < 1e-3 ? plain.toExponential() : plain.toLocaleString("en");
}

// Returns an SVG with axes, whose ticks are those of the scales.
function makeAxes(label, x, y, xName) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const value of ticks(y.low, y.high, y.log)) {
    const at = y.scale(value);
    svg.append(shape("path", { class: "grid", d: `M${PLOT.left} ${at}H${PLOT.right}` }));
    svg.append(shape("text", { x: PLOT.left - 6, y: at + 4, "text-anchor": "end" }, format(value)));
  }
  for (const value of ticks(x.low, x.high, x.log)) {
    svg.append(shape("path", { class: "axis", d: `M${x.scale(value)} ${PLOT.bottom}v4` }));
    const place = { x: x.scale(value), y: PLOT.bottom + 16, "text-anchor": "middle" };
    svg.append(shape("text", place, format(value)));
  }
  svg.append(shape("path", { class: "axis", d: `M${PLOT.left} ${PLOT.top}V${PLOT.bottom}H${PLOT.right}` }));
  const middle = { x: (PLOT.left + PLOT.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" };
  svg.append(shape("text", middle, xName));
  return svg;
}

function axis(low, high, from, to, log) {
  return { low, high, log, scale: makeScale(low, high, from, to, log) };
}

// Returns the path of a curve over the run; a gap where it has no value.
function curvePath(curve, steps, x, y) {
  let path = "", pen = "M";
  curve.forEach((value, index) => {
    if (value === null) { pen = "M"; return; }
    const left = x.scale((index + 0.5) * steps / curve.length);
    const top = y.scale(Math.min(Math.max(value, y.low), y.high));
    path += `${pen}${left.toFixed(1)} ${top.toFixed(1)}`;
    pen = "L";
  });
  return path;
}

// Draws the training loss of all optimizers; `roles` are [class, optimizer] of those to be seen.
function drawCurves(track, roles) {
  const values = track.optimizers.flatMap((one) => one.curve).filter((value) => value > 0).sort((a, b) => a - b);
  const low = values[0] || 0.1, high = values[Math.floor(0.99 * (values.length - 1))] || 1;
  const x = axis(0, track.steps, PLOT.left, PLOT.right, false);
  const y = axis(low, Math.max(high, low * 1.1), PLOT.bottom, PLOT.top, true);
  const svg = makeAxes("Training loss by step", x, y, "step");
  for (const one of track.optimizers) {
    svg.append(shape("path", { class: "curve", d: curvePath(one.curve, track.steps, x, y) }));
  }
  for (const [role, one] of roles) {
    svg.append(shape("path", { class: `curve ${role}`, d: curvePath(one.curve, track.steps, x, y) }));
  }
  return svg;
}

// Draws the error on the held-out images of every trial against a hyperparameter.
function drawTrials(roles, name) {
  const known = roles.map(([role, one]) => [role, one, one.names.indexOf(name)]).filter((each) => each[2] >= 0);
  const trials = known.flatMap(([, one, at]) => one.trials.map((trial) => [trial[2 + at], 1 - trial[0], trial[1]]));
  const log = trials.every(([value]) => value > 0);
  const xs = trials.map(([value]) => value), errors = trials.filter((t) => !t[2]).map((t) => Math.max(t[1], 1e-4));
  const spread = (list) => [Math.min(...list), Math.max(...list)];
  const [left, right] = spread(xs), [least, most] = spread(errors.length ? errors : [0.1, 1]);
  const margin = log ? Math.pow(right / left, 0.04) : 0.04 * (right - left);
  const x = log ? axis(left / margin, right * margin, PLOT.left, PLOT.right, true)
    : axis(left - margin, right + margin, PLOT.left, PLOT.right, false);
  const y = axis(100 * least / 1.1, 100 * Math.max(most * 1.1, least * 1.3), PLOT.bottom, PLOT.top + 14, true);
  const svg = makeAxes(`Error on held-out images by ${name}`, x, y, name);
  for (const [role, one, at] of known) {
    one.trials.forEach((trial, index) => {
      const across = x.scale(trial[2 + at]);
      if (trial[1]) {
        svg.append(shape("path", { class: `cross ${role}`, d: `M${across - 3.5} ${PLOT.top - 3}l7 7m0 -7l-7 7` }));
        return;
      }
      const up = y.scale(100 * Math.max(1 - trial[0], 1e-4));
      svg.append(shape("circle", { class: `point ${role}`, cx: across, cy: up, r: role === "shown" ? 4 : 3 }));
      if (role === "shown" && index === one.best) {
        svg.append(shape("circle", { class: "best", cx: across, cy: up, r: 7 }));
      }
    });
  }
  return svg;
}
