// From a picture to a digit as MNIST has them: the steps of mnist_jax/deploy/digits.py and data/pictures.py, where
// their reasons are. A picture is { h, w, data }, row after row: grey from 0 for black to 255, ink from 0 to 1.
const BOX = 20, SIZE = 28, FINE = 4 * BOX, FAINT = 8, THIN = 0.1, SMALL = 0.04, NEAR = 0.25, EDGE = 0.2, LONGEST = 600;

const clip = (v, least, most) => Math.min(Math.max(v, least), most);
const sum = values => values.reduce((a, b) => a + b, 0);
const median = values => quantile(values, 0.5);

function quantile(values, q) {
  const sorted = Float64Array.from(values).sort(), at = q * (sorted.length - 1), i = Math.floor(at);
  return sorted[i] + (sorted[Math.min(i + 1, sorted.length - 1)] - sorted[i]) * (at - i);
}

// A grey picture, of 600 pixels at most, of the bytes of a canvas. What is transparent takes the color of the paper.
function greyOf(rgba, w, h) {
  const n = w * h, data = new Float32Array(n), alpha = i => rgba[4 * i + 3];
  const mix = (r, g, b) => (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16;
  let opaque = 0, opacity = 0, light = 0;
  for (let i = 0; i < n; i++) {
    data[i] = mix(rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]);
    opaque += alpha(i) > 127; opacity += alpha(i); light += alpha(i) * data[i];
  }
  if (opacity < 255 * n) {
    const drawing = light < 128 * opacity ? 255 : 0;
    const seen = c => data.map((_, i) => rgba[4 * i + c]).filter((_, i) => alpha(i) > 127);
    const [r, g, b] = [0, 1, 2].map(c => opaque > n / 2 ? Math.floor(median(seen(c))) : drawing);
    const over = (v, color, a) => Math.floor((v * a + color * (255 - a)) / 255 + 0.5);
    for (let i = 0; i < n; i++) {
      const a = alpha(i);
      data[i] = mix(over(rgba[4 * i], r, a), over(rgba[4 * i + 1], g, a), over(rgba[4 * i + 2], b, a));
    }
  }
  return reduce({ h, w, data }, Math.ceil(Math.max(h, w) / LONGEST));
}

// Means of squares; those at the right and at the bottom may be smaller.
function reduce(p, factor) {
  if (factor < 2) return p;
  const h = Math.ceil(p.h / factor), w = Math.ceil(p.w / factor), data = new Float32Array(h * w);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const bottom = Math.min((y + 1) * factor, p.h), right = Math.min((x + 1) * factor, p.w);
    let total = 0;
    for (let v = y * factor; v < bottom; v++) for (let u = x * factor; u < right; u++) total += p.data[v * p.w + u];
    data[y * w + x] = total / ((bottom - y * factor) * (right - x * factor));
  }
  return { h, w, data };
}

// The one digit of a grey picture, 28x28 bytes; null if nothing stands out.
function toDigit(grey) {
  if (inMnistForm(grey)) return Uint8Array.from(grey.data);
  const ink = findInk(grey);
  return ink && fitBox(mainPart(ink));
}

function inMnistForm({ h, w, data }) {
  const corners = [0, w - 1, w * (h - 1), w * h - 1];
  if (h !== SIZE || w !== SIZE || data.every(v => v < 128) || corners.some(i => data[i] > 0)) return false;
  const box = trim({ h, w, data }), long = Math.max(box.h, box.w), middle = massOf({ h, w, data });
  return (long === BOX || long === BOX - 1) && middle.every(place => Math.abs(place - SIZE / 2) < 1);
}

function edges({ h, w, data }) {
  const row = y => data.subarray(y * w, y * w + w);
  const column = x => Float64Array.from({ length: h }, (_, y) => data[y * w + x]);
  return [row(0), row(h - 1), column(0), column(w - 1)];
}

