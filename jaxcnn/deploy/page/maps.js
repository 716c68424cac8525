"use strict";

// The feature maps of all layers, in which units are selected.

/** Groups the layers: each convolution or dense layer with those that follow it. */
function blocksOf(network) {
  const blocks = [];
  for (const layer of network.layers) {
    if (layer.weights.kernel) blocks.push([]);
    if (blocks.length && !["flatten", "dropout"].includes(layer.kind)) blocks.at(-1).push(layer);
  }
  return blocks;
}

const UNITS_ACROSS = 64; // of a dense layer, in its canvas

const isPooling = (layer) => layer.kind.endsWith("pool");

/** What a layer computes, in words. */
const KIND_NAMES = {
  conv: "convolution", dense: "weighted sum", batch_norm: "BatchNorm", relu: "relu",
  max_pool: "max pooling", avg_pool: "average pooling",
};

/** Height, width and number of maps of a layer; the units of a dense layer are one map each. */
const mapShape = ({ shape }) => (shape.length === 3 ? shape : [1, 1, shape[0]]);

/** One layer of a block at a time, as a grid of maps, or of units in one canvas. */
class Block {
  /**
   * @param {Model} model
   * @param {Layer[]} layers of the block.
   * @param {function(Block, object)} select is called with the place {map, row, column} of a unit.
   */
  constructor(model, layers, select) {
    Object.assign(this, { model, layers, select, place: null });
    this.layer = layers.findLast((layer) => !isPooling(layer));
    this.units = layers[0].kind === "dense";
    this.title = make("span");
    this.maps = make("div", {
      tabIndex: 0,
      id: `maps-${layers[0].name}`,
      attributes: { role: "application", "aria-roledescription": "feature maps" },
    });
    this.maps.addEventListener("click", (event) => this.click(event));
    this.maps.addEventListener("keydown", (event) => this.press(event));
    this.captions = make("div", { className: "captions", attributes: { "aria-hidden": "true" } });
    this.element = make("div", { className: "block" },
      make("div", { className: "block-head" },
        make("h3", {}, `${layers[0].name} `, this.title), ...this.choice()),
      this.maps, this.captions);
    this.build();
  }

  /** The classes below the logits. */
  names() {
    const { network, data: { classes } } = this.model;
    const few = this.units && classes.length <= 20;
    return few && this.layer === network.layers.at(-1) ? classes : [];
  }

  /** Radio buttons for the layers of the block. */
  choice() {
    if (this.layers.length < 2) return [];
    const legend = make("legend", { className: "heard", textContent: "Shown after" });
    const options = this.layers.map((layer) => {
      const input = make("input", {
        type: "radio", name: this.layers[0].name, checked: layer === this.layer,
        onchange: () => {
          const selected = this.place;
          if (String(layer.shape) !== String(this.layer.shape)) this.place = null;
          this.layer = layer;
          this.build();
          this.show();
          if (selected) this.select(this);
        },
      });
      return make("label", {}, input, make("span", { textContent: KIND_NAMES[layer.kind] }));
    });
    return [make("fieldset", { className: "choice" }, legend, ...options)];
  }

  build() {
    const [rows, columns, count] = mapShape(this.layer);
    this.title.textContent = this.units
      ? plural(count, "unit") : `${plural(count, "map")} of ${columns} x ${rows}`;
    const shown = this.units ? 1 : count;
    // The cells of the units' only canvas.
    this.across = this.units ? Math.min(count, UNITS_ACROSS) : columns;
    this.down = this.units ? Math.ceil(count / this.across) : rows;
    this.cursor = make("i", { className: "cursor", hidden: true });
    const many = shown > 16 ? " most" : shown > 8 ? " many" : "";
    this.maps.className = `maps${this.units ? " units" : many}`;
    this.captions.replaceChildren(...this.names().map((name) =>
      make("span", { textContent: name, title: name })));
    this.captions.style.gridTemplateColumns = `repeat(${this.across}, 1fr)`;
    this.maps.replaceChildren(...Array.from({ length: shown }, () =>
      make("div", { className: "map" },
        make("canvas", { width: this.across, height: this.down }))));
  }

