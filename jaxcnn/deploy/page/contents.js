"use strict";

// Unpacks the weights and images of `jaxcnn.deploy.page_data`.

/** The bytes of a text in Base64. */
function decodeBase64(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

/** The bytes that zlib deflated. */
async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Unpacks weights.
 *
 * @param {{layout: {name: string, shape: number[]}[], data: string}} packed
 * @return {Promise<Object<string, Float32Array>>} by name, as `Network` takes them.
 */
async function unpackWeights({ layout, data }) {
  const planes = await inflate(decodeBase64(data));
  const count = planes.length / 4;
  const view = new DataView(new ArrayBuffer(4 * count));
  for (let i = 0; i < count; i++) {
    for (let byte = 0; byte < 4; byte++) view.setUint8(4 * i + byte, planes[byte * count + i]);
  }
  let at = 0;
  const weights = {};
  for (const { name, shape } of layout) {
    const values = new Float32Array(size(shape));
    for (let i = 0; i < values.length; i++) values[i] = view.getFloat32(4 * at++, true);
    weights[name] = values;
  }
  return weights;
}

/**
 * Unpacks images.
 *
 * @param {{shape: number[], encoding: string, data: string, columns: number}} packed
 * @return {Promise<Uint8Array>} of the shape (N, height, width, channels).
 */
async function unpackImages({ shape, encoding, data, columns }) {
  const bytes = decodeBase64(data);
  if (encoding === "deflate") return inflate(bytes);
  const [count, height, width, channels] = shape;
  const options = { colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/webp" }), options);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width * columns, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const images = new Uint8Array(size(shape));
  let to = 0;
  // One row of the grid at a time: browsers limit the size of a canvas.
  for (let first = 0; first < count; first += columns) {
    context.drawImage(bitmap, 0, (-first / columns) * height);
    for (let image = first; image < Math.min(first + columns, count); image++) {
      const pixels = context.getImageData((image - first) * width, 0, width, height).data;
      for (let i = 0; i < pixels.length; i += 4) {
        for (let c = 0; c < channels; c++) images[to++] = pixels[i + c];
      }
    }
  }
  bitmap.close();
  return images;
}
