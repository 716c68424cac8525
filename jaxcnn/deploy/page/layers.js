"use strict";

// The kinds of layers. Activations are Float32Arrays with the shape (images, height, width, maps)
// or (images, units), the last one varying fastest.

const size = (shape) => shape.reduce((product, length) => product * length, 1);

/** What all layers share. */
class Layer {
  /**
   * @param {object} settings the layer's entry in the network's description.
   * @param {number[]} inputShape of one image's input.
   */
  constructor(settings, inputShape) {
    this.name = settings.name;
    this.kind = settings.kind;
    this.settings = settings;
    this.inputShape = inputShape;
    this.shape = inputShape; // of one image's activation
    this.weights = {}; // Float32Arrays by name: kernel, bias, scale, and BatchNorm's mean and var
    this.weightShapes = {};
    this.gradients = {}; // of the weights that are trained
  }

  /** Adds a weight; one that is not trained has no gradient. */
  add(name, shape, trained = true) {
    this.weightShapes[name] = shape;
    this.weights[name] = new Float32Array(size(shape));
    if (trained) this.gradients[name] = new Float32Array(size(shape));
  }

  /** Sets the weights to where training starts. */
  initialize() {}

  /**
   * Computes the activation y of the input x.
   *
   * @param {Pass} pass with `count`, the number of images, and `training`.
   * @param {Float32Array} x
   * @param {Float32Array} y is overwritten.
   */
  forward(pass, x, y) {
    y.set(x);
  }

  /**
   * Computes the gradients of x, and adds to those of the weights.
   *
   * @param {Pass} pass
   * @param {Float32Array} x
   * @param {Float32Array} y
   * @param {Float32Array} dy the gradient of y.
   * @param {?Float32Array} dx the gradient of x, overwritten; null if it is not wanted.
   */
  backward(pass, x, y, dy, dx) {
    dx?.set(dy);
  }
}

/** Brings pixels from 0..255 to mean 0 and standard deviation 1: (x / 255 - mean) / std. */
class Normalize extends Layer {
  forward(pass, x, y) {
    const { mean, std } = this.settings;
    const channels = this.shape[2];
    for (let i = 0; i < y.length; i++) {
      const c = mean.length === 1 ? 0 : i % channels;
      y[i] = (x[i] / 255 - mean[c]) / std[c];
    }
  }
}

/** What convolutions and dense layers share: a kernel and a bias, and how they are initialized. */
class Linear extends Layer {
  add(name, shape) {
    super.add(name, shape);
    if (name === "kernel") this.fanIn = size(shape.slice(0, -1));
  }

  /** The kernel or its gradient as a matrix, with a column per map or unit. */
  matrix(kernel) {
    return new Matrix(kernel, this.fanIn, this.settings.features);
  }

  /**
   * As the layers of Flax: LeCun's normal distribution, truncated at two standard deviations, which
   * makes it narrower by the factor 0.87962566; or of PyTorch: +-1 / sqrt(fan in), uniformly.
   */
  initialize(random, initialization) {
    const { kernel, bias } = this.weights;
    const bound = 1 / Math.sqrt(this.fanIn);
    if (initialization === "pytorch") {
      for (const weight of [kernel, bias]) {
        for (let i = 0; i < weight.length; i++) weight[i] = bound * (2 * random.uniform() - 1);
      }
      return;
    }
    const deviation = bound / 0.87962566103423978;
    for (let i = 0; i < kernel.length; i++) {
      do kernel[i] = random.normal(); while (Math.abs(kernel[i]) > 2);
      kernel[i] *= deviation;
    }
    bias.fill(0);
  }
}

/**
 * A convolution with an odd kernel, stride 1 and zeros around the image.
 *
 * Each image's windows are copied to the rows of a matrix; times the kernel as a matrix with one
 * column per map, that is the convolution. The gradients are products with the same matrix.
 */
class Convolution extends Linear {
  constructor(settings, inputShape) {
    super(settings, inputShape);
    const [height, width, channels] = inputShape;
    const { kernel_size: side, features } = settings;
    this.shape = [height, width, features];
    this.add("kernel", [side, side, channels, features]);
    this.add("bias", [features]);
    this.windows = new Matrix(
      new Float32Array(height * width * this.fanIn), height * width, this.fanIn);
    // An image with zeros around it, and where the rows of its windows start in it.
    const wide = (width + side - 1) * channels;
    this.padded = new Float32Array((height + side - 1) * wide);
    this.span = side * channels;
    this.starts = Int32Array.from({ length: height * width * side }, (_, i) => {
      const row = Math.floor(i / side / width), column = Math.floor(i / side) % width;
      return (row + (i % side)) * wide + column * channels;
    });
  }