  show() {
    const { model: { network, pass }, layer, across, down, units } = this;
    const [, , count] = mapShape(layer);
    const cells = [...this.maps.children];
    cells.forEach((cell, map) =>
      cell.classList.toggle("off", !units && this.layers.some(({ name }) => this.model.isOff(name, map))));
    this.showCursor();
    if (!pass) {
      this.maps.setAttribute("aria-label", `${layer.name}: nothing to see yet`);
      for (const { firstChild } of cells) wipe(firstChild);
      return;
    }
    const values = pass.activations[network.layers.indexOf(layer)];
    const colour = colouring(values);
    cells.forEach(({ firstChild }, map) => paint(firstChild, across, down, units
      ? (i) => (i < count ? colour(values[i]) : 0)
      : (i) => colour(values[i * count + map])));
    const sums = new Float32Array(count);
    values.forEach((value, i) => (sums[i % count] += value));
    this.maps.setAttribute("aria-label", `${layer.name}: ${this.title.textContent}, number ` +
      `${largest(sums, 1)[0] + 1} is the brightest`);
  }

  /** The selected unit's index in the activation of one image. */
  get unit() {
    const [, columns, count] = mapShape(this.layer);
    const { map, row, column } = this.place;
    return (row * columns + column) * count + map;
  }

  click(event) {
    const cell = event.target.closest(".map");
    if (!cell) return;
    const box = cell.firstChild.getBoundingClientRect();
    const inside = (part, count) => Math.min(count - 1, Math.max(0, Math.floor(part * count)));
    const column = inside((event.clientX - box.left) / box.width, this.across);
    const row = inside((event.clientY - box.top) / box.height, this.down);
    this.go([...this.maps.children].indexOf(cell), row, column);
  }

  press(event) {
    const { key } = event;
    const turn = { PageUp: -1, PageDown: 1 }[key];
    if (!(key in DIRECTIONS) && !turn && key !== "Enter") return;
    event.preventDefault();
    const [x, y] = DIRECTIONS[key] ?? [0, 0];
    const { map, row, column } = this.shown ?? { map: 0, row: 0, column: 0 };
    const [step, moved] = this.place ? [turn ?? 0, 1] : [0, 0];
    const count = this.maps.children.length;
    const inside = (value, most) => Math.min(most - 1, Math.max(0, value));
    this.go((map + step + count) % count,
      inside(row + moved * y, this.down), inside(column + moved * x, this.across));
  }

  /** Selects what a canvas shows in a row and column. */
  go(map, row, column) {
    const [, , count] = mapShape(this.layer);
    if (this.units) {
      const unit = row * this.across + column;
      if (unit >= count) return;
      this.place = { map: unit, row: 0, column: 0 };
    } else this.place = { map, row, column };
    this.shown = { map, row, column };
    this.showCursor();
    this.select(this);
  }

  showCursor() {
    this.cursor.hidden = !this.place;
    if (!this.place) return;
    const { map, row, column } = this.shown;
    const { style } = this.cursor;
    style.left = `${(100 * column) / this.across}%`;
    style.top = `${(100 * row) / this.down}%`;
    style.width = `${100 / this.across}%`;
    style.height = `${100 / this.down}%`;
    this.maps.children[map].append(this.cursor);
  }
}

/** All blocks, of which one has the selected unit. */
class FeatureMaps {
  constructor(model, explanation) {
    this.blocks = blocksOf(model.network).map((layers) => new Block(model, layers, (block) => {
      for (const other of this.blocks) {
        if (other !== block) {
          other.place = null;
          other.showCursor();
        }
      }
      explanation.open(block);
    }));
    $("layers").append(...this.blocks.map(({ element }) => element));
    model.watch(() => this.show());
    this.show();
  }

  show() {
    for (const block of this.blocks) block.show();
  }
}
