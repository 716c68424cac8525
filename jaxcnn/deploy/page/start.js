"use strict";

// Starts the page: first what classifies, then, when the images are unpacked, what needs these.

/** The images of the page, unpacked; null where it has none. */
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
  const pixels = size(model.shape);
  $("random").hidden = false;
  $("random").addEventListener("click", () => {
    const place = Math.floor(Math.random() * labels.length);
    const name = model.data.classes[labels[place]];
    pad.take(images.subarray(place * pixels, (place + 1) * pixels), `test image of ${name}, as it is`);
  });
}

/** Prepares an image, so that the browser has compiled what the first stroke needs. */
function warmUp(pad) {
  const { width, height } = pad.canvas;
  const data = new Uint8ClampedArray(4 * width * height).fill(255);
  data.fill(0, 4 * width * 100, 4 * width * 140);
  for (let i = 3; i < data.length; i += 4) data[i] = 255;
  prepare({ width, height, data }, pad.facts);
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
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  setTimeout(() => warmUp(pad));
  const { test, training, sample } = await unpackAll(data.images);
  new Statistics(model, training);
  new Damage(model, sample ?? null);
  if (test) {
    new Neighbours(model, pad, training);
    new Confusion(model, pad, test);
    offerTestImages(model, pad, sample);
  }
  if (test && $("train")) new Trainer(model, training, sample);
  if (model.image) model.update({ image: true }); // drawn meanwhile
  document.documentElement.dataset.complete = String(Math.round(performance.now()));
}

start();
