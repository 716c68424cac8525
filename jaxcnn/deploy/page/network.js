"use strict";

// A network: its layers, the forward pass with every activation, and the gradients.

const KINDS = {
  normalize: Normalize,
  conv: Convolution,
  batch_norm: BatchNorm,
  relu: Relu,
  max_pool: MaxPool,
  avg_pool: AveragePool,
  flatten: Flatten,
  dense: Dense,
  dropout: Dropout,
};

/** The activations of a batch of images, and their gradients. */
class Pass {
  constructor(layers, count) {
    this.count = count;
    this.training = false;
    const empty = ({ shape }) => new Float32Array(count * size(shape));
    this.activations = layers.map(empty); // of each layer
    this.gradients = layers.map(() => null); // of the activations, made when wanted
    this.masks = {}; // Uint8Array by dropout layer: 1 where a unit is kept
    this.statistics = {}; // {mean, var, inverse} by BatchNorm layer, as used
    this.empty = empty;
  }

  /** float32[count, classes] */
  get logits() {
    return this.activations[this.activations.length - 1];
  }
}

class Network {
  /**
   * @param {object} description {image: [height, width, channels], initialization, layers:
   *   [{kind, name, ...}, ...]}, as `jaxcnn.deploy.page_data` writes it.
   * @param {Object<string, Float32Array>} [weights] by "layer/weight", for example "conv1/kernel",
   *   in Flax's layouts; they are copied.
   */
  constructor(description, weights) {
    this.description = description;
    this.layers = [];
    this.weights = {}; // the layers' own arrays, by "layer/weight"; they may be edited
    this.gradients = {}; // of those that are trained
    let shape = description.image;
    for (const settings of description.layers) {
      const layer = new KINDS[settings.kind](settings, shape);
      this.layers.push(layer);
      shape = layer.shape;
      for (const name in layer.weights) this.weights[`${layer.name}/${name}`] = layer.weights[name];
      for (const name in layer.gradients) {
        this.gradients[`${layer.name}/${name}`] = layer.gradients[name];
      }
    }
    this.classes = shape[0];
    this.passes = new Map(); // by number of images
    if (weights) this.load(weights);
  }

  /** Copies weights into the network. */
  load(weights) {
    for (const name in this.weights) this.weights[name].set(weights[name]);
  }

  /** Sets random weights, as the run would have started with from another seed. */
  initialize(seed) {
    const random = new Random(seed);
    for (const layer of this.layers) layer.initialize(random, this.description.initialization);
  }

  /** The index of a layer in `layers` and `activations`. */
  index(name) {
    return this.layers.findIndex((layer) => layer.name === name);
  }

  /**
   * Computes the activations of all layers.
   *
   * @param {Uint8Array} images of shape (N, height, width, channels).
   * @param {object} [options]
   * @param {boolean} [options.training] drop units, and normalize with the batch's statistics, which
   *   the running ones follow.
   * @param {Random} [options.random] draws the dropout masks.
   * @param {Object<string, Uint8Array>} [options.masks] of (N, units) by dropout layer, instead.
   * @param {function(Layer, Float32Array, number)} [options.edit] is called after each layer with
   *   its activation, which it may change, and N.
   * @return {Pass} valid until the next pass of as many images.
   */
  forward(images, { training = false, random = null, masks = {}, edit = null } = {}) {
    const pass = this.passFor(images.length / size(this.description.image));
    Object.assign(pass, { training, masks: { ...masks } });
    let x = images;
    this.layers.forEach((layer, index) => {
      const y = pass.activations[index];
      if (training && layer.kind === "dropout") {
        pass.masks[layer.name] ??= random.mask(y.length, layer.settings.rate);
      }
      layer.forward(pass, x, y);
      edit?.(layer, y, pass.count);
      x = y;
    });
    return pass;
  }

  passFor(count) {
    if (!this.passes.has(count)) this.passes.set(count, new Pass(this.layers, count));
    return this.passes.get(count);
  }

  /**
   * Computes the logits of any number of images, a few at a time.
   *
   * @param {Uint8Array} images of shape (N, height, width, channels).
   * @param {object} [options] see `forward`.
   * @return {Float32Array} of shape (N, classes).
   */
  logits(images, options) {
    const pixels = size(this.description.image);
    const count = images.length / pixels;
    const logits = new Float32Array(count * this.classes);
    const batch = 50; // the activations of more would leave the processor's cache
    for (let start = 0; start < count; start += batch) {
      const some = images.subarray(start * pixels, Math.min(start + batch, count) * pixels);
      logits.set(this.forward(some, options).logits, start * this.classes);
    }
    return logits;
  }

