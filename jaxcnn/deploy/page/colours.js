"use strict";

// Numbers as colours, and images on canvases.

/** A table of 256 colours through some anchors, as canvases keep pixels. */
function gradient(anchors) {
  const pixels = new Uint8ClampedArray(4 * 256);
  for (let value = 0; value < 256; value++) {
    const place = (value / 255) * (anchors.length - 1);
    const low = Math.min(Math.floor(place), anchors.length - 2);
    anchors[low].forEach((from, c) => {
      pixels[4 * value + c] = from + (anchors[low + 1][c] - from) * (place - low);
    });
    pixels[4 * value + 3] = 255;
  }
  return new Uint32Array(pixels.buffer);
}

// Magma, as in the report: from 0 to the largest value.
const MAGMA = gradient(
  [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]]);
// Negative blue, zero white, positive orange; for those who see no red or green, too.
const SIGNED = gradient(
  [[5, 61, 107], [44, 123, 182], [160, 205, 232], [247, 247, 247], [253, 190, 133], [222, 109, 22],
    [127, 50, 4]]);

/**
 * Returns how to colour values: magma where none is negative, otherwise, or where values of their
 * kind may be (`signed`), with zero in the middle.
 */
function colouring(values, signed = false) {
  let low = 0, high = 0;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const most = Math.max(high, -low) || 1;
  if (low < 0 || signed) return (value) => SIGNED[Math.round(127.5 + (127.5 * value) / most)];
  return (value) => MAGMA[Math.round((255 * value) / most)];
}

/** Paints a canvas; `colour` returns the colour of each pixel, as canvases keep it. */
function paint(canvas, columns, rows, colour) {
  if (canvas.width !== columns) canvas.width = columns;
  if (canvas.height !== rows) canvas.height = rows;
  const image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colour(i);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Paints an image of the network's: uint8[height, width, channels]. */
function paintImage(canvas, pixels, [height, width, channels]) {
  const colour = channels < 3 ? [0, 0, 0] : [0, 1, 2];
  paint(canvas, width, height, (i) => {
    const [red, green, blue] = colour.map((c) => pixels[i * channels + c]);
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
}

function wipe(canvas) {
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

/** A button with a small image and a caption, to see the image's prediction. */
function thumbnail(pixels, shape, caption, label, onclick) {
  const canvas = make("canvas");
  paintImage(canvas, pixels, shape);
  const attributes = { "aria-label": label };
  return make("button", { type: "button", className: "thumbnail", attributes, onclick },
    canvas, make("span", { textContent: caption }));
}
