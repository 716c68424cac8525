"use strict";

// What the network is shown: strokes on a drawing pad, or an image that covers them.

class Pad {
  constructor(model) {
    this.model = model;
    this.canvas = $("pad");
    this.ink = this.canvas.getContext("2d", { willReadFrequently: true });
    this.strokes = []; // of points in 0..1
    this.image = null; // {pixels: {width, height, data}} of a file, or {exact: Uint8Array}
    this.onlift = () => {}; // when another content takes the place of what is being drawn
    const [height, width, channels] = model.shape;
    this.facts = { draws: model.data.facts.reads_digits, height, width, channels };
    this.waiting = false;
    this.redraw();
  }

  get empty() {
    return !this.image && !this.strokes.length;
  }

  redraw() {
    const { ink, canvas: { width: size } } = this;
    ink.fillStyle = "#000";
    ink.fillRect(0, 0, size, size);
    ink.strokeStyle = "#fff";
    ink.lineWidth = size / 12; // MNIST's strokes are about an eighth as wide as its digits are tall
    ink.lineCap = ink.lineJoin = "round";
    for (const stroke of this.image ? [] : this.strokes) {
      ink.beginPath();
      ink.moveTo(stroke[0][0] * size, stroke[0][1] * size);
      for (const [x, y] of stroke) ink.lineTo(x * size + 0.01, y * size); // a lone point is a dot
      ink.stroke();
    }
    if (this.image) this.redrawImage(ink, size);
    $("invitation").hidden = !this.empty;
  }

  redrawImage(ink, size) {
    const canvas = make("canvas");
    const { pixels, exact } = this.image;
    if (exact) paintImage(canvas, exact, this.model.shape);
    else {
      [canvas.width, canvas.height] = [pixels.width, pixels.height];
      canvas.getContext("2d").putImageData(new ImageData(pixels.data, pixels.width), 0, 0);
    }
    const scale = size / Math.max(canvas.width, canvas.height);
    const [width, height] = [canvas.width * scale, canvas.height * scale];
    ink.imageSmoothingEnabled = !exact;
    ink.drawImage(canvas, (size - width) / 2, (size - height) / 2, width, height);
  }

  /** Shows the content, and classifies it before the next frame. */
  changed() {
    this.redraw();
    complain("");
    $("results").setAttribute("aria-busy", "true");
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.classify();
      $("results").setAttribute("aria-busy", "false");
    });
  }

  classify() {
    let prepared = { image: null, steps: [] };
    try {
      if (this.image?.exact) prepared = { image: this.image.exact, steps: [this.image.what] };
      else if (!this.empty) prepared = prepare(this.pixels(), this.facts);
    } catch (error) {
      complain(error.message);
    }
    $("steps").textContent = prepared.steps.join("; ");
    this.model.show(prepared.image);
  }

  pixels() {
    const { width, height } = this.canvas;
    return this.image?.pixels ?? this.ink.getImageData(0, 0, width, height);
  }

  begin(point) {
    if (this.image) [this.strokes, this.image] = [[], null];
    this.strokes.push([point]);
    this.changed();
  }

  follow(...points) {
    this.strokes.at(-1).push(...points);
    this.changed();
  }

  undo() {
    if (this.image) this.image = null;
    else this.strokes.pop();
    this.onlift();
    this.changed();
  }

  clear() {
    [this.strokes, this.image] = [[], null];
    this.onlift();
    this.changed();
  }

  /** Shows an image that is embedded in the page, as the network takes it. */
  take(exact, what) {
    this.image = { exact, what };
    this.onlift();
    this.changed();
  }

  /** Shows an image file. */
  async open(file) {
    if (!file) return;
    $("results").setAttribute("aria-busy", "true");
    const opening = (this.opening = {});
    try {
      const pixels = await readImage(file);
      if (this.opening !== opening) return;
      this.image = { pixels };
    } catch (error) {
      if (this.opening !== opening) return;
      this.clear();
      requestAnimationFrame(() => complain(error.message));
      return;
    }
    this.onlift();
    this.changed();
  }

  /** Draws with a mouse, a finger or a pen. */
  listen() {
    const { canvas } = this;
    let drawing = null;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (drawing !== null || event.button !== 0) return;
      this.onlift();
      drawing = event.pointerId;
      canvas.setPointerCapture(drawing);
      this.begin(place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId !== drawing || this.image || !this.strokes.length) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      this.follow(...(passed.length ? passed : [event]).map(place));
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => {
        if (event.pointerId === drawing) drawing = null;
      });
    }
    addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.key !== "z") return;
      if (event.target.tagName === "INPUT") return;
      event.preventDefault();
      this.undo();
    });
    $("undo").addEventListener("click", () => this.undo());
  }
}
