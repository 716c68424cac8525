"use strict";

// The network of the page with the image that it classifies, and what has been changed by hand.

class Model {
  /**
   * @param {object} data of the page.
   * @param {Object<string, Float32Array>} weights of the run.
   */
  constructor(data, weights) {
    this.data = data;
    this.network = new Network(data.network, weights);
    this.run = weights;
    this.base = weights; // what changes are relative to: the run's, or weights trained in the page
    this.off = {}; // Set of switched off maps or units, by layer
    this.edited = new Map(); // {name, index} by "name/index", of changed weights
    this.image = null; // Uint8Array of one image
    this.pass = null;
    this.listeners = [];
  }

  get shape() {
    return this.data.network.image;
  }

  /** One of several images. */
  imageOf(images, place) {
    const pixels = size(this.shape);
    return images.subarray(place * pixels, (place + 1) * pixels);
  }

  get changed() {
    return this.edited.size > 0 || Object.values(this.off).some((maps) => maps.size > 0);
  }

  /** Calls a listener with {image, weights}, which of the two has changed. */
  watch(listener) {
    this.listeners.push(listener);
  }

  /** Shows the network another image; null: none. */
  show(image) {
    this.image = image;
    this.update({ image: true });
  }

  update(change) {
    this.pass = this.image && this.forward(this.image);
    for (const listener of this.listeners) listener(change);
  }

  /** Computes the activations of images with the maps switched off; of several: see `batches`. */
  forward(images, edit = null) {
    const off = zeroMaps(this.off);
    return this.network.forward(images, {
      edit: (layer, activation, count) => {
        edit?.(layer, activation, count);
        off(layer, activation);
      },
    });
  }

  /** The probabilities of the image. */
  get probabilities() {
    return softmax(this.pass.logits, this.network.classes);
  }

  isOff(layer, map) {
    return this.off[layer]?.has(map) ?? false;
  }

  toggle(layer, map) {
    const maps = (this.off[layer] ??= new Set());
    if (!maps.delete(map)) maps.add(map);
    this.update({ weights: true });
  }

  setWeight(name, index, value) {
    this.edit(name, index, value);
    this.update({ weights: true });
  }

  /** Sets a weight without an update. */
  edit(name, index, value) {
    this.network.weights[name][index] = value;
    const key = `${name}/${index}`;
    if (this.network.weights[name][index] === this.base[name][index]) this.edited.delete(key);
    else this.edited.set(key, { name, index });
  }

  /** Takes weights, and forgets all changes by hand. */
  use(weights) {
    this.base = weights;
    this.network.load(weights);
    this.off = {};
    this.edited.clear();
    this.update({ weights: true });
  }
}

/**
 * Yields [start, end] of batches.
 *
 * None is of a single image: its activations would replace those of the image that is shown.
 */
function* batches(count, most) {
  for (let start = 0; start < count;) {
    const end = count - start <= most + 1 ? count : start + most;
    yield [start, end];
    start = end;
  }
}

/** The share of images that a network classifies correctly, in pieces for a `Task`. */
function* measure(forward, images, labels) {
  const pixels = images.length / labels.length;
  let correct = 0;
  for (const [start, end] of batches(labels.length, 10)) {
    const pass = forward(images.subarray(start * pixels, end * pixels));
    correct += accuracy(pass.logits, labels.slice(start, end)) * (end - start);
    yield;
  }
  return correct / labels.length;
}
