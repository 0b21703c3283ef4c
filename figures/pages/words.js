// A photo with its captions; a word's map lies over the photo while the word is pointed at.

const START = { caption: 0, word: -1 };
const canvas = find("canvas");
let photo = null;
let pressed = START; // stays when the pointer leaves
let shown = START;
let chips = []; // [{caption, word, button, fill, detail}] in reading order

/** The packed maps of a caption in the chosen layer and head. */
function mapsOf(caption) {
  const layer = caption.layers[find("layer").value];
  const head = find("head").value;
  return head === "mean" ? layer.mean : layer.heads[head];
}

function show(place) {
  shown = place;
  const { caption, word } = place;
  const opacity = find("opacity").value / 100;
  const text = photo.captions[caption].words[word];
  const map = word < 0 ? null : mapOf(mapsOf(photo.captions[caption]), word, photo.grid);
  draw(canvas, photo.pixels, photo.box, map, opacity);
  showScale(mapsOf(photo.captions[caption]).tops[0], "share of attention, per patch", photo.box);
  placeMark(find("peak"), map && map.peak, photo.grid, photo.box);
  canvas.setAttribute("aria-label",
    map ? `${photo.name} with the map of “${text}”` : `${photo.name}, the photo alone`);
  find("reading").textContent = map ? `“${text}”: ${described(map)}` : `${photo.name}, before the first word`;
  chips.forEach((chip) => chip.button.setAttribute(
    "aria-pressed", String(chip.caption === caption && chip.word === word)));
}

function described(map) {
  const most = Math.log2(map.levels.length);
  return `most attention at ${cellName(map.peak, map.grid)} (${percent(map.highest)}); `
    + `entropy ${map.entropy.toFixed(2)} of ${most.toFixed(2)} bits`;
}

/** Write the entropies and the scale of the chosen layer and head. */
function refresh() {
  const most = Math.max(Math.log2(photo.grid[0] * photo.grid[1]), 1);
  for (const { caption, word, fill, detail } of chips) {
    if (word >= 0) {
      const map = mapOf(mapsOf(photo.captions[caption]), word, photo.grid);
      fill.style.width = `${100 * map.entropy / most}%`;
      detail.textContent = `, ${described(map)}`;
    }
  }
  show(shown);
}

function refreshHeads() {
  const { layers, heads } = photo.captions[0];
  const kept = Boolean(layers[find("layer").value].heads);
  const numbers = Array.from({ length: kept ? heads : 0 }, (_, head) => [head, `head ${head}`]);
  fillSelect(find("head"), [["mean", `mean of ${heads}`], ...numbers], find("head").value);
  find("missing").hidden = kept;
  find("missing").textContent = "To stay small, the page has only the mean of the heads for this "
    + "layer; a page of fewer photos has each head.";
  refresh();
}

function chip(caption, word, text) {
  const fill = make("span", { className: "fill" });
  const detail = make("span", { className: "hidden" });
  const place = { caption, word };
  const button = make("button", {
    type: "button", className: text.startsWith("<") && text.endsWith(">") ? "word mark-only" : "word",
    onclick: () => { pressed = place; show(place); },
    onfocus: () => { pressed = place; show(place); },
    onmouseenter: () => show(place),
    onmouseleave: () => show(pressed),
  }, text, detail);
  if (word >= 0) button.append(make("span", { className: "track" }, fill));
  chips.push({ ...place, button, fill, detail });
  return button;
}

function showPhoto(data) {
  photo = data;
  chips = [];
  pressed = shown = START;
  find("captions").replaceChildren(...photo.captions.map((caption, number) => {
    const words = caption.words.map((word, place) => chip(number, place, word));
    const start = number === 0 ? [chip(0, -1, "<start>")] : [];
    chips.sort((one, other) => one.caption - other.caption || one.word - other.word);
    const title = `Caption, ${caption.source}`;
    const row = make("div", { className: "words" }, ...start, ...words);
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", title);
    return make("section", { className: "card" }, make("h2", {}, title), row);
  }));
  refreshHeads();
  const first = chips.find((one) => one.word === 0);
  pressed = { caption: first.caption, word: first.word };
  show(pressed);
}

find("captions").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const place = chips.findIndex((one) => one.button === event.target);
  const next = event.key === "Home" ? 0 : event.key === "End" ? chips.length - 1 : place + step;
  if (place >= 0 && chips[next]) {
    event.preventDefault();
    chips[next].button.focus();
  }
});
fillLayers(find("layer"));
find("layer").onchange = refreshHeads;
find("head").onchange = refresh;
find("opacity").oninput = () => show(shown);
photoRow(showPhoto);
