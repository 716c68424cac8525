"use strict";

// Training from random weights in a worker, with live curves and kernels.

const RATES = { adam: 0.004, sgd: 0.02 };

class Trainer {
  /**
   * @param {Model} model
   * @param {{images, labels}} training
   * @param {{images, labels}} test the sample of test images.
   */
  constructor(model, training, test) {
    Object.assign(this, { model, training, test, worker: null, weights: null });
    this.curves = new Curves($("curves"));
    $("optimizer").addEventListener("change", () => ($("rate").value = RATES[$("optimizer").value]));
    $("train").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    $("pause").addEventListener("click", () => this.pause());
    $("stop").addEventListener("click", () => this.worker.postMessage({ kind: "stop" }));
    $("take-weights").addEventListener("click", () => this.use(this.weights));
    $("run-weights").addEventListener("click", () => this.use(model.run));
    this.switch("idle");
  }

  start() {
    const { model, training, test } = this;
    this.curves.clear();
    $("learning").hidden = $("train-progress").hidden = false;
    const source = [$("engine"), $("training-script")].map(({ textContent }) => textContent);
    const url = URL.createObjectURL(new Blob(source, { type: "text/javascript" }));
    this.worker = new Worker(url);
    URL.revokeObjectURL(url);
    this.worker.onmessage = ({ data }) => this.hear(data);
    this.worker.onerror = ({ message }) => this.hear({ kind: "error", message });
    this.worker.postMessage({
      kind: "start",
      description: model.data.network,
      weights: null,
      images: training.images,
      labels: training.labels,
      test,
      optimizer: { name: $("optimizer").value, learningRate: Number($("rate").value) },
      batchSize: Number($("batch").value),
      epochs: Number($("epochs").value),
      seed: Number($("seed").value),
    });
    $("train-problem").hidden = true;
    $("train-note").textContent = "Starting …";
    this.switch("running");
  }

  pause() {
    const paused = this.state === "paused";
    this.worker.postMessage({ kind: paused ? "resume" : "pause" });
    this.switch(paused ? "running" : "paused");
  }

  hear(message) {
    if (message.kind === "error") {
      $("train-problem").textContent = `The training failed: ${message.message}.`;
      $("train-problem").hidden = false;
      this.end();
      return;
    }
    this.weights = message.weights;
    const { step, steps, epoch, seconds, loss, accuracy: share, testAccuracy, testStep } = message;
    if (loss !== null) this.curves.add(epoch, { loss, accuracy: share });
    if (testAccuracy !== null) this.curves.addTest((epoch / step) * testStep, testAccuracy);
    this.curves.show(Number($("epochs").value));
    const test = testAccuracy === null ? "" : `, test accuracy ${percent(testAccuracy)}`;
    $("train-note").textContent =
      `Step ${step.toLocaleString("en")} of ${steps.toLocaleString("en")}, ` +
      `${decimal(seconds, 0)} s${test}`;
    $("train-progress").value = step / steps;
    this.showKernels();
    if (message.kind !== "end") return;
    if (loss !== null && !Number.isFinite(loss)) {
      $("train-note").textContent += ". The loss is no number any more: take a smaller learning rate.";
    }
    say({ training: `Training has ended${test}.` });
    this.end();
  }

  end() {
    this.worker.terminate();
    this.worker = null;
    this.switch("idle");
  }

  use(weights) {
    // The worker's next message has new arrays; these stay.
    this.model.use(weights);
    this.switch(this.state);
  }

  switch(state) {
    this.state = state;
    const idle = state === "idle", { model } = this;
    for (const field of $("train").querySelectorAll("select, input, #start")) field.disabled = !idle;
    $("pause").disabled = $("stop").disabled = idle;
    $("pause").textContent = state === "paused" ? "Go on" : "Pause";
    $("take-weights").disabled = !this.weights;
    $("run-weights").disabled = model.base === model.run;
    $("whose").textContent = model.base === model.run
      ? "The page uses the run’s weights." : "The page uses weights that were trained in it.";
  }

  /** The kernels of the first convolution, a canvas for each map. */
  showKernels() {
    const conv = this.model.network.layers.find(({ kind }) => kind === "conv");
    const [rows, columns, channels, maps] = conv.weightShapes.kernel;
    const kernel = this.weights[`${conv.name}/kernel`];
    if (!$("kernels").childElementCount) {
      $("kernels").append(...Array.from({ length: maps }, () => make("canvas")));
      $("kernels").setAttribute("aria-label", `The kernels of ${conv.name}`);
    }
    const most = kernel.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;
    const grey = (value) => Math.round(127.5 + (127.5 * value) / most);
    [...$("kernels").children].forEach((canvas, map) => {
      // Colours where there are three channels, as positive and negative parts around grey.
      paint(canvas, columns, rows, (i) => {
        const at = (c) => kernel[(i * channels + c) * maps + map];
        if (channels !== 3) return SIGNED[grey(at(0))];
        return ((255 << 24) | (grey(at(2)) << 16) | (grey(at(1)) << 8) | grey(at(0))) >>> 0;
      });
    });
  }
}
