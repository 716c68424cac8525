"use strict";
// Images of the user's own, converted to such as the network was trained on: pixel for pixel what
// `jaxcnn/deploy/own_images.py` returns, where the reasons are given. Needs resampling.js and ink.js.

const prepare = (() => {
  const DIGIT = 28, BOX = 20, MIDDLE = 14;  // pixels
  const WORKING_SIDE = 140;  // of the image in which the digit is located

  // Ties go to the even number, as in Python and NumPy.
  const round = x => x % 1 === .5 ? 2 * Math.round(x / 2) : Math.round(x);

  // Returns {image: Uint8Array of [height, width, channels], steps: how it was converted, in words}.
  //
  // The image is {width, height, data: Uint8ClampedArray, RGBA}, such as an ImageData. Of the facts
  // it takes `draws`, whether the network reads digits, and its images' height, width and channels.
  // Throws an Error with a sentence for the user.
  function prepare(image, facts) {
    return facts.draws ? digit(image) : photograph(image, facts);
  }

  const scaled = ({height, width}, scale) =>
    ({height: Math.max(1, round(height * scale)), width: Math.max(1, round(width * scale))});

  function digit(image) {
    const steps = [`${image.width} x ${image.height} pixels to grey`];
    const found = findInk(grey(image));
    if (!found)
      throw Error("the image shows nothing that stands out: give an image of one digit");
    if (found.dark) steps.push("dark on light, so inverted");
    const ink = within(found, value => value > .1);
    const size = scaled(ink, BOX / Math.max(ink.height, ink.width));
    const small = resample(Float32Array.from(ink.values), {...ink, channels: 1}, size, "box");
    const most = small.reduce((a, b) => Math.max(a, b));
    const levels = Uint8Array.from(
      small, value => round(Math.fround(Math.fround(value / most) * 255)));
    steps.push(
      `the digit scaled to ${size.width} x ${size.height}`,
      "centre of mass in the middle of 28 x 28");
    return {image: centred(levels, size), steps};
  }

  // The smallest rectangle with all values that a test holds for.
  function within({height, width, values}, test) {
    let [top, bottom, left, right] = [height, 0, width, 0];
    values.forEach((value, i) => {
      if (!test(value)) return;
      const x = i % width, y = (i - x) / width;
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
      [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
    });
    return cropped({height, width, values}, top, bottom, left, right);
  }

  function centred(levels, {height, width}) {
    let [total, down, across] = [0, 0, 0];
    levels.forEach((level, i) => {
      total += level;
      down += level * Math.floor(i / width);
      across += level * (i % width);
    });
    const start = (moment, side) =>
      Math.min(Math.max(round(MIDDLE - moment / total), 0), DIGIT - side);
    const [top, left] = [start(down, height), start(across, width)];
    const image = new Uint8Array(DIGIT * DIGIT);
    for (let y = 0; y < height; y++)
      image.set(levels.subarray(y * width, (y + 1) * width), (top + y) * DIGIT + left);
    return image;
  }

  // Luminance as {height, width, values: Uint8Array}, the longer side about `WORKING_SIDE` pixels.
  // Transparent pixels around a sheet with something on it continue the sheet's edge. In other images
  // the opaque pixels are the ink, and the transparent ones become a contrasting ground.
  function grey(image) {
    const {levels, opacities} = separated(image), sheet = working(image, levels);
    if (!opacities) return sheet;
    const alpha = working(image, opacities).values;
    const solid = alpha.map(value => value / 255 > .99 ? 1 : 0);
    if (isSheet(sheet, solid)) return continued(sheet, solid);
    const sum = values => values.reduce((a, b) => a + b, 0);
    const bright = 255 * sum(sheet.values) / Math.max(sum(alpha), 1) > 127;
    if (bright) return sheet;
    return {...sheet, values: sheet.values.map((value, i) => value + 255 - alpha[i])};
  }

  // Luminance in proportion to the opacity, and the opacity, null where all is opaque.
  function separated({height, width, data}) {
    const levels = new Uint8Array(height * width), opacities = new Uint8Array(height * width);
    let opaque = true;
    for (let i = 0, j = 0; i < levels.length; i++, j += 4) {
      const alpha = opacities[i] = data[j + 3];
      opaque &&= alpha === 255;
      levels[i] = luminance(
        veiled(data[j], alpha), veiled(data[j + 1], alpha), veiled(data[j + 2], alpha));
    }
    return {levels, opacities: opaque ? null : opacities};
  }

  const veiled = (level, alpha) => alpha === 255 ? level : Math.round(level * alpha / 255);

  // Scales values of an image to about `WORKING_SIDE` pixels.
  function working({height, width}, values) {
    const small = scaled({height, width}, Math.min(1, WORKING_SIDE / Math.max(height, width)));
    const pixels = resample(values, {height, width, channels: 1}, small, "box");
    const times = Math.max(1, Math.floor(WORKING_SIDE / Math.max(small.height, small.width)));
    const size = {height: times * small.height, width: times * small.width};
    const result = new Uint8Array(size.height * size.width);
    for (let y = 0, i = 0; y < size.height; y++)
      for (let x = 0; x < size.width; x++, i++)
        result[i] = pixels[Math.floor(y / times) * small.width + Math.floor(x / times)];
    return {...size, values: result};
  }

  // Rec. 601, with the fractions of Pillow.
  const luminance = (red, green, blue) => (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16;

  // Whether the opaque pixels fill most of a rectangle, with something on it.
  function isSheet({height, width, values}, solid) {
    const place = {height, width, values: solid};
    let [low, high] = [255, 0];
    values.forEach((value, i) => {
      if (solid[i]) [low, high] = [Math.min(low, value), Math.max(high, value)];
    });
    const inside = high >= low ? within(place, is => is).values : [];
    return inside.reduce((a, b) => a + b, 0) / inside.length > .8 && high - low >= MIN_CONTRAST;
  }

  // Gives every pixel that is not solid the value of the nearest that is; among equally near ones, of
  // that in the column furthest left, and in it the upper one.
  function continued({height, width, values}, solid) {
    const nearest = new Int32Array(height * width).fill(-1);  // row, in the same column
    for (let x = 0; x < width; x++) {
      for (let y = 0, last = -1; y < height; y++)
        nearest[y * width + x] = last = solid[y * width + x] ? y : last;
      for (let y = height - 1, last = -1; y >= 0; y--) {
        const i = y * width + x;
        if (solid[i]) last = y;
        if (last >= 0 && (nearest[i] < 0 || last - y < y - nearest[i])) nearest[i] = last;
      }
    }
    const result = values.map((value, i) => {
      if (solid[i]) return value;
      const x = i % width, y = (i - x) / width;
      let [least, found] = [Infinity, value];
      for (let u = 0; u < width; u++) {
        const row = nearest[y * width + u], away = (u - x) ** 2 + (row - y) ** 2;
        if (row >= 0 && away < least) [least, found] = [away, values[row * width + u]];
      }
      return found;
    });
    return {height, width, values: result};
  }

  function photograph(image, {height, width, channels}) {
    if (channels !== 1 && channels !== 3)
      throw Error(`the network takes images of ${channels} channels: prepare them in code, and ` +
        "call Trained.probabilities");
    const pixels = onWhite(image, channels);
    if (image.width === width && image.height === height)
      return {image: pixels, steps: [`${width} x ${height}: unchanged`]};
    const scale = Math.min(image.width / width, image.height / height);
    const middle = `${round(width * scale)} x ${round(height * scale)}`;
    const steps = [
      `the middle ${middle} of ${image.width} x ${image.height} pixels`,
      `scaled to ${width} x ${height}`];
    const size = {height: image.height, width: image.width, channels};
    const box = middleOf(image, width / height);
    const small = resample(pixels, size, {height, width}, "lanczos", box);
    return {image: new Uint8Array(small.buffer), steps};
  }

  // The largest box of some proportions, as the sides from the left and from the top.
  function middleOf({height, width}, aspect) {
    const across = Math.min(width, height * aspect), down = Math.min(height, width / aspect);
    const [left, top] = [(width - across) / 2, (height - down) / 2];
    return [left, top, left + across, top + down];
  }

  // Returns the colours, or their luminance, before a white ground.
  function onWhite({height, width, data}, channels) {
    const result = new Uint8Array(height * width * channels);
    for (let i = 0, j = 0; i < result.length; i += channels, j += 4) {
      const alpha = data[j + 3], rest = 255 - alpha;
      const red = veiled(data[j], alpha) + rest, green = veiled(data[j + 1], alpha) + rest;
      const blue = veiled(data[j + 2], alpha) + rest;
      if (channels === 1) result[i] = luminance(red, green, blue);
      else [result[i], result[i + 1], result[i + 2]] = [red, green, blue];
    }
    return result;
  }

  return prepare;
})();
