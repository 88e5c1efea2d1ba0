// Draw a digit: the backbone turns it into states, and the head that was trained on this page answers.
"use strict";
(() => {
const {Head, ResNet, tried, fetched, inflated, paint} = learnHere, root = document.querySelector(".draw-here");
const find = selector => root.querySelector(selector), percent = share => (100 * share).toFixed(1) + " %";
let network = null, strokes = [];

root.classList.add("learn-here");
root.innerHTML = `
<p class="go"><button type="button" class="load">Load ${root.dataset.megabytes} MB and draw</button></p>
<p class="refused" role="alert"></p>
<div class="board" hidden>
  <div><canvas class="paper" width="280" height="280" role="img"
      aria-label="Draw a digit here, with mouse, finger or pen"></canvas>
    <p class="go"><button type="button" class="clear">Clear</button>
    <button type="button" class="another">A test digit instead</button></p></div>
  <div><p class="said" role="status"></p>
    <figure><figcaption>What the network sees</figcaption><canvas class="seen" width="28" height="28" role="img"
      aria-label="The digit on 28 × 28 pixels, moved to the middle"></canvas></figure>
    <ol class="bars" start="0"></ol></div>
</div>`;
const paper = find(".paper"), pen = paper.getContext("2d");
const seen = find(".seen"), small = seen.getContext("2d", {willReadFrequently: true});

function complain(words) { find(".refused").textContent = words; }

function head() { // the last run on the digits, and what it learnt; in words, if there is none
  const run = tried.filter(run => run.task == "digits").at(-1);
  if (!run) throw new Error("No head has learnt the digits yet: train one above, then draw.");
  return {run, last: new Head(run.best.head, run.data.features, run.data.classes.length)};
}

find(".load").onclick = async () => {
  complain("");
  find(".load").disabled = true;
  try {
    head();
    const about = await fetched("body"), weights = await inflated(about.weights), others = await inflated(about.others);
    network = new ResNet(about, new Int8Array(weights.buffer), new Float32Array(others.buffer));
    find(".load").hidden = true;
    find(".board").hidden = false;
    clear();
  } catch (error) { complain(error.message); }
  find(".load").disabled = false;
};

// ---- The paper, and what becomes of it: as the data set's own digits were made, 20 pixels high or wide, their ink's
// middle in the middle of 28 × 28 (LeCun et al. 1998, doi 10.1109/5.726791)

function trace(context, width, placed) {
  Object.assign(context, {lineWidth: width, lineCap: "round", lineJoin: "round", strokeStyle: "#fff"});
  for (const stroke of strokes) {
    context.beginPath();
    for (const point of [stroke[0], ...stroke]) context.lineTo(...placed(point));
    context.stroke();
  }
}

function black(context) {
  context.fillStyle = "#000";
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
}

function pixels() {
  const {data} = small.getImageData(0, 0, 28, 28);
  return Float32Array.from({length: 784}, (_, i) => data[4 * i]);
}

function shrink() {
  const width = 2.2, points = strokes.flat(), [xs, ys] = [0, 1].map(axis => points.map(point => point[axis]));
  const [left, top] = [Math.min(...xs), Math.min(...ys)];
  const side = Math.max(Math.max(...xs) - left, Math.max(...ys) - top, 1), scale = (20 - width) / side;
  let [x, y] = [4, 4];
  for (let turn = 0; turn < 2; turn++) { // first anywhere, then with the middle of the ink in the middle
    black(small);
    trace(small, width, ([u, v]) => [x + (u - left) * scale, y + (v - top) * scale]);
    const ink = Array.from(pixels()), sum = ink.reduce((a, b) => a + b) || 1;
    x += 14 - ink.reduce((total, grey, i) => total + grey * (i % 28 + 0.5), 0) / sum;
    y += 14 - ink.reduce((total, grey, i) => total + grey * (Math.floor(i / 28) + 0.5), 0) / sum;
  }
}

function clear() {
  strokes = [];
  black(pen);
  black(small);
  find(".said").textContent = "Draw a digit, 0 to 9.";
  find(".bars").replaceChildren();
}

function answer(about = "") {
  const {run, last} = head(), p = last.probabilities(network.states(pixels()), 0);
  const best = p.indexOf(Math.max(...p)), labels = `${run.labelsPerClass} label${run.labelsPerClass > 1 ? "s" : ""}`;
  find(".said").textContent = `${about}The head with ${labels} per class answers ${best}, with ${percent(p[best])}.`;
  find(".bars").innerHTML = p.map((share, c) =>
    `<li style="--share: ${(100 * share).toFixed(1)}%"><b>${c}</b> <span>${percent(share)}</span></li>`).join("");
  return p;
}

function place(event) {
  const box = paper.getBoundingClientRect();
  return [(event.clientX - box.left) * 280 / box.width, (event.clientY - box.top) * 280 / box.height];
}

function redraw() {
  black(pen);
  trace(pen, 20, point => point);
}

paper.onpointerdown = event => {
  paper.setPointerCapture(event.pointerId);
  if (!strokes.length) clear();
  strokes.push([place(event)]);
  redraw();
};
paper.onpointermove = event => {
  if (!paper.hasPointerCapture(event.pointerId)) return;
  strokes.at(-1).push(place(event));
  redraw();
};
paper.onpointerup = () => {
  shrink();
  answer();
};
find(".clear").onclick = clear;
find(".another").onclick = () => { // for who does not draw
  const {run: {data}} = head(), [train, validation, test] = data.counts, i = Math.floor(Math.random() * test);
  clear();
  paint(seen, data.pictures, i, true);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(seen, 0, 0, 280, 280);
  answer(`A ${data.labels[train + validation + i]} of the test digits. `);
};
Object.assign(learnHere, {network: () => network});
})();