  /**
   * Computes the gradients of the mean cross entropy, into `gradients`.
   *
   * @param {Pass} pass in training mode.
   * @param {ArrayLike<number>} labels of its images.
   * @return {number} the mean cross entropy.
   */
  backward(pass, labels) {
    for (const name in this.gradients) this.gradients[name].fill(0);
    const last = this.layers.length - 1;
    pass.gradients[last] ??= pass.empty(this.layers[last]);
    const loss = crossEntropy(pass.logits, labels, pass.gradients[last]);
    const first = this.layers.findIndex(({ kind }) => kind !== "normalize");
    for (let index = last; index >= first; index--) {
      this.backwardThrough(pass, index, index > first);
    }
    return loss;
  }

  /**
   * Computes the gradient of one logit with respect to a layer's activation.
   *
   * @param {Pass} pass in evaluation mode.
   * @param {number} label whose logit it is, of every image.
   * @param {string} name of the layer.
   * @return {Float32Array} of the shape of the layer's activation.
   */
  activationGradient(pass, label, name) {
    const target = this.index(name), last = this.layers.length - 1;
    const gradient = (pass.gradients[last] ??= pass.empty(this.layers[last]));
    gradient.fill(0);
    for (let image = 0; image < pass.count; image++) gradient[image * this.classes + label] = 1;
    for (let index = last; index > target; index--) this.backwardThrough(pass, index, true);
    return pass.gradients[target];
  }

  /** Takes one layer's step of the backward pass; `further`: one with the layer before follows. */
  backwardThrough(pass, index, further) {
    const { activations, gradients } = pass;
    if (further) gradients[index - 1] ??= pass.empty(this.layers[index - 1]);
    const [x, dx] = [activations[index - 1], further ? gradients[index - 1] : null];
    this.layers[index].backward(pass, x, activations[index], gradients[index], dx);
  }
}

/**
 * Returns a `forward`'s edit that zeroes feature maps, or units of dense layers.
 *
 * @param {Object<string, Iterable<number>>} maps their indices by layer.
 */
function zeroMaps(maps) {
  return (layer, activation) => {
    const features = layer.shape[layer.shape.length - 1];
    for (const map of maps[layer.name] ?? []) {
      for (let i = map; i < activation.length; i += features) activation[i] = 0;
    }
  };
}

/** The logarithm of the sum of the exponentials of one image's logits. */
function logSumExp(row) {
  const largest = Math.max(...row);
  let sum = 0;
  for (const value of row) sum += Math.exp(value - largest);
  return Math.log(sum) + largest;
}

/**
 * Returns the probabilities of logits.
 *
 * @param {Float32Array} logits of shape (N, classes).
 * @param {number} classes
 * @return {Float32Array} of the same shape.
 */
function softmax(logits, classes) {
  const probabilities = new Float32Array(logits.length);
  for (let start = 0; start < logits.length; start += classes) {
    const row = logits.subarray(start, start + classes);
    const total = logSumExp(row);
    row.forEach((value, c) => (probabilities[start + c] = Math.exp(value - total)));
  }
  return probabilities;
}

/**
 * Returns the mean cross entropy of N images and writes its gradient.
 *
 * @param {Float32Array} logits of shape (N, classes).
 * @param {ArrayLike<number>} labels
 * @param {Float32Array} gradient of shape (N, classes), overwritten.
 */
function crossEntropy(logits, labels, gradient) {
  const count = labels.length, classes = logits.length / count;
  let loss = 0;
  for (let image = 0, at = 0; image < count; image++) {
    const row = logits.subarray(at, at + classes);
    const total = logSumExp(row);
    loss += (total - row[labels[image]]) / count;
    for (let c = 0; c < classes; c++, at++) {
      const probability = Math.exp(row[c] - total);
      gradient[at] = (probability - (c === labels[image] ? 1 : 0)) / count;
    }
  }
  return loss;
}

/** The share of logits whose largest belongs to the label, in 0..1. */
function accuracy(logits, labels) {
  const classes = logits.length / labels.length;
  let correct = 0;
  for (let image = 0; image < labels.length; image++) {
    const row = logits.subarray(image * classes, (image + 1) * classes);
    correct += row.indexOf(Math.max(...row)) === labels[image] ? 1 : 0;
  }
  return correct / labels.length;
}
