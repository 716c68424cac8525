"use strict";

// The product of matrices, in which almost all of the time is spent.

/** A view of a Float32Array as a matrix: entry (i, j) is data[offset + i * down + j * right]. */
class Matrix {
  /**
   * @param {Float32Array} data
   * @param {number} rows
   * @param {number} columns
   * @param {number} [offset] of the first entry.
   */
  constructor(data, rows, columns, offset = 0) {
    Object.assign(this, { data, rows, columns, offset, down: columns, right: 1 });
  }

  /** The transposed matrix, a view of the same entries. */
  get transposed() {
    const { data, rows, columns, offset, down, right } = this;
    const view = new Matrix(data, columns, rows, offset);
    return Object.assign(view, { down: right, right: down });
  }
}

/**
 * Adds the product of two matrices to a third: c += a b.
 *
 * It goes by blocks of 4 x 4 sums, which stay in registers: each entry that is read is used four
 * times. JavaScript adds in double precision, so the sums are more precise than float32.
 *
 * @param {Matrix} c of m x n entries, in rows without gaps.
 * @param {Matrix} a of m x k entries.
 * @param {Matrix} b of k x n entries.
 */
function addProduct(c, a, b) {
  const fullRows = c.rows - (c.rows % 4);
  const fullColumns = c.columns - (c.columns % 4);
  for (let i = 0; i < fullRows; i += 4) {
    for (let j = 0; j < fullColumns; j += 4) addBlock(c, a, b, i, j);
  }
  addEntries(c, a, b, 0, fullRows, fullColumns, c.columns);
  addEntries(c, a, b, fullRows, c.rows, 0, c.columns);
}

/** Adds the 4 x 4 entries of a product at row i, column j. */
function addBlock(c, a, b, i, j) {
  const x = a.data, y = b.data, z = c.data;
  const x1 = a.down, x2 = 2 * a.down, x3 = 3 * a.down;
  const y1 = b.right, y2 = 2 * b.right, y3 = 3 * b.right;
  let s00 = 0, s01 = 0, s02 = 0, s03 = 0;
  let s10 = 0, s11 = 0, s12 = 0, s13 = 0;
  let s20 = 0, s21 = 0, s22 = 0, s23 = 0;
  let s30 = 0, s31 = 0, s32 = 0, s33 = 0;
  let p = a.offset + i * a.down;
  let q = b.offset + j * b.right;
  for (let steps = a.columns; steps > 0; steps--) {
    const a0 = x[p], a1 = x[p + x1], a2 = x[p + x2], a3 = x[p + x3];
    const b0 = y[q], b1 = y[q + y1], b2 = y[q + y2], b3 = y[q + y3];
    s00 += a0 * b0; s01 += a0 * b1; s02 += a0 * b2; s03 += a0 * b3;
    s10 += a1 * b0; s11 += a1 * b1; s12 += a1 * b2; s13 += a1 * b3;
    s20 += a2 * b0; s21 += a2 * b1; s22 += a2 * b2; s23 += a2 * b3;
    s30 += a3 * b0; s31 += a3 * b1; s32 += a3 * b2; s33 += a3 * b3;
    p += a.right;
    q += b.down;
  }
  let r = c.offset + i * c.columns + j;
  z[r] += s00; z[r + 1] += s01; z[r + 2] += s02; z[r + 3] += s03;
  r += c.columns;
  z[r] += s10; z[r + 1] += s11; z[r + 2] += s12; z[r + 3] += s13;
  r += c.columns;
  z[r] += s20; z[r + 1] += s21; z[r + 2] += s22; z[r + 3] += s23;
  r += c.columns;
  z[r] += s30; z[r + 1] += s31; z[r + 2] += s32; z[r + 3] += s33;
}

/** Adds the entries of a product in some rows and columns one by one: what no block covers. */
function addEntries(c, a, b, top, bottom, left, end) {
  for (let i = top; i < bottom; i++) {
    for (let j = left; j < end; j++) {
      let sum = 0;
      let p = a.offset + i * a.down;
      let q = b.offset + j * b.right;
      for (let steps = a.columns; steps > 0; steps--) {
        sum += a.data[p] * b.data[q];
        p += a.right;
        q += b.down;
      }
      c.data[c.offset + i * c.columns + j] += sum;
    }
  }
}

/** Adds a row to every row of a matrix. */
function addToRows(matrix, row) {
  const { data, rows, columns, offset } = matrix;
  for (let i = 0, at = offset; i < rows; i++) {
    for (let j = 0; j < columns; j++) data[at++] += row[j];
  }
}

/** Adds every row of a matrix to a row. */
function addRows(row, matrix) {
  const { data, rows, columns, offset } = matrix;
  for (let i = 0, at = offset; i < rows; i++) {
    for (let j = 0; j < columns; j++) row[j] += data[at++];
  }
}
