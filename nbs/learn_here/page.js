// The page that trains a head: its controls, its curves, and what the head gets wrong. The arithmetic is in fit.js.
"use strict";
(() => {
const {Run} = learnHere, rates = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1];
const script = document.currentScript, root = script.closest(".learn-here") ?? document.querySelector(".learn-here");
const tasks = JSON.parse(root.dataset.tasks), loaded = {}, tried = [];
const percent = share => (100 * share).toFixed(1) + " %";
const escaped = text => text.replace(/[&<>"]/g, sign => `&#${sign.charCodeAt(0)};`);
const find = selector => root.querySelector(selector);
let running = null;

document.head.append(Object.assign(document.createElement("link"),
  {rel: "stylesheet", href: new URL("page.css", script.src)}));

// ---- The controls

function number(name, label, value, least, most) {
  const id = `learn-${name}`;
  return `<label for="${id}">${label}<input id="${id}" name="${name}" value="${value}" inputmode="numeric" ` +
    `autocomplete="off" data-least="${least}" data-most="${most}" aria-describedby="learn-refused"></label>`;
}

function slider(name, label, value, least, most) {
  const id = `learn-${name}`;
  return `<label for="${id}"><span>${label} <output for="${id}"></output></span>` +
    `<input type="range" id="${id}" name="${name}" min="${least}" max="${most}" value="${value}"></label>`;
}

root.innerHTML = `
<form novalidate>
  <fieldset><legend>Task</legend>${Object.entries(tasks).map(([name, {title}], i) =>
    `<label><input type="radio" name="task" value="${name}" ${i ? "" : "checked"}> ${title}</label>`).join("")}
  </fieldset>
  ${slider("labelsPerClass", "Labels per class", 5, 1, 20)}
  ${slider("learningRate", "Learning rate", rates.indexOf(1e-2), 0, rates.length - 1)}
  ${number("epochs", "Epochs, 1 to 200", 30, 1, 200)}
  ${number("seed", "Seed of the order", 0, 0, 9999)}
  <p class="go"><button type="submit">Train</button>
    <progress max="1" value="0" aria-label="Epochs done" hidden></progress></p>
  <p id="learn-refused" class="refused" role="alert"></p>
</form>
<p class="said" role="status"></p>
<div class="charts" hidden>
  <figure><figcaption>Loss</figcaption><svg class="loss" viewBox="0 0 340 190" role="img"></svg>
    <p class="key"><b class="train">━</b> on the training examples, <b class="validation">╍</b> on validation</p></figure>
  <figure><figcaption>Accuracy</figcaption><svg class="accuracy" viewBox="0 0 340 190" role="img"></svg>
    <p class="key"><b class="test">━</b> on the test examples, <b class="validation">╍</b> on validation;
    ○ the epoch that validation chooses; grey: your earlier runs</p></figure>
</div>
<div class="found" hidden>
  <div class="confusion"></div>
  <div class="wrong"></div>
</div>
<div class="runs" hidden></div>
<details><summary>The same run in Python</summary><pre class="python" tabindex="0"></pre></details>`;

const form = find("form"), button = find("button"), bar = find("progress");

function asked() { // what the controls say; throws in words
  const wanted = {task: form.task.value, labelsPerClass: +form.labelsPerClass.value,
                  learningRate: rates[form.learningRate.value]};
  for (const [name, label] of [["epochs", "Epochs"], ["seed", "The seed"]]) {
    const field = form[name], given = field.value.trim(), {least, most} = field.dataset;
    const fine = /^\d+$/.test(given) && +given >= +least && +given <= +most;
    field.setAttribute("aria-invalid", !fine);
    const said = `${label} must be a whole number from ${least} to ${most}, got ${given || "nothing"}.`;
    if (!fine) throw new RangeError(said);
    wanted[name] = +given;
  }
  return wanted;
}

function show() { // the controls' own values, the button, and the run as Python has it
  const {title, megabytes, python} = tasks[form.task.value];
  form.labelsPerClass.parentNode.querySelector("output").value = form.labelsPerClass.value;
  form.learningRate.parentNode.querySelector("output").value = rates[form.learningRate.value];
  form.learningRate.setAttribute("aria-valuetext", rates[form.learningRate.value]);
  button.textContent = running ? "Stop" : loaded[form.task.value] ? "Train" : `Load ${megabytes} MB and train`;
  find(".refused").textContent = "";
  let wanted;
  try { wanted = asked(); } catch { return; }
  find(".python").textContent = python.replace(/\{(\w+)\}/g, (_, name) => wanted[name]);
}

// ---- The data: numbers of eight bits, in a script that is loaded when they are wanted

async function inflated(text) { // bytes that Python's zlib made small, and base64 made text
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

let loading = Promise.resolve();

function fetched(name) { // from the site's own folder, or from a disk; one after the other, for all call `receive`
  return loading = loading.catch(() => {}).then(() => new Promise((done, failed) => {
    const tag = document.createElement("script");
    learnHere.receive = done;
    tag.src = new URL(`${name}.js`, script.src);
    tag.onerror = () => failed(new Error(`The data, ${name}.js, cannot be loaded: this page needs its site's folder.`));
    document.head.append(tag);
  }));
}

async function ready(name) {
  if (loaded[name]) return loaded[name];
  if (!globalThis.DecompressionStream) throw new Error("This browser is too old to unpack the data: a newer one can.");
  const data = await fetched(name), {features, counts, scale} = data;
  const rounded = new Int8Array((await inflated(data.states)).buffer), rows = counts.reduce((a, b) => a + b);
  const states = new Float32Array(rounded.length);
  for (let f = 0; f < features; f++)
    for (let i = 0; i < rows; i++) states[i * features + f] = rounded[f * rows + i] * scale;
  const labels = Uint8Array.from(data.labels), first = new Float32Array((await inflated(data.first)).buffer);
  const pictures = data.pictures && await inflated(data.pictures);
  return loaded[name] = {...data, states, labels, first, pictures};
}

// ---- The curves

const X = 40, W = 292, Y = 12, H = 148; // of the frame

function path(values, epochs, most, cls) {
  const points = values.map((value, i) => {
    const x = X + W * (epochs > 1 ? i / (epochs - 1) : 0.5), y = Y + H * (1 - Math.min(value / most, 1));
    return `${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  if (points.length == 1) points.push(points[0]);
  return points.length ? `<path class="${cls}" d="M${points.join("L")}"/>` : "";
}

function chart(selector, said, lines, epochs, most, ticks, ring = "") {
  const grid = ticks.map(([value, label]) => {
    const y = Y + H * (1 - value / most);
    return `<path class="grid" d="M${X} ${y}h${W}"/><text x="${X - 5}" y="${y + 4}" text-anchor="end">${label}</text>`;
  });
  const svg = find(selector);
  svg.setAttribute("aria-label", said);
  svg.innerHTML = grid.join("") + lines.join("") + ring +
    `<text x="${X}" y="${Y + H + 17}">1</text>` +
    `<text x="${X + W}" y="${Y + H + 17}" text-anchor="end">${epochs} epochs</text>`;
}

function draw(run) {
  const {rows, best} = run, last = rows.at(-1), before = tried.filter(old => old.task == run.task && old != run);
  const epochs = Math.max(run.epochs, ...before.map(old => old.epochs));
  const losses = [run, ...before].flatMap(old => old.rows.map(row => row.trainLoss));
  const most = Math.max(0.5, ...losses, ...rows.map(row => row.validation.loss));
  const step = most > 4 ? most / 4 : most > 2 ? 1 : 0.5, values = [0, 1, 2, 3, 4].map(i => i * step);
  const ticks = values.filter(value => value <= most).map(value => [value, +value.toFixed(1)]);
  const grey = (name, of) => before.map(old => path(old.rows.map(of), epochs, name, "earlier"));
  const [from, to] = [rows[0], last].map(row => row.trainLoss.toFixed(2));
  chart("svg.loss", `Loss, from ${from} to ${to} in ${rows.length} epochs`,
    [...grey(most, row => row.trainLoss), path(rows.map(row => row.validation.loss), epochs, most, "validation"),
     path(rows.map(row => row.trainLoss), epochs, most, "train")], epochs, most, ticks);
  const x = X + W * (epochs > 1 ? (best.epoch - 1) / (epochs - 1) : 0.5), y = Y + H * (1 - best.test.accuracy);
  chart("svg.accuracy", `Test accuracy, from ${percent(rows[0].test.accuracy)} to ${percent(last.test.accuracy)}`,
    [...grey(1, row => row.test.accuracy), path(rows.map(row => row.validation.accuracy), epochs, 1, "validation"),
     path(rows.map(row => row.test.accuracy), epochs, 1, "test")], epochs, 1,
    [0, 25, 50, 75, 100].map(value => [value / 100, `${value}%`]), `<circle class="ring" cx="${x}" cy="${y}" r="5"/>`);
}

// ---- What it gets wrong

function confusion(data, answers, first) {
  const count = data.classes.length, table = data.classes.map(() => new Array(count).fill(0));
  answers.forEach((answer, i) => table[data.labels[first + i]][answer]++);
  const most = Math.max(...table.flat()), long = data.classes.some(name => name.length > 2);
  const head = data.classes.map(name => `<th scope="col"><span>${escaped(name)}</span></th>`).join("");
  const cell = (n, right) => `<td class="${right ? "right" : n ? "error" : "none"}" ` +
    `style="--share: ${Math.round(100 * Math.sqrt(n / most))}%">${n}</td>`;
  const rows = table.map((row, c) => `<tr><th scope="row">${escaped(data.classes[c])}</th>` +
    `${row.map((n, a) => cell(n, a == c)).join("")}</tr>`);
  find(".confusion").innerHTML = `<table${long ? ` class="long"` : ""}>` +
    `<caption>Rows: what it is. Columns: what the head answers.</caption>` +
    `<thead><tr><td></td>${head}</tr></thead><tbody>${rows.join("")}</tbody></table>`;
}

function paint(canvas, pictures, i, whiteOnBlack = false) { // 28 × 28 pixels of two bits
  const context = canvas.getContext("2d"), image = context.createImageData(28, 28);
  for (let p = 0; p < 784; p++) {
    const ink = 85 * (pictures[i * 196 + (p >> 2)] >> 2 * (p & 3) & 3), grey = whiteOnBlack ? ink : 255 - ink;
    image.data.set([grey, grey, grey, 255], 4 * p);
  }
  context.putImageData(image, 0, 0);
}

function wrong(data, answers, first) { // the first twelve; what has no picture is counted
  const every = answers.map((answer, i) => [i, data.labels[first + i], answer]);
  const found = every.filter(([, is, answer]) => is != answer);
  const called = (is, answer) => `${escaped(data.classes[is])} → <b>${escaped(data.classes[answer])}</b>`;
  const listed = (said, kind, shown) => `<p>${said}</p><ul class="${kind}">${shown.join("")}</ul>`;
  const box = find(".wrong");
  if (!found.length) box.innerHTML = "<p>None is wrong.</p>";
  else if (data.pictures) {
    const shown = found.slice(0, 12).map(([i, is, answer]) => `<li><canvas width="28" height="28" data-i="${i}" ` +
      `role="img" aria-label="a handwritten ${escaped(data.classes[is])}"></canvas>` +
      `<span>${called(is, answer)}</span></li>`);
    box.innerHTML = listed(`${shown.length} of the ${found.length} that it gets wrong, what it is → ` +
      "<b>what the head answers</b>:", "pictures", shown);
    for (const canvas of box.querySelectorAll("canvas")) paint(canvas, data.pictures, canvas.dataset.i);
  } else {
    const counts = {};
    for (const [, is, answer] of found) counts[called(is, answer)] = (counts[called(is, answer)] ?? 0) + 1;
    const often = Object.entries(counts).sort(([, a], [, b]) => b - a).slice(0, 8);
    box.innerHTML = listed(`The most frequent of ${found.length} errors, what it is → <b>what the head answers</b>:`,
      "texts", often.map(([pair, count]) => `<li>${pair}, ${count} times</li>`));
  }
}

function answered(run) {
  const {data, data: {counts: [train, validation]}} = run, {answers} = (run.done ? run.best : run.rows.at(-1)).test;
  confusion(data, answers, train + validation);
  wrong(data, answers, train + validation);
}

function list() {
  const rows = tried.toReversed().map(run => `<tr><td>${tasks[run.task].title}</td><td>${run.labelsPerClass}</td>` +
    `<td>${run.learningRate}</td><td>${run.rows.length}${run.done ? "" : ` of ${run.epochs}`}</td>` +
    `<td>${run.seed}</td><td>${percent(run.best.test.accuracy)}</td></tr>`);
  find(".runs").hidden = !tried.length;
  find(".runs").innerHTML = `<table><caption>Your runs, the last one first</caption><thead><tr>` +
    ["task", "labels", "rate", "epochs", "seed", "test accuracy"].map(name => `<th scope="col">${name}</th>`).join("") +
    `</tr></thead><tbody>${rows.join("")}</tbody></table>`;
}

// ---- The run

function say(words) { find(".said").textContent = words; }

function outcome(run) { // in words, beside the run before
  const {best, data, task} = run, before = tried.filter(old => old.task == task && old != run).at(-1);
  const examples = `${data.counts[2].toLocaleString("en")} test ${tasks[task].examples}`;
  let said = `${percent(best.test.accuracy)} of ${examples} right, after epoch ${best.epoch}, which validation chose.`;
  if (before) {
    const points = 100 * (best.test.accuracy - before.best.test.accuracy);
    const [size, which] = [Math.abs(points).toFixed(1), points < 0 ? "less" : "more"];
    said += points ? ` That is ${size} points ${which} than your run before.` :
      " So was your run before.";
  }
  return said;
}

async function train(wanted) {
  const mine = running = {stopped: false};
  show();
  say("Loading …");
  const data = await ready(wanted.task);
  if (mine.stopped) return say("Stopped before the first epoch.");
  const run = Object.assign(new Run(data, wanted), {task: wanted.task}), began = performance.now();
  for (const part of root.querySelectorAll(".charts, .found")) part.hidden = false;
  say("Training …");
  bar.hidden = false;
  while (!run.done && !mine.stopped) {
    const row = run.epoch();
    if (!Number.isFinite(row.trainLoss)) throw new Error("The loss is no number: try a tenth of the learning rate.");
    bar.value = row.epoch / run.epochs;
    draw(run);
    answered(run);
    await new Promise(then => setTimeout(then, 16));
  }
  tried.push(run);
  list();
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  if (run.done) say(`${outcome(run)} It took ${seconds} s, here.`);
  else say(`Stopped after epoch ${run.rows.length} of ${run.epochs}: ${outcome(run)}`);
  return run;
}

form.onsubmit = async event => {
  event.preventDefault();
  if (running) { running.stopped = true; return; }
  try { await train(asked()); }
  catch (error) {
    say("");
    find(".refused").textContent = error.message;
  }
  running = null;
  bar.hidden = true;
  const refused = find(".refused").textContent;
  show();
  find(".refused").textContent = refused;
};
form.oninput = show;
Object.assign(learnHere, {tried, loaded, fetched, inflated, paint});
show();
})();
