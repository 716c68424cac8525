"use strict";

// Optimizers. `step` changes the weights in place; both maps have the same keys as `gradients`.

const zerosLike = (arrays) => Object.fromEntries(
  Object.entries(arrays).map(([name, { length }]) => [name, new Float32Array(length)]));

/** Stochastic gradient descent with momentum: v = momentum v + g; w = w - learning rate v. */
class Sgd {
  constructor({ learningRate, momentum = 0.9 }) {
    Object.assign(this, { learningRate, momentum, velocity: null });
  }

  step(weights, gradients) {
    this.velocity ??= zerosLike(gradients);
    for (const name in gradients) {
      const w = weights[name], g = gradients[name], v = this.velocity[name];
      for (let i = 0; i < w.length; i++) {
        v[i] = this.momentum * v[i] + g[i];
        w[i] -= this.learningRate * v[i];
      }
    }
  }
}

/** Adam (Kingma and Ba 2014, arXiv 1412.6980, algorithm 1). */
class Adam {
  constructor({ learningRate, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8 }) {
    Object.assign(this, { learningRate, beta1, beta2, epsilon, steps: 0, m: null, v: null });
  }

  step(weights, gradients) {
    const { beta1, beta2, epsilon } = this;
    this.m ??= zerosLike(gradients);
    this.v ??= zerosLike(gradients);
    this.steps += 1;
    const mean = 1 / (1 - beta1 ** this.steps); // m and v start at zero, which this corrects
    const square = 1 / (1 - beta2 ** this.steps);
    for (const name in gradients) {
      const w = weights[name], g = gradients[name], m = this.m[name], v = this.v[name];
      for (let i = 0; i < w.length; i++) {
        m[i] = beta1 * m[i] + (1 - beta1) * g[i];
        v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
        w[i] -= (this.learningRate * m[i] * mean) / (Math.sqrt(v[i] * square) + epsilon);
      }
    }
  }
}

const OPTIMIZERS = { sgd: Sgd, adam: Adam };
