"use strict";

// BatchNorm's statistics: the running ones, a batch's of training images, and the image's own.

const BATCH = 50; // images

class Statistics {
  constructor(model, training) {
    Object.assign(this, { model, training });
    this.layers = model.network.layers.filter(({ kind }) => kind === "batch_norm");
    if (!this.layers.length) return;
    $("statistics").hidden = false;
    $("normalized").append(...this.layers.map(({ name }, i) =>
      make("option", { value: i, textContent: name })));
    this.batch = null; // {mean, var} by layer
    this.task = new Task(() => this.work(), $("training-pass"));
    $("normalized").addEventListener("change", () => this.task.restart());
    model.watch(({ weights }) => {
      if (weights) this.batch = null;
      this.task.restart();
    });
    this.task.restart();
  }

  get layer() {
    return this.layers[Number($("normalized").value)];
  }

  /** The inputs of a BatchNorm layer in a pass. */
  inputs(pass, layer) {
    return pass.activations[this.model.network.layers.indexOf(layer) - 1];
  }

  *work() {
    const { model, training } = this;
    if (!this.batch && training?.count > 1) {
      const images = training.images.subarray(0, Math.min(BATCH, training.count) * size(model.shape));
      const pass = model.forward(images);
      this.batch = Object.fromEntries(
        this.layers.map((layer) => [layer.name, layer.measure(this.inputs(pass, layer))]));
      yield;
    }
    const { layer } = this;
    const own = model.pass && layer.measure(this.inputs(model.pass, layer));
    this.figure(layer.weights, this.batch?.[layer.name], own);
  }

  /** Each map's mean and standard deviation as a bar, side by side; each {mean, var}. */
  figure(running, batch, own) {
    const series = [["running", running], ["batch", batch], ["own", own]]
      .filter(([, one]) => one)
      .map(([name, { mean, var: variance }]) =>
        [name, { mean, deviation: Array.from(variance, Math.sqrt) }]);
    const count = running.mean.length;
    let [low, high] = [Infinity, -Infinity];
    for (const [, { mean, deviation }] of series) {
      mean.forEach((value, map) => {
        low = Math.min(low, value - deviation[map]);
        high = Math.max(high, value + deviation[map]);
      });
    }
    const [width, height, left] = [640, 220, 44], step = (width - left) / count;
    const y = (value) => 8 + ((high - value) / (high - low || 1)) * (height - 30);
    const bars = series.flatMap(([name, { mean, deviation }], k) =>
      Array.from(mean, (value, map) => {
        const x = left + (map + (k + 1) / 4) * step, wide = Math.min(6, step / 5);
        return draw("g", { class: name },
          draw("line", { x1: x, x2: x, y1: y(value - deviation[map]), y2: y(value + deviation[map]),
            "stroke-width": wide }),
          draw("circle", { cx: x, cy: y(value), r: wide * 0.9 }));
      }));
    const every = Math.ceil(count / 16);
    const labels = Array.from({ length: Math.ceil(count / every) }, (_, i) => draw("text", {
      x: left + (i * every + 0.5) * step, y: height - 6, "text-anchor": "middle" }, `${i * every + 1}`));
    const ticks = [low, 0, high].filter((value) => value >= low && value <= high);
    $("moments").replaceChildren(
      ...ticks.map((value) => draw("g", { class: "tick" },
        draw("line", { x1: left, x2: width, y1: y(value), y2: y(value) }),
        draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, decimal(value, 1)))),
      ...bars, ...labels);
    $("moments").setAttribute("aria-label", `${this.layer.name}: mean and standard deviation of ` +
      `${plural(count, "map")}`);
  }
}