// What differs from the paper, which is a plane through the upper quartiles of the edges; null if nothing does.
function findInk(grey) {
  const { h, w } = grey, border = p => median(edges(p).flatMap(edge => Array.from(edge)));
  const middle = border(grey), apart = Array.from(grey.data, v => v - middle);
  // On grey paper the ink is on the side that differs more.
  const light = middle >= 160 || (middle >= 64 && apart.reduce((sum, v) => sum + v * Math.abs(v), 0) <= 0);
  const data = new Float64Array(grey.data).map(v => light ? v : 255 - v);
  const [top, bottom, left, right] = edges({ h, w, data }).map(edge => quantile(edge, 0.75));
  const ramp = n => Float64Array.from({ length: n }, (_, i) => n > 2 ? i / (n - 1) - 0.5 : 0);
  const down = ramp(h), over = ramp(w);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    data[y * w + x] = data[y * w + x] - (bottom - top) * down[y] - (right - left) * over[x];
  }
  const paper = border({ h, w, data }), difference = data.map(v => clip(paper - v, 0, 255));
  if (difference.every(v => v < FAINT)) return null;
  const threshold = otsu(difference), faint = 0.6 * threshold, strong = median(difference.filter(v => v >= threshold));
  return { h, w, data: difference.map(v => clip((v - faint) / (strong - faint), 0, 1)) };
}

function otsu(values) {
  const counts = new Float64Array(256);
  for (const v of values) counts[Math.floor(v)]++;
  const all = sum(counts.map((count, v) => count * v));
  let best = -1, most = -1, below = 0, sums = 0;
  for (let v = 0; v < 256; v++) {
    below += counts[v]; sums += counts[v] * v;
    const above = values.length - below, between = (all * (below / values.length) - sums) ** 2 / (below * above);
    if (above > 0 && between > most) { most = between; best = v; }
  }
  return best + 1;
}

// The largest connected part, and what is near it and no speck.
function mainPart({ h, w, data }) {
  const labels = new Int32Array(h * w), parts = [];
  for (let start = 0; start < h * w; start++) {
    if (!data[start] || labels[start]) continue;
    const part = { top: h, bottom: 0, left: w, right: 0, area: 0 }, todo = [start];
    labels[start] = parts.push(part);
    while (todo.length) {
      const i = todo.pop(), y = Math.floor(i / w), x = i % w;
      part.area += data[i];
      part.top = Math.min(part.top, y); part.bottom = Math.max(part.bottom, y + 1);
      part.left = Math.min(part.left, x); part.right = Math.max(part.right, x + 1);
      for (let v = Math.max(y - 1, 0); v < Math.min(y + 2, h); v++) {
        for (let j = v * w + Math.max(x - 1, 0); j < v * w + Math.min(x + 2, w); j++) {
          if (data[j] > 0 && !labels[j]) { labels[j] = parts.length; todo.push(j); }
        }
      }
    }
    if (part.top === 0 || part.left === 0 || part.bottom === h || part.right === w) part.area *= EDGE;
  }
  const main = parts.reduce((best, part) => part.area > best.area ? part : best);
  const near = NEAR * Math.max(main.bottom - main.top, main.right - main.left);
  const belongs = [false, ...parts.map(part => part.area >= SMALL * main.area
    && part.top < main.bottom + near && part.bottom > main.top - near
    && part.left < main.right + near && part.right > main.left - near)];
  return { h, w, data: data.map((v, i) => belongs[labels[i]] ? v : 0) };
}

// Ink in a box of 20x20, thin strokes thickened, its center of mass in the middle of 28x28 bytes.
function fitBox(ink) {
  const small = resize(trim(thicken(resize(trim(ink), FINE))), BOX), { h, w } = small;
  const dark = quantile(small.data.filter(v => v > 0), 0.8), placed = new Uint8Array(SIZE * SIZE);
  small.data = Float64Array.from(small.data, v => clip(v / dark, 0, 1) * 255);
  const corner = (middle, length) => clip(Math.floor(SIZE / 2 - middle + 0.500001), 0, SIZE - length);
  const [y, x] = massOf(small), down = corner(y, h), over = corner(x, w);
  small.data.forEach((v, i) => { placed[(Math.floor(i / w) + down) * SIZE + i % w + over] = Math.floor(v + 0.5); });
  return placed;
}

