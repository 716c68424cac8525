"use strict";

// Starts the page: first what classifies, then, when the images are unpacked, what needs these.

/** The images of the page, unpacked, if it has any. */
async function unpackAll(images) {
  if (!images) return {};
  const test = { images: await unpackImages(images.test), labels: images.test.labels };
  const training = {
    images: await unpackImages(images.training),
    labels: images.training.labels,
    count: images.training.thumbnails,
  };
  const sample = {
    images: test.images.slice(0, images.test.sample * size(images.test.shape.slice(1))),
    labels: test.labels.slice(0, images.test.sample),
  };
  return { test, training, sample };
}

/** Shows random images of the test sample. */
function offerTestImages(model, pad, { images, labels }) {
  $("random").hidden = false;
  $("random").addEventListener("click", () => {
    const place = Math.floor(Math.random() * labels.length);
    const name = model.data.classes[labels[place]];
    pad.take(model.imageOf(images, place), `test image of ${name}, as it is`);
  });
}

/** Prepares an image, so that the browser has compiled what the first stroke needs. */
function warmUp(pad) {
  const { width, height } = pad.canvas;
  const pixels = new Uint32Array(width * height).fill(0xff000000); // black
  pixels.fill(0xffffffff, width * 100, width * 140);
  prepare({ width, height, data: new Uint8ClampedArray(pixels.buffer) }, pad.facts);
}

async function start() {
  const data = JSON.parse($("data").textContent);
  const model = new Model(data, await unpackWeights(data.weights));
  new Prediction(model);
  const pad = new Pad(model);
  if (pad.facts.draws) {
    pad.listen();
    new Pen(pad);
  }
  $("clear").addEventListener("click", () => pad.clear());
  openFiles(pad);
  new Camera(pad);
  new FeatureMaps(model, new Explanation(model));
  new Attribution(model);
  new DropoutFigure(model);
  setTimeout(() => warmUp(pad));
  const { test, training, sample } = await unpackAll(data.images);
  new Statistics(model, training);
  new Damage(model, sample ?? null);
  if (test) {
    new Neighbours(model, pad, training);
    new Confusion(model, pad, test);
    offerTestImages(model, pad, sample);
  }
  if ($("train")) new Trainer(model, training, sample);
  if (model.image) model.update({ image: true }); // drawn meanwhile
  document.documentElement.dataset.complete = "";
}

start();
