// A photo cut into patches: the map of the class token, or of the patch that is pointed at.

const METHODS = {
  attention: "Attention says from where a patch gathers information. Bright corners on plain "
    + "background are often registers of global information, not places that matter.",
  rollout: "Rollout multiplies the attention of all layers, with the residuals: from which patches "
    + `information reached the ${page.start}.`,
  relevance: "Relevance multiplies attention by its gradient, through all layers: what speaks for "
    + "the class that is chosen.",
};
const canvas = find("canvas");
let photo = null;
let method = "attention";
let target = 0; // of the likeliest classes
let pinned = null; // the chosen patch, null for the class token
let pointed = null;

const layerMaps = () => photo.layers[find("layer").value];

/** The packed maps of all patches in the chosen layer and head; undefined where they are not kept. */
function patchMaps() {
  const head = find("head").value;
  return head === "mean" ? layerMaps().mean : layerMaps().heads?.[head];
}

function currentMap(patch) {
  if (method === "rollout") return mapOf(photo.rollout, 0, photo.grid);
  if (method === "relevance") return mapOf(photo.relevance, target, photo.grid);
  if (patch !== null && patchMaps()) return mapOf(patchMaps(), patch, photo.grid);
  const head = find("head").value;
  const { start } = layerMaps();
  return head === "mean" ? mapOf(start.mean, 0, photo.grid) : mapOf(start.heads, Number(head), photo.grid);
}

function show() {
  const patch = pointed ?? pinned;
  const map = currentMap(patch);
  draw(canvas, photo.pixels, photo.box, map, find("opacity").value / 100);
  placeMark(find("peak"), map.peak, photo.grid, photo.box);
  placeMark(find("chosen"), patch, photo.grid, photo.box, true);
  const quantity = method === "relevance" ? "relevance, per patch" : `share of ${method}, per patch`;
  showScale(map.top, quantity, photo.box);
  find("reading").textContent = reading(patch, map);
  canvas.setAttribute("aria-label", `${photo.name} with its patches; arrow keys move from patch to patch`);
}

function reading(patch, map) {
  const most = `${cellName(map.peak, photo.grid)} (${
    method === "relevance" ? map.highest.toPrecision(2) : percent(map.highest)})`;
  if (method === "relevance") return `For ${photo.classes[target].name}: the highest relevance is at ${most}.`;
  if (method === "rollout") return `Rollout to the ${page.start}: most from ${most}.`;
  if (patch !== null && patchMaps()) {
    return `The patch at ${cellName(patch, photo.grid)} attends most to ${most}.`;
  }
  return `The ${page.start} attends most to ${most}.`;
}

function refresh() {
  const attention = method === "attention";
  pressOne([...find("methods").children], Object.keys(METHODS).indexOf(method));
  pressOne([...find("classes").children], method === "relevance" ? target : -1);
  find("layer").disabled = find("head").disabled = find("start").disabled = !attention;
  find("about").textContent = METHODS[method];
  find("missing").hidden = !attention || Boolean(patchMaps());
  const layers = photo.layers.map((layer, number) => (layer.mean ? number + 1 : 0)).filter(Boolean);
  find("missing").textContent = `To stay small, the page has only the map of the ${page.start} for this `
    + `layer and head. ${layers.length ? `It has the maps of all patches for the mean of the heads in ${
      layers.length > 1 ? "layers" : "layer"} ${layers.join(", ")}.`
      : "A page of fewer photos has those of all patches."}`;
  show();
}

// --- choosing a patch ---

function patchAt(event) {
  const frame = canvas.getBoundingClientRect();
  const [left, top, right, bottom] = photo.box;
  const across = ((event.clientX - frame.left) / frame.width - left) / (right - left);
  const down = ((event.clientY - frame.top) / frame.height - top) / (bottom - top);
  if (across < 0 || across >= 1 || down < 0 || down >= 1 || method !== "attention") return null;
  return Math.floor(down * photo.grid[0]) * photo.grid[1] + Math.floor(across * photo.grid[1]);
}

function pin(patch) {
  pinned = patch;
  pointed = null;
  show();
}

function moveBy(key) {
  const [rows, columns] = photo.grid;
  if (pinned === null) return pin(Math.floor(rows / 2) * columns + Math.floor(columns / 2));
  const [down, across] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[key];
  const row = Math.min(Math.max(Math.floor(pinned / columns) + down, 0), rows - 1);
  const column = Math.min(Math.max(pinned % columns + across, 0), columns - 1);
  return pin(row * columns + column);
}

canvas.addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch") return;
  const patch = patchAt(event);
  if (patch !== pointed) { pointed = patch; show(); }
});
canvas.addEventListener("pointerleave", () => { pointed = null; show(); });
canvas.addEventListener("click", (event) => pin(patchAt(event)));
canvas.addEventListener("keydown", (event) => {
  if (method !== "attention") return;
  if (event.key.startsWith("Arrow")) { event.preventDefault(); moveBy(event.key); }
  if (event.key === "Escape") pin(null);
});

// --- building the page ---

function classButton({ name, share }, number) {
  const fill = make("span", { className: "fill" });
  fill.style.width = `${100 * share}%`;
  return make("button", {
    type: "button", className: "class",
    onclick: () => { method = "relevance"; target = number; refresh(); },
  }, make("b", {}, percent(share)), name, make("span", { className: "track" }, fill));
}

function showPhoto(data) {
  photo = data;
  pinned = pointed = null;
  target = 0;
  const heads = photo.layers[0].start.heads.tops.length;
  const numbers = Array.from({ length: heads }, (_, head) => [head, `head ${head}`]);
  fillSelect(find("head"), [["mean", `mean of ${heads}`], ...numbers], find("head").value);
  find("classes").replaceChildren(...photo.classes.map(classButton));
  find("classes-name").textContent = "The likeliest classes; choose one to see its relevance";
  find("answers").hidden = photo.classes.length === 0;
  if (photo.classes.length === 0 && method === "relevance") method = "attention";
  find("methods").replaceChildren(...Object.keys(METHODS).map((name) => make("button", {
    type: "button", disabled: name === "relevance" && photo.classes.length === 0,
    onclick: () => { method = name; pinned = null; refresh(); },
  }, name)));
  const [left, top, right, bottom] = photo.box;
  const lattice = find("lattice").style;
  lattice.left = `${100 * Math.max(left, 0)}%`;
  lattice.top = `${100 * Math.max(top, 0)}%`;
  lattice.width = `${100 * (right - left)}%`;
  lattice.height = `${100 * (bottom - top)}%`;
  lattice.backgroundSize = `${100 / photo.grid[1]}% ${100 / photo.grid[0]}%`;
  refresh();
}

for (const name of document.querySelectorAll(".start")) name.textContent = page.start;
fillLayers(find("layer"));
find("layer").onchange = find("head").onchange = refresh;
find("opacity").oninput = show;
find("start").onclick = () => pin(null);
photoRow(showPhoto);
