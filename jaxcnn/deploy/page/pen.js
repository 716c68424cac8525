"use strict";

// The keyboard's pen on the drawing pad.

const DIRECTIONS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
};

class Pen {
  constructor(pad) {
    Object.assign(this, { pad, x: 0.5, y: 0.25, down: false, held: new Set() });
    pad.onlift = () => this.lift();
    pad.canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (this.press(event)) event.preventDefault();
    });
    addEventListener("keyup", (event) => this.held.delete(event.key));
    pad.canvas.addEventListener("blur", () => this.held.clear());
    pad.canvas.addEventListener("focus", () => this.show());
  }

  /** Returns whether the key is one of the pen's. */
  press({ key, repeat, shiftKey }) {
    if (key in DIRECTIONS) this.move(key, shiftKey ? 4 : 1);
    else if (key === " ") {
      if (!repeat) this.switch();
    } else if (key === "Backspace") this.pad.undo();
    else if (key === "Delete") this.pad.clear();
    else return false;
    return true;
  }

  move(key, times) {
    const step = 1 / 28;
    const inside = (part) => Math.min(1 - step, Math.max(step, part));
    this.held.add(key);
    for (const direction of this.held) {
      this.x = inside(this.x + DIRECTIONS[direction][0] * step * times);
      this.y = inside(this.y + DIRECTIONS[direction][1] * step * times);
    }
    if (this.down) this.pad.follow([this.x, this.y]);
    this.show();
  }

  switch() {
    this.down = !this.down;
    if (this.down) this.pad.begin([this.x, this.y]);
    this.show();
  }

  lift() {
    if (!this.down) return;
    this.down = false;
    this.show();
  }

  show() {
    const { style, classList } = $("pen");
    style.left = `${100 * this.x}%`;
    style.top = `${100 * this.y}%`;
    classList.toggle("down", this.down);
    const [across, down] = [this.x, this.y].map((part) => Math.round(100 * part));
    const state = this.down ? "down" : "up";
    say({ pen: `Pen ${state}, ${across} percent across, ${down} percent down.` });
  }
}
