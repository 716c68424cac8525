"use strict";
// Image files of the user's own, decoded by the browser.

const readImage = (() => {
  const LARGEST_FILE = 16 * 2 ** 20;  // bytes
  const MOST_PIXELS = 50e6;
  const STRIP = 4e6;  // pixels drawn at once: on mobile devices a canvas has at most 16 million

  // Returns {width, height, data: Uint8ClampedArray, RGBA} of a File or Blob, upright; its colours are
  // the file's, without a colour profile. Throws an Error with a sentence for the user.
  //
  // The size is known before the image is decoded, so that a huge one takes no memory.
  async function readImage(file) {
    if (file.size > LARGEST_FILE)
      throw Error(`the image is too large: at most ${LARGEST_FILE >> 20} MiB`);
    const {width, height} = await sizeOf(file);
    if (width * height > MOST_PIXELS)
      throw Error(`the image has ${width} x ${height} pixels: give an image of at most ` +
        `${MOST_PIXELS / 1e6} million`);
    let bitmap;
    try {
      bitmap = await createImageBitmap(file, {
        premultiplyAlpha: "none", colorSpaceConversion: "none", imageOrientation: "from-image",
      });
    } catch {
      throw unreadable();
    }
    return pixelsOf(bitmap);
  }

  const unreadable = () => Error(
    "the image cannot be read as an image: give a complete PNG, JPEG, BMP, GIF or WebP file");

  async function sizeOf(file) {
    const image = new Image(), url = URL.createObjectURL(file);
    try {
      await new Promise((done, fail) => {
        image.onload = done;
        image.onerror = () => fail(unreadable());
        image.src = url;
      });
      if (!image.naturalWidth || !image.naturalHeight) throw unreadable();
      return {width: image.naturalWidth, height: image.naturalHeight};
    } finally {
      URL.revokeObjectURL(url);
    }
  }

  function pixelsOf(bitmap) {
    const {width, height} = bitmap, data = new Uint8ClampedArray(4 * width * height);
    const canvas = document.createElement("canvas"), rows = Math.max(1, Math.floor(STRIP / width));
    [canvas.width, canvas.height] = [width, Math.min(rows, height)];
    // Drawn by the processor: exact, and read without a detour.
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.globalCompositeOperation = "copy";
    for (let y = 0; y < height; y += rows) {
      const count = Math.min(rows, height - y);
      context.drawImage(bitmap, 0, -y);
      data.set(context.getImageData(0, 0, width, count).data, 4 * width * y);
    }
    bitmap.close();
    return {width, height, data};
  }

  return readImage;
})();
