// Converts a drawing to the format of the training data: the scans were fitted into a
// bitmap of 32 x 32 pixels, of which blocks of 4 x 4 were counted
// (https://archive.ics.uci.edu/dataset/80, "Optical Recognition of Handwritten Digits").

const BITMAP = 32;
const BLOCK = 4;
export const SIDE = BITMAP / BLOCK;

// Returns the smallest box around all pixels for which `inked(x, y)` is true, or null.
function inkBox(inked, width, height) {
  let box = null;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inked(x, y)) continue;
      box ??= {left: x, right: x + 1, top: y, bottom: y + 1};
      box.left = Math.min(box.left, x);
      box.right = Math.max(box.right, x + 1);
      box.bottom = y + 1;
    }
  }
  return box;
}

// Returns 64 levels from 0 to 16, row by row, for RGBA pixels; null for an empty drawing.
export function levels({data, width, height}) {
  const inked = (x, y) => data[4 * (y * width + x) + 3] > 127;
  const box = inkBox(inked, width, height);
  if (box === null) return null;
  // The digit fills the height of the bitmap, or its width if it is wider, and is centred.
  const size = Math.max(box.right - box.left, box.bottom - box.top);
  const left = (box.left + box.right - size) / 2;
  const top = (box.top + box.bottom - size) / 2;
  const counts = new Array(SIDE * SIDE).fill(0);
  for (let row = 0; row < BITMAP; row++) {
    for (let column = 0; column < BITMAP; column++) {
      const x = Math.floor(left + ((column + 0.5) * size) / BITMAP);
      const y = Math.floor(top + ((row + 0.5) * size) / BITMAP);
      const inside = x >= 0 && y >= 0 && x < width && y < height;
      if (inside && inked(x, y)) {
        counts[Math.floor(row / BLOCK) * SIDE + Math.floor(column / BLOCK)] += 1;
      }
    }
  }
  return counts;
}
