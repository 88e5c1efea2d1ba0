// Wakes the twins of the freeze-depth explorer that are still asleep on this page.
// All depths are drawn already: the slider says which of them is chosen.
for (const twin of document.querySelectorAll(".depth-twin:not([data-awake])")) {
  const find = selector => [...twin.querySelectorAll(selector)];
  const [slider] = find("input"), [shown] = find("output");
  const drawn = find("ol.blocks li"), facts = find("dd"), rows = find("tbody tr");
  const [saved] = find("script[type]"), [link] = find("a[download]");
  const show = depth => {
    slider.value = shown.value = depth;
    drawn.forEach((block, i) => {
      block.className = i < depth ? "frozen" : "learns";
      block.querySelector("em").textContent = block.className;
    });
    find("[data-depth]").forEach(part => part.classList.toggle("chosen", part.dataset.depth == depth));
    const row = rows.find(row => row.dataset.depth == depth);
    facts.forEach((fact, i) => { fact.textContent = row.cells[i + 2].textContent; });
    slider.setAttribute("aria-valuetext", row.dataset.said);
  };
  twin.dataset.awake = "";
  slider.oninput = () => show(slider.value);
  drawn.forEach((block, i) => { block.onclick = () => show(i); });
  find("svg [data-depth]").forEach(part => { part.onclick = () => show(part.dataset.depth); });
  link.href = URL.createObjectURL(new Blob([saved.textContent], {type: "application/json"}));
  for (const part of find("[hidden]")) part.hidden = false;
  show(slider.value);
}
