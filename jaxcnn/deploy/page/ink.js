"use strict";
// The ink of a digit, as `jaxcnn/deploy/ink.py` finds it, where the method is explained. A sheet is
// {height, width, values: Uint8Array}.

const MIN_CONTRAST = 16;  // of ink, in levels: less is the grain of paper

// Returns the part between rows and between columns.
function cropped({height, width, values}, top, bottom, left, right) {
  const part = new values.constructor((bottom - top) * (right - left));
  for (let y = top; y < bottom; y++)
    part.set(values.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  return {height: bottom - top, width: right - left, values: part};
}

const findInk = (() => {
  // Widths of the squares in pixels, and the widest as a share of the longer side.
  const WIDTHS = [3, 5, 7, 9, 13, 19, 27, 37, 53], WIDEST = .4;
  const BLUR = 3;  // pixels between a frame and a sheet

  // Returns {height, width, values: Float64Array in 0..1, dark} without the sheet's frame, or null
  // if nothing stands out.
  function find(sheet) {
    const grey = withoutFrame(sheet), {height, width} = grey;
    const widths = WIDTHS.filter(
      side => side <= Math.max(WIDEST * Math.max(height, width), WIDTHS[0]));
    const sides = [false, true].map(dark => {
      const light = dark ? {height, width, values: grey.values.map(value => 255 - value)} : grey;
      return {dark, light, hat: topHat(light, widths.at(-1), true)};
    });
    const contrast = Math.max(...sides.map(({hat}) => greatest(hat)));
    if (contrast < MIN_CONTRAST) return null;
    const {dark, light, hat} = moreStrokes(sides, widths, contrast / 2);
    return {height, width, values: strength(light, hat, widths.at(-1), contrast / 2), dark};
  }

  function greatest(values) {
    let most = values[0];
    for (let i = 1; i < values.length; i++) if (values[i] > most) most = values[i];
    return most;
  }


  function withoutFrame(sheet) {
    const {height, width, values} = sheet;
    const [y, x] = [Math.floor(height / 6), Math.floor(width / 6)];
    const median = percentile(cropped(sheet, y, height - y, x, width - x).values, .5);
    const limit = Math.max(greatest(values) - median, median - percentile(values, 0)) / 2;
    const other = {
      height, width, values: values.map(value => Math.abs(value - median) > limit ? 1 : 0),
    };
    const rows = Array(height).fill(0), columns = Array(width).fill(0);
    for (let v = 0, i = 0; v < height; v++)
      for (let u = 0; u < width; u++, i++) {
        rows[v] += other.values[i];
        columns[u] += other.values[i];
      }
    const [top, bottom] = ends(rows, count => count / width < .95);
    const [left, right] = ends(columns, count => count / height < .95);
    if (top < 0 || left < 0 || edge(other) < .95) return sheet;
    const box = [top + BLUR, bottom + 1 - BLUR, left + BLUR, right + 1 - BLUR];
    if (box[0] >= box[1] || box[2] >= box[3]) return sheet;
    const inner = cropped(other, ...box);
    // A bold digit may fill the middle as well, but not the edge of its own bounding box.
    return inner.values.includes(1) && edge(inner) <= .2 ? cropped(sheet, ...box) : sheet;
  }

  const ends = (values, test) => [values.findIndex(test), values.findLastIndex(test)];

  // The share of ones along the four sides.
  function edge({height, width, values}) {
    let sum = 0;
    for (let x = 0; x < width; x++) sum += values[x] + values[(height - 1) * width + x];
    for (let y = 0; y < height; y++) sum += values[y * width] + values[y * width + width - 1];
    return sum / (2 * (height + width));
  }

  // Between the two nearest values, as NumPy interpolates.
  function percentile(values, share) {
    const sorted = values.slice().sort(), place = (sorted.length - 1) * share;
    const low = Math.floor(place), part = place - low;
    const [a, b] = [sorted[low], sorted[Math.min(low + 1, sorted.length - 1)]];
    return part < .5 ? a + (b - a) * part : b - (b - a) * (1 - part);
  }

  // Returns how far what is light and narrower than a square rises above the rest. Beyond the edge
  // the sheet continues, or is as dark as it is anywhere.
  function topHat({height, width, values}, side, beyond) {
    const margin = side - 1, ground = beyond ? null : percentile(values, 0);
    // An erosion, turned into its negative, and another one of that.
    let rest = lowest(values, height, width, side, {margin, ground, flipped: 0});
    rest = lowest(rest, width + margin, height, side, {margin, ground, flipped: 255});
    rest = lowest(rest, height + margin, width + margin, side, {margin: 0, flipped: 0});
    rest = lowest(rest, width, height + margin, side, {margin: 0, flipped: 255});
    for (let i = 0; i < rest.length; i++) rest[i] = values[i] - rest[i];
    return rest;
  }

  // Returns the least value in each window of the rows, [width + 2 * margin - side + 1, height]: rows
  // and columns are exchanged, and the bits in `flipped` inverted. In the margins a row continues, or
  // there is ground. Two runs of minima, from the left and from the right of blocks as wide as the
  // window, give that of any window (van Herk, A fast algorithm for local minimum and maximum filters,
  // 1992).
  function lowest(values, height, width, side, {margin, ground, flipped}) {
    const wide = width + 2 * margin, count = wide - side + 1;
    const row = new Uint8Array(wide), left = new Uint8Array(wide), right = new Uint8Array(wide);
    const result = new Uint8Array(count * height);
    for (let y = 0; y < height; y++) {
      const begin = y * width, end = begin + width;
      row.set(values.subarray(begin, end), margin);
      if (margin) {
        row.fill(ground ?? values[begin], 0, margin);
        row.fill(ground ?? values[end - 1], margin + width);
      }
      for (let start = 0; start < wide; start += side) {
        const last = (start + side < wide ? start + side : wide) - 1;
        for (let x = start, low = 255; x <= last; x++) left[x] = low = Math.min(low, row[x]);
        for (let x = last, low = 255; x >= start; x--) right[x] = low = Math.min(low, row[x]);
      }
      for (let i = 0, x = side - 1; i < count; i++, x++)
        result[i * height + y] = Math.min(right[i], left[x]) ^ flipped;
    }
    return result;
  }

  // Returns the side of which more consists of pen strokes: the sum, over the widths, of what a square
  // finds and the one before does not, divided by the width to the power of 1.5. It begins with the
  // widest: a narrower one finds less, which bounds what is not yet known, and most often few widths
  // decide.
  function moreStrokes(sides, widths, limit) {
    const weights = widths.map(side => side ** -1.5);
    const states = sides.map(({hat}) => ({sum: 0, area: count(hat, limit)}));
    for (let i = widths.length - 1; ; i--) {
      const [light, dark] = states.map(({sum, area}) =>
        ({low: sum + area * weights[i], high: sum + area * weights[0]}));
      if (light.low >= dark.high) return sides[0];
      if (dark.low > light.high) return sides[1];
      states.forEach((state, j) => {
        const area = state.area && count(topHat(sides[j].light, widths[i - 1], true), limit);
        state.sum += (state.area - area) * weights[i];
        state.area = area;
      });
    }
  }

  function count(hat, limit) {
    let area = 0;
    for (let i = 0; i < hat.length; i++) if (hat[i] > limit) area++;
    return area;
  }

  // Returns the ink, Float64Array in 0..1, of those connected parts that contain strokes.
  function strength(light, strokes, side, limit) {
    const {height, width} = light;
    const hat = topHat(light, side, false), reach = Math.floor(side / 2);
    const risen = hat.map(value => value > limit ? 1 : 0), kept = new Uint8Array(hat.length);
    const parts = [], known = new Uint8Array(hat.length);
    risen.forEach((is, i) => {
      if (!is || known[i]) return;
      const places = grown([i], known, risen, height, width, Infinity);
      parts.push({places, share: places.filter(j => strokes[j] > limit).length / places.length});
    });
    // A line along the edge and the rest of a frame contain no strokes, and flecks are small.
    const written = parts.filter(({share}) => share > .25);
    const chosen = written.length ? written : parts;
    const area = Math.max(...chosen.map(({places}) => places.length));
    for (const {places} of chosen)
      if (places.length > .03 * area) for (const i of places) kept[i] = 1;
    // Pixels that rise no further above the ground than its own lines and grain are not ink.
    const near = new Uint8Array(hat.length), all = near.map(() => 1);
    grown(indices(risen), near, all, height, width, reach);
    const ground = hat.filter((_, i) => !near[i]);
    const noise = ground.length ? Math.min(percentile(ground, .99), limit) : 0;
    const edges = hat.map((value, i) => kept[i] || (value > noise && !risen[i]) ? 1 : 0);
    const inked = new Uint8Array(hat.length);
    grown(indices(kept), inked, edges, height, width, reach);
    const full = percentile(hat.filter((_, i) => kept[i]), .9);
    return Float64Array.from(
      hat, (value, i) => inked[i] && Math.min(Math.max((value - noise) / (full - noise), 0), 1));
  }

  function indices(mask) {
    const found = [];
    for (let i = 0; i < mask.length; i++) if (mask[i]) found.push(i);
    return found;
  }

  // Grows from places to their eight neighbours, a number of times, where `allowed` is 1; marks what
  // is reached in `mask` and returns its places.
  function grown(seeds, mask, allowed, height, width, times) {
    for (const i of seeds) mask[i] = 1;
    const found = [...seeds];
    for (let done = 0, end = found.length; done < found.length && times > 0; times--) {
      for (; done < end; done++) {
        const x = found[done] % width, y = (found[done] - x) / width;
        for (let v = Math.max(y - 1, 0); v <= y + 1 && v < height; v++)
          for (let u = Math.max(x - 1, 0); u <= x + 1 && u < width; u++) {
            const i = v * width + u;
            if (mask[i] || !allowed[i]) continue;
            mask[i] = 1;
            found.push(i);
          }
      }
      end = found.length;
    }
    return found;
  }

  return find;
})();
