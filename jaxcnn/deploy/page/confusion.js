"use strict";

// The confusion matrix of the whole test set, with images behind its cells.

const SHOWN = 48; // images of a cell, at most

class Confusion {
  constructor(model, pad, test) {
    Object.assign(this, { model, pad, test });
    const { counts, examples } = model.data.images.confusion;
    this.counts = counts;
    this.examples = new Map(
      examples.map(([label, prediction, some]) => [`${label}/${prediction}`, some]));
    this.buttons = [];
    this.fill();
  }

  fill() {
    const { classes } = this.model.data;
    const { counts } = this;
    const off = Math.max(1, ...counts.flatMap((row, label) => row.filter((_, i) => i !== label)));
    const heads = classes.map((name) => make("th", { scope: "col", textContent: name }));
    const rows = classes.map((name, label) => make("tr", {},
      make("th", { scope: "row", textContent: name }),
      ...counts[label].map((count, prediction) => this.cell(label, prediction, count, off))));
    $("confusion").append(
      make("thead", {}, make("tr", {}, make("td"), ...heads)), make("tbody", {}, ...rows));
  }

  cell(label, prediction, count, off) {
    if (!count) return make("td", { className: "none" }, "·");
    const { classes } = this.model.data;
    const button = make("button", {
      type: "button", textContent: count.toLocaleString("en"),
      attributes: { "aria-label": this.describe(label, prediction, count), "aria-pressed": "false" },
      onclick: () => this.open(label, prediction, button),
    });
    const share = label === prediction ? 22 : Math.round(12 + (60 * count) / off);
    const colour = label === prediction ? "bar" : "plus";
    button.style.background = `color-mix(in srgb, var(--${colour}) ${share}%, transparent)`;
    button.title = `${classes[label]}, predicted ${classes[prediction]}`;
    this.buttons.push(button);
    return make("td", {}, button);
  }

  describe(label, prediction, count) {
    const { classes } = this.model.data;
    return label === prediction
      ? `${plural(count, "image")} of ${classes[label]}, predicted correctly`
      : `${plural(count, "image")} of ${classes[label]}, predicted ${classes[prediction]}`;
  }

  open(label, prediction, button) {
    for (const one of this.buttons) one.setAttribute("aria-pressed", String(one === button));
    const { model, test } = this;
    const { classes } = model.data;
    const places = this.examples.get(`${label}/${prediction}`) ?? [];
    const text = this.describe(label, prediction, this.counts[label][prediction]);
    const shown = places.slice(0, SHOWN);
    $("cell-note").textContent = shown.length
      ? `${text}; ${shown.length === this.counts[label][prediction]
        ? "all" : `${shown.length} of them`} here. Click one to show it to the network.`
      : `${text}; none of them is embedded in this page.`;
    $("cell-images").replaceChildren(...shown.map((place) => {
      const image = model.imageOf(test.images, place);
      const what = `test image of ${classes[label]}, as it is`;
      return thumbnail(image, model.shape, `${place + 1}`, `test image ${place + 1}`, () => {
        this.pad.take(image, what);
        $("results").scrollIntoView({ block: "nearest" });
      });
    }));
  }
}