  /** The matrix of one image's activation or its gradient, with a row per pixel. */
  maps(y, image) {
    const [height, width, features] = this.shape;
    return new Matrix(y, height * width, features, image * height * width * features);
  }

  forward(pass, x, y) {
    const kernel = this.matrix(this.weights.kernel);
    y.fill(0);
    for (let image = 0; image < pass.count; image++) {
      this.copyWindows(x, image);
      const maps = this.maps(y, image);
      addProduct(maps, this.windows, kernel);
      addToRows(maps, this.weights.bias);
    }
  }

  backward(pass, x, y, dy, dx) {
    const kernel = this.matrix(this.weights.kernel);
    const gradient = this.matrix(this.gradients.kernel);
    dx?.fill(0);
    for (let image = 0; image < pass.count; image++) {
      const maps = this.maps(dy, image);
      if (pass.training) {
        this.copyWindows(x, image);
        addProduct(gradient, this.windows.transposed, maps);
        addRows(this.gradients.bias, maps);
      }
      if (dx) {
        this.windows.data.fill(0);
        addProduct(this.windows, maps, kernel.transposed);
        this.addWindows(dx, image);
      }
    }
  }

  /** Copies the windows of an image into `windows`. */
  copyWindows(x, image) {
    this.padded.fill(0);
    this.visitRows(image, (from, to, length) => {
      for (let i = 0; i < length; i++) this.padded[to + i] = x[from + i];
    });
    const { padded, windows: { data } } = this;
    let to = 0;
    for (const start of this.starts) {
      for (let i = 0; i < this.span; i++) data[to++] = padded[start + i];
    }
  }

  /** Adds what is in `windows` to the pixels of an image from which they would be copied. */
  addWindows(x, image) {
    this.padded.fill(0);
    const { padded, windows: { data } } = this;
    let from = 0;
    for (const start of this.starts) {
      for (let i = 0; i < this.span; i++) padded[start + i] += data[from++];
    }
    this.visitRows(image, (to, from, length) => {
      for (let i = 0; i < length; i++) x[to + i] = padded[from + i];
    });
  }

  /** Calls `visit` with the start of each row of an image, its place in `padded`, and its length. */
  visitRows(image, visit) {
    const [height, width, channels] = this.inputShape;
    const edge = this.settings.kernel_size >> 1, length = width * channels;
    for (let row = 0; row < height; row++) {
      const inside = ((row + edge) * (width + 2 * edge) + edge) * channels;
      visit((image * height + row) * length, inside, length);
    }
  }
}

/** Every unit is a weighted sum of all inputs. */
class Dense extends Linear {
  constructor(settings, inputShape) {
    super(settings, inputShape);
    this.shape = [settings.features];
    this.add("kernel", [inputShape[0], settings.features]);
    this.add("bias", [settings.features]);
  }

  forward(pass, x, y) {
    const output = new Matrix(y, pass.count, this.settings.features);
    y.fill(0);
    addProduct(output, new Matrix(x, pass.count, this.fanIn), this.matrix(this.weights.kernel));
    addToRows(output, this.weights.bias);
  }

  backward(pass, x, y, dy, dx) {
    const output = new Matrix(dy, pass.count, this.settings.features);
    if (pass.training) {
      const input = new Matrix(x, pass.count, this.fanIn);
      addProduct(this.matrix(this.gradients.kernel), input.transposed, output);
      addRows(this.gradients.bias, output);
    }
    if (dx) {
      dx.fill(0);
      const input = new Matrix(dx, pass.count, this.fanIn);
      addProduct(input, output, this.matrix(this.weights.kernel).transposed);
    }
  }
}

/** Negative values become zero. */
class Relu extends Layer {
  forward(pass, x, y) {
    for (let i = 0; i < y.length; i++) y[i] = x[i] > 0 ? x[i] : 0;
  }

  backward(pass, x, y, dy, dx) {
    if (dx) for (let i = 0; i < dx.length; i++) dx[i] = y[i] > 0 ? dy[i] : 0;
  }
}

/** In training, drops units with the probability `rate`, and scales the others by 1 / (1 - rate). */
class Dropout extends Layer {
  forward(pass, x, y) {
    if (!pass.training) return super.forward(pass, x, y);
    const mask = pass.masks[this.name];
    const scale = 1 / (1 - this.settings.rate);
    for (let i = 0; i < y.length; i++) y[i] = mask[i] ? x[i] * scale : 0;
  }

  backward(pass, x, y, dy, dx) {
    if (pass.training) this.forward(pass, dy, dx);
    else super.backward(pass, x, y, dy, dx);
  }
}

/** The feature maps of an image as one row. */
class Flatten extends Layer {
  constructor(settings, inputShape) {
    super(settings, inputShape);
    this.shape = [size(inputShape)];
  }
}
