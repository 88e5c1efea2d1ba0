// What `fit` does to a head whose backbone is frozen, in a browser: the same first weights, the same order of the
// examples, the same step, the same choice of an epoch. Python's own are in finetune_nb/engine: batches.py, steps.py.
"use strict";
globalThis.learnHere = (() => {

// ---- Chance, as Python draws it

// numpy.random.SeedSequence(numbers).generate_state(1)[0], of numbers below 2**32
function seedOf(...numbers) {
  let constant = 0x43b0d7e5;
  const fold = value => (value ^ value >>> 16) >>> 0;
  const hashed = value => {
    value ^= constant;
    constant = Math.imul(constant, 0x931e8875);
    return fold(Math.imul(value, constant));
  };
  const mixed = (x, y) => fold(Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y));
  const pool = [0, 1, 2, 3].map(i => hashed(numbers[i] ?? 0));
  for (let from = 0; from < 4; from++)
    for (let to = 0; to < 4; to++) if (from != to) pool[to] = mixed(pool[to], hashed(pool[from]));
  return fold(Math.imul(pool[0] ^ 0x8b51f9dd, Math.imul(0x8b51f9dd, 0x58f38ded)));
}

// The Mersenne Twister (Matsumoto & Nishimura 1998), which torch.Generator is
class Twister {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, before ^ before >>> 30) + i;
    }
    this.place = 624;
  }

  next() { // a whole number below 2**32
    const state = this.state;
    if (this.place == 624) {
      for (let i = 0; i < 624; i++) {
        const y = state[i] & 0x80000000 | state[(i + 1) % 624] & 0x7fffffff;
        state[i] = state[(i + 397) % 624] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.place = 0;
    }
    let y = state[this.place++];
    y ^= y >>> 11;
    y ^= y << 7 & 0x9d2c5680;
    y ^= y << 15 & 0xefc60000;
    return (y ^ y >>> 18) >>> 0;
  }
}

function shuffled(count, generator) { // torch.randperm
  const order = Array.from({length: count}, (_, i) => i);
  for (let i = 0; i < count - 1; i++) {
    const other = i + generator.next() % (count - i);
    [order[i], order[other]] = [order[other], order[i]];
  }
  return order;
}

// `batch_order`: examples of like length go together, within stretches of 16 batches
function batchOrder(lengths, batchSize, generator) {
  const order = shuffled(lengths.length, generator), sorted = [], batches = [];
  for (let i = 0; i < order.length; i += 16 * batchSize)
    sorted.push(...order.slice(i, i + 16 * batchSize).sort((a, b) => lengths[b] - lengths[a]));
  for (let i = 0; i < sorted.length; i += batchSize) batches.push(sorted.slice(i, i + batchSize));
  if (batches.length > 1 && batches.at(-1).length == 1) {
    const [last] = batches.pop();
    batches.at(-1).push(last);
  }
  return shuffled(batches.length, generator).map(i => batches[i]);
}

// ---- The head: scores = weights · states + bias

class Head {
  constructor(first, features, classes) { // first: the weights, row by row, and the bias
    Object.assign(this, {features, classes, values: Float64Array.from(first)});
  }

  probabilities(states, from) { // of the example whose states begin at `from`
    const {features, classes, values} = this, found = new Array(classes);
    for (let c = 0; c < classes; c++) {
      let score = values[classes * features + c];
      for (let f = 0, w = c * features; f < features; f++) score += values[w + f] * states[from + f];
      found[c] = score;
    }
    const most = Math.max(...found), exps = found.map(score => Math.exp(score - most));
    const sum = exps.reduce((a, b) => a + b);
    return exps.map(x => x / sum);
  }

  judge(states, labels, first, last) { // examples `first` up to `last`
    const answers = [];
    let loss = 0, right = 0;
    for (let i = first; i < last; i++) {
      const p = this.probabilities(states, i * this.features), answer = p.indexOf(Math.max(...p));
      loss -= Math.log(Math.max(p[labels[i]], 1e-300));
      right += answer == labels[i];
      answers.push(answer);
    }
    return {accuracy: right / (last - first), loss: loss / (last - first), answers};
  }
}

// ---- The step: AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), its rate up in a line and down along a cosine

