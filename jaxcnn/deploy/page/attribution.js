"use strict";

// Where in the image the evidence for a class is: Grad-CAM, and occlusion.

/**
 * Grad-CAM: the maps of the last convolution, weighted by the mean gradients of the class's logit,
 * summed; what is positive. (Selvaraju et al. 2017, arXiv 1610.02391.)
 *
 * @return {{values: Float32Array, rows, columns}}
 */
function gradCam(network, pass, label) {
  const conv = network.layers.findLastIndex(({ kind }) => kind === "conv");
  const at = conv + network.layers.slice(conv).findIndex(({ kind }) => kind === "relu");
  const [rows, columns, count] = network.layers[at].shape;
  const gradient = network.activationGradient(pass, label, network.layers[at].name);
  const weights = new Float64Array(count);
  gradient.forEach((value, i) => (weights[i % count] += value / (rows * columns)));
  const values = new Float32Array(rows * columns);
  pass.activations[at].forEach((value, i) =>
    (values[Math.floor(i / count)] += value * weights[i % count]));
  return { values: values.map((value) => Math.max(value, 0)), rows, columns };
}

/**
 * Occlusion: how much the logits fall when a square is covered, at every place, in pieces for a
 * `Task`. (Zeiler and Fergus 2014, arXiv 1311.2901.)
 *
 * @return {{falls: Float32Array of (places, classes), rows, columns}}
 */
function* occlude(model) {
  const [height, width, channels] = model.shape;
  const { image, network } = model;
  const square = Math.round(Math.min(height, width) / 5), stride = 2;
  const rows = Math.ceil(height / stride), columns = Math.ceil(width / stride);
  const whole = Float32Array.from(model.pass.logits), classes = whole.length;
  const falls = new Float32Array(rows * columns * classes);
  // An empty place of a drawing is black; of a photograph, the mean of the training images.
  const { mean } = network.layers[0].settings;
  const cover = (c) => (model.data.facts.reads_digits ? 0 : Math.round(255 * (mean[c] ?? mean[0])));
  for (const [start, end] of batches(rows * columns, 8)) {
    const images = new Uint8Array((end - start) * image.length);
    for (let place = start; place < end; place++) {
      const to = (place - start) * image.length;
      images.set(image, to);
      const top = Math.floor(place / columns) * stride - (square >> 1);
      const left = (place % columns) * stride - (square >> 1);
      for (let y = Math.max(top, 0); y < Math.min(top + square, height); y++) {
        for (let x = Math.max(left, 0); x < Math.min(left + square, width); x++) {
          for (let c = 0; c < channels; c++) images[to + (y * width + x) * channels + c] = cover(c);
        }
      }
    }
    model.forward(images).logits.forEach((value, i) =>
      (falls[start * classes + i] = whole[i % classes] - value));
    yield;
  }
  return { falls, rows, columns };
}

class Attribution {
  constructor(model) {
    this.model = model;
    this.occlusion = null;
    const { classes } = model.data;
    $("evidence").append(make("option", { value: "", textContent: "the prediction" }),
      ...classes.map((name, i) => make("option", { value: i, textContent: name })));
    $("evidence").addEventListener("change", () => this.show());
    this.task = new Task(() => this.work(), $("why"));
    model.watch(() => {
      this.occlusion = null;
      if (model.pass) this.task.restart();
      else {
        this.task.cancel();
        for (const id of ["grad-cam", "occlusion"]) wipe($(id));
      }
    });
  }

  get label() {
    const chosen = $("evidence").value;
    return chosen === "" ? largest(this.model.pass.logits, 1)[0] : Number(chosen);
  }

  *work() {
    this.showGradCam();
    yield;
    this.occlusion = yield* occlude(this.model);
    this.showOcclusion();
  }

  show() {
    if (!this.model.pass) return;
    this.showGradCam();
    if (this.occlusion) this.showOcclusion();
  }

  showGradCam() {
    const { network, pass } = this.model;
    this.overlay($("grad-cam"), gradCam(network, pass, this.label));
  }

  showOcclusion() {
    const { label, model: { network }, occlusion: { falls, rows, columns } } = this;
    const values = Float32Array.from(
      { length: rows * columns }, (_, i) => Math.max(falls[i * network.classes + label], 0));
    this.overlay($("occlusion"), { values, rows, columns });
    const place = largest(values, 1)[0];
    $("occlusion-note").textContent = values[place] > 0
      ? `Covering the brightest place lowers the logit by ${decimal(values[place], 1)}.`
      : "No covered square lowers the logit.";
  }

  /** Lays values over the dimmed image. */
  overlay(canvas, { values, rows, columns }) {
    const { image, shape: [height, width, channels] } = this.model;
    const most = values.reduce((a, b) => Math.max(a, b), 0) || 1;
    const scale = 8, wide = width * scale;
    const sample = (y, x) => values[Math.min(rows - 1, y) * columns + Math.min(columns - 1, x)];
    paint(canvas, wide, height * scale, (i) => {
      const [row, column] = [Math.floor(i / wide) / scale / height, (i % wide) / wide];
      const [y, x] = [Math.max(row * rows - 0.5, 0), Math.max(column * columns - 0.5, 0)];
      const [top, left] = [Math.floor(y), Math.floor(x)], [down, right] = [y - top, x - left];
      const value = (1 - down) * ((1 - right) * sample(top, left) + right * sample(top, left + 1)) +
        down * ((1 - right) * sample(top + 1, left) + right * sample(top + 1, left + 1));
      const heat = MAGMA[Math.round((255 * value) / most)], share = 0.25 + (0.65 * value) / most;
      const pixel = (Math.floor(row * height) * width + Math.floor(column * width)) * channels;
      let colour = 255 << 24;
      for (let c = 0; c < 3; c++) {
        const below = image[pixel + (channels < 3 ? 0 : c)];
        colour |= Math.round(below * (1 - share) + ((heat >> (8 * c)) & 255) * share) << (8 * c);
      }
      return colour >>> 0;
    });
  }
}
