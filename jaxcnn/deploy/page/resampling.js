"use strict";
// Resampling with the arithmetic of Pillow, so that every pixel is the same.

const resample = (() => {
  const sinc = x => x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
  const filters = {
    box: {reach: .5, weight: x => -.5 < x && x <= .5 ? 1 : 0},
    lanczos: {reach: 3, weight: x => -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0},
  };
  const bits = 22;  // of a weight's fraction, in the arithmetic of bytes

  // For every pixel of the result: where its window begins, and the weights in it.
  function windows({reach, weight}, [from, to], size, count) {
    const step = Math.fround(to - from) / count, scale = Math.max(1, step);
    return Array.from({length: count}, (_, i) => {
      const centre = from + (i + .5) * step;
      const first = Math.max(0, Math.trunc(centre - reach * scale + .5));
      const end = Math.min(size, Math.trunc(centre + reach * scale + .5));
      const weights = new Float64Array(end - first);
      let total = 0;
      for (let j = 0; j < weights.length; j++)
        total += weights[j] = weight((j + first - centre + .5) * (1 / scale));
      return {first, weights: total ? weights.map(value => value / total) : weights};
    });
  }

  // Resamples every row and exchanges rows and columns: [height, width, channels] becomes
  // [count, height, channels].
  function turned(pixels, height, width, channels, filter, range, count) {
    const bytes = !(pixels instanceof Float32Array), start = bytes ? 2 ** (bits - 1) : 0;
    const result = new (bytes ? Uint8ClampedArray : Float32Array)(count * height * channels);
    const found = windows(filter, range, width, count);
    if (bytes)
      for (const {weights} of found)
        for (let j = 0; j < weights.length; j++)
          weights[j] = Math.trunc(weights[j] * 2 ** bits + (weights[j] < 0 ? -.5 : .5));
    for (let y = 0; y < height; y++)
      for (let i = 0; i < count; i++) {
        const {first, weights} = found[i], length = weights.length;
        for (let c = 0; c < channels; c++) {
          let sum = start, place = (y * width + first) * channels + c;
          for (let j = 0; j < length; j++, place += channels) sum += pixels[place] * weights[j];
          result[(i * height + y) * channels + c] = bytes ? sum >> bits : sum;
        }
      }
    return result;
  }

  // Returns the part `box` ([left, top, right, bottom], in pixels; all if it is left out) of an
  // image scaled to a height and width. `pixels` is [image.height, image.width, image.channels],
  // a Float32Array or of bytes, and so is the result.
  return (pixels, image, {height, width}, filter, box = [0, 0, image.width, image.height]) => {
    const [left, top, right, bottom] = box.map(Math.fround);
    const half = turned(
      pixels, image.height, image.width, image.channels, filters[filter], [left, right], width);
    return turned(half, width, image.height, image.channels, filters[filter], [top, bottom], height);
  };
})();
