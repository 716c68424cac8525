"use strict";

// Layers that take statistics: pooling over 2 x 2 squares, and BatchNorm.

/** What both poolings share. */
class Pooling extends Layer {
  constructor(settings, inputShape) {
    super(settings, inputShape);
    const [height, width, channels] = inputShape;
    this.shape = [height / 2, width / 2, channels];
  }

  /** Calls `visit` with the place of each output and those of its four inputs. */
  squares(count, visit) {
    const [height, width, channels] = this.shape;
    const right = channels, down = 2 * width * channels;
    let to = 0;
    for (let row = 0; row < count * height; row++) {
      for (let column = 0; column < width; column++) {
        const from = 2 * row * down + 2 * column * channels;
        for (let c = 0; c < channels; c++, to++) {
          const first = from + c;
          visit(to, first, first + right, first + down, first + down + right);
        }
      }
    }
  }
}

/** The largest of four values; its gradient goes to the first of several equal ones. */
class MaxPool extends Pooling {
  forward(pass, x, y) {
    this.squares(pass.count, (to, a, b, c, d) => {
      const top = x[a] >= x[b] ? x[a] : x[b];
      const bottom = x[c] >= x[d] ? x[c] : x[d];
      y[to] = top >= bottom ? top : bottom;
    });
  }

  backward(pass, x, y, dy, dx) {
    if (!dx) return;
    dx.fill(0);
    this.squares(pass.count, (to, a, b, c, d) => {
      const top = x[a] >= x[b] ? a : b;
      const bottom = x[c] >= x[d] ? c : d;
      dx[x[top] >= x[bottom] ? top : bottom] = dy[to];
    });
  }
}

/** The mean of four values. */
class AveragePool extends Pooling {
  forward(pass, x, y) {
    this.squares(pass.count, (to, a, b, c, d) => {
      y[to] = (x[a] + x[b] + x[c] + x[d]) / 4;
    });
  }

  backward(pass, x, y, dy, dx) {
    if (!dx) return;
    this.squares(pass.count, (to, a, b, c, d) => {
      dx[a] = dx[b] = dx[c] = dx[d] = dy[to] / 4;
    });
  }
}

/**
 * Brings each map to mean 0 and variance 1, then scales and shifts it: (x - mean) / sqrt(var +
 * epsilon) * scale + bias.
 *
 * In training, mean and variance are those of the batch, over images and pixels, and the running
 * averages `mean` and `var` move towards them by 1 - momentum, the variance as the biased one.
 * In evaluation they are the running averages. (Ioffe & Szegedy 2015, arXiv 1502.03167.)
 */
class BatchNorm extends Layer {
  constructor(settings, inputShape) {
    super(settings, inputShape);
    const shape = [inputShape[2]];
    this.add("scale", shape);
    this.add("bias", shape);
    this.add("mean", shape, false);
    this.add("var", shape, false);
  }

  initialize() {
    const { scale, bias, mean, var: variance } = this.weights;
    scale.fill(1);
    bias.fill(0);
    mean.fill(0);
    variance.fill(1);
  }

  forward(pass, x, y) {
    const { scale, bias, mean: runningMean, var: runningVar } = this.weights;
    let statistics = { mean: runningMean, var: runningVar };
    if (pass.training) {
      statistics = this.measure(x);
      this.follow(runningMean, statistics.mean);
      this.follow(runningVar, statistics.var);
    }
    const inverse = Float64Array.from(
      statistics.var, (value) => 1 / Math.sqrt(value + this.settings.epsilon));
    pass.statistics[this.name] = { ...statistics, inverse };
    const maps = scale.length;
    for (let i = 0; i < y.length; i += maps) {
      for (let c = 0; c < maps; c++) {
        y[i + c] = (x[i + c] - statistics.mean[c]) * inverse[c] * scale[c] + bias[c];
      }
    }
  }

  /** The mean and the biased variance of each map. */
  measure(x) {
    const maps = this.shape[2], values = x.length / maps;
    const mean = new Float64Array(maps), variance = new Float64Array(maps);
    for (let i = 0; i < x.length; i += maps) {
      for (let c = 0; c < maps; c++) mean[c] += x[i + c] / values;
    }
    for (let i = 0; i < x.length; i += maps) {
      for (let c = 0; c < maps; c++) variance[c] += (x[i + c] - mean[c]) ** 2 / values;
    }
    return { mean, var: variance };
  }

  follow(running, batch) {
    const { momentum } = this.settings;
    batch.forEach((value, c) => (running[c] = momentum * running[c] + (1 - momentum) * value));
  }

  /** The batch's mean and variance depend on every x, so that their gradients are taken off. */
  backward(pass, x, y, dy, dx) {
    const { mean, inverse } = pass.statistics[this.name];
    const { scale } = this.weights;
    const maps = scale.length, values = x.length / maps;
    const bias = new Float64Array(maps), slope = new Float64Array(maps);
    if (pass.training) {
      for (let i = 0; i < x.length; i += maps) {
        for (let c = 0; c < maps; c++) {
          bias[c] += dy[i + c];
          slope[c] += dy[i + c] * (x[i + c] - mean[c]) * inverse[c];
        }
      }
      bias.forEach((sum, c) => (this.gradients.bias[c] += sum));
      slope.forEach((sum, c) => (this.gradients.scale[c] += sum));
    }
    if (!dx) return;
    for (let i = 0; i < x.length; i += maps) {
      for (let c = 0; c < maps; c++) {
        const normalized = (x[i + c] - mean[c]) * inverse[c];
        const centred = dy[i + c] - (bias[c] + normalized * slope[c]) / values;
        dx[i + c] = scale[c] * inverse[c] * centred;
      }
    }
  }
}
