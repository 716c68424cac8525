"use strict";

// The panel that explains the selected unit: every product, and their sum; weights are edited in it.

const GROUPS = 6; // shown at first of a unit with inputs from many maps

class Explanation {
  constructor(model) {
    this.model = model;
    this.block = null;
    this.all = false;
    this.refresh = () => {};
    this.panel = $("explanation");
    this.invitation = [...this.panel.childNodes]; // to select a unit
    model.watch(({ image }) => {
      if (!this.block) return;
      // A panel that is built anew loses the focus.
      const kept = !image || this.panel.contains(document.activeElement);
      if (kept && model.pass && this.built) this.refresh();
      else this.build();
    });
  }

  /** Explains the unit that is selected in a block. */
  open(block) {
    this.block = block;
    this.all = false;
    // Beside the maps, or below those that were clicked where there is no room beside them.
    if (matchMedia("(min-width: 62rem)").matches) $("maps-columns").append(this.panel);
    else block.element.append(this.panel);
    this.build();
    say({ unit: this.panel.querySelector(".value")?.textContent });
  }

  get unit() {
    const { model: { network, pass }, block } = this;
    return explainUnit(network, pass, block.layer, block.unit);
  }

  build() {
    const { block, model: { pass, network } } = this;
    this.built = false;
    if (!block.place) return this.close();
    const { layer } = block;
    const { map, row, column } = block.place;
    const where = layer.shape.length === 3
      ? `map ${map + 1}, row ${row + 1}, column ${column + 1}` : this.unitName(layer, map);
    const title = make("h3", {}, `${layer.name} `, make("span", { textContent: where }));
    if (!pass) {
      const text = "Nothing to explain before there is an image.";
      this.panel.replaceChildren(title, make("p", { className: "soft", textContent: text }));
      return;
    }
    const unit = this.unit;
    const parts = unit.groups ? this.sum(layer, unit) : this.rule(layer, unit);
    const [off, refresh] = [this.switch(layer, map), this.refresh];
    this.refresh = () => {
      refresh();
      off.show();
    };
    this.panel.replaceChildren(title, ...parts, off.element);
    this.showField(receptiveField(network, layer, block.unit));
    this.built = true;
    this.refresh();
  }

  unitName(layer, map) {
    const { classes } = this.model.data;
    const last = layer === this.model.network.layers.at(-1);
    return last ? `the logit of ${classes[map]}` : `unit ${map + 1}`;
  }

  close() {
    this.panel.replaceChildren(...this.invitation);
    $("field").hidden = true;
  }

  /** Marks the part of the input on which the unit depends. */
  showField({ top, bottom, left, right }) {
    const [height, width] = this.model.shape;
    const [y, z] = [Math.max(0, top), Math.max(0, left)];
    const { style } = $("field");
    style.top = `${(100 * y) / height}%`;
    style.left = `${(100 * z) / width}%`;
    style.height = `${(100 * (Math.min(height, bottom) - y)) / height}%`;
    style.width = `${(100 * (Math.min(width, right) - z)) / width}%`;
    $("field").hidden = false;
  }

  /** A button that switches the unit's map off, or on. */
  switch(layer, map) {
    const { model } = this;
    const what = layer.shape.length === 3 ? `map ${map + 1}` : `unit ${map + 1}`;
    const onclick = () => model.toggle(layer.name, map);
    const button = make("button", { type: "button", onclick });
    const show = () => {
      const way = model.isOff(layer.name, map) ? "on" : "off";
      button.textContent = `Switch ${what} of ${layer.name} ${way}`;
    };
    return { element: make("p", { className: "buttons" }, button), show };
  }

