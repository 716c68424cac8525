"use strict";

/** Random numbers that follow from a seed: xorshift of Marsaglia, J. Stat. Software 8 (14), 2003. */
class Random {
  /** @param {number} seed an integer. */
  constructor(seed) {
    // Spread over 32 bits by Knuth's multiplier; the state must not be zero.
    this.state = Math.imul(seed + 1, 2654435761) | 0 || 1;
    for (let i = 0; i < 8; i++) this.uniform();
  }

  /** Uniform in 0..1, without 0 and 1. */
  uniform() {
    let x = this.state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.state = x;
    return ((x >>> 0) - 0.5) / 2 ** 32;
  }

  /** Normal with mean 0 and variance 1 (Box and Muller 1958). */
  normal() {
    return Math.sqrt(-2 * Math.log(this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  /** Uint8Array of 0, with the probability `rate`, and 1. */
  mask(length, rate) {
    const mask = new Uint8Array(length);
    for (let i = 0; i < length; i++) mask[i] = this.uniform() < rate ? 0 : 1;
    return mask;
  }

  /** 0 .. length - 1 in random order (Fisher and Yates). */
  permutation(length) {
    const order = Uint32Array.from({ length }, (_, i) => i);
    for (let i = length - 1; i > 0; i--) {
      const j = Math.floor(this.uniform() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }
}
