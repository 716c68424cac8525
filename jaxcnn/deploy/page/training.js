"use strict";

// Trains a network in a worker, whose source is this file after those of the network.
//
// It takes the messages {kind: "start", ...} with what `Training` needs, {kind: "pause"},
// {kind: "resume"} and {kind: "stop"}; it posts {kind: "progress", ...} several times a second, and
// at the end {kind: "end", ...} with the same content, see `Training.progress`, or
// {kind: "error", message}.

const REPORT_SECONDS = 0.2;
const EVALUATION_SHARE = 0.05; // of the time, at most, to classify the test images

/**
 * Writes an image that is moved down and to the right, with zeros where it has left.
 *
 * @param {Uint8Array} to of shape (height, width, channels).
 * @param {Uint8Array} image of the same shape.
 * @param {number[]} shape
 * @param {number} down in pixels; negative: up.
 * @param {number} right in pixels; negative: left.
 */
function moveImage(to, image, [height, width, channels], down, right) {
  to.fill(0);
  const size = (width - Math.abs(right)) * channels; // of what stays of a row
  const first = Math.max(0, -right) * channels, place = Math.max(0, right) * channels;
  const row = width * channels;
  for (let y = Math.max(0, down); y < Math.min(height, height + down); y++) {
    const from = (y - down) * row + first;
    to.set(image.subarray(from, from + size), y * row + place);
  }
}

/** A run: one epoch after the other over shuffled training images. */
class Training {
  /**
   * @param {object} run
   * @param {object} run.description of the network.
   * @param {?Object<string, Float32Array>} run.weights to start from; null: random ones.
   * @param {Uint8Array} run.images of shape (N, height, width, channels).
   * @param {ArrayLike<number>} run.labels
   * @param {{images: Uint8Array, labels: ArrayLike<number>}} run.test the sample of test images
   *   alone: the examples of the confusion matrix after it are mistakes.
   * @param {{name: string, learningRate: number}} run.optimizer "sgd" or "adam", and its settings;
   *   the learning rate falls to zero, linearly.
   * @param {number} run.batchSize
   * @param {number} run.epochs
   * @param {number} run.seed of the weights, the order and places of the images and the dropout
   *   masks.
   */
  constructor(run) {
    this.run = run;
    this.network = new Network(run.description);
    if (run.weights) this.network.load(run.weights);
    else this.network.initialize(run.seed);
    this.optimizer = new OPTIMIZERS[run.optimizer.name](run.optimizer);
    this.random = new Random(run.seed + 1);
    this.count = run.labels.length;
    this.batchSize = Math.min(run.batchSize, this.count);
    this.stepsPerEpoch = Math.floor(this.count / this.batchSize);
    this.step = 0;
    this.steps = run.epochs * this.stepsPerEpoch;
    this.seconds = 0;
    this.since = { steps: 0, loss: 0, correct: 0 }; // the last progress
    this.test = { step: -1, accuracy: null, seconds: 0 };
    this.pixels = run.images.length / this.count;
    this.batch = new Uint8Array(this.batchSize * this.pixels);
    this.batchLabels = new Int32Array(this.batchSize);
  }

  /** Takes one step of the optimizer, on images that are each moved by at most a pixel. */
  advance() {
    const at = this.step % this.stepsPerEpoch;
    if (at === 0) this.order = this.random.permutation(this.count);
    const of = (images, i) => images.subarray(i * this.pixels, (i + 1) * this.pixels);
    const pixel = () => Math.floor(3 * this.random.uniform()) - 1;
    const { inputShape } = this.network.layers[0];
    for (let i = 0; i < this.batchSize; i++) {
      const image = this.order[at * this.batchSize + i];
      moveImage(of(this.batch, i), of(this.run.images, image), inputShape, pixel(), pixel());
      this.batchLabels[i] = this.run.labels[image];
    }
    const pass = this.network.forward(this.batch, { training: true, random: this.random });
    this.since.loss += this.network.backward(pass, this.batchLabels);
    this.since.correct += accuracy(pass.logits, this.batchLabels);
    this.optimizer.learningRate = this.run.optimizer.learningRate * (1 - this.step / this.steps);
    this.optimizer.step(this.network.weights, this.network.gradients);
    this.since.steps += 1;
    this.step += 1;
  }

  /** Trains for about as many seconds, and classifies the test images if it is time. */
  work(seconds) {
    const start = performance.now();
    const elapsed = () => (performance.now() - start) / 1000;
    while (this.step < this.steps && elapsed() < seconds) this.advance();
    const waited = this.seconds + elapsed() - (this.test.at ?? -Infinity);
    if (this.step === this.steps || waited > this.test.seconds / EVALUATION_SHARE) this.evaluate();
    this.seconds += elapsed();
    this.test.at ??= this.seconds;
  }

  evaluate() {
    const start = performance.now();
    const { images, labels } = this.run.test;
    const share = accuracy(this.network.logits(images), labels);
    this.test = { step: this.step, accuracy: share, seconds: (performance.now() - start) / 1000 };
  }

  /**
   * What has happened since the last call.
   *
   * @return {object} step, steps, epoch (a fraction), seconds (of training), loss and accuracy (on
   *   training images with dropout, since the last call; null if there were none), testAccuracy and
   *   testStep (when it was measured), and all weights, by name.
   */
  progress() {
    const { steps, loss, correct } = this.since;
    this.since = { steps: 0, loss: 0, correct: 0 };
    return {
      step: this.step,
      steps: this.steps,
      epoch: this.step / this.stepsPerEpoch,
      seconds: this.seconds,
      loss: steps ? loss / steps : null,
      accuracy: steps ? correct / steps : null,
      testAccuracy: this.test.accuracy,
      testStep: this.test.step,
      weights: this.network.weights,
    };
  }
}

/** Whether a training is wanted to run; messages change it. */
const control = { paused: false, stopped: false, wake: () => {} };

/** Runs a training to its end, or until it is stopped; messages arrive between its pieces. */
async function train(training) {
  while (training.step < training.steps && !control.stopped) {
    training.work(REPORT_SECONDS);
    postMessage({ kind: "progress", ...training.progress() });
    await new Promise((resolve) => setTimeout(resolve));
    while (control.paused && !control.stopped) {
      await new Promise((resolve) => (control.wake = resolve));
    }
  }
  postMessage({ kind: "end", ...training.progress(), stopped: control.stopped });
}

onmessage = async ({ data }) => {
  if (data.kind !== "start") {
    control.paused = data.kind === "pause";
    control.stopped ||= data.kind === "stop";
    control.wake();
    return;
  }
  try {
    await train(new Training(data));
  } catch (error) {
    postMessage({ kind: "error", message: String(error) });
  }
};
