"use strict";

// Learning curves: the loss, and accuracies, over epochs.

const CURVE = { width: 640, height: 240, left: 44, right: 52, top: 12, bottom: 28 };

class Curves {
  constructor(svg) {
    this.svg = svg;
    this.clear();
  }

  clear() {
    Object.assign(this, { loss: [], accuracy: [], test: [] });
    this.show(1);
  }

  add(epoch, { loss, accuracy: share }) {
    this.loss.push([epoch, loss]);
    this.accuracy.push([epoch, share]);
  }

  /** Adds an accuracy on the test images, unless it is there already. */
  addTest(epoch, share) {
    if (!this.test.length || this.test.at(-1)[0] < epoch - 1e-9) this.test.push([epoch, share]);
  }

  show(epochs) {
    const { width, height, left, right, top, bottom } = CURVE;
    const most = Math.max(0.1, ...this.loss.map(([, loss]) => loss).filter(Number.isFinite));
    const x = (epoch) => left + (epoch / epochs) * (width - left - right);
    const y = (share) => top + (1 - share) * (height - top - bottom);
    const line = (name, points, scale) => {
      const sound = points.filter(([, value]) => Number.isFinite(value));
      const places = sound.map(([epoch, value]) =>
        `${x(epoch).toFixed(1)},${y(value / scale).toFixed(1)}`);
      return draw("polyline", { class: name, points: places.join(" ") });
    };
    const ticks = [0, 0.5, 1].map((share) => draw("g", { class: "tick" },
      draw("line", { x1: left, x2: width - right, y1: y(share), y2: y(share) }),
      draw("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end", class: "loss" },
        decimal(share * most, 1)),
      draw("text", { x: width - right + 6, y: y(share) + 4 }, `${100 * share}%`)));
    const every = Math.ceil(epochs / 10);
    const labels = Array.from({ length: Math.floor(epochs / every) + 1 }, (_, i) => draw("text", {
      x: x(i * every), y: height - 8, "text-anchor": "middle" }, `${i * every}`));
    this.svg.replaceChildren(...ticks, ...labels,
      line("loss", this.loss, most), line("accuracy", this.accuracy, 1), line("test", this.test, 1),
      ...this.test.map(([epoch, share]) =>
        draw("circle", { class: "test", cx: x(epoch), cy: y(share), r: 3 })));
  }
}
