// The frozen backbone of the digits, a ResNet-18 (He et al. 2015, arXiv 1512.03385), on one image, in plain numbers.
// tools/body.py has folded its BatchNorms away, and rounded its weights to eight bits.
"use strict";
learnHere.ResNet = class {
  constructor({layers}, weights, others) { // weights: Int8Array; others: each layer's scales, and its biases
    let at = 0, beside = 0;
    this.layers = Object.fromEntries(layers.map(([name, out, into, side]) => {
      const count = out * into * side * side, layer = {out, into, side};
      layer.weights = weights.subarray(at, at += count);
      layer.scales = others.subarray(beside, beside += out);
      layer.bias = others.subarray(beside, beside += out);
      return [name, layer];
    }));
  }

  convolved({values, channels, size}, name, stride, relu, added) { // maps `channels × size × size`
    const {out, into, side, weights, scales, bias} = this.layers[name];
    if (into != channels) throw new Error(`${name} reads ${into} channels, got ${channels}.`);
    const pad = side >> 1, small = Math.floor((size + 2 * pad - side) / stride) + 1, places = small * small;
    const length = into * side * side, windows = new Float32Array(places * length);
    const made = new Float32Array(out * places);
    for (let y = 0, w = 0; y < small; y++) for (let x = 0; x < small; x++)
      for (let c = 0; c < into; c++) for (let i = 0; i < side; i++) {
        const row = y * stride + i - pad;
        for (let j = 0; j < side; j++, w++) {
          const column = x * stride + j - pad;
          if (row >= 0 && row < size && column >= 0 && column < size)
            windows[w] = values[(c * size + row) * size + column];
        }
      }
    const keep = (o, p, sum) => {
      sum = sum * scales[o] + bias[o] + (added ? added.values[o * places + p] : 0);
      made[o * places + p] = relu && sum < 0 ? 0 : sum;
    };
    for (let o = 0; o < out; o += 4) for (let p = 0; p < places; p++) { // four filters read a window together
      let [first, second, third, fourth] = [0, 0, 0, 0];
      for (let k = 0, w = o * length, b = p * length; k < length; k++, w++) {
        const seen = windows[b + k];
        first += weights[w] * seen;
        second += weights[w + length] * seen;
        third += weights[w + 2 * length] * seen;
        fourth += weights[w + 3 * length] * seen;
      }
      [first, second, third, fourth].forEach((sum, i) => keep(o + i, p, sum));
    }
    return {values: made, channels: out, size: small};
  }

  pooled({values, channels, size}) { // the largest of 3 × 3, every second place
    const small = Math.floor((size - 1) / 2) + 1, made = new Float32Array(channels * small * small);
    for (let c = 0, m = 0; c < channels; c++)
      for (let y = 0; y < small; y++) for (let x = 0; x < small; x++, m++) {
        let most = -Infinity;
        for (let row = Math.max(0, 2 * y - 1); row <= Math.min(size - 1, 2 * y + 1); row++)
          for (let column = Math.max(0, 2 * x - 1); column <= Math.min(size - 1, 2 * x + 1); column++)
            most = Math.max(most, values[(c * size + row) * size + column]);
        made[m] = most;
      }
    return {values: made, channels, size: small};
  }

  block(maps, name, stride) {
    const down = this.layers[`${name}.downsample.0`];
    const beside = down ? this.convolved(maps, `${name}.downsample.0`, stride, false) : maps;
    return this.convolved(this.convolved(maps, `${name}.conv1`, stride, true), `${name}.conv2`, 1, true, beside);
  }

  states(pixels) { // a grey image of 28 × 28, 0 to 255; what the head reads
    let maps = this.pooled(this.convolved(this.prepared(pixels), "conv1", 2, true));
    for (let layer = 1; layer <= 4; layer++)
      for (let i = 0; i < 2; i++) maps = this.block(maps, `layer${layer}.${i}`, layer > 1 && i == 0 ? 2 : 1);
    const {values, channels, size} = maps, places = size * size;
    return Float32Array.from({length: channels}, (_, c) =>
      values.subarray(c * places, (c + 1) * places).reduce((a, b) => a + b) / places);
  }

  prepared(pixels, size = 64) { // larger (bilinear, in whole grey levels), three times, as the backbone is used to it
    const grey = new Float32Array(size * size), means = [0.485, 0.456, 0.406], spreads = [0.229, 0.224, 0.225];
    const place = i => Math.min(27, Math.max(0, (i + 0.5) * 28 / size - 0.5));
    for (let y = 0; y < size; y++) for (let x = 0; x < size; x++) {
      const [v, u] = [place(y), place(x)], [top, left] = [Math.floor(v), Math.floor(u)], [dy, dx] = [v - top, u - left];
      const at = (row, column) => pixels[28 * Math.min(27, row) + Math.min(27, column)];
      const upper = at(top, left) * (1 - dx) + at(top, left + 1) * dx;
      const lower = at(top + 1, left) * (1 - dx) + at(top + 1, left + 1) * dx;
      grey[y * size + x] = Math.round(upper * (1 - dy) + lower * dy) / 255;
    }
    const values = new Float32Array(3 * grey.length);
    means.forEach((mean, c) => grey.forEach((g, i) => { values[c * grey.length + i] = (g - mean) / spreads[c]; }));
    return {values, channels: 3, size};
  }
};