  /** The parts that explain a unit without weights of its own. */
  rule(layer, first) {
    const values = make("p", { className: "values" }), formula = make("p", { className: "value" });
    const map = this.block.place.map;
    this.refresh = () => {
      const { value, inputs } = this.unit;
      const shown = inputs.map((x) => decimal(x));
      const best = inputs.indexOf(Math.max(...inputs));
      values.className = `values ${isPooling(layer) ? "square" : ""}`;
      values.replaceChildren(...shown.map((text, i) => make("b", {
        textContent: text, className: layer.kind === "max_pool" && i === best ? "first" : "",
      })));
      formula.textContent = `${this.formula(layer, map, inputs[0], shown)} = ${decimal(value)}` +
        this.offNote(layer, map);
    };
    const words = {
      relu: `relu keeps what is positive of ${first.below.name}, and makes the rest zero.`,
      max_pool: `Max pooling keeps the largest of four neighbours of ${first.below.name}.`,
      avg_pool: `Average pooling takes the mean of four neighbours of ${first.below.name}.`,
      batch_norm: "BatchNorm subtracts the running mean of the map, divides by the running " +
        "standard deviation, then scales and shifts by two trained weights.",
    };
    return [make("p", { className: "soft", textContent: words[layer.kind] }), values, formula];
  }

  formula(layer, map, x, shown) {
    if (layer.kind === "relu") return `max(0, ${shown[0]})`;
    if (layer.kind === "max_pool") return `max(${shown.join(", ")})`;
    if (layer.kind === "avg_pool") return `(${shown.join(" + ")}) / 4`;
    const { scale, bias, mean, var: variance } = layer.weights;
    const [m, s, v, b] = [mean, scale, variance, bias].map((values) => decimal(values[map]));
    return `(${shown[0]} − ${m}) / √(${v} + ${layer.settings.epsilon}) × ${s} + ${b}`;
  }

  offNote(layer, map) {
    return this.model.isOff(layer.name, map) ? ", switched off" : "";
  }

  /** The parts that explain a weighted sum. */
  sum(layer, first) {
    const { groups, below } = first;
    const order = largest(groups.map(({ sum }) => Math.abs(sum)), groups.length);
    const shown = this.all || groups.length <= GROUPS + 2
      ? groups.map((_, i) => i) : order.slice(0, GROUPS);
    const single = groups[0].terms.length === 1;
    const list = shown.map((i) => new TermGroup(
      this.model, layer, groups[i], this.groupName(below, i), i === order[0]));
    const others = make("p", { className: "subtotal" });
    const more = make("button", {
      type: "button", textContent: `Show all ${groups.length}`,
      onclick: () => {
        this.all = true;
        this.build();
      },
    });
    const total = make("p", { className: "value", id: "unit-sum" });
    const bias = weightInput(this.model, `${layer.name}/bias`, first.biasIndex, "bias");
    const map = this.block.place.map;
    this.refresh = () => {
      const unit = this.unit;
      const products = unit.groups.flatMap(({ terms }) => terms.map(({ product }) => product));
      const most = products.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;
      list.forEach((group, i) => group.show(unit.groups[shown[i]], most));
      const rest = unit.products - shown.reduce((sum, i) => sum + unit.groups[i].sum, 0);
      others.textContent = `the other ${groups.length - shown.length} together: ${decimal(rest)}`;
      bias.show(unit.bias);
      total.dataset.sum = unit.sum;
      total.textContent = `${decimal(unit.products)} + bias ${decimal(unit.bias)} = ` +
        `${decimal(unit.sum)}${this.offNote(layer, map)}`;
    };
    const terms = groups.length * groups[0].terms.length;
    const window = layer.kind === "conv"
      ? `${plural(terms, "product")} of the window and the kernel` : plural(terms, "product");
    const text = `${window}, input × weight, are summed, and the bias is added. ` +
      `Weights can be edited${groups.length > shown.length ? `; the largest ${single ? "products"
        : "sums"} come first` : ""}.`;
    return [
      make("p", { className: "soft", textContent: text }),
      make("div", { className: single ? "groups singles" : "groups" },
        ...list.map(({ element }) => element)),
      ...(shown.length < groups.length ? [make("div", { className: "more" }, others, more)] : []),
      make("label", { className: "bias" }, "bias ", bias.element),
      total,
    ];
  }

