// A network: activations lie as [height][width][channels]; each step says what to do with them. Its weights are float32.
for (const { steps } of NETWORKS) for (const step of steps) step.weights = new Float32Array(decode(step.weights).buffer);

function conv(x, step) {
  const [kh, kw, ci, co] = step.shape, p = step.padding, k = step.weights;
  const h = x.h + 2 * p - kh + 1, w = x.w + 2 * p - kw + 1, out = new Float32Array(h * w * co);
  for (let y = 0; y < h; y++) for (let u = 0; u < w; u++) {
    const o = (y * w + u) * co;
    for (let a = 0; a < kh; a++) {
      const sy = y + a - p;
      if (sy < 0 || sy >= x.h) continue;
      for (let b = 0; b < kw; b++) {
        const sx = u + b - p;
        if (sx < 0 || sx >= x.w) continue;
        const s = (sy * x.w + sx) * ci, t = (a * kw + b) * ci * co;
        for (let i = 0; i < ci; i++) {
          const v = x.data[s + i];
          if (v === 0) continue;
          for (let j = 0, q = t + i * co; j < co; j++) out[o + j] += v * k[q + j];
        }
      }
    }
  }
  return { h, w, c: co, data: out };
}

function depthwise(x, step) {
  const [kh, kw, c] = step.shape, p = step.padding, k = step.weights;
  const h = x.h + 2 * p - kh + 1, w = x.w + 2 * p - kw + 1, out = new Float32Array(h * w * c);
  for (let y = 0; y < h; y++) for (let u = 0; u < w; u++) for (let a = 0; a < kh; a++) for (let b = 0; b < kw; b++) {
    const sy = y + a - p, sx = u + b - p;
    if (sy < 0 || sy >= x.h || sx < 0 || sx >= x.w) continue;
    const o = (y * w + u) * c, s = (sy * x.w + sx) * c, t = (a * kw + b) * c;
    for (let j = 0; j < c; j++) out[o + j] += x.data[s + j] * k[t + j];
  }
  return { h, w, c, data: out };
}

function pool(x) {
  const h = x.h >> 1, w = x.w >> 1, c = x.c, out = new Float32Array(h * w * c);
  for (let y = 0; y < h; y++) for (let u = 0; u < w; u++) for (let j = 0; j < c; j++) {
    const at = (dy, dx) => x.data[((2 * y + dy) * x.w + 2 * u + dx) * c + j];
    out[(y * w + u) * c + j] = Math.max(at(0, 0), at(0, 1), at(1, 0), at(1, 1));
  }
  return { h, w, c, data: out };
}

function crop(x, n) {
  const h = x.h - 2 * n, w = x.w - 2 * n, out = new Float32Array(h * w * x.c);
  for (let y = 0; y < h; y++) {
    const start = ((y + n) * x.w + n) * x.c;
    out.set(x.data.subarray(start, start + w * x.c), y * w * x.c);
  }
  return { h, w, c: x.c, data: out };
}

function mean(x) {
  const out = new Float32Array(x.c);
  for (let i = 0; i < x.data.length; i++) out[i % x.c] += x.data[i] / (x.h * x.w);
  return { h: 1, w: 1, c: x.c, data: out };
}

// Logits of a picture of 28x28 bytes; keeps what every ReLU lets through, with the name of its convolution.
function predict(network, picture, maps = []) {
  let x = { h: 28, w: 28, c: 1, data: Float32Array.from(picture, v => (v / 255 - MEAN) / STD) }, name = "";
  for (const step of network.steps) {
    name = step.name || name;
    if (step.kind === "conv") x = conv(x, step);
    else if (step.kind === "depthwise") x = depthwise(x, step);
    else if (step.kind === "pool") x = pool(x);
    else if (step.kind === "crop") x = crop(x, step.padding);
    else if (step.kind === "mean") x = mean(x);
    else if (step.kind === "relu") { x = { ...x, data: x.data.map(v => Math.max(v, 0)) }; maps.push({ ...x, name }); }
    else x = { ...x, data: x.data.map((v, i) => v * step.weights[i % x.c] + step.weights[x.c + i % x.c]) };
  }
  return Array.from(x.data);
}

// As in Python: the distance of logits to the nearest class, less how large the largest is.
function doubtOf({ means, precision, spread }, logits) {
  const squares = means.map(mean => {
    const apart = logits.map((v, i) => v - mean[i]);
    return apart.reduce((sum, a, i) => sum + a * apart.reduce((t, b, j) => t + b * precision[i][j], 0), 0);
  });
  return Math.sqrt(Math.min(...squares)) - Math.max(...logits) / spread;
}

function softmax(logits) {
  const most = Math.max(...logits), e = logits.map(v => Math.exp(v - most)), sum = e.reduce((a, b) => a + b, 0);
  return e.map(v => v / sum);
}
