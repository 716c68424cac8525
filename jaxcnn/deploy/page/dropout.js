"use strict";

// What a training step sees instead: the hidden units that dropout leaves, and their predictions.

const MASKS = 30;

class DropoutFigure {
  constructor(model) {
    this.model = model;
    this.layer = model.network.layers.find(({ kind }) => kind === "dropout");
    this.random = new Random(1);
    const { rate } = this.layer.settings;
    this.rate = rate || 0.5;
    if (!rate) {
      $("dropped-note").textContent = "This run’s recipe has no dropout; a rate of 50% is shown.";
    }
    this.draw();
    $("redraw").addEventListener("click", () => {
      this.draw();
      this.task.restart();
    });
    this.task = new Task(() => this.work(), $("training-pass"));
    model.watch(() => (model.pass ? this.task.restart() : this.blank()));
  }

  /** Draws masks for some copies of the image, of which the first one is displayed. */
  draw() {
    this.units = size(this.layer.shape);
    this.mask = this.random.mask(MASKS * this.units, this.rate);
  }

  blank() {
    this.task.cancel();
    wipe($("mask"));
    for (const id of ["dropped", "dropped-range"]) $(id).textContent = "";
  }

  *work() {
    const { model, layer, units, mask } = this;
    const { classes } = model.data;
    const activation = model.pass.activations[model.network.layers.indexOf(layer)];
    const colour = colouring(activation);
    const across = Math.min(units, UNITS_ACROSS);
    paint($("mask"), across, Math.ceil(units / across), (i) =>
      (i < units ? (mask[i] ? colour(activation[i]) : 0xff9a8a7a) : 0));
    const kept = mask.subarray(0, units).reduce((sum, one) => sum + one, 0);
    const label = largest(model.pass.logits, 1)[0], whole = model.probabilities[label];
    yield;
    // Every activation before dropout is the same for all copies.
    const images = new Uint8Array(MASKS * model.image.length);
    for (let i = 0; i < MASKS; i++) images.set(model.image, i * model.image.length);
    const scale = 1 / (1 - this.rate);
    const pass = model.forward(images, (at, values) => {
      if (at === layer) values.forEach((value, i) => (values[i] = mask[i] ? value * scale : 0));
    });
    const shares = softmax(pass.logits, classes.length);
    const ofLabel = Array.from({ length: MASKS }, (_, i) => shares[i * classes.length + label]);
    $("dropped").textContent = `${units - kept} of ${plural(units, "unit")} are dropped (grey), ` +
      `the others are scaled by ${decimal(scale, 2)}. ${classes[label]}: ${percent(ofLabel[0])} ` +
      `with this mask, ${percent(whole)} without dropout.`;
    const ordered = [...ofLabel].sort((a, b) => a - b);
    $("dropped-range").textContent = `Over ${MASKS} masks: from ${percent(ordered[0])} to ` +
      `${percent(ordered[MASKS - 1])}, half of them above ${percent(ordered[MASKS >> 1])}.`;
  }
}