function massOf({ w, data }) {
  const mass = sum(data);
  return [sum(data.map((v, i) => v * Math.floor(i / w))) / mass, sum(data.map((v, i) => v * (i % w))) / mass];
}

// Without the empty rows and columns around it.
function trim({ h, w, data }) {
  let top = h, bottom = 0, left = w, right = 0;
  for (let i = 0; i < h * w; i++) if (data[i] > 0) {
    const y = Math.floor(i / w), x = i % w;
    top = Math.min(top, y); bottom = Math.max(bottom, y + 1); left = Math.min(left, x); right = Math.max(right, x + 1);
  }
  const wide = right - left, inner = new Float64Array((bottom - top) * wide);
  for (let y = top; y < bottom; y++) inner.set(data.subarray(y * w + left, y * w + right), (y - top) * wide);
  return { h: bottom - top, w: wide, data: inner };
}

// As Pillow does it, bilinear: of each target pixel its first source pixel, and the weights of that and the next ones.
function triangles(from, to) {
  const scale = from / to, support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const middle = (i + 0.5) * scale, first = Math.max(Math.trunc(middle - support + 0.5), 0), weights = [];
    for (let j = first; j < Math.min(Math.trunc(middle + support + 0.5), from); j++) {
      weights.push(Math.max(1 - Math.abs((j + 0.5 - middle) / support), 0));
    }
    const total = sum(weights);
    return { first, weights: weights.map(v => v / total) };
  });
}

function resize(p, long) {
  const scale = long / Math.max(p.h, p.w), side = n => Math.max(1, Math.floor(n * scale + 0.5));
  const h = side(p.h), w = side(p.w), over = triangles(p.w, w), down = triangles(p.h, h);
  const half = new Float32Array(p.h * w), data = new Float32Array(h * w);
  half.forEach((_, i) => {
    const { first, weights } = over[i % w], start = Math.floor(i / w) * p.w + first;
    half[i] = sum(weights.map((v, j) => v * p.data[start + j]));
  });
  data.forEach((_, i) => {
    const { first, weights } = down[Math.floor(i / w)];
    data[i] = sum(weights.map((v, j) => v * half[(first + j) * w + i % w]));
  });
  return { h, w, data };
}

function thicken(ink) {
  const { h, w, data } = ink, drawn = (y, x) => y >= 0 && y < h && x >= 0 && x < w && data[y * w + x] >= 0.5;
  let area = 0, outline = 0;
  for (let y = 0; y <= h; y++) for (let x = 0; x <= w; x++) {
    area += drawn(y, x);
    outline += (drawn(y, x) !== drawn(y - 1, x)) + (drawn(y, x) !== drawn(y, x - 1));
  }
  const radius = (THIN * Math.max(h, w) - 2 * area / Math.max(1, outline * Math.PI / 4)) / 2;
  if (radius <= 0) return ink;
  const whole = Math.ceil(radius), inner = dilate(ink, whole - 1, whole), outer = dilate(ink, whole, whole);
  return { ...outer, data: outer.data.map((v, i) => inner.data[i] + (radius - whole + 1) * (v - inner.data[i])) };
}

// The most within a disc, with a margin around the picture.
function dilate({ h, w, data }, radius, margin) {
  const wide = w + 2 * margin, out = new Float64Array((h + 2 * margin) * wide);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const v = data[y * w + x];
    if (v === 0) continue;
    for (let a = -radius; a <= radius; a++) for (let b = -radius; b <= radius; b++) {
      const i = (y + margin + a) * wide + x + margin + b;
      if (a * a + b * b <= radius * radius && out[i] < v) out[i] = v;
    }
  }
  return { h: h + 2 * margin, w: wide, data: out };
}