  groupName(below, i) {
    const { network } = this.model;
    const source = network.layers[network.layers.indexOf(below) - (below.kind === "flatten" ? 1 : 0)];
    if (below.kind === "normalize") return below.shape[2] === 3 ? ["red", "green", "blue"][i] : "image";
    return `${source.name === "dropout" ? "unit" : `${source.name}, map`} ${i + 1}`;
  }
}

/** A number input for a weight. */
function weightInput(model, name, index, label) {
  const element = make("input", {
    type: "text", inputMode: "decimal", className: "weight", autocomplete: "off",
    attributes: { "aria-label": label },
  });
  const show = (value) => {
    if (document.activeElement !== element) element.value = decimal(value);
    element.classList.toggle("edited", model.edited.has(`${name}/${index}`));
  };
  element.addEventListener("mousedown", (event) => {
    if (document.activeElement === element) return;
    event.preventDefault(); // WebKit would put the caret there, and nothing would stay selected
    element.focus();
  });
  element.addEventListener("focus", () => {
    element.value = String(Number(model.network.weights[name][index].toPrecision(6)));
    element.select();
  });
  element.addEventListener("change", () => {
    const text = element.value.trim().replace(",", ".").replace("\u2212", "-");
    const value = text === "" ? 0 : Number(text);
    const sound = Number.isFinite(value) && Math.abs(value) <= 1e6;
    element.setAttribute("aria-invalid", String(!sound));
    if (sound) model.setWeight(name, index, value);
    element.title = sound ? "" : "a number between −1,000,000 and 1,000,000";
  });
  element.addEventListener("blur", () => {
    if (element.getAttribute("aria-invalid") !== "true") show(model.network.weights[name][index]);
  });
  return { element, show };
}

/** The products with one map below: the window, the kernel and their products, also as numbers. */
class TermGroup {
  constructor(model, layer, { rows, columns, terms }, title, open) {
    Object.assign(this, { rows, columns });
    this.subtotal = make("b");
    const name = `${layer.name}/kernel`;
    this.cells = terms.map(({ index }, i) => {
      const place = rows * columns > 1
        ? `row ${Math.floor(i / columns) + 1}, column ${(i % columns) + 1}` : "weight";
      const weight = weightInput(model, name, index, `${title}, ${place}`);
      const [x, product] = [make("span"), make("b")];
      const cell = make("div", { className: "term" }, x,
        make("label", {}, "×", weight.element), product);
      return { cell, x, weight, product };
    });
    this.numbers = make("div", { className: "terms" }, ...this.cells.map(({ cell }) => cell));
    this.numbers.style.gridTemplateColumns = `repeat(${columns}, minmax(3.8rem, 1fr))`;
    if (terms.length === 1) {
      this.element = make("div", { className: "single" }, make("span", { textContent: title }),
        this.numbers);
      return;
    }
    this.canvases = ["window", "kernel", "products"].map(() => make("canvas"));
    const [window, kernel, products] = this.canvases;
    this.element = make("details", { open, className: "group" },
      make("summary", {}, make("span", { className: "name", textContent: title }),
        window, "×", kernel, "=", products, make("span", { className: "subtotal" }, "Σ ",
          this.subtotal)),
      make("div", { className: "scroll" }, this.numbers));
  }

  /** `most`: the largest product of the unit, for the shades. */
  show({ terms, sum }, most) {
    this.subtotal.textContent = decimal(sum);
    terms.forEach(({ x, weight, product, inside }, i) => {
      const cell = this.cells[i];
      cell.x.textContent = inside ? decimal(x, 2) : "edge 0";
      cell.weight.show(weight);
      cell.product.textContent = decimal(product);
      const share = Math.round((45 * Math.abs(product)) / most);
      cell.cell.style.background = `color-mix(in srgb, var(--${product < 0 ? "minus" : "plus"}) ` +
        `${share}%, transparent)`;
    });
    if (!this.canvases) return;
    [({ x }) => x, ({ weight }) => weight, ({ product }) => product].forEach((what, k) => {
      const values = terms.map(what), colour = colouring(values, true);
      paint(this.canvases[k], this.columns, this.rows, (i) => colour(values[i]));
    });
  }
}
