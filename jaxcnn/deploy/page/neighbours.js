"use strict";

// The embedded training images that are nearest to the image for the last hidden layer.

const NEAREST = 12;

class Neighbours {
  constructor(model, pad, training) {
    Object.assign(this, { model, pad, training });
    this.layer = model.network.layers.findLastIndex(({ kind }) => kind === "relu");
    this.features = null; // of the embedded images, by the present weights
    this.task = new Task(() => this.work(), $("why"));
    model.watch(({ weights }) => {
      if (weights) this.features = null;
      if (model.pass) this.task.restart();
      else {
        this.task.cancel();
        $("nearest").replaceChildren();
      }
    });
  }

  *work() {
    const { model, training: { images, labels, count } } = this;
    const pixels = size(model.shape);
    const units = size(model.network.layers[this.layer].shape);
    if (!this.features) {
      const features = new Float32Array(count * units);
      for (const [start, end] of batches(count, 10)) {
        const pass = model.forward(images.subarray(start * pixels, end * pixels));
        features.set(pass.activations[this.layer], start * units);
        yield;
      }
      this.features = features;
    }
    const found = nearest(model.pass.activations[this.layer], this.features, NEAREST);
    const { classes } = model.data;
    $("nearest").replaceChildren(...found.map(({ index, distance }) => {
      const image = model.imageOf(images, index);
      const name = classes[labels[index]];
      return thumbnail(image, model.shape, name, `${name}, distance ${decimal(distance, 1)}`,
        () => this.pad.take(image, `training image of ${name}, as it is`));
    }));
  }
}

/** The rows of a matrix with the smallest Euclidean distances: [{index, distance}, ...]. */
function nearest(point, rows, most) {
  const units = point.length;
  const distances = Array.from({ length: rows.length / units }, (_, index) => {
    let sum = 0;
    for (let i = 0; i < units; i++) sum += (rows[index * units + i] - point[i]) ** 2;
    return { index, distance: Math.sqrt(sum) };
  });
  return distances.sort((a, b) => a.distance - b.distance).slice(0, most);
}
