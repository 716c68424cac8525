"use strict";

// The network broken by hand: switched off maps, edited weights, and what they cost.

class Damage {
  /** @param {?{images: Uint8Array, labels: number[]}} test the sample of test images. */
  constructor(model, test) {
    Object.assign(this, { model, test, shares: { base: null, now: null } });
    this.intact = new Network(model.data.network, model.run);
    this.base = model.base;
    this.rows = model.network.layers.filter(({ kind }) => kind === "conv").map((conv) => {
      const at = model.network.layers.indexOf(conv);
      const relu = model.network.layers.slice(at).find(({ kind }) => kind === "relu");
      return this.row(conv, relu);
    });
    $("switches").append(...this.rows.map(({ element }) => element));
    $("reset").addEventListener("click", () => model.use(model.base));
    $("weakest").addEventListener("click", () => this.zeroSmallest());
    this.task = new Task(() => this.evaluate(), $("damage"));
    $("damage").addEventListener("toggle", () => this.show());
    model.watch(({ weights }) => {
      if (weights) this.changed();
      this.show();
    });
    if (test) this.task.restart();
    this.show();
  }

  /** Buttons for the maps of a convolution, which switch them off after relu. */
  row(conv, relu) {
    const buttons = Array.from({ length: relu.shape[2] }, (_, map) => {
      const attributes = { "aria-label": `${conv.name}, map ${map + 1}` };
      return make("button", {
        type: "button", className: "map", attributes,
        onclick: () => this.model.toggle(relu.name, map),
      }, make("canvas"));
    });
    const maps = make("div", { className: "maps switches" }, ...buttons);
    return { relu, buttons, element: make("div", {}, make("h3", { textContent: conv.name }), maps) };
  }

  changed() {
    const { model } = this;
    if (this.base !== model.base) {
      this.base = model.base;
      this.shares.base = null;
      this.intact.load(model.base);
    }
    this.shares.now = null;
    if (this.test) this.task.restart();
  }

  /** Zeroes the tenth of the weights that are smallest, of all kernels. */
  zeroSmallest() {
    const { model, model: { network } } = this;
    for (const name in network.weights) {
      if (!name.endsWith("/kernel")) continue;
      const values = network.weights[name];
      const rest = Float32Array.from(values, Math.abs).filter((value) => value > 0).sort();
      const limit = rest[Math.floor(rest.length / 10)] ?? 0;
      values.forEach((value, index) => {
        if (value !== 0 && Math.abs(value) < limit) model.edit(name, index, 0);
      });
    }
    model.update({ weights: true });
  }

  *evaluate() {
    const { model, test: { images, labels }, shares } = this;
    shares.base ??= yield* measure((some) => this.intact.forward(some), images, labels);
    this.showAccuracy();
    if (!model.changed) return;
    shares.now = yield* measure((some) => model.forward(some), images, labels);
    this.showAccuracy();
  }

  show() {
    if (!$("damage").open) return;
    const { model, model: { pass, network } } = this;
    for (const { relu, buttons } of this.rows) {
      const values = pass?.activations[network.layers.indexOf(relu)];
      const [rows, columns, count] = relu.shape;
      const colour = values && colouring(values);
      buttons.forEach((button, map) => {
        button.setAttribute("aria-pressed", String(model.isOff(relu.name, map)));
        button.classList.toggle("off", model.isOff(relu.name, map));
        if (values) paint(button.firstChild, columns, rows, (i) => colour(values[i * count + map]));
        else wipe(button.firstChild);
      });
    }
    $("reset").disabled = !model.changed;
    $("changes").textContent = this.changes();
    this.showPrediction();
    this.showAccuracy();
  }

  /** What has been changed, in words. */
  changes() {
    const { off, edited, network, base } = this.model;
    const parts = Object.entries(off).filter(([, maps]) => maps.size).map(([layer, maps]) =>
      `${layer} ${[...maps].map((map) => map + 1).sort((a, b) => a - b).join(", ")} off`);
    const weights = [...edited.values()];
    if (weights.length > 3) parts.push(plural(weights.length, "edited weight"));
    else {
      for (const { name, index } of weights) {
        parts.push(`${name}[${index}]: ${decimal(base[name][index])} → ` +
          decimal(network.weights[name][index]));
      }
    }
    return parts.join("; ") || "Nothing is changed.";
  }

  showPrediction() {
    const { model, model: { data: { classes } } } = this;
    if (!model.pass) {
      for (const id of ["intact", "broken"]) $(id).textContent = "–";
      return;
    }
    const describe = (shares) => {
      const [first] = largest(shares, 1);
      return `${classes[first]} ${percent(shares[first])}`;
    };
    const intact = softmax(this.intact.forward(model.image).logits, classes.length);
    $("intact").textContent = describe(intact);
    $("broken").textContent = describe(model.probabilities);
  }

  showAccuracy() {
    if (!this.test) return;
    const { base, now } = this.shares;
    const text = (share) => (share === null ? "…" : percent(share));
    $("intact-accuracy").textContent = text(base);
    $("broken-accuracy").textContent = text(this.model.changed ? now : base);
  }
}
