"use strict";

// How the value of one unit comes about.

/**
 * The terms of a unit's value.
 *
 * @param {Network} network
 * @param {Pass} pass of one image.
 * @param {Layer} layer
 * @param {number} unit its index in the layer's activation.
 * @return {object} with `value`, the activation, and `below`, the layer below. For convolutions and
 *   dense layers also `groups`, one for each map or unit below: {rows, columns, sum, terms: [{x,
 *   weight, product, index, inside}]}, with the weight's index in the kernel, and whether x is inside
 *   the image; `products`, their sum; `bias` and its `biasIndex`; and `sum`, with the bias. For
 *   others `inputs`, from which the value follows.
 */
function explainUnit(network, pass, layer, unit) {
  const at = network.layers.indexOf(layer);
  const below = network.layers[at - 1];
  const x = pass.activations[at - 1];
  const result = { value: pass.activations[at][unit], below };
  if (layer.kind === "conv") return { ...result, ...convolutionTerms(layer, x, unit) };
  if (layer.kind === "dense") {
    return { ...result, ...denseTerms(layer, x, unit, below.kind === "flatten" && below.inputShape) };
  }
  if (isPooling(layer)) return { ...result, inputs: poolingInputs(layer, x, unit) };
  return { ...result, inputs: [x[unit]] };
}

/** Row, column and map of a unit. */
function placeOf(layer, unit) {
  const [, columns, count] = mapShape(layer);
  const pixel = Math.floor(unit / count);
  return { row: Math.floor(pixel / columns), column: pixel % columns, map: unit % count };
}

function convolutionTerms(layer, x, unit) {
  const [height, width, channels] = layer.inputShape;
  const { features, kernel_size: side } = layer.settings;
  const { row, column, map } = placeOf(layer, unit);
  const groups = Array.from({ length: channels }, (_, channel) => {
    const terms = Array.from({ length: side * side }, (_, i) => {
      const index = (i * channels + channel) * features + map;
      const y = row + Math.floor(i / side) - (side >> 1), z = column + (i % side) - (side >> 1);
      const inside = y >= 0 && y < height && z >= 0 && z < width;
      return { index, inside, x: inside ? x[(y * width + z) * channels + channel] : 0 };
    });
    return { rows: side, columns: side, terms };
  });
  return withWeights(layer, groups, map);
}

/** `grid`: the shape of the maps that a flatten layer has made a row of, or false. */
function denseTerms(layer, x, unit, grid) {
  const [rows, columns, count] = grid || [1, 1, layer.inputShape[0]];
  const { features } = layer.settings;
  const groups = Array.from({ length: count }, (_, channel) => {
    const terms = Array.from({ length: rows * columns }, (_, i) => {
      const input = i * count + channel;
      return { index: input * features + unit, inside: true, x: x[input] };
    });
    return { rows, columns, terms };
  });
  return withWeights(layer, groups, unit);
}

function withWeights(layer, groups, map) {
  const { kernel, bias } = layer.weights;
  for (const group of groups) {
    group.sum = 0;
    for (const term of group.terms) {
      term.weight = kernel[term.index];
      term.product = term.x * term.weight;
      group.sum += term.product;
    }
  }
  const products = groups.reduce((sum, group) => sum + group.sum, 0);
  return { groups, products, bias: bias[map], biasIndex: map, sum: products + bias[map] };
}

function poolingInputs(layer, x, unit) {
  const [, width, channels] = layer.inputShape;
  const { row, column, map } = placeOf(layer, unit);
  return [0, 1, width, width + 1].map(
    (offset) => x[(2 * row * width + 2 * column + offset) * channels + map]);
}

/**
 * The part of the image on which a unit depends.
 *
 * @return {{top, bottom, left, right}} in pixels, the last two not inclusive; may reach beyond.
 */
function receptiveField(network, layer, unit) {
  let { row, column } = placeOf(layer, unit);
  let [top, bottom, left, right] = [row, row + 1, column, column + 1];
  for (let at = network.layers.indexOf(layer); at >= 0; at--) {
    const one = network.layers[at], { kind, settings, inputShape } = one;
    if (kind === "flatten") [top, bottom, left, right] = [0, inputShape[0], 0, inputShape[1]];
    if (isPooling(one)) [top, bottom, left, right] = [top, bottom, left, right].map((i) => 2 * i);
    if (kind === "conv") {
      const edge = settings.kernel_size >> 1;
      [top, bottom, left, right] = [top - edge, bottom + edge, left - edge, right + edge];
    }
  }
  return { top, bottom, left, right };
}