function roundHalfEven(x) { return Math.abs(x % 1) == 0.5 ? 2 * Math.round(x / 2) : Math.round(x); } // Python's round

class Steps {
  constructor(head, count, rate, {warmup = 0.1, clip = 1, weightDecay = 0.01} = {}) {
    Object.assign(this, {head, count, rate, clip, weightDecay, step: 0});
    this.warm = Math.max(1, roundHalfEven(warmup * count));
    for (const name of ["gradient", "mean", "square"]) this[name] = new Float64Array(head.values.length);
  }

  rateNow() {
    if (this.step < this.warm) return this.rate * (this.step + 1) / this.warm;
    const share = (this.step - this.warm) / Math.max(1, this.count - this.warm);
    return this.rate * 0.5 * (1 + Math.cos(Math.PI * share));
  }

  backward(states, labels, batch) { // the mean loss of a batch; its gradient is kept
    const {head: {features, classes}, head, gradient} = this;
    let loss = 0;
    gradient.fill(0);
    for (const i of batch) {
      const from = i * features, p = head.probabilities(states, from);
      loss -= Math.log(Math.max(p[labels[i]], 1e-300)) / batch.length;
      for (let c = 0; c < classes; c++) {
        const d = (p[c] - (c == labels[i])) / batch.length;
        gradient[classes * features + c] += d;
        for (let f = 0, w = c * features; f < features; f++) gradient[w + f] += d * states[from + f];
      }
    }
    return loss;
  }

  learn(states, labels, batch) {
    const loss = this.backward(states, labels, batch), {gradient, mean, square, head: {values}} = this;
    const norm = Math.sqrt(gradient.reduce((sum, g) => sum + g * g, 0));
    const kept = Math.min(1, this.clip / (norm + 1e-6)), rate = this.rateNow();
    const t = ++this.step, inMatrix = this.head.features * this.head.classes; // what decays: no bias
    const scale = rate / (1 - 0.9 ** t), root = Math.sqrt(1 - 0.999 ** t);
    for (let i = 0; i < values.length; i++) {
      const g = kept * gradient[i];
      mean[i] += 0.1 * (g - mean[i]);
      square[i] += 0.001 * (g * g - square[i]);
      if (i < inMatrix) values[i] -= rate * this.weightDecay * values[i];
      values[i] -= scale * mean[i] / (Math.sqrt(square[i]) / root + 1e-8);
    }
    return loss;
  }
}

// ---- The run: epoch after epoch, the best on validation is kept

class Run {
  constructor(data, {labelsPerClass, learningRate, epochs, seed}) {
    Object.assign(this, {data, labelsPerClass, learningRate, epochs, seed, rows: [], best: null});
    this.order = data.orders[labelsPerClass - 1]; // of the training examples, as `fit` has them
    this.lengths = this.order.map(i => data.lengths?.[i] ?? 1);
    this.head = new Head(data.first, data.features, data.classes.length);
    this.steps = new Steps(this.head, epochs * this.batches(1).length, learningRate);
  }

  get done() { return this.rows.length == this.epochs; }

  batches(epoch) {
    const generator = new Twister(seedOf(this.seed, epoch));
    return batchOrder(this.lengths, 16, generator).map(batch => batch.map(i => this.order[i]));
  }

  epoch() { // one more; what came of it
    const {data, data: {states, labels, counts: [train, validation, test]}} = this, number = this.rows.length + 1;
    let total = 0;
    for (const batch of this.batches(number)) total += batch.length * this.steps.learn(states, labels, batch);
    const chosenBy = this.head.judge(states, labels, train, train + validation);
    const judged = this.head.judge(states, labels, train + validation, train + validation + test);
    const row = {epoch: number, trainLoss: total / this.order.length, validation: chosenBy, test: judged};
    const better = (a, b) => a.accuracy > b.accuracy || a.accuracy == b.accuracy && a.loss < b.loss;
    if (!this.best || better(chosenBy, this.best.validation)) this.best = {...row, head: this.head.values.slice()};
    this.rows.push(row);
    return row;
  }
}

return {seedOf, Twister, shuffled, batchOrder, Head, Steps, Run};
})();
