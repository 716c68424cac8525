"use strict";

// Elements of the page, the numbers in them, and work that waits until the page is idle.

const $ = (id) => document.getElementById(id);

/** Makes an element with properties and children; texts among these are never markup. */
function make(tag, properties = {}, ...children) {
  const { attributes = {}, ...others } = properties;
  const element = Object.assign(document.createElement(tag), others);
  for (const name in attributes) element.setAttribute(name, attributes[name]);
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element of SVG. */
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const name in attributes) element.setAttribute(name, attributes[name]);
  element.append(...children);
  return element;
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** A number with so many decimals and a true minus sign. */
function decimal(value, digits = 3) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** The places of the largest values, the largest first. */
function largest(values, count) {
  const order = Array.from(values, (_, i) => i).sort((a, b) => values[b] - values[a]);
  return order.slice(0, count);
}

/**
 * Slow work in small pieces, so that the page stays responsive.
 *
 * `work` returns a generator, which is advanced between other events. It starts anew when what it
 * works on changes, and not before somebody can see it: while `details` is closed it waits.
 */
class Task {
  constructor(work, details = null) {
    Object.assign(this, { work, details, timer: 0, wanted: false });
    details?.addEventListener("toggle", () => {
      if (details.open && this.wanted) this.restart();
    });
  }

  restart() {
    clearTimeout(this.timer);
    this.wanted = true;
    if (this.details && !this.details.open) return;
    this.timer = setTimeout(() => {
      this.wanted = false;
      this.advance(this.work());
    }, 120);
  }

  advance(pieces) {
    if (!pieces.next().done) this.timer = setTimeout(() => this.advance(pieces));
  }

  cancel() {
    clearTimeout(this.timer);
    this.wanted = false;
  }
}

// The status for screen readers changes after a pause, and holds only what is new.
const say = (() => {
  let unsaid = {}, timer;
  return (parts) => {
    Object.assign(unsaid, parts);
    clearTimeout(timer);
    timer = setTimeout(() => {
      $("said").textContent = Object.values(unsaid).filter(Boolean).join(" ");
      unsaid = {};
    }, 700);
  };
})();

/** Shows what is wrong with an image, or hides it. */
function complain(text) {
  $("problem").textContent = text && `${text[0].toUpperCase()}${text.slice(1)}.`;
  $("problem").hidden = !text;
}
